"""The live table of a sweep, and its plain lines where there is no terminal."""

import time
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.config.words import counted
from experiments.runner.sweep import FINISHED, NodeRun, Sweep
from experiments.runner.workload import Workload

PLAIN_EVERY_S = 15.0
NARROW = 80
"""Columns of a terminal below which a stage has no bar."""
BAR_WIDTH = 16
MARKS = {
    "running": ("▶", "bold cyan"),
    "failed": ("✗", "bold red"),
    "waiting": ("·", "dim"),
    "done": ("✓", "green"),
    "blocked": ("-", "red"),
    "reused": ("=", "green"),
}
"""Sign and style of a state; where a terminal has too few rows, the first ones are shown."""


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class LiveProgress:
    """Draws a sweep while it runs: a live table, or lines in a log."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._sweep, self._console = sweep, console
        self._began = time.monotonic()
        self._left = Workload(sweep)
        self._printed = {k: run.state for k, run in sweep.runs.items() if run.state == "reused"}
        self._last_plain = 0.0
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, refresh_per_second=2, get_renderable=self._draw)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
        else:
            self.update()

    def update(self) -> None:
        """Print what changed, where there is no terminal; the live table draws itself."""
        if self._live is not None:
            return
        for key, run in self._sweep.runs.items():
            if self._printed.get(key) != run.state and run.state != "waiting":
                self._printed[key] = run.state
                self._line(run)
        if time.monotonic() - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            for run in self._sweep.runs.values():
                if run.state == "running" and run.total:
                    self._line(run)

    def _line(self, run: NodeRun) -> None:
        elapsed, detail = clock(time.monotonic() - self._began), _detail(run)
        left = f", about {clock(self._left.seconds_left())} left" if self._sweep.pending else ""
        text = f"[{elapsed}{left}] {run.state:8} {run.node.label}{': ' + detail if detail else ''}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> Group:
        runs = list(self._sweep.runs.values())
        finished = sum(run.state in FINISHED for run in runs)
        head = Text.assemble(
            (f" {self._sweep.config.name} ", "bold"),
            f"{finished} of {len(runs)} stages, {clock(time.monotonic() - self._began)} elapsed, "
            f"about {clock(self._left.seconds_left())} left ({finished / len(runs):.0%})",
        )
        table = Table.grid(padding=(0, 1))
        shown, hidden = self._fitting(runs)
        # One row a stage, however narrow: a wrapped label would push the running ones off.
        width = self._console.width
        bars = BAR_WIDTH if width >= NARROW else 0
        detail = min(max(18, width // 3), max(len(_detail(run)) for run in shown))
        for column in (1, width - 1 - bars - detail - 3, bars, detail):
            table.add_column(width=column, no_wrap=True, overflow="ellipsis")
        for run in shown:
            mark, style = MARKS[run.state]
            has_bar = bars and run.state == "running" and run.total
            table.add_row(
                Text(mark, style=style),
                Text(run.node.label, style="" if run.state != "waiting" else "dim"),
                ProgressBar(total=run.total, completed=run.done, width=bars) if has_bar else "",
                Text(_detail(run), style=style if run.state in ("failed", "blocked") else "dim"),
            )
        more = f"  and {counted(hidden, 'more stage')}" if hidden else ""
        return Group(head, table, Text(more, style="dim"))

    def _fitting(self, runs: list[NodeRun]) -> tuple[list[NodeRun], int]:
        """As many stages as the terminal has rows for, running and failed ones before others, and
        the number of those left out."""
        room, ranks = max(3, self._console.height - 4), list(MARKS)
        kept = sorted(range(len(runs)), key=lambda i: ranks.index(runs[i].state))[:room]
        return [runs[i] for i in sorted(kept)], len(runs) - len(kept)


def _detail(run: NodeRun) -> str:
    if run.state == "running":
        elapsed = clock(time.monotonic() - run.started)
        return f"{run.what} {run.done}/{run.total}, {elapsed}" if run.total else elapsed
    return {"done": clock(run.seconds), "reused": "done before"}.get(run.state, run.reason)
