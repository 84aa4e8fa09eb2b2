"""`sonosweep status` for people: readable at 60 columns, in a log, and without colours."""

import os

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.store.status import STATES, StageStatus, State, SweepStatus

STYLES: dict[State, str] = {
    "done": "green",
    "running": "bold cyan",
    "failed": "bold red",
    "blocked": "red",
    "interrupted": "yellow",
    "waiting": "dim",
}
NAMED = 20
"""Stages of a state that are named one by one."""
QUIET_S = 300.0
"""A running stage that has said nothing for longer is marked."""


def ago(seconds: float) -> str:
    """A span of time in its largest unit: 12 s, 3 min, 5 h, 2 d."""
    for unit, each, below in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 129600)):
        if seconds < below:
            return f"{seconds / each:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def print_status(status: SweepStatus, console: Console) -> None:
    """Print counts, the table of trials, what runs, and what failed and why."""
    leads = "running" if status.is_running else "not running"
    if not status.is_running and status.of("running"):
        leads = "its jobs run without it"
    n_trials, n_stages = sum(status.trials.values()), len(status.stages)
    console.print(Text(f"{status.name}: {leads}", style="bold"))
    console.print(
        Text.assemble(
            "1 trial: " if n_trials == 1 else f"{n_trials} trials: ", words(status.trials)
        )
    )
    console.print(Text.assemble(f"{n_stages} stages: ", words(status.counts)))
    console.print()
    console.print(_table(status))
    for title, state in (("running", "running"), ("interrupted", "interrupted")):
        _print_stages(status.of(state), console, title=title, style=STYLES[state])
    _print_failures(status, console)
    hint = _hint(status)
    if hint:
        console.print()
        console.print(Text(hint))


def words(counts: dict[State, int]) -> Text:
    """Counts as `3 done, 1 failed`; `none` for no counts."""
    parts = [Text(f"{counts[s]} {s}", style=STYLES[s]) for s in STATES if counts.get(s)]
    return Text(", ").join(parts) if parts else Text("none")


def _table(status: SweepStatus) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("condition", overflow="fold")
    table.add_column("images", justify="right")
    table.add_column("trials", overflow="fold")
    shown = ""
    for cell in status.cells:
        name = "" if cell.condition == shown else cell.condition
        shown = cell.condition
        amount = "" if cell.is_control else str(cell.n_real)
        table.add_row(name, amount, words(cell.trials))
    return table


def _print_stages(stages: list[StageStatus], console: Console, *, title: str, style: str) -> None:
    if not stages:
        return
    console.print()
    console.print(Text(f"{title}:", style=style))
    for stage in stages[:NAMED]:
        console.print(Text(f"  {stage.label}{_progress(stage)}"))
    if len(stages) > NAMED:
        console.print(Text(f"  and {len(stages) - NAMED} more"))


def _progress(stage: StageStatus) -> str:
    if stage.age_s is None:
        return ": not begun to count" if stage.state == "running" else ""
    said = f"{ago(stage.age_s)} ago"
    if stage.state == "running" and stage.age_s > QUIET_S:
        said += ", silent since"
    return f": {stage.what} {stage.done}/{stage.total}, {said}"


def _print_failures(status: SweepStatus, console: Console) -> None:
    failed = status.of("failed")
    if not failed:
        return
    console.print()
    console.print(Text("failed:", style=STYLES["failed"]))
    for stage in failed[:NAMED]:
        console.print(Text(f"  {stage.label}"))
        console.print(Text(f"    {stage.reason}", style=STYLES["failed"]))
        # A path is copied whole, so it is not folded.
        console.print(Text(f"    {os.path.relpath(stage.log)}"), soft_wrap=True)
        for line in stage.log_tail:
            console.print(Text(f"    | {line}", style="dim"))
    if len(failed) > NAMED:
        console.print(Text(f"  and {len(failed) - NAMED} more; --json names all"))


def _hint(status: SweepStatus) -> str:
    counts = status.counts
    if counts.get("failed"):
        return "once the cause is mended: sonosweep sweep ... --retry-failed"
    if not status.is_running and set(counts) & {"interrupted", "waiting"}:
        return "the same sweep command goes on from here"
    return ""
