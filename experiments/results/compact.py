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
from experiments.config.conditions import condition_label
from experiments.results.axes import (
    SERIES,
    in_series_order,
    is_control,
    own_labels,
    prompt_words,
    shown_axes,
)
from experiments.results.cells import MODEL
from experiments.results.latex import latex_cell, latex_table, latex_text
from experiments.results.measures import MEASURES, WORDS, Measure
from experiments.results.rows import amounts, combine_results, with_defaults
from experiments.results.text import bullets, markdown_table


@dataclass(frozen=True, kw_only=True)
class CompactBlock:
    """One cohort and prompt."""

    test_cohort: str
    prompt: str
    title: str
    cells: pd.DataFrame
    """Text: the columns of `heads`, and "mean ± SD" or "" in a column an amount."""
    heads: list[str]
    """condition, and the axes of which the results hold several."""
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

    Raises:
        InputError: If the measure is unknown or has no value, or nothing is done.
    """
    shown = WORDS[one_of(measure, tuple(WORDS), option="--measure")]
    results = with_defaults(results)
    blocks, notes = compact_blocks(results, shown=shown), _notes(results)
    writers: dict[str, Callable[..., str]] = {"markdown": _markdown, "latex": _latex, "csv": _csv}
    return writers[format_name](blocks, notes=notes)


def compact_blocks(results: pd.DataFrame, *, shown: Measure) -> list[CompactBlock]:
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
    done = results[results["status"] == "done"]
    columns = {shown.column, _with_values(done, shown=shown).column}
    if done.empty or done[list(columns)].isna().all(axis=None):
        raise InputError(f"no finished trial has {shown.title}; choose another --measure")
    done = done.assign(amount=amounts(done), row=_row_labels(done))
    _refuse_mixed(done)
    named = shown_axes(done)
    parts = done.groupby(["test_cohort", "prompt"], sort=False)
    return [_block(in_series_order(part), shown=shown, named=named) for _, part in parts]


def _with_values(rows: pd.DataFrame, *, shown: Measure) -> Measure:
    """The measure itself, or plain Dice where no trimester is known that could weight it."""
    if shown != WORDS["dice_weighted"] or rows[shown.column].notna().any():
        return shown
    plain = MEASURES["dice_mean"]
    return replace(plain, title=f"{plain.title} (plain mean: no trimester is known)")


def _refuse_mixed(done: pd.DataFrame) -> None:
    where = ["test_cohort", "prompt", "row", *SERIES, "amount", *MODEL, "fold"]
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
    key = own_labels(done)
    counts = key.where(key >= 0)
    several = counts.groupby(done["condition"]).transform("nunique") > 1
    suffix = counts.map(lambda n: "" if pd.isna(n) else f" (generator on {n:.0f})")
    return done["condition"].map(condition_label) + suffix.where(several, "")


def _block(part: pd.DataFrame, *, shown: Measure, named: Sequence[str]) -> CompactBlock:
    shown = _with_values(part, shown=shown)
    keys = ["row", *SERIES, "amount", "n_real", *MODEL]
    models = part.groupby(keys, sort=False, dropna=False, as_index=False)[shown.column].mean()
    values = models[shown.column] * shown.factor
    trained = models[~is_control(models)]
    columns = list(trained.sort_values("n_real", kind="stable")["amount"].unique())
    columns = columns or ["controls only"]
    heads = models[["row", *named]].drop_duplicates(ignore_index=True)
    text = heads.reindex(columns=[*heads.columns, *columns], fill_value="")
    means = pd.DataFrame(np.nan, index=text.index, columns=text.columns)
    for i, head in heads.iterrows():
        own = (models[heads.columns] == head).all(axis="columns")
        level = is_control(models[own]).any()
        for amount in columns:
            here = values[own if level else own & (models["amount"] == amount)]
            text.loc[i, amount] = _mean_sd(here, digits=shown.digits)
            means.loc[i, amount] = np.nan if level else round(here.mean(), shown.digits)
    best = means.max() if shown.is_better_high else means.min()
    exams = sorted(part["n_exams"].dropna().unique())
    span = f"{exams[0]:.0f}" + (f" to {exams[-1]:.0f}" if len(exams) > 1 else "") if exams else "?"
    cohort, prompt = part["test_cohort"].iloc[0], part["prompt"].iloc[0]
    where = f"{cohort}, {prompt_words(prompt, shown=named).label}"
    return CompactBlock(
        test_cohort=cohort,
        prompt=prompt,
        title=f"{where}: {shown.title}, {span} exams",
        cells=text.rename(columns={"row": "condition"}),
        heads=["condition", *named],
        measure=shown.title,
        best=means.eq(best).rename(columns={"row": "condition"}),
    )


def _mean_sd(values: pd.Series, *, digits: int) -> str:
    if values.isna().all():
        return ""
    mean, sd = values.mean(), values.std(ddof=1)
    return f"{mean:.{digits}f}" + ("" if pd.isna(sd) else f" ± {sd:.{digits}f}")


def _notes(results: pd.DataFrame) -> list[str]:
    done = results[results["status"] == "done"]
    cell = done.groupby(["test_cohort", "prompt", *SERIES, amounts(done)])
    counts = cell["trial_id"].nunique()
    span = f"{counts.min()}" + (f" to {counts.max()}" if counts.min() < counts.max() else "")
    notes = [
        f"Mean ± standard deviation over {span} trials a cell (supports and seeds); one trial has "
        "no deviation. Bold: the best of a column as printed, which is no test of a difference."
    ]
    if is_control(done).any():
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
        shown = block.cells.replace("", "–")
        bold = ("**" + shown + "**").where(block.best, shown)
        lines += [f"### {block.title}", "", *markdown_table(bold, left=block.heads), ""]
    return "\n".join([*lines, *bullets(notes), ""])


def _latex(blocks: Sequence[CompactBlock], *, notes: Sequence[str]) -> str:
    parts = ["% Needs \\usepackage{booktabs}."]
    for block in blocks:
        frame = block.cells.copy()
        ready = [name for name in frame if name not in block.heads]
        for name in ready:
            marked = zip(frame[name], block.best[name], strict=True)
            frame[name] = [latex_cell(text, is_best=is_best) for text, is_best in marked]
        label = f"tab:compact-{block.test_cohort}-{block.prompt}"
        parts.append(latex_table(frame, caption=block.title, label=label, ready=ready))
    return "\n".join([*parts, *(f"\\noindent {latex_text(note)}\\par" for note in notes), ""])


def _csv(blocks: Sequence[CompactBlock], *, notes: Sequence[str]) -> str:
    del notes  # a table for programs
    parts = []
    for block in blocks:
        frame = block.cells.copy()
        frame.insert(0, "test_cohort", block.test_cohort)
        frame.insert(1, "prompt", block.prompt)
        frame.insert(2, "measure", block.measure)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True).to_csv(index=False)
