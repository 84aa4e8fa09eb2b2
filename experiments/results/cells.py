"""The numbers of a table: the trials of each cell averaged.

A cell is a cohort, prompt, amount, series (segmenter, condition, generator) and label counts.
A model is what was trained with one support, seed and generator seed; with cross-testing the trials
of its folds test different exams, so their images are pooled before anything is averaged.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.results.axes import SERIES, own_labels
from experiments.results.measures import MEASURES
from experiments.results.resampling import crossed_bootstrap
from experiments.results.rows import TESTED, amounts, with_defaults
from experiments.results.statistics import average_draws, summarise, weighted_interval
from experiments.store.columns import OUTPUTS

MODEL = ["support", "seed", "generator_seed"]
"""The axes of a model beside its series and amount."""
_INTERVALS = ["dice_low", "dice_high"]
_INTERVALS += ["dice_trimester_weighted_low", "dice_trimester_weighted_high"]
_CELL = ["test_cohort", "prompt", "amount", *SERIES, "generator_key", "n_val_labels"]


def cells(results: pd.DataFrame, *, per_image: pd.DataFrame | None = None) -> pd.DataFrame:
    """Average the done trials of each cell.

    A cell of one trial shows that trial's row. In a cell of several models, numbers are means over
    supports of the means over each support's models, so that no support counts more for having
    more seeds; each `_sd` is the standard deviation (n - 1) over models, and the intervals resample
    exams and supports at once (exams alone where there is one support).

    Without per_image a cell of several trials has no interval, and one of several folds no number.

    Returns:
        A row per cell: test_cohort, prompt, amount, segmenter, condition, generator, n_val_labels,
        pair_labels, n_generator_labels, n_unlabelled, real_fraction, n_real_min, n_real_max,
        n_total_min, n_total_max, n_trials, n_supports, n_folds, trial_ids, trial_dice (a model
        each), the columns of `MEASURES` and their `spread_column`,
        dice_low, dice_high, dice_trimester_weighted_low and _high, n_exams, trimesters_missing.
    """
    done = with_defaults(results[results["status"] == "done"])
    done = done.assign(amount=amounts(done), generator_key=own_labels(done))
    images = None if per_image is None else average_draws(per_image)
    rows = []
    for where, part in done.groupby(_CELL, sort=False, dropna=False):
        row = dict(zip(_CELL, where, strict=True)) | _counts(part)
        own = None if images is None else rows_of(row, rows=images)
        rows.append(row | _averages(_models(part, images=own), images=own))
    return pd.DataFrame(rows).drop(columns="generator_key", errors="ignore")


def rows_of(cell: Mapping, *, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of results.csv or per_image.csv that a cell is made of."""
    is_here = rows["trial_id"].isin(cell["trial_ids"])
    for name in ("test_cohort", "prompt"):
        is_here &= rows[name] == cell[name]
    return rows[is_here]


def model_means(rows: pd.DataFrame, columns: Sequence[str], *, by: Sequence[str]) -> pd.DataFrame:
    """Average the folds of each model, weighted by their images: for files without per-image rows.

    Args:
        rows: Rows of results.csv that are done, as of `with_defaults`.
        columns: What is averaged; a fold without a value does not count.
        by: Columns that tell models apart beside `MODEL`.

    Returns:
        A row per model in order of appearance: `by`, `MODEL`, the columns, n_real (the least of
        its folds), n_trials (its folds) and n_exams, where images that several folds tested count
        once. Folds of files without n_images weigh alike.
    """
    keys = [*by, *MODEL]
    own = [rows[name] for name in keys]
    images = rows.reindex(columns=["n_images"])["n_images"].fillna(1.0)
    parts = {"n_real": rows["n_real"].groupby(own, sort=False, dropna=False).min()}
    for name in columns:
        known = images.where(rows[name].notna())
        share = known / known.groupby(own, dropna=False).transform("sum")
        shares = (rows[name] * share).groupby(own, sort=False, dropna=False)
        parts[name] = shares.sum(min_count=1)
    parts["n_trials"] = rows["trial_id"].groupby(own, sort=False, dropna=False).nunique()
    tested = rows.reindex(columns=[TESTED])[TESTED].fillna("fold " + rows["fold"].astype(str))
    sets = rows.assign(tested=tested).drop_duplicates([*keys, "tested"])
    exams = sets.groupby(keys, sort=False, dropna=False)["n_exams"].sum(min_count=1)
    return pd.DataFrame(parts | {"n_exams": exams}).reset_index()


def cell_means(rows: pd.DataFrame, columns: Sequence[str], *, by: Sequence[str]) -> pd.DataFrame:
    """Average the models of `model_means` within supports, then the supports.

    Returns:
        A row per cell in order of appearance: `by`, the columns, n_real (the least), n_trials (the
        sum) and n_exams (the most).
    """
    models = model_means(rows, columns, by=by)
    merged = dict.fromkeys(columns, "mean") | {"n_real": "min", "n_trials": "sum", "n_exams": "max"}
    groups = {"sort": False, "dropna": False, "as_index": False}
    return (
        models.groupby([*by, "support"], **groups)
        .agg(merged)
        .groupby(list(by), **groups)
        .agg(merged)
    )


def mean_over_supports(values: pd.Series, *, supports: pd.Series) -> float:
    """Mean over supports of the means over each one's models; NaN for no value."""
    return float(values.groupby(supports, sort=False, dropna=False).mean().mean())


def _models(part: pd.DataFrame, *, images: pd.DataFrame | None) -> pd.DataFrame:
    """Give a row per model with the columns of results.csv; folds are pooled by their images."""
    rows = []
    for _, folds in part.groupby(MODEL, sort=False, dropna=False):
        row = folds.iloc[0].to_dict()
        if len(folds) > 1:
            unknown = dict.fromkeys([*MEASURES, *_INTERVALS, "n_exams"], math.nan)
            own = None if images is None else images["trial_id"].isin(folds["trial_id"])
            row |= unknown if own is None else summarise(images[own])
            if own is not None:
                row |= _pooled_dice(folds)
        rows.append(row)
    return pd.DataFrame(rows)


def _pooled_dice(folds: pd.DataFrame) -> dict[str, float]:
    """Mean Dice over the folds' images of the output that is not shown, where it is known."""
    names = [f"{name}_dice_mean" for name in OUTPUTS if f"{name}_dice_mean" in folds]
    return {name: float(np.average(folds[name], weights=folds["n_images"])) for name in names}


def _counts(part: pd.DataFrame) -> dict:
    ends = {
        f"{stem}_{end}": part[name].agg(end)
        for stem, name in (("n_real", "n_real"), ("n_total", "n_total_labels"))
        for end in ("min", "max")
    }
    return ends | {
        "pair_labels": part["pair_labels"].iloc[0],
        "n_generator_labels": part["n_generator_labels"].max(),
        "n_unlabelled": part["n_unlabelled"].max(),
        "real_fraction": part["real_fraction"].iloc[0],
        "n_trials": len(part),
        "n_supports": max(part["support"].nunique(), 1),
        "n_folds": part["fold"].nunique(),
        "trial_ids": tuple(part["trial_id"]),
    }


def _averages(models: pd.DataFrame, *, images: pd.DataFrame | None) -> dict:
    # Files of older versions lack some columns.
    known = models.reindex(columns=models.columns.union([*MEASURES, *_INTERVALS], sort=False))
    supports = known["support"]
    row = {name: mean_over_supports(known[name], supports=supports) for name in MEASURES}
    row |= {m.spread_column: known[m.column].std(ddof=1) for m in MEASURES.values()}
    row |= {name: known[name].iloc[0] for name in _INTERVALS}
    if len(models) > 1:
        row |= _pooled_intervals(images)
    return row | {
        "trial_dice": tuple(models["dice_mean"]),
        "n_exams": models["n_exams"].max(),
        "trimesters_missing": models.get("trimesters_missing", pd.Series([""])).iloc[0],
    }


def _pooled_intervals(images: pd.DataFrame | None) -> dict[str, float]:
    if images is None:
        return dict.fromkeys(_INTERVALS, math.nan)
    keys = ["support", "sample_id", "exam_id"]
    filled = images.assign(support=images["support"].fillna(-1))
    means = filled.groupby(keys, as_index=False).agg(
        dice=("dice", "mean"), trimester=("trimester", "first")
    )
    plain = crossed_bootstrap(means["dice"], exams=means["exam_id"], supports=means["support"])
    weighted = weighted_interval(means)
    return dict(zip(_INTERVALS, (plain.low, plain.high, *weighted), strict=True))
