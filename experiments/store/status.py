"""State of a sweep, from its plan and the markers in its store: no torch, no data, no waiting.

Other processes write while this reads: whatever is missing or half written counts as not there.
"""

import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.text import Text

from datamodules.errors import InputError
from experiments.config.stored import own_folder
from experiments.config.words import counted
from experiments.store.guard import is_held, is_used
from experiments.store.layout import PLAN_NAME, check_version
from experiments.store.plan_file import PlanFile, PlannedStage, PlannedTrial, read_plan
from experiments.store.runs import DONE_NAME, MANIFEST_NAME, damage, read_failure, read_status
from experiments.store.screen import NAMED, format_duration, print_table, say, say_more

State = Literal["done", "running", "failed", "blocked", "interrupted", "waiting"]
STATES: tuple[State, ...] = get_args(State)
STYLES: dict[State, str] = {
    "done": "green",
    "running": "bold cyan",
    "failed": "bold red",
    "blocked": "red",
    "interrupted": "yellow",
    "waiting": "dim",
}
CELL = ("is_control", "segmenter", "condition", "generator", "choice", "n_real")
"""What trials have in common that differ by their draws alone."""
QUIET_S = 300.0
"""A running stage that has said nothing for longer is marked."""
TAIL_BYTES = 16384


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """State of one stage: interrupted is what began and no process runs now, and blocked what needs
    the result of one that failed; what was done and is damaged waits to be made again."""

    key: str
    label: str
    state: State
    reason: str = ""
    """Why it failed, or how its result is damaged, in one line."""
    kind: str = ""
    """Kind of the failure, where that is known."""
    what: str = ""
    """What it does now, or did when it was interrupted."""
    done: int = 0
    total: int = 0
    age_s: float | None = None
    """Seconds since it last said how far it is; None where it has not."""
    log: str = ""
    """Path of its log."""
    log_tail: tuple[str, ...] = ()
    """Last lines of the log of a failed stage."""


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """State of a sweep; each count has all states."""

    name: str
    folder: Path
    is_running: bool
    """Whether a process leads it; jobs that were sent to a cluster run without one."""
    stages: tuple[StageStatus, ...]
    trials: dict[State, int]
    """Trials of the grid; the controls are in `cells` alone."""
    cells: list[dict[str, Any]]
    """Trials of the same `CELL`, counted by state."""

    def of(self, *states: State) -> list[StageStatus]:
        """Stages in some states, in the plan's order."""
        return [stage for stage in self.stages if stage.state in states]

    @property
    def damaged(self) -> list[StageStatus]:
        """Stages that were done and are to be made again."""
        return [stage for stage in self.of("waiting") if stage.reason]

    @property
    def counts(self) -> dict[State, int]:
        """Stages by state."""
        return _counts(stage.state for stage in self.stages)


def find_sweep(sweep: str, *, root: Path) -> Path:
    """Folder of a sweep: the path of one or of the recipe in it, or a name below `root`; InputError
    if there is none.
    """
    if not sweep:
        raise InputError("an empty name of a sweep; give its folder or its name")
    if Path(sweep).suffix == ".csv":
        raise InputError(f"{sweep}: no sweep but rows; give its folder {Path(sweep).parent}")
    if Path(sweep).name == "config.yaml" and Path(sweep).is_file():
        return own_folder(Path(sweep).parent)
    for name in (PLAN_NAME, "config.yaml"):
        for folder in (Path(sweep), root / sweep):
            if (folder / name).is_file():
                return own_folder(folder)
    known = sorted(path.parent.name for path in root.glob(f"*/{PLAN_NAME}"))
    hint = f"there is {', '.join(known)}" if known else f"{root} holds none; give --root"
    raise InputError(f"{sweep}: no such sweep; {hint}")


def read_sweep(folder: Path, *, log_lines: int = 5) -> SweepStatus:
    """Read the state of a sweep, with so many lines of the log of each failed stage; InputError if
    a newer version wrote the plan or the store, or the plan is damaged.
    """
    root = folder.parent
    plan = read_plan(folder)
    check_version(root)
    found: dict[str, StageStatus] = {}
    for stage in plan.stages:
        status = _stage(stage, run_dir=root / "store" / stage.key, n_lines=log_lines)
        inputs = [found[key] for key in stage.upstream if key in found]
        broken = [each for each in inputs if each.state in ("failed", "blocked")]
        if status.state == "waiting" and broken:
            reason = f"{broken[0].label}: {broken[0].reason}"
            status = replace(status, state="blocked", reason=reason)
        found[stage.key] = status
    states = {key: status.state for key, status in found.items()}
    return SweepStatus(
        name=folder.resolve().name,
        folder=folder,
        is_running=is_used(folder),
        stages=tuple(found.values()),
        trials=_counts(trial_state(t, states) for t in plan.trials if not t.is_control),
        cells=_cells(plan, states=states),
    )


def trial_state(trial: PlannedTrial, states: dict[str, State]) -> State:
    """State of a trial from those of its own stages: the worst, and `done` if all are.

    A stage that is missing in `states` counts as waiting.
    """
    own = {states.get(key, "waiting") for key in trial.keys}
    worst = next((s for s in ("failed", "blocked", "running", "interrupted") if s in own), None)
    return worst or ("done" if own == {"done"} else "waiting")


def as_json(status: SweepStatus) -> dict[str, Any]:
    """The same for a program, as JSON types."""
    return {
        "sweep": status.name,
        "folder": str(status.folder),
        "is_running": status.is_running,
        "stages": status.counts,
        "trials": status.trials,
        "cells": status.cells,
        "running": [asdict(stage) for stage in status.of("running")],
        "failures": [asdict(stage) for stage in status.of("failed")],
        "interrupted": [asdict(stage) for stage in status.of("interrupted")],
        "damaged": [asdict(stage) for stage in status.damaged],
    }


def last_lines(path: Path, *, count: int) -> tuple[str, ...]:
    """Last lines of a log that say something, without colours; none where it cannot be read.

    A line that was written over by carriage returns, as progress bars do, is what was seen last.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ()
    seen = (AnsiDecoder().decode_line(line.rstrip("\r")).plain.rstrip() for line in lines)
    return tuple(line for line in seen if line)[-count:] if count else ()


def _stage(stage: PlannedStage, *, run_dir: Path, n_lines: int) -> StageStatus:
    made = functools.partial(StageStatus, key=stage.key, label=stage.label)
    # The lock is asked before the marker: what ends in between is done, not interrupted.
    held = is_held(run_dir)
    log = run_dir / "log.txt"
    if (run_dir / DONE_NAME).exists():
        # As a sweep that starts sees it: it makes again what tables could not be made from.
        found = None if held else damage(run_dir)
        if found is None:
            return made(state="done")
        return made(state="waiting", reason=found, log=str(log))
    failure = None if held else read_failure(run_dir)
    if failure is not None:
        tail = last_lines(log, count=n_lines)
        return made(state="failed", **asdict(failure), log=str(log), log_tail=tail)
    if not held and not (run_dir / MANIFEST_NAME).is_file():
        return made(state="waiting")
    made = functools.partial(made, state="running" if held else "interrupted", log=str(log))
    said = read_status(run_dir)
    if said is None:
        return made()
    age_s = max(0.0, time.time() - said.time)
    return made(what=said.what, done=said.done, total=said.total, age_s=age_s)


def _cells(plan: PlanFile, *, states: dict[str, State]) -> list[dict[str, Any]]:
    """Controls last; names in the plan's order, amounts ascending."""
    cells: dict[tuple[Any, ...], list[State]] = {}
    rank: dict[str, int] = {}
    for trial in plan.trials:
        cell = tuple(getattr(trial, axis) for axis in CELL)
        for name in cell[1:-1]:
            rank.setdefault(name, len(rank))
        cells.setdefault(cell, []).append(trial_state(trial, states))
    ordered = sorted(cells, key=lambda cell: (cell[0], *map(rank.get, cell[1:-1]), cell[-1]))
    return [dict(zip(CELL, cell, strict=True), trials=_counts(cells[cell])) for cell in ordered]


def _counts(states: Iterable[State]) -> dict[State, int]:
    found = Counter(states)
    return {state: found[state] for state in STATES}


def print_status(status: SweepStatus, console: Console) -> None:
    """Print counts, the table of trials, what runs, and what failed and why."""
    leads = "running" if status.is_running else "not running"
    if not status.is_running and status.of("running"):
        leads = "its jobs run without it"
    n_trials, counts = sum(status.trials.values()), status.counts
    say(console, f"{status.name}: {leads}", style="bold")
    say(console, f"{counted(n_trials, 'trial')}: ", format_counts(status.trials))
    say(console, f"{counted(len(status.stages), 'stage')}: ", format_counts(counts))
    say(console)
    _print_cells(status.cells, console)
    for state in ("running", "interrupted", "failed"):
        _print_stages(f"{state}:", status.of(state), console, style=STYLES[state])
    damaged = "damaged, to be made again:"
    _print_stages(damaged, status.damaged, console, style=STYLES["failed"])
    if counts["failed"]:
        say(console, "\nonce the cause is fixed: sonosweep sweep ... --retry-failed")
    elif not status.is_running and (counts["interrupted"] or counts["waiting"]):
        say(console, "\nthe same sweep command continues from here")


def _print_stages(
    head: str, stages: Sequence[StageStatus], console: Console, *, style: str
) -> None:
    if stages:
        say(console)
        say(console, head, style=style)
    for stage in stages[:NAMED]:
        say(console, f"  {stage.label}{_progress(stage)}")
        # A path is copied whole, so it is not folded.
        log = os.path.relpath(stage.log) if stage.log else ""
        if stage.state == "failed":
            say(console, f"    {stage.reason}", style=style)
            console.print(Text(f"    {log}"), soft_wrap=True)
        elif stage.reason:
            console.print(Text(f"    {Path(log).parent}: {stage.reason}"), soft_wrap=True)
        for line in stage.log_tail:
            say(console, f"    | {line}", style="dim")
    say_more(console, len(stages), more="; --json names all")


def format_counts(counts: dict[State, int]) -> Text:
    """Counts as `3 done, 1 failed`; `none` for no counts."""
    parts = [Text(f"{counts[s]} {s}", style=STYLES[s]) for s in STATES if counts[s]]
    return Text(", ").join(parts) if parts else Text("none")


def _print_cells(cells: list[dict[str, Any]], console: Console) -> None:
    """A row a cell; segmenters, generators and choices are named where there are several."""
    axes = [
        axis
        for axis in ("segmenter", "generator", "choice")
        if len({cell[axis] for cell in cells} - {""}) > 1
    ]
    axes.insert(axes.count("segmenter"), "condition")
    rows: list[list[str | Text]] = []
    shown: list[str] = []
    for cell in cells:
        names = [cell[axis] for axis in axes]
        # What stands in the row above is left out, from the left.
        same = itertools.takewhile(lambda both: both[0] == both[1], zip(shown, names, strict=False))
        n_same = len(list(same))
        amount = "" if cell["is_control"] else str(cell["n_real"])
        rows.append([*[""] * n_same, *names[n_same:], amount, format_counts(cell["trials"])])
        shown = names
    print_table(console, [*axes, "images", "trials"], rows, numbers=("images",))


def _progress(stage: StageStatus) -> str:
    if stage.age_s is None:
        return ": not begun to count" if stage.state == "running" else ""
    is_silent = stage.state == "running" and stage.age_s > QUIET_S
    said = f"{format_duration(stage.age_s)} ago{', silent since' if is_silent else ''}"
    return f": {stage.what} {stage.done}/{stage.total}, {said}"
