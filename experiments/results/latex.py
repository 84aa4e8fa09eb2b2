"""Tables as LaTeX: the text cells of `tables` under booktabs rules and siunitx columns."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.results.tables import COLUMNS
from experiments.results.text import Block

_MARKS = (
    "±: standard deviation over the trials of a row (supports and seeds). Bold: the best of the "
    "trained rows of one amount, as printed, which is no test of a difference."
)
_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}"}
    | {"<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$"}
)


def to_latex(tables: Sequence[Block], *, notes: Sequence[str]) -> str:
    """Write the blocks as LaTeX tables (packages booktabs and siunitx) with the notes below.

    The standard deviation over trials follows its mean after ±. Headings are short and the reason
    of a failure stands below, so that a landscape page holds it.
    """
    parts = ["% Needs \\usepackage{booktabs,siunitx}; landscape A4, margins of 1 cm."]
    parts.append("{\\scriptsize\\setlength{\\tabcolsep}{3pt}")
    reasons: dict[str, None] = {}
    marks = []
    for block in tables:
        marked = ((block.spreads != "") | block.best).any()
        marks = [_MARKS] if marked.any() else marks
        # What stands behind ± needs no column of its own.
        frame = block.rows + (" ± " + block.spreads).where(block.spreads != "", "")
        frame = frame.drop(columns="SD of trials", errors="ignore")
        first_interval = next(name for name in frame.columns if name.endswith("95 % CI"))
        for i, note in enumerate(block.notes):
            if note:
                frame.loc[i, first_interval] = note.split(":")[0]
                names = [*block.rows.loc[i, list(block.heads)], block.amounts[i]]
                reasons[f"{', '.join(filter(None, names))}: {note}."] = None
        short = {name: COLUMNS[name].latex or name for name in frame}
        parts.append(
            latex_table(
                frame.rename(columns=short),
                caption=block.title,
                label=f"tab:{block.test_cohort}-{block.prompt}",
                best=block.best.loc[:, marked].rename(columns=short),
            )
        )
    return "\n".join([*parts, *latex_notes([*notes, *marks, *reasons]), "}", ""])


def latex_notes(notes: Sequence[str]) -> list[str]:
    """Write sentences as paragraphs below a table."""
    return [f"\\noindent {latex_text(note)}\\par" for note in notes]


def latex_cell(text: str, is_best: bool) -> str:
    """Escape a cell and make the best bold; an empty one is a dash."""
    if not text:
        return "--"
    return f"\\textbf{{{latex_text(text)}}}" if is_best else latex_text(text)


def latex_table(
    frame: pd.DataFrame, *, caption: str, label: str, best: pd.DataFrame | None = None
) -> str:
    """Write text cells as a booktabs table; columns of plain numbers become siunitx S columns.

    In the columns of `best` the cells that it marks are bold, and ± is mathematics.
    """
    marked = [] if best is None else list(best)
    frame = frame.assign(
        **{name: list(map(latex_cell, frame[name], best[name])) for name in marked}
    )
    numeric = [name for name in frame if name not in marked and _is_numeric(frame[name])]
    style = frame.style.hide(axis="index").format(escape="latex")
    style = style.format(lambda text: text or "{--}", subset=numeric)
    style = style.format(str, subset=marked)
    style = style.format_index(escape="latex", axis=1)
    kinds = [
        _number_column(frame[name]) if name in numeric else "r" if name in marked else "l"
        for name in frame
    ]
    return style.to_latex(
        hrules=True,
        siunitx=True,
        caption=latex_text(caption),
        label=label,
        position="htbp",
        position_float="centering",
        column_format="".join(kinds),
    )


def _is_numeric(cells_of_column: pd.Series) -> bool:
    filled = cells_of_column[cells_of_column != ""]
    numbers = pd.to_numeric(filled, errors="coerce")  # siunitx knows no infinity
    return len(filled) > 0 and bool(np.isfinite(numbers).all())


def _number_column(cells_of_column: pd.Series) -> str:
    halves = [text.partition(".")[::2] for text in cells_of_column]
    whole, part = (max(len(half) for half in side) for side in zip(*halves, strict=True))
    return f"S[table-format={whole}.{part}]"


def latex_text(text: str) -> str:
    """Escape running text, with ± as mathematics."""
    return text.translate(_SPECIAL)
