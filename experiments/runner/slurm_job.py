"""Jobs of a SLURM cluster as the sweep sees them: what the queue says, their markers, `jobs.json`.

A batch is written down before it is sent and again with its id, so that a sweep that was killed
at any moment neither sends a stage twice nor loses sight of a job. Torch-free.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.errors import InputError
from datamodules.storage import write_json
from experiments.config.words import counted
from experiments.runner.launchers import End
from experiments.runner.slurm_queue import ENDED, Seen, SlurmError, missing_command, read_queue
from experiments.runner.worker import STOPPED

RETURNING = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
"""States that a job which SLURM queues again may show for a moment."""
INTERRUPTED_CODES = (130, STOPPED)
"""Exit codes of our command when it was asked to stop."""


@dataclass(kw_only=True, eq=False)
class SlurmJob:
    """Stages that one job of the cluster runs, one after the other."""

    run_dirs: Sequence[Path]
    """Where its stages leave their markers."""
    ask: Callable[[], None]
    """Asks the queue for all jobs together, unless that was just done."""
    settle_s: float
    """How long a marker may take from a node to here."""
    job_id: str | None = None
    """SLURM's id; None as long as the cluster has not taken it."""
    end: End | None = None
    """How SLURM ended it; its markers may still be on their way."""
    _ended_at: float = 0.0
    _returning: bool = False

    def look(self, seen: Seen | None) -> None:
        """Take in what squeue said of it while it was alive; None where it was not named."""
        if seen is None:
            self.end_as(End(f"its job {self.job_id} has left the queue", was_killed=True))
        elif seen.state not in ENDED:
            self._returning = False
        elif seen.state in RETURNING and not self._returning:
            # At the next look it is over, or waits to run again.
            self._returning = True
        else:
            self.end_as(_end_of(str(self.job_id), seen))

    def end_as(self, end: End) -> None:
        """It has ended, or was not taken."""
        self.end, self._ended_at = end, time.monotonic()

    def ended(self) -> End | None:
        """How it ended; None while it may still run or leave a marker."""
        self.ask()
        if self.end is None:
            return None
        is_late = time.monotonic() - self._ended_at > self.settle_s
        return self.end if is_late or self.job_id is None or self._is_settled() else None

    def _is_settled(self) -> bool:
        """Whether its markers say all: each stage is done, or one has failed."""
        for run_dir in self.run_dirs:
            # Listing a folder that another machine wrote to makes this one look again.
            with contextlib.suppress(OSError):
                names = os.listdir(run_dir)  # noqa: PTH208 - no Path of each entry is wanted
                if "DONE.json" in names:
                    continue
                return "FAILED.json" in names
            return False
        return True


def _end_of(job_id: str, seen: Seen) -> End:
    was_asked = seen.code in INTERRUPTED_CODES
    # What was cancelled by hand, or short of memory, would not work again.
    was_killed = seen.state not in ("CANCELLED", "OUT_OF_MEMORY")
    if seen.state in ("FAILED", "COMPLETED"):
        was_killed = was_asked or seen.code < 0
    if was_asked:
        return End(f"its job {job_id} was preempted, or near its time limit", was_killed)
    more = {
        "TIMEOUT": " (slurm.time_min)",
        "OUT_OF_MEMORY": " (raise slurm.mem_gb)",
        "CANCELLED": " (by scancel)",
    }.get(seen.state, f" (exit code {seen.code})" if seen.code else "")
    log = f"slurm/{job_id}_0_log.out in the sweep's folder"
    return End(f"its job {job_id} ended as {seen.state}{more}, log {log}", was_killed)


@dataclass(kw_only=True)
class Batch:
    """Jobs that are sent by one call of sbatch."""

    name: str
    """Their job name, which no other batch has."""
    stages: list[list[str]]
    """`stage/id` of each job, one after the other."""
    job_id: str | None = None
    """SLURM's id of the array, or of the one job; None while it is being sent."""
    jobs: list[SlurmJob] = field(default_factory=list)
    """Those of them that this process waits for, in their order."""
    refused_since: float | None = None
    """When it was first refused for the moment; None where it was not."""

    def chains(self) -> dict[str, list[str]]:
        """Stages by SLURM's id of their job, as squeue shows it; an array of one job is none."""
        if self.job_id is None:
            return {}
        if len(self.stages) == 1:
            return {self.job_id: self.stages[0]}
        return {f"{self.job_id}_{number}": chain for number, chain in enumerate(self.stages)}

    @property
    def alive(self) -> list[SlurmJob]:
        """Jobs that have not ended."""
        return [job for job in self.jobs if job.end is None]


def read_ledger(folder: Path) -> list[Batch]:
    """The batches that may be in the queue; none where nothing was sent. InputError if the file is
    damaged.
    """
    path = folder / "jobs.json"
    try:
        return [Batch(**entry) for entry in json.loads(path.read_text())["batches"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: damaged ({error}); look into squeue for jobs of this sweep, then remove it"
        ) from error


def write_ledger(folder: Path, batches: Sequence[Batch]) -> None:
    """Write what may be in the queue; the caller holds the folder."""
    kept = [{"name": each.name, "stages": each.stages, "job_id": each.job_id} for each in batches]
    write_json(folder / "jobs.json", {"batches": kept})


def refuse_queued(folder: Path) -> None:
    """Refuse (InputError) to touch what the jobs of a sweep read, which run without a process that
    leads them: some are in the queue, or it cannot be asked.

    Nothing is known of them where SLURM's commands are not.
    """
    batches = read_ledger(folder / "slurm")
    if not batches or missing_command() is not None:
        return
    try:
        queue = read_queue([batch.name for batch in batches])
    except SlurmError as error:
        raise InputError(
            f"{folder.name}: {error}; its jobs may still be in the queue, try again when SLURM "
            "answers"
        ) from error
    left = [key for key, seen in queue.items() if seen.state not in ENDED]
    if left:
        arrays = sorted({key.split("_")[0] for key in left})
        raise InputError(
            f"{folder.name}: it has {counted(len(left), 'job')} in SLURM's queue; wait for them, "
            f"or end them first: scancel {' '.join(arrays)}"
        )
