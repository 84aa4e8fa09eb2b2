"""What a check of `sonosweep doctor` is, and how several run without waiting for a dead mount.

Free of numpy, psutil and torch: a broken installation must still be told from a whole one.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.config.schema import ExperimentConfig

Mark = Literal["ok", "warn", "missing"]
"""`missing`: a run cannot start without it. `warn`: it can, and the user should know."""
ASK_TIMEOUT_S = 6.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the screen."""

    name: str
    mark: Mark
    text: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty where nothing is to be done."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same for programs: plain JSON types, units in the names."""


Checker = Callable[[ExperimentConfig], Check]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command said."""

    code: int | None
    """Exit code; None where it could not be started or did not end in time."""
    out: str = ""
    err: str = ""

    @property
    def complaint(self) -> str:
        """The first line of what went wrong."""
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines()]
        return next((line for line in lines if line), f"exit code {self.code}")


def ask(*command: str, timeout_s: float = ASK_TIMEOUT_S, cwd: Path | None = None) -> Answer:
    """Run a command that only tells something; it may be absent, broken or stuck."""
    if shutil.which(command[0]) is None:
        return Answer(code=None, err=f"{command[0]} is not on the PATH")
    try:
        ended = subprocess.run(
            command,
            cwd=cwd,
            # Nothing to read, and no need of a /dev/null that a sandbox may have closed.
            input="",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            # Messages that are looked into must be in one language.
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return Answer(code=None, err=f"{command[0]} gave no answer within {timeout_s:.0f} s")
    except OSError as error:
        return Answer(code=None, err=f"{command[0]} cannot be started: {error.strerror}")
    return Answer(code=ended.returncode, out=ended.stdout, err=ended.stderr)


def from_message(name: str, error: Exception) -> Check:
    """A missing thing from a user's error, whose line ends in what to do after its last `;`."""
    message = one_line(error)
    text, _, remedy = message.rpartition("; ")
    return Check(name=name, mark="missing", text=text or remedy, remedy=remedy if text else "")


def one_line(error: object) -> str:
    """Text without line breaks."""
    return " ".join(str(error).split())


def run_checks(
    checkers: Mapping[str, Checker], config: ExperimentConfig, *, timeout_s: float
) -> Iterator[Check]:
    """Run all at the same time and give their lines in the order of the mapping.

    What a checker raises becomes a line that warns, and so does one that does not end: a lost
    mount holds whoever looks at it.

    Args:
        checkers: Checkers by the name of their line.
        config: What a run would be.
        timeout_s: Seconds from the call on after which a checker is not waited for.
    """
    found: dict[str, Check] = {}

    def look(name: str, checker: Checker) -> None:
        try:
            found[name] = checker(config)
        # Whatever an odd machine makes a checker raise, the other lines still stand.
        except Exception as error:
            what = f"could not be looked at ({type(error).__name__}: {one_line(error)})"
            found[name] = Check(name=name, mark="warn", text=what)

    threads = {
        name: threading.Thread(target=look, args=(name, checker), daemon=True)
        for name, checker in checkers.items()
    }
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + timeout_s
    for name, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        late = Check(
            name=name,
            mark="warn",
            text=f"no answer within {timeout_s:.0f} s",
            remedy="look for a lost mount or a device that hangs",
        )
        yield found.get(name, late)
