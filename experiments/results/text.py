"""Tables of text cells as GitHub Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from experiments.config.words import counted

_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\|*<"} | {"\n": " "})


@dataclass(frozen=True, kw_only=True)
class Block:
    """One table, of one test cohort and prompt, as text that every format prints."""

    test_cohort: str
    prompt: str
    title: str
    rows: pd.DataFrame
    """Text cells; empty where there is nothing to say."""
    heads: Sequence[str]
    """Columns that name a row."""
    best: pd.DataFrame
    """Whether a cell is the best of its rivals, as printed; shaped as `rows`."""
    notes: tuple[str, ...] = ()
    """What a row did not deliver, aligned with the rows: "failed: reason", "pending" or ""."""
    amounts: tuple[str, ...] = ()
    """How many real images a row has, in words, aligned with the rows; "" for a control."""
    controls: tuple[bool, ...] = ()
    """Whether a row is a control's, aligned with the rows."""
    spreads: pd.DataFrame | None = None
    """Standard deviation over trials as text, "" where there is none; shaped as `rows`."""
    tested: str = ""
    """Sweeps that it is of, where those of its cohort were tested on different images."""
    headline: str = ""
    """Heading of the column that counts."""
    points: pd.DataFrame = field(default_factory=pd.DataFrame)
    """mean, low, high of the headline as numbers, aligned with the rows."""


def to_markdown(tables: Sequence[Block], *, notes: Sequence[str], has_bold: bool = False) -> str:
    """Write blocks with the notes below; what a row did not deliver stands under its first Dice."""
    parts = []
    for block in tables:
        frame = block.rows.map(escape_markdown)
        if has_bold:
            frame = ("**" + frame + "**").where(block.best, frame)
        for i, note in enumerate(block.notes or [""] * len(frame)):
            if note:
                first = next(name for name in frame.columns if name.endswith("Dice %"))
                frame.loc[i, first] = escape_markdown(note)
            else:
                frame.loc[i] = frame.loc[i].replace("", "–")
        parts += [f"### {block.title}", "", *markdown_table(frame, left=block.heads), ""]
    return "\n".join([*parts, *bullets(notes), ""])


def markdown_table(frame: pd.DataFrame, *, left: Sequence[str]) -> list[str]:
    """Write text cells, Markdown already, as lines of a table."""
    marks = [":--" if name in left else "--:" for name in frame.columns]
    rows = [list(frame.columns), marks, *frame.to_numpy().tolist()]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def bullets(notes: Sequence[str]) -> list[str]:
    """Write sentences as lines of a list."""
    return [f"- {escape_markdown(note)}" for note in notes]


def counted_span(least: float, most: float, noun: str) -> str:
    """Write a range of whole numbers with its noun: 1 exam, 9 to 12 exams."""
    return (f"{least:.0f} to " if most > least else "") + counted(most, noun)


def escape_markdown(text: str) -> str:
    """Escape what Markdown would read as a mark or a cell's end."""
    return text.translate(_MARKS)
