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

    The best cell of an amount is bold, and the standard deviation over trials follows its mean
    after ±. Headings are short and the reason of a failure stands below, so that a landscape page
    holds it.
    """
    parts = ["% Needs \\usepackage{booktabs,siunitx}; landscape A4, margins of 1 cm."]
    parts.append("{\\scriptsize\\setlength{\\tabcolsep}{3pt}")
    reasons, is_marked = [], False
    for block in tables:
        marked = [c for c in block.rows if (block.spreads[c] != "").any() or block.best[c].any()]
        is_marked = is_marked or bool(marked)
        frame = block.rows + (" ± " + block.spreads).where(block.spreads != "", "")
        frame = with_best(frame, best=block.best, columns=marked)
        # What stands behind ± needs no column of its own.
        frame = frame.drop(columns="SD of trials", errors="ignore")
        first_interval = next(name for name in frame.columns if name.endswith("95 % CI"))
        for i, note in enumerate(block.notes):
            if note:
                frame.loc[i, first_interval] = note.split(":")[0]
                names = [*block.rows.loc[i, list(block.heads)], block.amounts[i]]
                named = f"{', '.join(filter(None, names))}: {note}."
                reasons += [named] if named not in reasons else []
        short = {name: COLUMNS[name].latex or name for name in frame}
        label = f"tab:{block.test_cohort}-{block.prompt}"
        ready = [short[name] for name in marked]
        parts.append(
            latex_table(frame.rename(columns=short), caption=block.title, label=label, ready=ready)
        )
    notes = [*notes, *([_MARKS] if is_marked else [])]
    return "\n".join([*parts, *latex_notes([*notes, *reasons]), "}", ""])


def with_best(rows: pd.DataFrame, *, best: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Give text cells with some columns as LaTeX, in which the best cells are bold."""
    marked = {
        name: [latex_cell(*cell) for cell in zip(rows[name], best[name], strict=True)]
        for name in columns
    }
    return rows.assign(**marked)


def latex_notes(notes: Sequence[str]) -> list[str]:
    """Write sentences as paragraphs below a table."""
    return [f"\\noindent {latex_text(note)}\\par" for note in notes]


def latex_cell(text: str, is_best: bool) -> str:
    """Escape a cell, with ± as mathematics, and make the best bold; an empty one is a dash."""
    if not text:
        return "--"
    return f"\\textbf{{{latex_text(text)}}}" if is_best else latex_text(text)


def latex_table(frame: pd.DataFrame, *, caption: str, label: str, ready: Sequence[str] = ()) -> str:
    """Write text cells as a booktabs table; columns of plain numbers become siunitx S columns.

    Caption and cells are escaped here, but for the columns of `ready`, which are LaTeX already.
    """
    numeric = [name for name in frame if name not in ready and _is_numeric(frame[name])]
    style = frame.style.hide(axis="index").format(escape="latex")
    style = style.format(lambda text: text or "{--}", subset=numeric)
    style = style.format(str, subset=list(ready))
    style = style.format_index(escape="latex", axis=1)
    kinds = [
        _number_column(frame[name]) if name in numeric else "r" if name in ready else "l"
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
