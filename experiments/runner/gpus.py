"""Which GPUs there are and how a process is held to some of them. Torch-free."""

import os
import subprocess
from collections.abc import Sequence

from datamodules.errors import InputError
from experiments.config.schema import ExperimentConfig

QUERY_TIMEOUT_S = 30.0


def gpu_names() -> list[str]:
    """Names of the GPUs that this process may use, in the order of their ids; may be empty.

    A CUDA_VISIBLE_DEVICES that is set counts: id 0 is then its first entry.
    """
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=QUERY_TIMEOUT_S,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    names = [line.strip() for line in listed.splitlines() if line.strip()]
    visible = _visible()
    if visible is None:
        return names
    # An entry may be a UUID, whose name is not asked for.
    return [names[int(v)] if v.isdigit() and int(v) < len(names) else v for v in visible]


def device_kind(config: ExperimentConfig) -> str:
    """`cuda` where stages will find a GPU, else `cpu`: torch's own words, without torch."""
    if config.trainer.accelerator == "cpu":
        return "cpu"
    if config.sweep.launcher == "slurm":
        return "cuda" if config.slurm.gpus else "cpu"
    return "cuda" if gpu_names() else "cpu"


def check_devices(config: ExperimentConfig) -> None:
    """Refuse GPUs that are not there, before anything is started.

    Raises:
        InputError: For an id beyond the machine's, or a GPU asked for where there is none.
    """
    wanted = config.sweep.devices
    asks = config.trainer.accelerator == "gpu"
    if config.sweep.launcher != "local" or not (wanted or asks):
        return
    n_gpus = len(gpu_names())
    if not n_gpus:
        key = f"sweep.devices={wanted}" if wanted else "trainer.accelerator=gpu"
        raise InputError(f"{key}: this machine has no NVIDIA GPU that can be used; leave it out")
    missing = [device for device in wanted if device >= n_gpus]
    if missing:
        raise InputError(
            f"sweep.devices={wanted}: there is no GPU {missing[0]}; this machine has {n_gpus}, "
            f"use 0 to {n_gpus - 1}"
        )
    if not wanted and config.trainer.devices > n_gpus:
        raise InputError(
            f"trainer.devices={config.trainer.devices}: this machine has {n_gpus} GPUs"
        )


def device_environment(devices: Sequence[int]) -> dict[str, str]:
    """Variables that hold a process to these GPUs; none where none are named."""
    if not devices:
        return {}
    visible = _visible()
    names = [str(d) if visible is None else visible[d] for d in devices]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def _visible() -> list[str] | None:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else [v.strip() for v in value.split(",") if v.strip()]
