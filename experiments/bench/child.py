"""Work in another process: functions that a child calls for us, and programs. Torch-free.

A child asks nothing and answers one line of JSON for each line that it is sent. A sweep's stages
keep freed memory (`GLIBC_TUNABLES`), which is one of our fast paths; the published way runs as a
plain script does, which gives the pages of every large tensor back and fetches them again.
"""

import contextlib
import io
import json
import os
import pkgutil
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from experiments.config.paths import ROOT


class Seconds(NamedTuple):
    """Wall clock, and the processor's of all threads; of processes too, where they were started."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a child measured while it worked."""

    seconds: Seconds
    imported_gib: float
    """Peak resident memory before the work."""
    peak_gib: float
    """The same after it."""
    gpu_gib: float
    """Peak of the GPU's memory; 0 without one."""


def environment(*, keeps_memory: bool) -> dict[str, str]:
    """Ours for a child: these packages, and a stage's memory settings or a plain script's."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": path}
    if not keeps_memory:
        found.pop("GLIBC_TUNABLES", None)
        return found
    from experiments.runner.launchers import MALLOC_TUNABLES

    found.setdefault("GLIBC_TUNABLES", MALLOC_TUNABLES)
    found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return found


class Child:
    """A process that calls functions; it starts with the first call and ends with `close`.

    Args:
        keeps_memory: Whether it has a stage's memory settings.
    """

    def __init__(self, *, keeps_memory: bool = False) -> None:
        self._keeps_memory = keeps_memory
        self.process: subprocess.Popen[str] | None = None

    def call(self, function: str, /, **given: Any) -> Answer:
        """Have a function prepare some work there, and the work done.

        Args:
            function: `module:function`, which gives back the work, a function without arguments.
            given: Its arguments, of JSON types; `device` is one of them.

        Raises:
            RuntimeError: With the child's last line, where it failed.
        """
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "experiments.bench.child"],
                env=environment(keeps_memory=self._keeps_memory),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([function, given]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            self.close()
            raise RuntimeError(f"the process of {function} ended before its answer")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{function} failed: {answer['error']}")
        return Answer(**answer | {"seconds": Seconds(*answer["seconds"])})

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def timed(work: Callable[[], object], *, device: str) -> Seconds:
    """Seconds of a call; a GPU works on after its call came back, and that counts."""
    _wait(device)
    started, processor = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    return Seconds(time.perf_counter() - started, time.process_time() - processor)


def run_program(words: Sequence[str]) -> Seconds:
    """Run Python with these words to its end; seconds of it and of all that it waited for.

    Raises:
        RuntimeError: With its last line, where it failed.
    """
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, *words],
        env=environment(keeps_memory=True),
        check=False,
        capture_output=True,
        text=True,
    )
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        lines = (ended.stdout + ended.stderr).strip().splitlines() or ["no words"]
        raise RuntimeError(f"{' '.join(words[:3])} ended with {ended.returncode}: {lines[-1]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Seconds(wall_s, used)


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _peak_gib() -> float:
    # On Linux the unit is KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _answer(function: str, given: dict[str, Any]) -> Answer:
    prepare = pkgutil.resolve_name(function)
    imported_gib, gpu_gib = _peak_gib(), 0.0
    seconds = timed(prepare(**given), device=given["device"])
    if given["device"] == "cuda":
        import torch

        gpu_gib = torch.cuda.max_memory_allocated() / 2**30
    return Answer(seconds=seconds, imported_gib=imported_gib, peak_gib=_peak_gib(), gpu_gib=gpu_gib)


def main() -> None:
    """Answer until the channel closes."""
    for line in sys.stdin:
        try:
            # Libraries print; the answers' channel is not for that.
            with contextlib.redirect_stdout(io.StringIO()):
                answer = asdict(_answer(*json.loads(line)))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
