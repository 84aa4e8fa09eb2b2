"""Run a plan: stages in processes of their own, as many at once as asked, none of them twice."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Literal

from experiments.config import ExperimentConfig
from experiments.context import StageContext
from experiments.data import Data
from experiments.nodes import Node, Plan
from experiments.store import RunStore, failure_reason, read_status
from experiments.worker import run_node

State = Literal["waiting", "running", "done", "reused", "failed", "blocked"]
FINISHED: tuple[State, ...] = ("done", "reused", "failed", "blocked")
POLL_S = 0.25
STOP_GRACE_S = 20.0
MALLOC_TUNABLES = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        "glibc.malloc.mmap_threshold=4294967296",
        "glibc.malloc.trim_threshold=17179869184",
    )
)


@dataclass(kw_only=True)
class NodeRun:
    """How one stage fares."""

    node: Node
    state: State = "waiting"
    reason: str = ""
    """Why it failed or cannot start."""
    started: float = 0.0
    seconds: float = 0.0
    process: BaseProcess | None = field(default=None, repr=False)
    what: str = ""
    done: int = 0
    total: int = 0


class SweepInterruptedError(Exception):
    """The user or the system asked the sweep to stop; everything finished is kept."""


class Sweep:
    """The stages of a plan and their processes."""

    def __init__(self, config: ExperimentConfig, *, data: Data, plan: Plan) -> None:
        self.config, self.data, self.plan = config, data, plan
        self.store = RunStore(_absolute(config.store.root))
        self.threads = config.trainer.threads or max(
            1, len(os.sched_getaffinity(0)) // config.sweep.workers
        )
        self.runs = {key: NodeRun(node=node) for key, node in plan.nodes.items()}
        for run in self.runs.values():
            if self.store.is_done(run.node.stage, run.node.id):
                run.state = "reused"
        self._stop = False

    @property
    def pending(self) -> int:
        """Stages that are neither finished nor given up."""
        return sum(run.state not in FINISHED for run in self.runs.values())

    def recall_failures(self) -> None:
        """Take a stage whose last attempt failed for failed: for outputs written without a run."""
        for run in self.runs.values():
            if run.state != "waiting":
                continue
            reason = failure_reason(self.store.run_dir(run.node.stage, run.node.id))
            if reason is None:
                self._block(run)
            else:
                run.state, run.reason = "failed", reason

    def run(self, on_change: Callable[[], None]) -> None:
        """Run what is not done. One stage's failure stops nothing but what needs its result.

        Args:
            on_change: Called several times a second, to draw.

        Raises:
            SweepInterruptedError: After SIGINT or SIGTERM; the stages were given time to write a
                checkpoint.
        """
        if not self.pending:
            return
        spawner = _forkserver()
        previous = {
            number: signal.signal(number, self._ask_stop)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            while self.pending:
                if self._stop:
                    raise SweepInterruptedError
                self._collect()
                self._start_ready(spawner)
                on_change()
                time.sleep(POLL_S)
        finally:
            self._end_processes()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask_stop(self, *_: object) -> None:
        self._stop = True

    def _start_ready(self, spawner: multiprocessing.context.ForkServerContext) -> None:
        busy = sum(run.state == "running" for run in self.runs.values())
        for run in self.runs.values():
            if run.state != "waiting":
                continue
            self._block(run)
            inputs = [self.runs[key] for key in run.node.upstream.values()]
            if (
                run.state == "waiting"
                and busy < self.config.sweep.workers
                and all(i.state in ("done", "reused") for i in inputs)
            ):
                self._start(run, spawner)
                busy += 1

    def _block(self, run: NodeRun) -> None:
        """Give a stage up where one of its inputs cannot be had."""
        inputs = [self.runs[key] for key in run.node.upstream.values()]
        broken = [i for i in inputs if i.state in ("failed", "blocked")]
        if broken:
            run.state = "blocked"
            run.reason = f"{broken[0].node.label}: {broken[0].reason}"

    def _start(self, run: NodeRun, spawner: multiprocessing.context.ForkServerContext) -> None:
        context = StageContext(
            config=self.config,
            node=run.node,
            store=self.store,
            samples=self.data.samples,
            rows=self.data.rows,
            content=self.data.view.content,
            sweep=self.config.name,
            tags=self._tags(run.node),
        )
        (self.store.run_dir(run.node.stage, run.node.id) / "status.json").unlink(missing_ok=True)
        run.process = spawner.Process(target=run_node, args=(context, self.threads))
        run.process.start()
        run.state, run.started = "running", time.monotonic()

    def _tags(self, node: Node) -> tuple[str, ...]:
        """Conditions and amounts of the trials that this stage is."""
        tags = {self.data.name}
        for spec in self.plan.trials:
            if node.key in spec.keys:
                tags |= {spec.condition, f"n={spec.n_real}"}
        return tuple(sorted(tags))

    def _collect(self) -> None:
        for run in self.runs.values():
            if run.state != "running" or run.process is None:
                continue
            run_dir = self.store.run_dir(run.node.stage, run.node.id)
            status = read_status(run_dir)
            if status is not None:
                run.what, run.done, run.total = status["what"], status["done"], status["total"]
            if run.process.is_alive():
                continue
            run.seconds = time.monotonic() - run.started
            # The marker decides: a process that was told to stop may well exit with 0.
            if self.store.is_done(run.node.stage, run.node.id):
                run.state = "done"
            else:
                run.state = "failed"
                code = run.process.exitcode
                ended = f"its process ended with {code}; see {run_dir / 'log.txt'}"
                run.reason = failure_reason(run_dir) or ended
            run.process.join()
            run.process = None

    def _end_processes(self) -> None:
        alive = [run.process for run in self.runs.values() if run.process is not None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        for process in alive:
            process.join(max(0.1, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _forkserver() -> multiprocessing.context.ForkServerContext:
    """Processes forked from one that has imported torch: a stage then starts in milliseconds."""
    # Waiting threads sleep: spinning ones take the other process's core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("WANDB_SILENT", "true")
    # Large activations otherwise go back to the system and come again page by page at every step:
    # on two cores an encoder pass took 1.65 s so, and 0.96 s with this.
    os.environ.setdefault("GLIBC_TUNABLES", MALLOC_TUNABLES)
    spawner = multiprocessing.get_context("forkserver")
    spawner.set_forkserver_preload(["experiments.stages"])
    return spawner


def _absolute(root: str) -> str:
    return os.path.abspath(root)  # noqa: PTH100 - Path.resolve would follow links
