"""Statistics of a sweep: from one row per image to one row per trial.

An exam is the unit of sampling: its frames show one head and are not independent. Every interval
therefore resamples exams. Dice lies in [0, 1] here; tables and figures turn it into per cent.
Intervals over exams and supports are in `resampling`, differences in `contrasts`.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from experiments.results.resampling import Estimate, crossed_bootstrap
from experiments.results.rows import KEYS, with_defaults

TRIMESTER_COUNTS: Mapping[int, int] = {1: 165, 2: 693, 3: 141}
"""Images per trimester of the HC18 training set (van den Heuvel et al. 2018), 999 in all."""

MEASURES = ["dice", "dice_256", "hausdorff_mm", "hc_err_mm", "hc_abs_err_mm"]
"""Columns of per_image.csv."""
SUMMARY = ["n_images", "n_exams", "n_not_found", "n_not_fitted", "dice_mean", "dice_median"]
SUMMARY += ["dice_low", "dice_high", "dice_share_below_090", "dice_256_mean"]
SUMMARY += ["hausdorff_mm_mean", "hc_err_mm_mean"]
SUMMARY += ["hc_abs_err_mm_mean", "hc_abs_err_mm_p95", "dice_trimester_weighted_mean"]
SUMMARY += ["dice_trimester_weighted_low", "dice_trimester_weighted_high", "trimesters_missing"]
"""Columns of results.csv that are computed from per_image.csv."""
_SCORED = ["trial_id", "test_cohort", "prompt", "output"]
"""What one row of results.csv is of."""


def cluster_bootstrap_ci(
    values: ArrayLike, groups: ArrayLike, *, n_boot: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean over images, by resampling whole exams.

    Args:
        values: (N,) finite numbers, one per image, any unit.
        groups: (N,) exam ids.
        n_boot: Resamples.
        seed: Of the resampling.
        level: Coverage in (0, 1).

    Returns:
        (low, high) in the unit of the values; (NaN, NaN) with fewer than two exams.

    Raises:
        ValueError: If a value is not finite or the lengths differ.

    Source: Field and Welsh 2007 (cluster bootstrap). With one image an exam it agrees with
        scipy.stats.bootstrap(method="percentile") to the resampling error.
    """
    array = np.asarray(values, dtype=np.float64)
    codes, _ = pd.factorize(np.asarray(groups))
    if array.shape != codes.shape or array.ndim != 1:
        raise ValueError(f"values {array.shape} and groups {codes.shape} must be equal vectors")
    if not np.isfinite(array).all():
        raise ValueError("cluster_bootstrap_ci: a value is not finite")
    n_groups = int(codes.max(initial=-1)) + 1
    if n_groups < 2:
        return float("nan"), float("nan")
    sums = np.bincount(codes, weights=array)
    counts = np.bincount(codes)
    drawn = np.random.default_rng(seed).integers(n_groups, size=(n_boot, n_groups))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def average_draws(per_image: pd.DataFrame) -> pd.DataFrame:
    """Average the prompt draws of each image: a row per trial, cohort, prompt, output and image.

    `found` and `fitted` become shares of the draws, NaN where the file does not say.

    Raises:
        ValueError: If a key other than the draw differs within one trial, cohort and prompt.
    """
    rest = [key for key in KEYS if key not in _SCORED]
    rows = with_defaults(per_image)
    varying = rows.groupby(_SCORED, sort=False)[rest].nunique(dropna=False).max()
    if (varying > 1).any():
        raise ValueError(f"per_image: {list(varying.index[varying > 1])} differ within a trial")
    shares = ["found", "fitted"]
    # True and False beside absent values make a column of text or objects.
    numbers = {True: 1.0, False: 0.0, "True": 1.0, "False": 0.0}
    rows[shares] = rows.reindex(columns=shares).apply(lambda values: values.map(numbers))
    carried = dict.fromkeys([*rest, "exam_id", "trimester"], "first")
    averaged = dict.fromkeys([*MEASURES, *shares], "mean")
    grouped = rows.groupby([*_SCORED, "sample_id"], sort=False, as_index=False)
    return grouped.agg(carried | averaged)


def aggregate(per_image: pd.DataFrame, *, n_boot: int = 2000) -> pd.DataFrame:
    """Turn per_image rows into the rows of results.csv that can be computed from them.

    Returns:
        A row per trial, cohort, prompt and output in order of appearance; `status` is done. Empty
        input gives the columns alone.
    """
    rows = []
    for _, part in average_draws(per_image).groupby(_SCORED, sort=False):
        keys = part.iloc[0][KEYS].to_dict() | {"status": "done", "reason": ""}
        rows.append(keys | summarise(part, n_boot=n_boot))
    return pd.DataFrame(rows, columns=[*KEYS, "status", "reason", *SUMMARY])


def summarise(images: pd.DataFrame, *, n_boot: int = 2000) -> dict[str, float | str]:
    """Compute the columns of `SUMMARY` over images of one model (or the folds of one).

    `images` are from `average_draws`, each once; not empty. n_not_found counts those with an empty
    prediction in any draw, n_not_fitted those without an ellipse (NaN if not recorded). mm columns
    are NaN without a pixel size; trimesters_missing names absent ones ("1,3").
    """
    dice, exams = images["dice"], images["exam_id"]
    low, high = cluster_bootstrap_ci(dice, exams, n_boot=n_boot)
    weighted = weighted_dice(images, n_boot=n_boot)
    known = set(pd.to_numeric(images["trimester"], errors="coerce"))
    lacking = (
        int((images[name] < 1).sum()) if images[name].notna().any() else float("nan")
        for name in ("found", "fitted")
    )
    numbers = (
        *(len(images), exams.nunique(), *lacking),
        *(dice.mean(), dice.median(), low, high, (dice < 0.9).mean()),
        *images[["dice_256", "hausdorff_mm", "hc_err_mm", "hc_abs_err_mm"]].mean(),
        images["hc_abs_err_mm"].quantile(0.95),
        *(weighted.value, weighted.low, weighted.high),
        ",".join(str(number) for number in TRIMESTER_COUNTS if number not in known),
    )
    return dict(zip(SUMMARY, numbers, strict=True))


def weighted_dice(images: pd.DataFrame, *, n_boot: int = 2000) -> Estimate:
    """Mean of the trimesters' mean Dice, weighted by their shares in the HC18 training set, with
    its interval over exams and, with several, supports.

    A test part that happens to hold few first-trimester heads cannot hide their failures. Images
    of an unknown trimester are left out; without a trimester the other weights are scaled up.
    `images` are dice, exam_id, trimester and support, a row per image and support.
    """
    return crossed_bootstrap(
        images["dice"],
        exams=images["exam_id"],
        supports=images["support"].fillna(-1),
        strata=pd.to_numeric(images["trimester"], errors="coerce"),
        weights=TRIMESTER_COUNTS,
        n_boot=n_boot,
    )


def add_trials(aggregated: pd.DataFrame, *, trials: pd.DataFrame) -> pd.DataFrame:
    """Put the numbers of `aggregate` beside what only the runner knows.

    `trials` has a row per trial, cohort and prompt, with status, reason, cost and the trial's keys.
    It becomes a row an output; what is not scored keeps one without numbers.
    """
    where = ["trial_id", "test_cohort", "prompt"]
    rows = trials.merge(aggregated[[*where, "output", *SUMMARY]], on=where, how="left")
    first = ["trial_id", "status", "reason", *KEYS[1:], *SUMMARY]
    return with_defaults(rows)[first + [name for name in rows.columns if name not in first]]


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust (N,) p-values in [0, 1], the whole family, for their number; empty for none.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
