"""Which GPUs there are and how a process is held to some of them. Torch-free."""

import itertools
import os
import re
import subprocess
from collections.abc import Sequence
from typing import Literal

from datamodules.errors import InputError
from experiments.config.schema import ExperimentConfig
from experiments.config.words import counted

QUERY_TIMEOUT_S = 30.0


def gpu_names() -> list[str]:
    """Names of the GPUs that this process may use, none maybe. Id 0 is the first of them: of those
    that a CUDA_VISIBLE_DEVICES leaves."""
    return _asked("name")


def gpu_memory_gib(what: Literal["total", "free"] = "total") -> list[float | None]:
    """Memory of each GPU of `gpu_names`; None where nvidia-smi does not say."""
    return [float(mib) / 1024 if mib.isdigit() else None for mib in _asked(f"memory.{what}")]


def may_share_gpus() -> bool:
    """Whether the GPUs take several processes at a time, which clusters may forbid."""
    return not any("exclusive" in mode.lower() for mode in _asked("compute_mode"))


def _asked(field: str) -> list[str]:
    """A field of each visible GPU; of a part of one (MIG), what names it."""
    try:
        words = ["nvidia-smi", f"--query-gpu=uuid,{field}", "--format=csv,noheader,nounits"]
        listed = subprocess.check_output(
            words, stderr=subprocess.DEVNULL, text=True, timeout=QUERY_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return []
    pairs = [line.strip().split(", ", 1) for line in listed.splitlines() if ", " in line]
    visible = _visible()
    if visible is None:
        return [value for _, value in pairs]
    known = itertools.takewhile(lambda x: not x.isdigit() or int(x) < len(pairs), visible)
    found = []
    for entry in known:
        # CUDA takes the beginning of a UUID too.
        of_uuid = (value for uuid, value in pairs if uuid.startswith(entry))
        found.append(pairs[int(entry)][1] if entry.isdigit() else next(of_uuid, entry))
    return found


def device_kind(config: ExperimentConfig) -> str:
    """`cuda` where stages will find a GPU, else `cpu`: torch's own words, without torch."""
    if config.trainer.accelerator == "cpu":
        return "cpu"
    if config.sweep.launcher == "slurm":
        return "cuda" if config.slurm.gpus else "cpu"
    return "cuda" if gpu_names() else "cpu"


def check_devices(config: ExperimentConfig) -> None:
    """Refuse (InputError), before anything is started, GPUs that are not there, and settings that
    name no GPU or use none of those named.
    """
    wanted, trainer, shared = config.sweep.devices, config.trainer, config.sweep.per_device
    if shared not in ("auto", 1) and config.sweep.launcher == "slurm":
        raise InputError(
            f"sweep.per_device={shared}: a job of SLURM runs one stage at a time; leave it out"
        )
    if shared not in ("auto", 1) and not wanted:
        raise InputError(
            f"sweep.per_device={shared}: says how many stages share each GPU of sweep.devices, "
            "which names none; add sweep.devices=[0], or leave it out"
        )
    is_asked, each = trainer.accelerator == "gpu", trainer.devices
    spreads = each > 1 and trainer.accelerator == "auto"
    if config.sweep.launcher != "local" or not (wanted or is_asked or spreads):
        return
    n = len(gpu_names())
    key = f"sweep.devices={wanted}" if wanted else "trainer.accelerator=gpu"
    if wanted and trainer.accelerator == "cpu":
        raise InputError(f"{key}: trainer.accelerator=cpu uses no GPU; leave one of them out")
    if not n and (wanted or is_asked):
        raise InputError(f"{key}: this machine has no NVIDIA GPU that can be used; leave it out")
    missing = [device for device in wanted if device >= n]
    if missing:
        raise InputError(
            f"{key}: there is no GPU {missing[0]}; this machine has {n}, use 0 to {n - 1}"
        )
    # Without any the training is spread over processes of the CPU.
    if not wanted and 0 < n < each:
        raise InputError(f"trainer.devices={each}: this machine has {counted(n, 'GPU')}")


def device_environment(devices: Sequence[int]) -> dict[str, str]:
    """Variables that hold a process to these GPUs; none where none are named."""
    if not devices:
        return {}
    visible = _visible()
    if visible is not None:
        return {"CUDA_VISIBLE_DEVICES": ",".join(visible[d] for d in devices)}
    # By itself CUDA counts from the fastest GPU on, and not as nvidia-smi does.
    order = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices)), "CUDA_DEVICE_ORDER": order}


def _visible() -> list[str] | None:
    """Entries of CUDA_VISIBLE_DEVICES up to the first that names no GPU (`-1`, `NoDevFiles`), as
    CUDA reads it; None where it is not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    names_gpu = re.compile(r"\d+|(GPU|MIG)-.+").fullmatch
    return list(itertools.takewhile(names_gpu, (entry.strip() for entry in value.split(","))))
