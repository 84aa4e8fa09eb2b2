"""Compact tables of several results.csv: a row a condition, a column an amount, mean ± SD.

A trial that stands in two files counts once. What was tested on different images is tabled apart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.allowed import one_of
from datamodules.errors import InputError
from experiments.config.conditions import condition_label
from experiments.config.words import counted
from experiments.results import axes, checked
from experiments.results.cells import MODEL, mean_over_supports, model_means
from experiments.results.latex import latex_notes, latex_table
from experiments.results.measures import MEASURES, WORDS, Measure
from experiments.results.rows import SOURCE, TESTED, choose_output, read_rows, with_amounts
from experiments.results.tested import TEST_SET, apart_notes, set_files, with_test_sets
from experiments.results.text import Block, counted_span, to_markdown


def read_results(paths: Sequence[Path], *, output: str = "ellipse") -> pd.DataFrame:
    """Read results.csv files into one table, of each the rows of one output.

    Returns:
        The rows in order, with the file of each as `source`; what a trial scored on some images
        comes from the first file that has it, and a trial that one file has done is not pending
        by another.

    Raises:
        InputError: For a path that is missing or no whole results.csv; if a file has other columns
            than the first one (an absent one would look like numbers that could not be computed),
            or other scores of one trial on the same images.
    """
    where = ["trial_id", "test_cohort", "prompt"]
    scored, frames = [*where, "output", TESTED], []
    for path in paths:
        if path.suffix != ".csv":
            raise InputError(f"{path}: not a .csv; give either one recipe or results.csv files")
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the results.csv of a finished sweep")
        rows = read_rows(path).assign(**{SOURCE: str(path)})
        if "dice_mean" not in rows:
            raise InputError(f"{path}: scores of images; give the results.csv beside it")
        if rows.empty:
            raise InputError(f"{path}: no rows; {checked.AGAIN}")
        odd = set(rows.columns) ^ set(frames[0].columns if frames else rows.columns)
        if odd:
            raise InputError(
                f"{path}: its columns differ from those of {paths[0]} ({', '.join(sorted(odd))}); "
                "write both again with one version (`sonosweep report RECIPE`), or table them apart"
            )
        for earlier in frames:
            checked.check_agree(earlier, rows, keys=scored, source=SOURCE)
        frames.append(rows)
    found = pd.concat(frames, ignore_index=True).drop_duplicates(scored, ignore_index=True)
    is_done, places = found["status"] == "done", pd.MultiIndex.from_frame(found[where])
    return choose_output(found[is_done | ~places.isin(places[is_done])], output)


def compact_tables(results: pd.DataFrame, *, measure: str, format_name: str) -> str:
    """Write the tables of all cohorts and prompts as one text.

    Raises:
        InputError: If the measure is unknown or has no value, or as `compact_blocks` does.
    """
    shown = WORDS[one_of(measure, tuple(WORDS), option="--measure")]
    results = with_test_sets(with_amounts(results))
    blocks, notes = compact_blocks(results, shown=shown), _notes(results)
    if format_name == "csv":
        return _csv(blocks)
    if format_name == "latex":
        return _latex(blocks, notes=notes)
    return to_markdown(blocks, notes=notes, has_bold=True)


def compact_blocks(results: pd.DataFrame, *, shown: Measure) -> list[Block]:
    """Average the done trials of each cell; folds of one model before, weighted by their images.

    Returns:
        A block per cohort, set of test images and prompt in order of appearance, the sweeps named
        in its title where a cohort has several sets. A control, which has no amount, stands in
        every column and is never the best. A block without any trimester shows plain Dice for
        weighted Dice, and its title says so.

    Raises:
        InputError: If nothing is done, nothing has this measure, or two trials of one cell differ
            in their settings alone: their mean would be of neither.
    """
    done = results[results["status"] == "done"]
    if shown.column not in done:
        files = ", ".join(done[SOURCE].unique()) if SOURCE in done else "results"
        raise InputError(f"{files}: no column {shown.column}; choose another --measure")
    if done[_with_values(done, shown=shown).column].isna().all():
        raise InputError(f"no finished trial has {shown.title}; choose another --measure")
    counts = axes.several_generator_labels(done)
    suffix = (" (generator on " + counts + ")").where(counts != "", "")
    done = done.assign(row=done["condition"].map(condition_label) + suffix)
    _refuse_mixed(done)
    named = axes.shown_axes(done)
    several = done.groupby("test_cohort")[TEST_SET].transform("nunique") > 1
    done = done.assign(tested="")
    for _, part in done[several].groupby(["test_cohort", TEST_SET]):
        done.loc[part.index, "tested"] = set_files(part) or f"test images {part[TESTED].iloc[0]}"
    parts = done.groupby(["test_cohort", TEST_SET, "prompt"], sort=False)
    return [_block(part, shown=shown, named=named) for _, part in parts]


def _with_values(rows: pd.DataFrame, *, shown: Measure) -> Measure:
    """The measure itself, or plain Dice where no trimester is known that could weight it."""
    if shown != WORDS["dice_weighted"] or rows[shown.column].notna().any():
        return shown
    plain = MEASURES["dice_mean"]
    return replace(plain, title=f"{plain.title} (plain mean: no trimester is known)")


def _refuse_mixed(done: pd.DataFrame) -> None:
    where = ["test_cohort", TEST_SET, "prompt", "row", *axes.SERIES, "amount", *MODEL, "fold"]
    twice = done[done.duplicated(where, keep=False)]
    if twice.empty:
        return
    same = twice.merge(twice[where].head(1), on=where)
    raise InputError(
        f"{same['trial_id'].iloc[0]} and {same['trial_id'].iloc[1]}: one cell, support and seed "
        "under two settings (steps, backbone, validation...); table these sweeps apart"
    )


def _block(part: pd.DataFrame, *, shown: Measure, named: Sequence[str]) -> Block:
    part = pd.concat([own for _, own in axes.each_series(part)])
    shown, heads = _with_values(part, shown=shown), ["row", *named]
    models = model_means(part, [shown.column], by=["row", *axes.SERIES, "amount"])
    models["value"] = models[shown.column] * shown.factor
    trained = models[~axes.is_control(models)].sort_values("n_real", kind="stable")
    rows = models[heads].drop_duplicates(ignore_index=True)
    text, means = rows.copy(), pd.DataFrame(np.nan, index=rows.index, columns=heads)
    for amount in trained["amount"].unique() if len(trained) else ["controls only"]:
        for i, head in rows.iterrows():
            own = models[(models[heads] == head).all(axis="columns")]
            is_level = axes.is_control(own).any()
            here = own[is_level | (own["amount"] == amount)]
            mean = mean_over_supports(here["value"], supports=here["support"])
            numbers = [x for x in (mean, here["value"].std(ddof=1)) if pd.notna(x)]
            text.loc[i, amount] = " ± ".join(f"{x:.{shown.digits}f}" for x in numbers)
            means.loc[i, amount] = np.nan if is_level else round(mean, shown.digits)
    for name in named:
        text[name] = [axes.axis_label(name, value) for value in text[name]]
    best = means.eq(means.max() if shown.is_better_high else means.min())
    exams = models["n_exams"].dropna()
    span = counted_span(exams.min(), exams.max(), "exam") if len(exams) else "? exams"
    cohort, prompt, tested = part[["test_cohort", "prompt", "tested"]].iloc[0]
    where = " of ".join(filter(None, [cohort, tested]))
    return Block(
        test_cohort=cohort,
        prompt=prompt,
        title=f"{where}, {axes.prompt_label(prompt)}: {shown.title}, {span}",
        rows=text.rename(columns={"row": "condition"}),
        heads=["condition", *named],
        headline=shown.title,
        tested=tested,
        best=best.rename(columns={"row": "condition"}),
    )


def _notes(results: pd.DataFrame) -> list[str]:
    done = results[results["status"] == "done"]
    cell = ["test_cohort", TEST_SET, "prompt", *axes.SERIES, "amount"]
    trained = done[~axes.is_control(done)]
    counts = (trained if len(trained) else done).drop_duplicates([*cell, *MODEL])
    counts = counts.groupby(cell).size()
    over = counted_span(counts.min(), counts.max(), "model")
    notes = [
        f"Mean over supports ± standard deviation over {over} a cell (supports and seeds); one "
        "model has no deviation. Bold: the best of a column as printed, which is no test of a "
        "difference."
    ]
    if (done["output"] == "ellipse").any():
        notes.append("Scores are those of the ellipse fitted to each predicted mask.")
    if (done["output"] == "mask").any():
        notes.append("Scores are those of the predicted masks as they are.")
    if axes.is_control(done).any():
        notes.append("Controls need no real image: their one value stands in every column.")
    if done["fold"].nunique() > 1:
        notes.append(
            "Cross-tested: the folds of a model are averaged first, weighted by their images."
        )
    notes += apart_notes(done)
    if n_missing := results.loc[results["status"] != "done", "trial_id"].nunique():
        notes.append(f"Left out, as failed or not done: {counted(n_missing, 'trial')}.")
    return notes


def _latex(blocks: Sequence[Block], *, notes: Sequence[str]) -> str:
    parts, labels = ["% Needs \\usepackage{booktabs}."], Counter[str]()
    for block in blocks:
        label = f"tab:compact-{block.test_cohort}-{block.prompt}"
        labels[label] += 1
        label += f"-{labels[label]}" if labels[label] > 1 else ""
        best = block.best.drop(columns=list(block.heads))
        parts.append(latex_table(block.rows, caption=block.title, label=label, best=best))
    return "\n".join([*parts, *latex_notes(notes), ""])


def _csv(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        where = {"test_cohort": block.test_cohort, "prompt": block.prompt}
        where |= {"tested": block.tested} if block.tested else {}
        parts.append(
            block.rows.assign(**where, measure=block.headline)[[*where, "measure", *block.rows]]
        )
    return pd.concat(parts, ignore_index=True).to_csv(index=False)
