"""What the screens of `status` and `clean` share: readable at 60 columns, in a log, uncoloured."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

NAMED = 20
"""Things of a kind that are named one by one."""


def format_duration(seconds: float) -> str:
    """A span of time in its largest unit: 12 s, 3 min, 5 h, 2 d."""
    for unit, each, below in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 129600)):
        if seconds < below:
            return f"{seconds / each:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def say(console: Console, *parts: str | Text, style: str = "") -> None:
    """Print a line as it is, folded at the console's width."""
    console.print(Text.assemble(*parts, style=style))


def say_more(console: Console, n: int, *, more: str = "") -> None:
    """Say how many are not among the first `NAMED`, where there are any."""
    if n > NAMED:
        say(console, f"  and {n - NAMED} more{more}")


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    numbers: Sequence[str],
) -> None:
    """Print a table; columns of `numbers` stand to the right, all others are folded."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
