"""The places of this machine for stages, and who shares a GPU. Torch-free."""

import os

from experiments.config.schema import ExperimentConfig
from experiments.runner.gpus import device_kind, may_share_gpus

MOST_ON_A_GPU = 4
"""Stages that share a GPU at most where `sweep.per_device` is `auto`; each has two cores."""


def slots_of(config: ExperimentConfig) -> list[tuple[int, ...]]:
    """The places of this machine for a job at a time, each with the ids of its GPUs; without ids
    for whatever the process sees. A GPU that several share comes up again after all others.
    """
    grid, each = config.sweep, config.trainer.devices
    if not grid.devices:
        return [()] * max(grid.workers, _sharing(config, n_groups=1))
    groups = [tuple(grid.devices[i : i + each]) for i in range(0, len(grid.devices), each)]
    return groups * _sharing(config, n_groups=len(groups))


def _sharing(config: ExperimentConfig, *, n_groups: int) -> int:
    """Stages that may share a GPU; whether its memory holds them shows when they start."""
    per_device = config.sweep.per_device
    if per_device != "auto":
        return int(per_device)
    if config.trainer.devices > 1 or device_kind(config) != "cuda" or not may_share_gpus():
        return 1
    return max(1, min(MOST_ON_A_GPU, len(os.sched_getaffinity(0)) // (2 * n_groups)))


def threads_of(config: ExperimentConfig) -> int:
    """CPU threads of a stage: as set, or an equal share of the cores for each slot."""
    cores = len(os.sched_getaffinity(0))
    return config.trainer.threads or max(1, cores // len(slots_of(config)))
