"""What a check of `sonosweep doctor` is, and how several run without waiting for a dead mount.

Free of numpy, psutil and torch: a broken installation must still be recognised.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from datamodules.errors import InputError
from experiments.config.schema import ExperimentConfig
from lightning_modules.errors import WeightsError

Mark = Literal["ok", "warn", "missing"]
"""`missing`: a run cannot start without it. `warn`: it can, and the user should know."""


@dataclass(frozen=True)
class Check:
    """What was found, what to do about it, and the same for programs (units in the names)."""

    mark: Mark
    text: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


Checker = Callable[[ExperimentConfig], Check]


def refused(error: Exception) -> Check:
    """A user's error as a finding: it is one line that ends in what to do."""
    text, _, remedy = str(error).rpartition("; ")
    return Check("missing", text or remedy, remedy if text else "")


def ask(*command: str, timeout_s: float = 6.0) -> tuple[int | None, str]:
    """Exit code and output of a command that may be absent, broken or stuck.

    Where the code is not 0 the output is the first line of the complaint; the code is None where
    the command could not be started or gave no answer in time.
    """
    # An empty input: a sandbox may have closed /dev/null.
    options = {"input": "", "capture_output": True, "text": True, "errors": "replace"}
    try:
        ended = subprocess.run(
            command, timeout=timeout_s, check=False, env=os.environ | {"LC_ALL": "C"}, **options
        )
    except subprocess.TimeoutExpired:
        return None, f"{command[0]} gave no answer within {timeout_s:g} s"
    except OSError as error:
        return None, f"{command[0]} cannot be started ({error.strerror})"
    if ended.returncode == 0:
        return 0, ended.stdout
    complaint = ended.stderr.strip() or ended.stdout.strip() or f"exit code {ended.returncode}"
    return ended.returncode, complaint.splitlines()[0]


def run_checks(
    checkers: Mapping[str, Checker], config: ExperimentConfig, *, timeout_s: float
) -> Iterator[tuple[str, Check]]:
    """Run all at the same time and give what they found in the order of the mapping.

    What a checker raises becomes a finding, and so does one that does not end within `timeout_s`
    seconds from the call on: a lost mount blocks every process that reads it.
    """
    found: dict[str, Check] = {}

    def look(name: str, checker: Checker) -> None:
        try:
            found[name] = checker(config)
        except (InputError, WeightsError) as error:
            found[name] = refused(error)
        # Whatever an odd machine makes a checker raise, the other lines still stand.
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            found[name] = Check("warn", f"could not be looked at ({what})", "see what it names")

    threads = [threading.Thread(target=look, args=row, daemon=True) for row in checkers.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + timeout_s
    late = Check("warn", f"no answer within {timeout_s:g} s", "look for a lost mount")
    for name, thread in zip(checkers, threads, strict=True):
        thread.join(max(0.0, end - time.monotonic()))
        yield name, found.get(name, late)
