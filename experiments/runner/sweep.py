"""Run a plan: stages in jobs of their own, as many at once as there is room, none of them twice."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.errors import InputError
from experiments.config.schema import ExperimentConfig
from experiments.config.words import counted
from experiments.plan.nodes import Node, Plan
from experiments.plan.stage_table import STAGES
from experiments.runner.launchers import End, Job, Launcher, LocalLauncher
from experiments.stages.context import StageContext
from experiments.stages.data import Data
from experiments.store.provenance import code_state
from experiments.store.runs import (
    DONE_NAME,
    READ_FOR_TABLES,
    Failure,
    FailureKind,
    RunStore,
    Status,
    damage,
    is_done,
    read_failure,
    read_result,
    read_status,
)

State = Literal["waiting", "running", "done", "reused", "failed", "blocked"]
FINISHED: tuple[State, ...] = ("done", "reused", "failed", "blocked")
ROOM_MIB = 512
"""Free space from which on a sweep continues that paused because the disk was full; on a small
disk, a twentieth of it."""
PACE_UNITS, PACE_S = 2, 10.0
"""Units and seconds after which a running stage tells its pace."""
UNSEEN_S = 60.0
"""Seconds until the next attempt where a disk is full that shows enough free space: by a quota, or
because it is another one than the store's."""
FULL_MIB = 1
"""Free space below which even the reason of a failure may not have been written."""


@dataclass(kw_only=True)
class NodeRun:
    """State of one stage."""

    node: Node
    state: State = "waiting"
    reason: str = ""
    """Why it failed or cannot start."""
    started: float = 0.0
    seconds: float = 0.0
    job: Job | None = field(default=None, repr=False)
    what: str = ""
    done: int = 0
    total: int = 0
    first_heard: tuple[str, int, float] | None = None
    """What it was at when it first told of units done, how many, and when."""
    n_killed: int = 0
    """Times that its process was killed without having got further."""
    done_when_killed: int = 0
    batch_parts: int = 1
    """Parts that its batches are computed in, since memory ran out."""

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        return self.state in ("done", "reused")

    def hear(self, status: Status) -> None:
        """Take what the running stage says of itself."""
        self.what, self.done, self.total, _ = status
        first = self.first_heard
        if first is None or first[0] != self.what or self.done < first[1]:
            # Its first unit pays for what is set up once.
            began = (self.what, self.done, time.monotonic())
            self.first_heard = began if self.done else None

    def seconds_left(self) -> float | None:
        """How long it takes by its own pace, seconds; None before enough is seen of it."""
        if self.first_heard is None:
            return None
        _, n_first, since = self.first_heard
        n, seconds = self.done - n_first, time.monotonic() - since
        if n < PACE_UNITS or seconds < PACE_S:
            return None
        return seconds / n * (self.total - self.done)


class SweepInterruptedError(Exception):
    """The user or the system asked the sweep to stop; everything finished is kept."""


class Sweep:
    """The stages of a plan and their jobs, by default in processes of this machine."""

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        data: Data,
        plan: Plan,
        launcher: Launcher | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config, self.data, self.plan, self.say = config, data, plan, say
        root = os.path.abspath(config.store.root)  # noqa: PTH100 - resolve would follow links
        self.store = RunStore(root)
        self.launcher: Launcher = launcher or LocalLauncher(config)
        self.damaged: list[str] = []
        """Files of finished stages that are not what was written, with what is wrong."""
        self.runs: dict[str, NodeRun] = {}
        for key, node in plan.nodes.items():
            parts = parts_within(config.trainer.batch_parts, limit=self._batch_size(node))
            run = self.runs[key] = NodeRun(node=node, batch_parts=parts)
            if not self._is_damaged(run) and is_done(self.run_dir(run)):
                run.state = "reused"
        self.halted = ""
        """Why no more is started; empty while all goes well."""
        self._failures_in_row: list[NodeRun] = []
        self._paused_until: float | None = None
        """Since the disk is full: the time before which it is not asked again."""
        self._stop = False
        self._code: dict[str, str | None] | None = None
        """The code that runs: as found before the server imports it, which forks the stages."""
        self._compared: set[str] = set()
        """Stages all of whose files were compared with what they were."""

    def _is_damaged(self, run: NodeRun, *, names: Sequence[str] | None = READ_FOR_TABLES) -> bool:
        """Whether a stage that was done has a file that is not what it wrote; if so, in a line."""
        run_dir = self.run_dir(run)
        found = damage(run_dir, names=names)
        if found is not None:
            self.damaged.append(str(run_dir / found))
            self.say(f"{run.node.label}: {run_dir / found}, so it is to be made again")
        return found is not None

    def _has_sound_inputs(self, run: NodeRun) -> bool:
        """Whether its inputs are there. All files of those that were there before are compared,
        once; a damaged one is made again."""
        if not self._has_inputs(run):
            return False
        for key in run.node.upstream.values():
            made = self.runs[key]
            if made.state == "reused" and key not in self._compared:
                self._compared.add(key)
                if self._is_damaged(made, names=None):
                    made.state = "waiting"
        return self._has_inputs(run)

    def run_dir(self, run: NodeRun) -> Path:
        """Directory of a stage."""
        return self.store.run_dir(run.node.stage, run.node.id)

    def result(self, run: NodeRun) -> dict[str, Any]:
        """What a stage that is done wrote in its marker."""
        return read_result(self.run_dir(run))

    @property
    def pending(self) -> int:
        """Stages that are neither finished nor given up."""
        return sum(run.state not in FINISHED for run in self.runs.values())

    def recall_failures(self, *, kinds: Sequence[FailureKind] = get_args(FailureKind)) -> int:
        """Take a stage whose last attempt failed in such a way for failed; gives their number."""
        for run in self.runs.values():
            if run.state != "waiting":
                continue
            failure = read_failure(self.run_dir(run))
            if failure is not None and failure.kind in kinds:
                run.state, run.reason = "failed", failure.reason
            else:
                self._block(run)
        return sum(run.state == "failed" for run in self.runs.values())

    def run(self, on_change: Callable[[], None]) -> None:
        """Run what is not done. One stage's failure stops nothing but what needs its result.

        `on_change` is called several times a second, to draw. SweepInterruptedError after SIGINT or
        SIGTERM: the stages were given time to write a checkpoint, or continue where their launcher
        leaves them. InputError where the store is not there any more.
        """
        self.store.root.mkdir(parents=True, exist_ok=True)
        place, self._code = self.store.root.stat(), code_state()
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._ask_stop) for number in signals}
        try:
            while self.pending:
                if self._stop:
                    raise SweepInterruptedError
                self._require_store(place)
                self._collect()
                if self.halted and not self._running():
                    break
                self._start_ready()
                on_change()
                time.sleep(self.launcher.poll_s)
        except (EOFError, ConnectionError):
            if not self._stop:
                raise
            # The signal has ended the server that was to fork a stage.
            raise SweepInterruptedError from None
        finally:
            left = self.launcher.leave([run.job for run in self._running()])
            if left:
                self.say(left)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _require_store(self, place: os.stat_result) -> None:
        """Stop before the empty folder below a lost mount is filled with results."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self.store.root.stat(), place):
                return
        raise InputError(
            f"store.root={self.store.root}: the folder is gone, or is another one than at the "
            "start (a lost mount?); restore it, and the same command continues"
        )

    def _ask_stop(self, *_: object) -> None:
        self._stop = True

    def _running(self) -> list[NodeRun]:
        return [run for run in self.runs.values() if run.state == "running"]

    def _start_ready(self) -> None:
        for run in self.runs.values():
            if run.state == "waiting":
                self._block(run)
        if self.halted or self._is_paused():
            return
        # A stage's own key is a hash over all of its images: those of the table are asked instead.
        free, chains, taken = self.launcher.free(), [], set()
        for key, run in self.runs.items():
            if len(chains) >= free:
                break
            if run.state == "waiting" and key not in taken and self._has_sound_inputs(run):
                chains.append(self._chain(key, taken=taken))
                taken.update(chains[-1])
        if not chains:
            return
        contexts = [[self._context(self.runs[key]) for key in chain] for chain in chains]
        for chain, job in zip(chains, self.launcher.start(contexts), strict=False):
            for run in map(self.runs.get, chain):
                run.job, run.state, run.started = job, "running", time.monotonic()
                run.first_heard = None

    def _has_inputs(self, run: NodeRun, *, coming: Sequence[str] = ()) -> bool:
        keys = run.node.upstream.values()
        return all(key in coming or self.runs[key].is_done for key in keys)

    def _chain(self, first: str, *, taken: set[str]) -> list[str]:
        """What goes into one job: the stage, and what waits for it alone but no other training."""
        chain = [first]
        # The plan's order has each stage after its inputs.
        for key, run in self.runs.items() if self.launcher.chains else ():
            if (
                run.state == "waiting"
                and not STAGES[run.node.stage].is_training
                and key not in taken
                and not {*run.node.upstream.values()}.isdisjoint(chain)
                and self._has_inputs(run, coming=chain)
            ):
                chain.append(key)
        return chain

    def _block(self, run: NodeRun) -> None:
        """Give a stage up where one of its inputs is not available."""
        inputs = [self.runs[key] for key in run.node.upstream.values()]
        broken = [i for i in inputs if i.state in ("failed", "blocked")]
        if broken:
            run.state = "blocked"
            run.reason = f"{broken[0].node.label}: {broken[0].reason}"

    def _context(self, run: NodeRun) -> StageContext:
        run_dir = self.run_dir(run)
        # What an earlier attempt left must not be taken for this one's.
        for name in ("status.json", "FAILED.json"):
            (run_dir / name).unlink(missing_ok=True)
        if damage(run_dir, names=None) is not None:
            (run_dir / DONE_NAME).unlink(missing_ok=True)
        trials = tuple(spec for spec in self.plan.trials if run.node.key in spec.keys)
        return StageContext(
            config=self.config,
            node=run.node,
            store=self.store,
            samples=self.data.samples,
            unlabelled=self.data.unlabelled,
            rows=self.data.rows,
            content=self.data.content,
            tags=tuple(sorted({self.data.name}.union(*(spec.tags for spec in trials)))),
            trials=trials,
            code=self._code,
            batch_parts=run.batch_parts,
        )

    def _collect(self) -> None:
        for run in self._running():
            run_dir = self.run_dir(run)
            status = read_status(run_dir)
            if status is not None:
                run.hear(status)
            # In this order: a marker that was written before the end is then always seen.
            ended = run.job.ended()
            # The marker decides: a process that was told to stop may well exit with 0.
            if is_done(run_dir):
                run.state, run.reason = "done", ""
                self._failures_in_row.clear()
            elif ended is not None and not self._has_inputs(run):
                # It stood behind its input in one job, and was never begun.
                run.state = "waiting"
            elif ended is not None:
                failure, log = read_failure(run_dir), run_dir / "log.txt"
                # A job may have ended before the stage began.
                unsaid = f"{ended.words}; see {log}" if log.exists() else ended.words
                run.reason = failure.reason if failure else unsaid
                again = self._again(run, failure, ended)
                if again:
                    run.state = "waiting"
                    self.say(f"{run.node.label}: {again}")
                else:
                    self._fail(run)
            if run.state != "running":
                run.seconds, run.job = time.monotonic() - run.started, None

    def _again(self, run: NodeRun, failure: Failure | None, ended: End) -> str:
        """Why another attempt may succeed; nothing where it would not."""
        was_killed = failure is None and ended.was_killed
        if was_killed and run.done > run.done_when_killed:
            # A job that a time limit ends again and again still gets further each time.
            run.n_killed, run.done_when_killed = 0, run.done
        if was_killed and run.n_killed < self.config.sweep.retries:
            run.n_killed += 1
            return f"{ended.words}; it continues from its checkpoint"
        # A launcher's job with stages behind one another is a sweep itself, and has tried that.
        if failure and failure.kind == "out_of_memory" and self.launcher.keep_alone(run.job):
            return "out of memory beside other stages; again, alone on its GPU"
        if failure and failure.kind == "out_of_memory" and not self.launcher.chains:
            parts = next_batch_parts(run.batch_parts, limit=self._batch_size(run.node))
            if parts is not None:
                run.batch_parts = parts
                return f"out of memory; again, a batch in {parts} parts"
        is_full = failure is not None and failure.kind == "disk_full"
        if failure is None and not was_killed:
            is_full = shutil.disk_usage(self.store.root).free < FULL_MIB * 2**20
        if not is_full:
            return ""
        self._paused_until = time.monotonic() + (UNSEEN_S if self._has_room() else 0.0)
        return (
            f"the disk is full, the sweep pauses; free some of {self.store.root} and it continues, "
            "or end it and start it again later"
        )

    def _fail(self, run: NodeRun) -> None:
        run.state = "failed"
        self._failures_in_row.append(run)
        n = len(self._failures_in_row)
        if n >= self.config.sweep.max_failures:
            first, *others = dict.fromkeys(each.reason for each in self._failures_in_row)
            more = f" (and {counted(len(others), 'other reason')})" if others else ""
            self.halted = (
                f"{counted(n, 'stage')} failed in a row, so no more is started: {first}{more}; fix "
                "it and start again with --retry-failed"
            )

    def _batch_size(self, node: Node) -> int:
        return STAGES[node.stage].batch_size(content=node.content, config=self.config)

    def _has_room(self) -> bool:
        usage = shutil.disk_usage(self.store.root)
        return usage.free >= min(ROOM_MIB * 2**20, usage.total / 20)

    def _is_paused(self) -> bool:
        """Whether the disk is still full."""
        if self._paused_until is None:
            return False
        if time.monotonic() < self._paused_until or not self._has_room():
            return True
        self._paused_until = None
        self.say("there is room on the disk again; the sweep continues")
        return False


def parts_within(wanted: int, *, limit: int) -> int:
    """The largest divisor of a batch of `limit` items that is no larger than wanted."""
    return next(n for n in range(min(wanted, limit), 0, -1) if limit % n == 0)


def next_batch_parts(current: int, *, limit: int) -> int | None:
    """The next larger divisor of a batch of `limit` items; None where each item is alone."""
    return next((n for n in range(2 * current, limit + 1) if limit % n == 0), None)
