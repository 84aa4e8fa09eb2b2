"""The numbers of a table: the trials of each cell averaged.

A cell is a cohort, prompt, amount, series and label counts. A model is what was trained with one
support, seed and generator seed; its folds test different exams, so their images are pooled first.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.results.axes import SERIES, own_labels
from experiments.results.measures import MEASURES
from experiments.results.resampling import crossed_bootstrap
from experiments.results.rows import TESTED, with_amounts
from experiments.results.statistics import average_draws, summarise, weighted_dice
from experiments.store.columns import OUTPUTS

MODEL = ["support", "seed", "generator_seed"]
"""The axes of a model beside its series and amount."""
_INTERVALS = ["dice_low", "dice_high"]
_INTERVALS += ["dice_trimester_weighted_low", "dice_trimester_weighted_high"]
_CELL = ["test_cohort", "prompt", "amount", *SERIES, "n_val_labels"]
_COUNTS = {
    "pair_labels": ("pair_labels", "first"),
    "n_generator_labels": ("n_generator_labels", "max"),
    "n_unlabelled": ("n_unlabelled", "max"),
    "real_fraction": ("real_fraction", "first"),
    "n_real_min": ("n_real", "min"),
    "n_real_max": ("n_real", "max"),
    "n_total_min": ("n_total_labels", "min"),
    "n_total_max": ("n_total_labels", "max"),
    "n_trials": ("trial_id", "size"),
    "n_supports": ("support", "nunique"),
    "n_folds": ("fold", "nunique"),
    "trial_ids": ("trial_id", tuple),
}
"""What is counted in the trials of a cell: a column of results.csv, and how."""
_AVERAGES = [*MEASURES, *(one.spread_column for one in MEASURES.values()), *_INTERVALS]
_AVERAGES += ["trial_dice", "n_exams", "trimesters_missing"]


def cells(results: pd.DataFrame, *, per_image: pd.DataFrame | None = None) -> pd.DataFrame:
    """Average the done trials of each cell.

    Numbers are means over supports of the means over each support's models, so that no support
    counts more for having more seeds; each `_sd` is the standard deviation (n - 1) over models, and
    the intervals of several models resample exams and supports at once (exams alone where there is
    one support). Without per_image they are NaN, and so is a model of several folds.

    Returns:
        A row per cell: test_cohort, prompt, amount, the columns of `SERIES`, n_val_labels, the
        counts of `_COUNTS`, and the columns of `_AVERAGES`; trial_dice is of each model.
    """
    done = with_amounts(results[results["status"] == "done"])
    done = done.assign(generator_key=own_labels(done))
    images = None if per_image is None else average_draws(per_image)
    groups = done.groupby([*_CELL, "generator_key"], sort=False, dropna=False)
    found, averages = groups.agg(**_COUNTS).reset_index(), []
    for _, cell in found.iterrows():
        own = None if images is None else rows_of(cell, rows=images)
        models = _models(rows_of(cell, rows=done), images=own)
        averages.append(_averages(models, images=own))
    found = found.assign(n_supports=found["n_supports"].clip(lower=1))
    numbers = pd.DataFrame(averages, columns=_AVERAGES)
    return pd.concat([found.drop(columns="generator_key"), numbers], axis="columns")


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
        A row per model: `by`, `MODEL`, the columns, n_real (the least of its folds), n_trials (its
        folds) and n_exams, where images that several folds tested count once. Folds of files
        without n_images weigh alike.
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
        A row per cell: `by`, the columns, n_real (least), n_trials (sum) and n_exams (most).
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
        if len(folds) > 1 and images is None:
            row |= dict.fromkeys([*MEASURES, *_INTERVALS, "n_exams"], math.nan)
        elif len(folds) > 1:
            row |= summarise(images[images["trial_id"].isin(folds["trial_id"])])
            # Of the output that is not shown the mean is known alone.
            for name in (f"{output}_dice_mean" for output in OUTPUTS):
                if name in folds:
                    row[name] = float(np.average(folds[name], weights=folds["n_images"]))
        rows.append(row)
    return pd.DataFrame(rows)


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
    by_image = images.fillna({"support": -1}).groupby(["support", "sample_id", "exam_id"])
    means = by_image.agg({"dice": "mean", "trimester": "first"}).reset_index()
    plain = crossed_bootstrap(means["dice"], exams=means["exam_id"], supports=means["support"])
    ends = [end for found in (plain, weighted_dice(means)) for end in (found.low, found.high)]
    return dict(zip(_INTERVALS, ends, strict=True))
