"""Tables as LaTeX: the text cells of `tables` under booktabs rules."""

from collections.abc import Sequence

import pandas as pd

from experiments.results.tables import COLUMNS
from experiments.results.text import Block

_MARKS = (
    "±: standard deviation over the trials of a row (supports and seeds). Bold: the best of the "
    "trained rows of one amount, as printed, which is no test of a difference."
)
_SMALL = "\\scriptsize\\setlength{\\tabcolsep}{2pt}"
"""Stands inside the float, which forgets the size of the text around it."""
_SHRUNK = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{"
"""A table wider than the page is made as wide as the page."""
_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}"}
    | {"<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$"}
)


def to_latex(tables: Sequence[Block], *, notes: Sequence[str]) -> str:
    """Write the blocks as LaTeX tables (packages booktabs and graphicx) with the notes below.

    The standard deviation over trials follows its mean after ±. Headings are short, and the notes
    say what they stand for. The notes, with the reason of a failure, are part of the last table's
    float, so that they move with it.
    """
    head = "% Needs \\usepackage{booktabs,graphicx}; meant for landscape A4 with margins of 1 cm,"
    parts = [f"{head} shrunk where the page is narrower."]
    reasons: dict[str, None] = {}
    marks, shortened = [], {}
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
        shortened |= {name: text for name, text in short.items() if text != name}
        table = latex_table(
            frame.rename(columns=short),
            caption=block.title,
            label=f"tab:{block.test_cohort}-{block.prompt}",
            best=block.best.loc[:, marked].rename(columns=short),
        )
        table = table.replace("\\begin{tabular}", f"{_SMALL}\n{_SHRUNK}\\begin{{tabular}}")
        parts.append(table.replace("\\end{tabular}", "\\end{tabular}}"))
    headings = "; ".join(f"{text}: {name}" for name, text in shortened.items())
    said = [f"Headings. {headings}."] if headings else []
    below = latex_notes([*said, *notes, *marks, *reasons])
    if tables:
        parts[-1] = parts[-1].removesuffix("\\end{table}\n")
        below = ["\\par\\medskip\\raggedright", *below, "\\end{table}"]
    return "\n".join([*parts[:-1], parts[-1].rstrip("\n"), *below, ""])


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
    """Write text cells as a booktabs table; columns of plain numbers are set flush right.

    In the columns of `best` the cells that it marks are bold, and ± is mathematics.
    """
    marked = [] if best is None else list(best)
    frame = frame.assign(
        **{name: list(map(latex_cell, frame[name], best[name])) for name in marked}
    )
    numeric = [name for name in frame if name not in marked and _is_numeric(frame[name])]
    style = frame.style.hide(axis="index").format(escape="latex")
    style = style.format(lambda text: text or "--", subset=numeric)
    style = style.format(str, subset=marked)
    style = style.format_index(escape="latex", axis=1)
    kinds = ["r" if name in numeric or name in marked else "l" for name in frame]
    return style.to_latex(
        hrules=True,
        caption=latex_text(caption),
        label=label,
        position="htbp",
        position_float="centering",
        column_format="".join(kinds),
    )


def _is_numeric(cells_of_column: pd.Series) -> bool:
    filled = cells_of_column[cells_of_column != ""]
    return len(filled) > 0 and bool(pd.to_numeric(filled, errors="coerce").notna().all())


def latex_text(text: str) -> str:
    """Escape running text, with ± as mathematics."""
    return text.translate(_SPECIAL)
