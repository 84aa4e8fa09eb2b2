"""Work in another process: functions that a child calls for us, and programs. Torch-free.

A sweep's stages keep freed memory (`GLIBC_TUNABLES`), which is one of our fast paths; the published
way runs as a plain script does.
"""

import contextlib
import io
import logging
import os
import pkgutil
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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


def start_child(*, keeps_memory: bool = False) -> ProcessPoolExecutor:
    """A process of its own for `measured`; a context that ends with it."""
    ours = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(keeps_memory=keeps_memory))
    try:
        child = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_silence)
        # It starts with its first work, in the environment of then.
        child.submit(int).result()
    finally:
        os.environ.clear()
        os.environ.update(ours)
    return child


def measured(child: ProcessPoolExecutor, function: str, /, **given: Any) -> Answer:
    """Have `module:function` prepare some work in a child, with these arguments, and do it there.

    Raises:
        BrokenProcessPool: The process ended before its answer.
        Exception: Whatever the work raised.
    """
    return child.submit(_answer, function, given).result()


def timed(work: Callable[[], object], *, device: str) -> Seconds:
    """Seconds of a call, or those that it gives back.

    A GPU works on after its call came back, and that counts.
    """
    _wait(device)
    started, processor = time.perf_counter(), time.process_time()
    found = work()
    _wait(device)
    whole = Seconds(time.perf_counter() - started, time.process_time() - processor)
    return found if isinstance(found, Seconds) else whole


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print, log and warn of off the screen; a sweep sends it to a log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


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


def _silence() -> None:
    # Libraries print, and our own output is for the results.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _answer(function: str, given: dict[str, Any]) -> Answer:
    prepare, imported_gib, gpu_gib = pkgutil.resolve_name(function), _peak_gib(), 0.0
    seconds = timed(prepare(**given), device=given["device"])
    if given["device"] == "cuda":
        import torch

        gpu_gib = torch.cuda.max_memory_allocated() / 2**30
    return Answer(seconds, imported_gib, _peak_gib(), gpu_gib)
