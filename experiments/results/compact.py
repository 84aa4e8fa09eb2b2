"""Compact tables for a publication: a row a condition, a column an amount, mean ± SD over trials.

Several results.csv become one table; a trial that stands in two of them counts once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.allowed import one_of
from datamodules.errors import InputError
from experiments.results.cells import MODEL
from experiments.results.latex import escape_latex, latex_cell, latex_text
from experiments.results.statistics import CONTROLS, amounts, combine_results, with_defaults
from experiments.results.tables import CONDITION_LABELS, PROMPT_LABELS


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a column of results.csv is shown."""

    column: str
    heading: str
    factor: float
    digits: int
    is_better_high: bool


MEASURES = {
    "dice_weighted": Shown(
        column="dice_trimester_weighted_mean",
        heading="trimester-weighted Dice %",
        factor=100,
        digits=1,
        is_better_high=True,
    ),
    "dice": Shown(
        column="dice_mean", heading="Dice %", factor=100, digits=1, is_better_high=True
    ),
    "dice_256": Shown(
        column="dice_256_mean", heading="Dice at 256x256 %", factor=100, digits=1,
        is_better_high=True,
    ),
    "share_below_090": Shown(
        column="dice_share_below_090", heading="share of Dice below 0.9, %", factor=100, digits=1,
        is_better_high=False,
    ),
    "hc_abs_err_mm": Shown(
        column="hc_abs_err_mm_mean", heading="HC error (ADF), mm", factor=1, digits=2,
        is_better_high=False,
    ),
    "hausdorff_mm": Shown(
        column="hausdorff_mm_mean", heading="Hausdorff distance, mm", factor=1, digits=2,
        is_better_high=False,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CompactBlock:
    """One cohort and prompt."""

    test_cohort: str
    prompt: str
    title: str
    cells: pd.DataFrame
    """Text "mean ± SD" or "": index (row label), a column an amount."""
    measure: str
    """Heading of what the cells show."""
    best: pd.DataFrame
    """Whether a cell is the best of its column, as printed; shaped as `cells`."""


def read_results(paths: Sequence[Path]) -> pd.DataFrame:
    """Read results.csv files into one table.

    Raises:
        InputError: For a path that is missing or no results.csv, or columns that differ.
    """
    for path in paths:
        if path.suffix != ".csv":
            raise InputError(f"{path}: not a .csv; give either one recipe or results.csv files")
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the results.csv of a finished sweep")
        header = path.open(encoding="utf-8", errors="replace").readline()
        if "trial_id" not in header or "dice_mean" not in header:
            raise InputError(f"{path}: not a results.csv (no trial_id and dice_mean)")
    return combine_results(paths)


def compact_tables(results: pd.DataFrame, *, measure: str, format_name: str) -> str:
    """Write the tables of all cohorts and prompts as one text.

    Args:
        results: Rows of results.csv; trials that are not done are counted in a note.
        measure: A word of `MEASURES`.
        format_name: markdown, latex or csv.

    Raises:
        InputError: If the measure is unknown or has no value, or nothing is done.
    """
    shown = MEASURES[one_of(measure, tuple(MEASURES), option="--measure")]
    blocks = compact_blocks(results, shown=shown)
    notes = _notes(results)
    writers: dict[str, Callable[..., str]] = {"markdown": _markdown, "latex": _latex}
    if format_name == "csv":
        return _csv(blocks)
    return writers[format_name](blocks, notes=notes)


def compact_blocks(results: pd.DataFrame, *, shown: Shown) -> list[CompactBlock]:
    """Average the done trials of each cell; folds of one model are averaged before.

    Args:
        results: Rows of results.csv.
        shown: The measure.

    Returns:
        A block per cohort and prompt in order of appearance. A control, which has no amount,
        stands in every column and is never the best. The SD (n - 1) is absent with one trial. A
        block without any trimester shows plain Dice for weighted Dice, and its title says so.

    Raises:
        InputError: If nothing is done, nothing has this measure, or two trials of one cell differ
            in their settings alone: their mean would be of neither.
    """
    done = with_defaults(results[results["status"] == "done"])
    columns = {shown.column, _with_values(done, shown=shown).column}
    if done.empty or done[list(columns)].isna().all(axis=None):
        raise InputError(f"no finished trial has {shown.heading}; choose another --measure")
    done = done.assign(amount=amounts(done), row=_row_labels(done))
    _refuse_mixed(done)
    made = []
    for (cohort, prompt), part in done.groupby(["test_cohort", "prompt"], sort=False):
        own = _with_values(part, shown=shown)
        made.append(_block(part, shown=own, cohort=cohort, prompt=prompt))
    return made


def _with_values(rows: pd.DataFrame, *, shown: Shown) -> Shown:
    """The measure itself, or plain Dice where no trimester is known that could weight it."""
    if shown != MEASURES["dice_weighted"] or rows[shown.column].notna().any():
        return shown
    plain = MEASURES["dice"]
    return replace(plain, heading=f"{plain.heading} (plain mean: no trimester is known)")


def _refuse_mixed(done: pd.DataFrame) -> None:
    where = ["test_cohort", "prompt", "row", "amount", *MODEL, "fold"]
    twice = done[done.duplicated(where, keep=False)]
    if twice.empty:
        return
    same = twice.merge(twice[where].head(1), on=where)
    raise InputError(
        f"{same['trial_id'].iloc[0]} and {same['trial_id'].iloc[1]}: one cell, support and seed "
        "under two settings (steps, backbone, validation...); table these sweeps apart"
    )


def _row_labels(done: pd.DataFrame) -> pd.Series:
    """Name conditions, with the generator's labels where one condition comes with several."""
    labels = done["condition"].map(lambda name: CONDITION_LABELS.get(name, name))
    own = done["condition"].str.startswith("synthetic_same_budget")
    counts = done["n_generator_labels"].where(~own)
    several = counts.groupby(done["condition"]).transform("nunique") > 1
    suffix = counts.map(lambda n: "" if pd.isna(n) else f" (generator on {n:.0f})")
    return labels + suffix.where(several, "")


def _block(part: pd.DataFrame, *, shown: Shown, cohort: str, prompt: str) -> CompactBlock:
    models = part.groupby(
        ["row", "condition", "amount", "n_real", *MODEL], sort=False, dropna=False, as_index=False
    )[shown.column].mean()
    is_control = models["condition"].isin(CONTROLS)
    trained = models[~is_control]
    columns = list(trained.sort_values("n_real", kind="stable")["amount"].unique()) or [
        "controls only"
    ]
    order = {name: k for k, name in enumerate(CONDITION_LABELS)}
    rows = models.assign(rank=models["condition"].map(lambda c: order.get(c, len(order))))
    rows = list(rows.sort_values("rank", kind="stable")["row"].unique())
    means = pd.DataFrame(np.nan, index=rows, columns=columns)
    text = pd.DataFrame("", index=rows, columns=columns)
    for (row, amount), values in trained.groupby(["row", "amount"])[shown.column]:
        means.loc[row, amount] = round(values.mean() * shown.factor, shown.digits)
        text.loc[row, amount] = _mean_sd(values * shown.factor, digits=shown.digits)
    for row, values in models[is_control].groupby("row")[shown.column]:
        text.loc[row] = _mean_sd(values * shown.factor, digits=shown.digits)
    best = means.max() if shown.is_better_high else means.min()
    exams = sorted(part["n_exams"].dropna().unique())
    span = f"{exams[0]:.0f}" + (f" to {exams[-1]:.0f}" if len(exams) > 1 else "") if exams else "?"
    title = f"{cohort}, {PROMPT_LABELS.get(prompt, prompt)}: {shown.heading}, {span} exams"
    return CompactBlock(
        test_cohort=cohort,
        prompt=prompt,
        title=title,
        cells=text,
        measure=shown.heading,
        best=means.eq(best),
    )


def _mean_sd(values: pd.Series, *, digits: int) -> str:
    if values.isna().all():
        return ""
    mean, sd = values.mean(), values.std(ddof=1)
    return f"{mean:.{digits}f}" + ("" if pd.isna(sd) else f" ± {sd:.{digits}f}")


def _notes(results: pd.DataFrame) -> list[str]:
    done = with_defaults(results[results["status"] == "done"])
    counts = done.groupby(["test_cohort", "prompt", "condition", amounts(done)])["trial_id"]
    counts = counts.nunique()
    span = f"{counts.min()}" + (f" to {counts.max()}" if counts.min() < counts.max() else "")
    notes = [
        f"Mean ± standard deviation over {span} trials a cell (supports and seeds); one trial has "
        "no deviation. Bold: the best of a column as printed, which is no test of a difference."
    ]
    if done["condition"].isin(CONTROLS).any():
        notes.append("Controls need no real image: their one value stands in every column.")
    if done["fold"].nunique() > 1:
        notes.append("Cross-tested: the folds of a model are averaged before the trials.")
    per_block = done.groupby(["test_cohort", "prompt"])["n_exams"].nunique()
    if done["fold"].nunique() == 1 and (per_block > 1).any():
        notes.append("The rows of a block were not all tested on as many exams: other test images.")
    n_missing = results.loc[results["status"] != "done", "trial_id"].nunique()
    if n_missing:
        notes.append(f"{n_missing} trials that failed or are not done are left out.")
    return notes


def _markdown(blocks: Sequence[CompactBlock], *, notes: Sequence[str]) -> str:
    lines = []
    for block in blocks:
        lines += [f"### {block.title}", ""]
        lines.append("| condition | " + " | ".join(block.cells.columns) + " |")
        lines.append("| :-- |" + " --: |" * len(block.cells.columns))
        for row, cells in block.cells.iterrows():
            marked = [
                f"**{text}**" if text and block.best.loc[row, name] else text or "–"
                for name, text in cells.items()
            ]
            lines.append(f"| {row} | " + " | ".join(marked) + " |")
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def _latex(blocks: Sequence[CompactBlock], *, notes: Sequence[str]) -> str:
    parts = ["% Needs \\usepackage{booktabs}."]
    for block in blocks:
        heads = ["condition", *block.cells.columns]
        parts += ["\\begin{table}[htbp]", "\\centering"]
        parts.append(f"\\caption{{{escape_latex(block.title)}}}")
        parts.append(f"\\label{{tab:compact-{block.test_cohort}-{block.prompt}}}")
        parts += [f"\\begin{{tabular}}{{l{'r' * len(block.cells.columns)}}}", "\\toprule"]
        parts += [" & ".join(map(escape_latex, heads)) + " \\\\", "\\midrule"]
        for row, cells in block.cells.iterrows():
            marked = [
                latex_cell(text, is_best=block.best.loc[row, name]) for name, text in cells.items()
            ]
            parts.append(" & ".join([escape_latex(row), *marked]) + " \\\\")
        parts += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    below = [latex_text(note) for note in notes]
    return "\n".join([*parts, *(f"\\noindent {note}\\par" for note in below), ""])


def _csv(blocks: Sequence[CompactBlock]) -> str:
    parts = []
    for block in blocks:
        frame = block.cells.rename_axis("condition").reset_index()
        frame.insert(0, "measure", block.measure)
        frame.insert(0, "prompt", block.prompt)
        frame.insert(0, "test_cohort", block.test_cohort)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True).to_csv(index=False)
