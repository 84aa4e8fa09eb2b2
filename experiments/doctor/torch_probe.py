"""What torch finds, as JSON on stdout. Run as a script: a torch that crashes ends this alone."""

import json
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a build of torch has code for a GPU.

    Args:
        capability: The GPU's compute capability, (9, 0) for 9.0.
        architectures: `torch.cuda.get_arch_list()`: sm_90 is machine code, which runs on the same
            major number from its minor number on; compute_90 is compiled for anything later.
    """
    for kind, number in re.findall(r"\b(sm|compute)_(\d+)", " ".join(architectures)):
        major, minor = int(number[:-1]), int(number[-1])
        if kind == "compute" and (major, minor) <= capability:
            return True
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
    return False


def probe() -> dict[str, Any]:
    """Versions, CUDA and devices; `error` where torch or torchvision cannot be imported.

    No memory is taken on a device: a sweep may be running there.
    """
    try:
        import torch

        # The segmenter's backbones import it, and it fails beside a torch of another build.
        import torchvision
    # A library that does not load, an operator that is not there: many kinds.
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    found = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "is_available": is_available,
        "warning": " ".join(str(said[0].message).split()) if said else None,
        "devices": [],
    }
    for number in range(torch.cuda.device_count() if is_available else 0):
        properties = torch.cuda.get_device_properties(number)
        capability = (properties.major, properties.minor)
        found["devices"].append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "compute_capability": f"{capability[0]}.{capability[1]}",
                "has_code": bool(torch.version.hip)
                or runs_on(capability, torch.cuda.get_arch_list()),
            }
        )
    return found


if __name__ == "__main__":
    json.dump(probe(), sys.stdout)
