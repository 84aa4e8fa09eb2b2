"""What `sonosweep status` prints."""

import itertools
import os

from rich.console import Console
from rich.text import Text

from experiments.store.screen import NAMED, format_duration, print_table, say, say_more
from experiments.store.status import STATES, CellStatus, StageStatus, State, SweepStatus

STYLES: dict[State, str] = {
    "done": "green",
    "running": "bold cyan",
    "failed": "bold red",
    "blocked": "red",
    "interrupted": "yellow",
    "waiting": "dim",
}
QUIET_S = 300.0
"""A running stage that has said nothing for longer is marked."""


def print_status(status: SweepStatus, console: Console) -> None:
    """Print counts, the table of trials, what runs, and what failed and why."""
    leads = "running" if status.is_running else "not running"
    if not status.is_running and status.of("running"):
        leads = "its jobs run without it"
    n_trials, counts = sum(status.trials.values()), status.counts
    say(console, f"{status.name}: {leads}", style="bold")
    say(console, f"{n_trials} trial{'' if n_trials == 1 else 's'}: ", format_counts(status.trials))
    say(console, f"{len(status.stages)} stages: ", format_counts(counts))
    say(console)
    _print_cells(status.cells, console)
    for state in ("running", "interrupted", "failed"):
        stages = status.of(state)
        if not stages:
            continue
        say(console)
        say(console, f"{state}:", style=STYLES[state])
        for stage in stages[:NAMED]:
            say(console, f"  {stage.label}{_progress(stage)}")
            if state == "failed":
                _print_reason(stage, console)
        say_more(console, len(stages), more="; --json names all" if state == "failed" else "")
    if counts["failed"]:
        say(console, "\nonce the cause is fixed: sonosweep sweep ... --retry-failed")
    elif not status.is_running and (counts["interrupted"] or counts["waiting"]):
        say(console, "\nthe same sweep command continues from here")


def format_counts(counts: dict[State, int]) -> Text:
    """Counts as `3 done, 1 failed`; `none` for no counts."""
    parts = [Text(f"{counts[s]} {s}", style=STYLES[s]) for s in STATES if counts[s]]
    return Text(", ").join(parts) if parts else Text("none")


def _print_cells(cells: tuple[CellStatus, ...], console: Console) -> None:
    """A row a cell; segmenters, generators and choices are named where there are several."""
    axes = [
        axis
        for axis in ("segmenter", "generator", "choice")
        if len({getattr(cell, axis) for cell in cells} - {""}) > 1
    ]
    axes.insert(axes.count("segmenter"), "condition")
    rows: list[list[str | Text]] = []
    shown: list[str] = []
    for cell in cells:
        names = [getattr(cell, axis) for axis in axes]
        # What stands in the row above is left out, from the left.
        same = itertools.takewhile(lambda both: both[0] == both[1], zip(shown, names, strict=False))
        n_same = len(list(same))
        amount = "" if cell.is_control else str(cell.n_real)
        rows.append([*[""] * n_same, *names[n_same:], amount, format_counts(cell.trials)])
        shown = names
    print_table(console, [*axes, "images", "trials"], rows, numbers=("images",))


def _progress(stage: StageStatus) -> str:
    if stage.age_s is None:
        return ": not begun to count" if stage.state == "running" else ""
    is_silent = stage.state == "running" and stage.age_s > QUIET_S
    said = f"{format_duration(stage.age_s)} ago{', silent since' if is_silent else ''}"
    return f": {stage.what} {stage.done}/{stage.total}, {said}"


def _print_reason(stage: StageStatus, console: Console) -> None:
    say(console, f"    {stage.reason}", style=STYLES["failed"])
    # A path is copied whole, so it is not folded.
    console.print(Text(f"    {os.path.relpath(stage.log)}"), soft_wrap=True)
    for line in stage.log_tail:
        say(console, f"    | {line}", style="dim")
