"""One job of a SLURM cluster as the sweep sees it: what the queue says, and its markers."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.runner.slurm_queue import ENDED, Seen
from experiments.runner.worker import STOPPED

RETURNING = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
"""States that a job which SLURM queues again may show for a moment."""
INTERRUPTED_CODES = (130, STOPPED)
"""Exit codes of our command when it was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class _End:
    words: str
    was_killed: bool
    at: float
    """Time of the monotonic clock at which it was seen."""


class SlurmJob:
    """Stages that one job of the cluster runs, one after the other.

    Args:
        name: Job name of its batch.
        run_dirs: Where its stages leave their markers.
        look: Asks the queue for all jobs together, unless that was just done.
        settle_s: How long a marker may take from a node to here, seconds.
    """

    def __init__(
        self, *, name: str, run_dirs: Sequence[Path], look: Callable[[], None], settle_s: float
    ) -> None:
        self._run_dirs, self._look, self._settle_s = list(run_dirs), look, settle_s
        self.name = name
        self.job_id: str | None = None
        """SLURM's id; None as long as the cluster has not taken it."""
        self.end: _End | None = None
        """How SLURM ended it; its markers may still be on their way."""
        self._sent = 0.0
        self._returning = False

    def sent_as(self, job_id: str) -> None:
        """The cluster has taken it."""
        self.job_id, self._sent = job_id, time.monotonic()

    def refused(self, words: str) -> None:
        """The cluster does not take it."""
        self._ended(f"its job was refused: {words}", was_killed=False)

    def look(self, seen: Seen | None, *, asked: float) -> None:
        """Take in what squeue said, asked at that time; None where it did not name the job."""
        if self.job_id is None or self.end is not None or asked < self._sent:
            return
        if seen is None:
            self._ended(f"its job {self.job_id} has left the queue", was_killed=True)
        elif seen.state not in ENDED:
            self._returning = False
        elif seen.state in RETURNING and not self._returning:
            # At the next look it is over, or waits to run again.
            self._returning = True
        else:
            was_killed = _was_killed(seen)
            self._ended(_words(self.job_id, seen), was_killed=was_killed)

    def ended(self) -> str | None:
        """How it ended, in words; None while it may still run or leave a marker."""
        self._look()
        if self.end is None:
            return None
        is_late = time.monotonic() - self.end.at > self._settle_s
        return self.end.words if is_late or self.job_id is None or self._is_settled() else None

    @property
    def was_killed(self) -> bool:
        """Whether a limit, a preemption or a lost node ended it."""
        return self.end is not None and self.end.was_killed

    def _ended(self, words: str, *, was_killed: bool) -> None:
        self.end = _End(words=words, was_killed=was_killed, at=time.monotonic())

    def _is_settled(self) -> bool:
        """Whether its markers say all: each stage is done, or one has failed."""
        for run_dir in self._run_dirs:
            # Listing a folder that another machine wrote to makes this one look again.
            with contextlib.suppress(OSError):
                names = os.listdir(run_dir)  # noqa: PTH208 - no Path of each entry is wanted
                if "DONE.json" in names:
                    continue
                return "FAILED.json" in names
            return False
        return True


def _was_killed(seen: Seen) -> bool:
    """Whether the same may well work again: neither cancelled by hand, nor short of memory."""
    if seen.state in ("FAILED", "COMPLETED"):
        return seen.code < 0 or seen.code in INTERRUPTED_CODES
    return seen.state not in ("CANCELLED", "OUT_OF_MEMORY")


def _words(job_id: str, seen: Seen) -> str:
    if seen.code in INTERRUPTED_CODES:
        return f"its job {job_id} was preempted, or near its time limit"
    more = {
        "TIMEOUT": " (slurm.time_min)",
        "OUT_OF_MEMORY": " (raise slurm.mem_gb)",
        "CANCELLED": " (by scancel)",
    }.get(seen.state, f" (exit code {seen.code})" if seen.code else "")
    return f"its job {job_id} ended as {seen.state}{more}, log in the sweep's folder slurm/"


def job_command(config_path: Path, stages: Sequence[str]) -> list[str]:
    """The words after the interpreter with which a cluster's job runs stages of a sweep."""
    here = ["sweep.launcher=local", "sweep.workers=1", "sweep.devices=[]"]
    chosen = [word for key in stages for word in ("--stage", key)]
    root = f"store.root={config_path.parent.parent}"
    return ["-m", "experiments", "trial", str(config_path), *chosen, root, *here]
