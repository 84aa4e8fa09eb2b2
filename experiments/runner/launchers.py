"""Where stages run: processes of this machine, one a slot. Torch-free."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import NamedTuple, Protocol

from experiments.config.paths import ROOT
from experiments.config.schema import ExperimentConfig
from experiments.plan.stage_table import STAGES
from experiments.runner.distributed import write_request
from experiments.runner.gpus import device_environment
from experiments.runner.server import start_first, start_server
from experiments.runner.worker import STOPPED, run_node
from experiments.stages.context import StageContext

MALLOC_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184"
)


class End(NamedTuple):
    """How a job ended."""

    words: str
    was_killed: bool
    """Whether a signal or the system ended it, so that the same may well work again."""


class Job(Protocol):
    """Stages that were started together."""

    def ended(self) -> End | None:
        """How it ended; None while it may still run."""


class Launcher(Protocol):
    """Starts stages somewhere and knows how many more it takes."""

    chains: bool
    """Whether a start costs so much that the stages that follow one go with it."""
    poll_s: float
    """Seconds between two looks at the jobs."""

    def free(self) -> int:
        """Jobs that can start now."""

    def start(self, jobs: Sequence[Sequence[StageContext]]) -> list[Job]:
        """Start jobs of one or more stages, each stage after the one before it."""

    def leave(self, jobs: Sequence[Job]) -> str:
        """The sweep was asked to stop: end or leave the jobs; gives a line for the user, or ''."""


def slots_of(config: ExperimentConfig) -> list[tuple[int, ...]]:
    """The places of this machine for a job at a time, each with the ids of its GPUs; without ids
    for whatever the process sees. A GPU that several share comes up again after all others.
    """
    grid, each = config.sweep, config.trainer.devices
    if not grid.devices:
        return [()] * grid.workers
    groups = [tuple(grid.devices[i : i + each]) for i in range(0, len(grid.devices), each)]
    return groups * grid.per_device


def threads_of(config: ExperimentConfig) -> int:
    """CPU threads of a stage: as set, or an equal share of the cores for each slot."""
    cores = len(os.sched_getaffinity(0))
    return config.trainer.threads or max(1, cores // len(slots_of(config)))


class LocalLauncher:
    """Processes of this machine: forked ones, or a command where several devices share a stage."""

    chains = False
    poll_s = 0.25
    stop_grace_s = 20.0

    def __init__(self, config: ExperimentConfig) -> None:
        self._config = config
        self.slots, self.threads = slots_of(config), threads_of(config)
        self._busy: dict[int, _ProcessJob] = {}
        self._spawner: ForkServerContext | None = None

    def free(self) -> int:
        self._busy = {i: job for i, job in self._busy.items() if job.ended() is None}
        return len(self.slots) - len(self._busy)

    def start(self, jobs: Sequence[Sequence[StageContext]]) -> list[Job]:
        started: list[Job] = []
        free = (i for i in range(len(self.slots)) if i not in self._busy)
        for (context,), number in zip(jobs, list(free), strict=False):
            self._busy[number] = _ProcessJob(self._process(context, self.slots[number]))
            started.append(self._busy[number])
        return started

    def leave(self, jobs: "Sequence[_ProcessJob]") -> str:
        """End all, after time to write a checkpoint."""
        for job in jobs:
            # A command's first process tells the others.
            job.process.terminate()
        for job in jobs:
            job.process.join(self.stop_grace_s)
            if job.process.exitcode is None:
                job.process.kill()
                job.process.join()
        return ""

    def _process(self, context: StageContext, devices: Sequence[int]) -> "BaseProcess | _Command":
        row = STAGES[context.node.stage]
        if self._config.trainer.devices > 1 and row.is_distributed:
            return _command(context, threads=self.threads, devices=devices)
        spawner = self._spawner or _forkserver()
        arguments = (context, row, self.threads, device_environment(devices[:1]))
        process = spawner.Process(target=run_node, args=arguments)
        if self._spawner is None:
            self._spawner = spawner
            start_first(process)
        else:
            process.start()
        return process


class _Command(subprocess.Popen):
    """A command by the names of a `BaseProcess`; the processes of all its devices end together."""

    exitcode = property(subprocess.Popen.poll)

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout)

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)


class _ProcessJob:
    def __init__(self, process: BaseProcess | _Command) -> None:
        self.process = process

    def ended(self) -> End | None:
        code = self.process.exitcode
        if code is None:
            return None
        if code < 0:
            return End(f"its process was killed by {signal.Signals(-code).name}", was_killed=True)
        if code == STOPPED:
            return End("its process was asked to stop", was_killed=True)
        return End(f"its process ended with {code}", was_killed=False)


def _command(context: StageContext, *, threads: int, devices: Sequence[int]) -> _Command:
    """A command of its own: Lightning starts it once more for every further device."""
    context.run_dir.mkdir(parents=True, exist_ok=True)
    write_request(context)
    # Modules of a user's own are found where they are here.
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    words = ["-m", "experiments.runner.distributed", str(context.run_dir), str(threads)]
    return _Command(
        [sys.executable, *words],
        env={**os.environ, **device_environment(devices), "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        # A group, which `kill` ends.
        start_new_session=True,
    )


def _forkserver() -> ForkServerContext:
    """Processes forked from one that has imported torch: a stage then starts in milliseconds."""
    # Waiting threads sleep: spinning ones take the other process's core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("WANDB_SILENT", "true")
    # Large activations otherwise go back to the system and come again page by page at every step:
    # on two cores an encoder pass took 1.65 s so, and 0.96 s with this.
    os.environ.setdefault("GLIBC_TUNABLES", MALLOC_TUNABLES)
    modules = (row.run.split(":")[0] for row in STAGES.values() if row.is_preloaded)
    return start_server(list(dict.fromkeys(modules)))
