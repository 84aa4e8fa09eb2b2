"""Statistics of a sweep: from one row per image to one row per trial, cell and comparison.

An exam is the unit of sampling: its frames show one head and are not independent. Every interval
therefore resamples exams. Dice lies in [0, 1] here; tables and figures turn it into per cent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

TRIMESTER_COUNTS: Mapping[int, int] = {1: 165, 2: 693, 3: 141}
"""Images per trimester of the HC18 training set (van den Heuvel et al. 2018), 999 in all."""

KEYS = [
    "trial_id",
    "condition",
    "real_fraction",
    "n_real",
    "n_generator_labels",
    "n_val_labels",
    "n_total_labels",
    "support",
    "seed",
    "generator_seed",
    "test_cohort",
    "prompt",
]
"""Columns that per_image.csv and results.csv share: the axes of a trial and of its test."""

MEASURES = ["dice", "dice_256", "hausdorff_mm", "hc_err_mm", "hc_abs_err_mm"]
SUMMARY = [
    "n_images",
    "n_exams",
    "dice_mean",
    "dice_median",
    "dice_low",
    "dice_high",
    "dice_share_below_090",
    "dice_256_mean",
    "hausdorff_mm_mean",
    "hc_err_mm_mean",
    "hc_abs_err_mm_mean",
    "hc_abs_err_mm_p95",
    "dice_trimester_weighted_mean",
    "trimesters_missing",
]
"""Columns of results.csv that are computed from per_image.csv."""
_TRIAL_COLUMNS = ["status", "reason", "n_synthetic", "steps", "seconds", "peak_memory_mib"]
_TEXT_COLUMNS = ["trial_id", "sample_id", "exam_id", "condition", "test_cohort", "prompt"]
_TEXT_COLUMNS += ["status", "reason", "trimesters_missing"]


@dataclass(frozen=True, kw_only=True)
class WeightedMean:
    """A trimester-weighted mean and what it could not see."""

    value: float
    """The mean in the unit of the values; NaN if no value has a trimester."""
    missing: tuple[int, ...]
    """Trimesters without a value; the other weights were scaled up to sum to 1."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Condition minus baseline on the same images; exams weigh the same."""

    mean: float
    """Mean over exams, in the unit of the column (Dice in [-1, 1])."""
    low: float
    high: float
    """Interval over exams; NaN with fewer than two exams."""
    n_images: int
    n_exams: int
    p_wilcoxon: float
    """Two-sided Wilcoxon signed-rank test on exam means, not adjusted."""
    n_trial_pairs: int
    """Pairs of trials with the same support and seed that were averaged."""
    sd_trials: float
    """Standard deviation of the mean difference between trial pairs; NaN for one pair."""


def read_rows(path: Path) -> pd.DataFrame:
    """Read per_image.csv or results.csv; ids stay text (an id such as 12e4 is no number)."""
    dtypes = dict.fromkeys(_TEXT_COLUMNS, "str")
    return pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=[""])


def cluster_bootstrap_ci(
    values: ArrayLike, groups: ArrayLike, *, n_boot: int = 2000, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean over images, by resampling whole exams.

    Args:
        values: (N,) finite numbers, one per image, any unit.
        groups: (N,) exam ids.
        n_boot: Resamples.
        seed: Of the resampling; the same input and seed give the same interval.
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


def trimester_weighted_mean(values: ArrayLike, trimesters: ArrayLike) -> WeightedMean:
    """Mean of trimester means, weighted by the shares of the HC18 training set.

    A test part that happens to hold few first-trimester heads cannot hide their failures.

    Args:
        values: (N,) numbers, any unit.
        trimesters: (N,) of 1, 2, 3 or NaN (unknown: left out).

    Returns:
        The mean; if a trimester is absent the other weights are renormalised and it is named.
    """
    frame = pd.DataFrame({"value": np.asarray(values, dtype=np.float64)})
    frame["trimester"] = pd.to_numeric(pd.Series(np.asarray(trimesters)), errors="coerce")
    means = frame.groupby("trimester")["value"].mean()
    present = [t for t in TRIMESTER_COUNTS if t in means.index]
    missing = tuple(t for t in TRIMESTER_COUNTS if t not in means.index)
    if not present:
        return WeightedMean(value=float("nan"), missing=missing)
    weights = np.array([TRIMESTER_COUNTS[t] for t in present], dtype=np.float64)
    value = float(np.average(means.loc[present].to_numpy(), weights=weights))
    return WeightedMean(value=value, missing=missing)


def average_draws(per_image: pd.DataFrame) -> pd.DataFrame:
    """Average the prompt draws of each image: a row per trial, cohort, prompt and image.

    Raises:
        ValueError: If a key other than the draw differs within one trial, cohort and prompt.
    """
    where = ["trial_id", "test_cohort", "prompt"]
    rest = [key for key in KEYS if key not in where]
    varying = per_image.groupby(where, sort=False)[rest].nunique(dropna=False).max()
    if (varying > 1).any():
        raise ValueError(f"per_image: {list(varying.index[varying > 1])} differ within a trial")
    carried = dict.fromkeys([*rest, "exam_id", "trimester"], "first")
    averaged = dict.fromkeys(MEASURES, "mean")
    grouped = per_image.groupby([*where, "sample_id"], sort=False, as_index=False)
    return grouped.agg({**carried, **averaged})


def aggregate(per_image: pd.DataFrame, *, seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Turn per_image rows into the rows of results.csv that can be computed from them.

    Draws are averaged per image first; means, medians and shares are then over images, intervals
    over exams. mm columns are NaN where no image has a pixel size.

    Returns:
        A row per trial, cohort and prompt in order of appearance; `status` is done,
        `trimesters_missing` names absent trimesters ("1,3"). Empty input gives the columns alone.
    """
    rows = []
    images = average_draws(per_image)
    for _, part in images.groupby(["trial_id", "test_cohort", "prompt"], sort=False):
        low, high = cluster_bootstrap_ci(part["dice"], part["exam_id"], n_boot=n_boot, seed=seed)
        weighted = trimester_weighted_mean(part["dice"], part["trimester"])
        rows.append(
            {key: part[key].iloc[0] for key in KEYS}
            | {
                "status": "done",
                "reason": "",
                "n_images": len(part),
                "n_exams": part["exam_id"].nunique(),
                "dice_mean": part["dice"].mean(),
                "dice_median": part["dice"].median(),
                "dice_low": low,
                "dice_high": high,
                "dice_share_below_090": (part["dice"] < 0.9).mean(),
                "dice_256_mean": part["dice_256"].mean(),
                "hausdorff_mm_mean": part["hausdorff_mm"].mean(),
                "hc_err_mm_mean": part["hc_err_mm"].mean(),
                "hc_abs_err_mm_mean": part["hc_abs_err_mm"].mean(),
                "hc_abs_err_mm_p95": part["hc_abs_err_mm"].quantile(0.95),
                "dice_trimester_weighted_mean": weighted.value,
                "trimesters_missing": ",".join(map(str, weighted.missing)),
            }
        )
    return pd.DataFrame(rows, columns=[*KEYS, "status", "reason", *SUMMARY])


def add_trials(aggregated: pd.DataFrame, *, trials: pd.DataFrame) -> pd.DataFrame:
    """Complete the aggregated rows by what only the runner knows.

    Args:
        aggregated: From `aggregate`.
        trials: A row per trial: trial_id, status (done, failed, pending...), reason, steps,
            seconds, peak_memory_mib and the trial's keys.

    Returns:
        The rows of results.csv. A trial without any image row keeps one row, its cohort and prompt
        empty; a row without an entry in `trials` (box_only) stays done.
    """
    # What the runner does not know stays empty.
    known = trials.reindex(columns=["trial_id", *_TRIAL_COLUMNS])
    bare = aggregated.drop(columns=_TRIAL_COLUMNS, errors="ignore")
    done = bare.merge(known, on="trial_id", how="left", validate="many_to_one")
    done["status"] = done["status"].fillna("done")
    done["reason"] = done["reason"].fillna("")
    absent = trials[~trials["trial_id"].isin(aggregated["trial_id"])]
    if done.empty:
        rows = absent.reindex(columns=list(dict.fromkeys([*done.columns, *absent.columns])))
    else:
        rows = pd.concat([done, absent], ignore_index=True) if len(absent) else done
    first = ["trial_id", "status", "reason", *KEYS[1:]]
    return rows[first + [name for name in rows.columns if name not in first]]


def paired_difference(
    per_image: pd.DataFrame,
    *,
    baseline: str,
    condition: str,
    seed: int,
    column: str = "dice",
    n_boot: int = 2000,
    level: float = 0.95,
) -> Difference:
    """Compare two conditions on the same images, trials paired by support and seed.

    Draws and generator seeds are averaged per image, then trial pairs per image, then the images
    of each exam; the interval resamples exams. It says nothing about other trained models:
    `sd_trials` does, where there are several.

    Args:
        per_image: Rows of one cohort, one prompt and one amount.
        baseline: Condition that is subtracted.
        condition: Condition that is compared.
        seed: Of the resampling.
        column: Measure; images where it is NaN in either condition are left out.
        n_boot: Resamples.
        level: Coverage in (0, 1).

    Raises:
        ValueError: If no image was scored under both conditions with the same support and seed.

    Source: BCa interval of Efron 1987 by scipy.stats.bootstrap; percentile where BCa is undefined.
    """
    pair = ["support", "seed", "sample_id"]
    means = {
        name: per_image[per_image["condition"] == name]
        .groupby([*pair, "exam_id"], dropna=False, as_index=False)[column]
        .mean()
        for name in (baseline, condition)
    }
    merged = means[baseline].merge(means[condition], on=[*pair, "exam_id"], suffixes=("_0", "_1"))
    merged["d"] = merged[f"{column}_1"] - merged[f"{column}_0"]
    merged = merged.dropna(subset=["d"])
    if merged.empty:
        raise ValueError(f"no image was scored under both {baseline} and {condition}")
    trial_means = merged.groupby(["support", "seed"], dropna=False)["d"].mean()
    images = merged.groupby(["sample_id", "exam_id"], as_index=False)["d"].mean()
    exams = images.groupby("exam_id")["d"].mean().to_numpy()
    low, high = _bca(exams, n_boot=n_boot, seed=seed, level=level)
    return Difference(
        mean=float(exams.mean()),
        low=low,
        high=high,
        n_images=len(images),
        n_exams=len(exams),
        p_wilcoxon=_wilcoxon(exams),
        n_trial_pairs=len(trial_means),
        sd_trials=float(trial_means.std(ddof=1)) if len(trial_means) > 1 else float("nan"),
    )


def _bca(values: np.ndarray, *, n_boot: int, seed: int, level: float) -> tuple[float, float]:
    from scipy.stats import bootstrap  # slow to import, needed here only

    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    for method in ("BCa", "percentile"):
        interval = bootstrap(
            (values,),
            np.mean,
            n_resamples=n_boot,
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        if np.isfinite(interval).all():
            break
    return float(interval.low), float(interval.high)


def _wilcoxon(values: np.ndarray) -> float:
    from scipy.stats import wilcoxon

    if not values.any():
        return 1.0
    return float(wilcoxon(values).pvalue)


def amounts(rows: pd.DataFrame) -> pd.Series:
    """Name the amount of real data of each row: "10 %" of a fraction, else "40 images"."""
    per_cent = (rows["real_fraction"] * 100).map(lambda share: f"{share:.4g} %")
    count = rows["n_real"].map(lambda n: f"{n:.0f} image" if n == 1 else f"{n:.0f} images")
    return per_cent.where(rows["real_fraction"].notna(), count)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p-values for their number.

    Args:
        p_values: (N,) in [0, 1], the whole family.

    Returns:
        (N,) adjusted values in [0, 1], in the order given; empty for none.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
