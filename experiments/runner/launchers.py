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
from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES
from experiments.runner.distributed import write_request
from experiments.runner.gpu_room import GpuRoom
from experiments.runner.gpus import device_environment, device_kind
from experiments.runner.server import start_first, start_server
from experiments.runner.slots import slots_of, threads_of
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
        """Start jobs of one or more stages, each stage after the one before it; those started: all,
        or the first ones where the next does not fit now."""

    def keep_alone(self, job: Job) -> bool:
        """Let the stage of a job share no GPU from now on; whether it had shared one."""

    def leave(self, jobs: Sequence[Job]) -> str:
        """The sweep was asked to stop: end or leave the jobs; gives a line for the user, or ''."""


class LocalLauncher:
    """Processes of this machine: forked ones, or a command where several devices share a stage."""

    chains = False
    poll_s = 0.25
    stop_grace_s = 20.0

    def __init__(self, config: ExperimentConfig) -> None:
        self._config = config
        self.slots, self.threads = slots_of(config), threads_of(config)
        is_sized = config.sweep.per_device == "auto" and len(set(self.slots)) < len(self.slots)
        # Without a GPU, and where its stages are counted, nothing is asked.
        self._room = GpuRoom(config) if is_sized and device_kind(config) == "cuda" else None
        self._busy: dict[int, _ProcessJob] = {}
        self._spawner: ForkServerContext | None = None

    def free(self) -> int:
        for number in [i for i, job in self._busy.items() if job.ended() is not None]:
            ended = self._busy.pop(number)
            if self._room:
                self._room.learn(ended.node.stage)
        return len(self.slots) - len(self._busy)

    def start(self, jobs: Sequence[Sequence[StageContext]]) -> list[Job]:
        started: list[Job] = []
        for (context,) in jobs:
            number = self._slot_for(context.node)
            if number is None:
                break
            job = _ProcessJob(self._process(context, self.slots[number]), context.node)
            for each in self._beside(number):
                each.has_shared = job.has_shared = True
            self._busy[number] = job
            started.append(job)
        return started

    def keep_alone(self, job: "_ProcessJob") -> bool:
        if self._room and job.has_shared:
            self._room.keep_alone(job.node)
        return self._room is not None and job.has_shared

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

    def _slot_for(self, node: Node) -> int | None:
        """The first free place whose GPUs hold the stage beside what runs on them."""
        for number, devices in enumerate(self.slots):
            if number in self._busy:
                continue
            beside = [job.node for job in self._beside(number)]
            if self._room is None or self._room.fits(node, beside=beside, devices=devices):
                return number
        return None

    def _beside(self, number: int) -> "list[_ProcessJob]":
        """Jobs on the same GPUs."""
        return [job for i, job in self._busy.items() if self.slots[i] == self.slots[number]]

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
    def __init__(self, process: BaseProcess | _Command, node: Node) -> None:
        self.process, self.node, self.has_shared = process, node, False

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
