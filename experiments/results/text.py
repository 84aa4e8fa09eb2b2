"""Text cells as GitHub Markdown, and counts in sentences."""

from collections.abc import Sequence

import pandas as pd


def markdown_table(frame: pd.DataFrame, *, left: Sequence[str]) -> list[str]:
    """Write text cells, Markdown already, as lines of a table."""
    marks = [":--" if name in left else "--:" for name in frame.columns]
    rows = [list(frame.columns), marks, *frame.to_numpy().tolist()]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def bullets(notes: Sequence[str]) -> list[str]:
    """Write sentences as lines of a list."""
    return [f"- {escape_markdown(note)}" for note in notes]


def escape_markdown(text: str) -> str:
    """Escape what Markdown would read as a mark or a cell's end."""
    for mark in ("\\", "|", "*", "<"):
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ")


def counted(number: float, noun: str) -> str:
    """Write a count with its noun: 1 exam, 2 exams."""
    return f"{number:.0f} {noun}" + ("" if number == 1 else "s")
