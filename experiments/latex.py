"""Tables as LaTeX: the text cells of `tables` under booktabs rules and siunitx columns."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.cells import Block

_LATEX_HEADINGS = {
    "n real": "n",
    "generator labels": "gen.",
    "validation labels": "val.",
    "total labels": "labels",
    "SD of trials": "SD",
    "share below 0.9": "share",
    "weighted Dice %": "weighted %",
    "weighted 95 % CI": "weighted CI",
    "not found": "none",
    "Dice@256 %": "@256 %",
    "HC error mm": "ADF mm",
    "HC error p95 mm": "p95 mm",
}


def to_latex(tables: Sequence[Block], *, notes: Sequence[str]) -> str:
    """Write the blocks as LaTeX tables (packages booktabs and siunitx) with the notes below.

    Headings are short and the reason of a failure stands below, so that a landscape page holds it.
    """
    parts = ["% Needs \\usepackage{booktabs,siunitx}; the tables fit a landscape page."]
    parts.append("{\\footnotesize\\setlength{\\tabcolsep}{3pt}")
    reasons = []
    for block in tables:
        frame = block.rows.copy()
        first_interval = next(name for name in frame.columns if name.endswith("95 % CI"))
        for i, note in enumerate(block.notes):
            if note:
                frame.loc[i, first_interval] = note.split(":")[0]
                named = (
                    f"{frame.loc[i, 'condition']}, {frame.loc[i, 'n real']} real images: {note}."
                )
                reasons += [named] if named not in reasons else []
        frame = frame.rename(columns=_LATEX_HEADINGS)
        label = f"tab:{block.test_cohort}-{block.prompt}"
        parts.append(latex_table(frame, caption=block.title, label=label))
    parts += [f"\\noindent {escape_latex(note)}\\par" for note in [*notes, *reasons]]
    return "\n".join([*parts, "}", ""])


def latex_table(frame: pd.DataFrame, *, caption: str, label: str) -> str:
    """Write text cells as a booktabs table; columns of plain numbers become siunitx S columns."""
    numeric = [name for name in frame.columns if _is_numeric(frame[name])]
    style = frame.style.hide(axis="index").format(escape="latex")
    style = style.format(lambda text: text or "{--}", subset=numeric)
    style = style.format_index(escape="latex", axis=1)
    kinds = [_number_column(frame[name]) if name in numeric else "l" for name in frame.columns]
    return style.to_latex(
        hrules=True,
        siunitx=True,
        caption=escape_latex(caption),
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


def escape_latex(text: str) -> str:
    """Escape LaTeX's special characters in running text."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "\\": "\\textbackslash{}",
        "<": "\\textless{}",
        ">": "\\textgreater{}",
    }
    return "".join(special.get(c, c) for c in text)
