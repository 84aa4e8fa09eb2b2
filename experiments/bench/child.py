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
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.paths import ROOT


class Seconds(NamedTuple):
    """Wall clock, and the processor's of all threads; of processes too, where they were started."""

    wall_s: float
    cpu_s: float


class Answer(NamedTuple):
    """What a child measured while it worked; peaks of its memory in GiB."""

    seconds: Seconds
    imported_gib: float
    """Before the work."""
    peak_gib: float
    gpu_gib: float
    """0 without a GPU."""


def environment(*, keeps_memory: bool) -> dict[str, str]:
    """Ours for a child: these packages, and a stage's memory settings or a plain script's."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": path}
    if not keeps_memory:
        found.pop("GLIBC_TUNABLES", None)
        return found
    from experiments.runner.launchers import MALLOC_TUNABLES

    return {"GLIBC_TUNABLES": MALLOC_TUNABLES, "OMP_WAIT_POLICY": "PASSIVE"} | found


class Child:
    """A process that calls functions; it starts with the first call and ends with `close`."""

    def __init__(self, *, keeps_memory: bool = False) -> None:
        self._keeps_memory = keeps_memory
        self.process: subprocess.Popen[str] | None = None

    def call(self, function: str, /, **given: Any) -> Answer:
        """Have `module:function` prepare some work there, with arguments of JSON types, and do it.

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
        if isinstance(answer, str):
            raise RuntimeError(f"{function} failed: {answer}")
        return Answer(Seconds(*answer[0]), *answer[1:])

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
    """Run Python with these words to its end; seconds of it and of all that it waited for."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = environment(keeps_memory=True)
    ended = subprocess.run(
        [sys.executable, *words], env=environ, check=False, capture_output=True, text=True
    )
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        lines = (ended.stdout + ended.stderr).strip().splitlines() or ["no words"]
        raise RuntimeError(f"{' '.join(words[:3])} ended with {ended.returncode}: {lines[-1]}")
    return Seconds(wall_s, sum(after[:2]) - sum(before[:2]))


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _peak_gib() -> float:
    # Not getrusage, which starts with the memory of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def _answer(function: str, given: dict[str, Any]) -> Answer:
    prepare, imported_gib, gpu_gib = pkgutil.resolve_name(function), _peak_gib(), 0.0
    seconds = timed(prepare(**given), device=given["device"])
    if given["device"] == "cuda":
        import torch

        gpu_gib = torch.cuda.max_memory_allocated() / 2**30
    return Answer(seconds, imported_gib, _peak_gib(), gpu_gib)


def main() -> None:
    """Answer until the channel closes; a string is an error."""
    for line in sys.stdin:
        try:
            # Libraries print; the answers' channel is not for that.
            with contextlib.redirect_stdout(io.StringIO()):
                answer: Answer | str = _answer(*json.loads(line))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".splitlines()[0]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
