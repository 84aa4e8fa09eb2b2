"""SLURM's commands and what they say, with one call for all jobs of a sweep. Torch-free."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from typing import NamedTuple

TIMEOUT_S = 30.0
NEEDED = ("sbatch", "squeue", "scancel", "srun")
"""Commands without which nothing is sent; submitit wants to see srun, which no job of ours uses."""
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""States from which a job does not come back; all others may still run, or run again."""
REFUSED = r"^PartitionTimeLimit|PerJob|^MaxMemPerLimit|^BadConstraints|^Invalid(Account|QOS)"
"""Reasons to wait of a job that asks for more than it may get: sbatch takes it all the same where
the cluster does not enforce limits then."""
COLUMNS = "JobArrayID:64,Name:256,State:24,exit_code:12,Reason:128"


class SlurmError(RuntimeError):
    """A command of SLURM failed; its own words in one line."""


class Seen(NamedTuple):
    """A job as squeue shows it."""

    name: str
    state: str
    """RUNNING, PENDING, TIMEOUT, ..."""
    code: int = 0
    """Exit code; less 0 for the signal that ended it."""
    reason: str = ""
    """Why it waits, in SLURM's word: Priority, Resources, JobHeldUser, ..."""

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for what does not come by itself."""
        return self.state == "PENDING" and (self.is_held or bool(re.search(REFUSED, self.reason)))

    @property
    def is_held(self) -> bool:
        """Whether it waits until somebody releases it, as after a node that could not start it."""
        return "held" in self.reason.lower() or self.reason.startswith("JobHold")


def missing_command() -> str | None:
    """The first of SLURM's commands that is not on the PATH, or None."""
    return next((name for name in NEEDED if shutil.which(name) is None), None)


def in_one_line(words: str) -> str:
    """What a command wrote to stderr, without its name before each line."""
    lines = [line.partition("error: ")[2] or line for line in words.splitlines() if line.strip()]
    return "; ".join(line.strip() for line in lines)


def read_queue(names: Collection[str]) -> dict[str, Seen]:
    """The jobs of these names by id, `12` or `12_3`, in one call, or none for no name; those that
    ended a while ago are left out. SlurmError where squeue failed, or does not answer.
    """
    if not names:
        return {}
    chosen = [f"--user={os.getuid()}", f"--name={','.join(sorted(names))}"]
    # Jobs that ended stay for a while (MinJobAge), with how they ended.
    shown = ["--noheader", "--array", "--states=all", f"--Format={COLUMNS}"]
    found = {}
    for line in _run("squeue", *shown, *chosen).splitlines():
        words = line.split()
        if len(words) >= 4 and words[1] in names:
            job_id, name, state, code, *reason = words
            found[job_id] = Seen(name, state, _exit_code(code), " ".join(reason))
    return found


def max_array_size() -> int | None:
    """Most jobs that an array may have here; None where the cluster does not say."""
    try:
        listed = _run("scontrol", "show", "config")
    except SlurmError:
        return None
    found = re.search(r"^\s*MaxArraySize\s*=\s*(\d+)", listed, re.MULTILINE)
    # The highest index is one less; at 0 and 1 there are no arrays.
    return max(1, int(found[1]) - 1) if found else None


def cancel(*job_ids: str) -> None:
    """End jobs; raises `SlurmError` where scancel fails."""
    _run("scancel", *job_ids)


def _exit_code(word: str) -> int:
    """Squeue's exit_code: a wait status, or `code:signal`."""
    if ":" in word:
        code, _, number = word.partition(":")
        return -int(number) if int(number) else int(code)
    return os.waitstatus_to_exitcode(int(word)) if word.isdigit() else 0


def _run(*words: str) -> str:
    try:
        ended = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{words[0]} did not answer within {TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise SlurmError(f"{words[0]}: {error.strerror}") from error
    if ended.returncode:
        reason = in_one_line(ended.stderr) or f"exit code {ended.returncode}"
        raise SlurmError(f"{words[0]}: {reason}")
    return ended.stdout
