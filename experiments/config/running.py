"""Where and how stages run. Torch-free."""

from dataclasses import dataclass, field
from typing import Literal

from datamodules.allowed import above, at_least


@dataclass(kw_only=True)
class TrainerConfig:
    """Where and how training runs. Nothing here changes what is computed beyond rounding, but for
    `batch_parts` of a U-Net."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Lightning's accelerator."""
    devices: int = 1
    """Devices that a segmenter's or a generator's training is spread over, by DDP; the batch stays
    as large as it is, shared between them. Other stages use one."""
    batch_parts: int = 1
    """Parts in which a batch is computed, one after the other, to save memory: the optimiser's step
    is the same, but for the U-Net's batch normalisation, whose statistics are each part's. The next
    smaller divisor of a batch is taken; where memory still runs out, a stage takes more."""
    threads: int | None = None
    """CPU threads of a stage; null shares the cores between `sweep.workers`."""
    num_workers: int = 0
    """Loader processes of a stage."""
    checkpoint_every: int = 100
    """Optimiser steps between checkpoints; with early stopping it is each validation instead."""
    checkpoint_s: float = 10.0
    """Least seconds between checkpoints; a kill loses this much and `checkpoint_every` steps."""
    resident_gib: float = 8.0
    """Memory of a GPU, GiB, that a stage's training items may take: they are then moved there once
    and not batch by batch."""

    def __post_init__(self) -> None:
        from_1 = ("devices", "batch_parts", "threads", "checkpoint_every")
        at_least(1).check(self, *from_1, section="trainer")
        from_0 = ("num_workers", "checkpoint_s", "resident_gib")
        at_least(0).check(self, *from_0, section="trainer")


@dataclass(kw_only=True)
class SlurmConfig:
    """What a job asks a SLURM cluster for, where `sweep.launcher` is slurm."""

    partition: str | None = None
    """Partition; null takes the cluster's default."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    time_min: int = 120
    """Time limit of a job, minutes; a job that is ended by it continues in another one."""
    grace_s: int = 120
    """Seconds before that limit at which a job is asked to write a checkpoint and end; SLURM may
    ask up to a minute earlier."""
    mem_gb: int = 16
    """Memory of a job, GB."""
    cpus: int = 4
    """Cores of a job."""
    gpus: int = 1
    """GPUs of a job; `trainer.devices` where that is more, none where `trainer.accelerator` is cpu
    or this is 0."""
    max_jobs: int = 64
    """Jobs of a sweep in the queue at the same time."""
    array_size: int = 1000
    """Most jobs in one array; the cluster's MaxArraySize less one is the limit."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the job's command, such as `module load cuda`."""
    poll_s: float = 15.0
    """Seconds between two looks at the queue."""

    def __post_init__(self) -> None:
        from_1 = ("time_min", "grace_s", "mem_gb", "cpus", "max_jobs", "array_size")
        at_least(1).check(self, *from_1, section="slurm")
        at_least(0).check(self, "gpus", section="slurm")
        above(0).check(self, "poll_s", section="slurm")
        if self.grace_s >= 60 * self.time_min:
            raise ValueError(
                f"slurm.grace_s={self.grace_s}: less than slurm.time_min={self.time_min} minutes"
            )


@dataclass(kw_only=True)
class StoreConfig:
    """Where runs go."""

    root: str = "runs"
    """Folder of all runs."""

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("store.root is empty: name a folder")


NOT_IN_PROJECTS = frozenset("/\\#?%:")
"""What W&B takes in no project's name."""
MAX_PROJECT = 128


@dataclass(kw_only=True)
class WandbConfig:
    """Weights & Biases, a view on the runs."""

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """`auto`: online where the user is logged in, offline otherwise."""
    project: str = "sonosweep"
    """Project."""
    entity: str | None = None
    """User or team; null takes the login's default."""

    def __post_init__(self) -> None:
        # Otherwise each stage would say so in its log alone, and none be logged.
        found, n = sorted(NOT_IN_PROJECTS.intersection(self.project)), len(self.project)
        if self.mode != "disabled" and (found or not 1 <= n <= MAX_PROJECT):
            why = f"W&B takes no {' '.join(found)} in it" if found else f"{n} letters, not 1 to 128"
            raise ValueError(f"wandb.project={self.project}: {why}; a team is wandb.entity")
