"""Differences between conditions on the same images, and what may be said of them.

Trials are paired within fold, support and seed, so that both saw the same real images and were
tested on the same exams. The interval resamples exams and supports (`resampling`).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from experiments.config.statistics import ContrastConfig, Measure, StatisticsConfig
from experiments.results.resampling import crossed_bootstrap
from experiments.results.statistics import CONTROLS, amounts, holm, with_defaults

Verdict = Literal["raised", "lowered", "not shown", "no interval"]
_WHERE = ["test_cohort", "prompt", "amount"]


class NoPairError(ValueError):
    """Two conditions share no image that was scored with the same fold, support and seed."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Condition minus baseline on the same images, in the unit of the measure."""

    mean: float
    """Mean over images (and supports) of the paired differences; every image weighs the same."""
    low: float
    high: float
    """Interval over exams x supports; over exams alone where n_supports is 1; NaN with one exam."""
    p: float
    """Two-sided t-test with the two-way clustered standard error, not adjusted."""
    n_images: int
    n_exams: int
    n_supports: int
    n_trials: int
    """Pairs of trials of one support and seed; the folds of a pair count once."""
    sd_trials: float
    """Standard deviation of the mean difference between those pairs; NaN for one pair."""
    is_primary: bool = False
    """Whether the recipe named this contrast before it ran."""
    p_holm: float = float("nan")
    """p adjusted for all contrasts that are not primary; the primary's own p is not adjusted."""


def paired_contrast(
    per_image: pd.DataFrame,
    *,
    condition: str,
    baseline: str,
    seed: int,
    measure: Measure = "dice",
    n_boot: int = 2000,
    level: float = 0.95,
    is_primary: bool = False,
) -> Contrast:
    """Compare two conditions on the same images, trials paired by fold, support and seed.

    Box draws are averaged per image, then seeds and generator seeds within support and image.

    Args:
        per_image: Rows of one cohort, one prompt and one amount.
        condition: Condition that is compared.
        baseline: Condition that is subtracted.
        seed: Of the resampling.
        measure: Column; images where it is NaN in either condition are left out.
        n_boot: Resamples.
        level: Nominal coverage in (0, 1).
        is_primary: Whether the recipe named this contrast.

    Raises:
        NoPairError: If no image was scored under both with the same fold, support and seed.
        ValueError: If a difference is infinite.
    """
    paired = _paired(per_image, condition=condition, baseline=baseline, measure=measure)
    if paired.empty:
        raise NoPairError(f"no image was scored under both {baseline} and {condition}")
    trial_means = paired.groupby(["support", "seed"])["d"].mean()
    images = paired.groupby(["support", "sample_id", "exam_id"], as_index=False)["d"].mean()
    axes = {"exams": images["exam_id"], "supports": images["support"]}
    found = crossed_bootstrap(images["d"], seed=seed, n_boot=n_boot, level=level, **axes)
    return Contrast(
        mean=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        n_images=images["sample_id"].nunique(),
        n_exams=found.n_exams,
        n_supports=found.n_supports,
        n_trials=len(trial_means),
        sd_trials=float(trial_means.std(ddof=1)) if len(trial_means) > 1 else float("nan"),
        is_primary=is_primary,
        p_holm=found.p if is_primary else float("nan"),
    )


def _paired(
    per_image: pd.DataFrame, *, condition: str, baseline: str, measure: str
) -> pd.DataFrame:
    pair = ["fold", "support", "seed", "sample_id", "exam_id"]
    rows = with_defaults(per_image)
    # A trial without a support or seed cannot be paired with one that has them, but with its like.
    rows[["support", "seed"]] = rows[["support", "seed"]].fillna(-1)
    first, second = (
        rows[rows["condition"] == name].groupby(pair, as_index=False)[measure].mean()
        for name in (baseline, condition)
    )
    merged = first.merge(second, on=pair, suffixes=("_0", "_1"))
    return merged.assign(d=merged[f"{measure}_1"] - merged[f"{measure}_0"]).dropna(subset=["d"])


def contrast_family(
    per_image: pd.DataFrame,
    *,
    statistics: StatisticsConfig,
    baseline: str = "real",
    seed: int = 0,
) -> pd.DataFrame:
    """Compute every contrast of a report: the primary one, its other measure, and all the rest.

    The rest is Dice of each condition against the baseline, per cohort, prompt and amount. Holm's
    adjustment runs over everything but the primary contrast.

    Args:
        per_image: Rows of per_image.csv; controls are not compared.
        statistics: The primary contrast, the minimum effects and the resampling.
        baseline: Condition that is subtracted in the rest.
        seed: Of the resampling.

    Returns:
        A row per contrast: test_cohort, prompt, amount, real_fraction, n_real, condition, baseline,
        measure, n_generator_labels, n_more_labels (labelled images that only its generator saw),
        the fields of `Contrast`, n_trial_pairs (= n_trials), level, min_effect, n_family (contrasts
        that are not primary) and role (primary, beside, other). Primary and beside come first where
        they could be computed; no rows, no columns without any contrast.
    """
    frame = with_defaults(per_image)
    frame = frame.assign(amount=amounts(frame))
    rows = _primary_rows(frame, statistics=statistics, seed=seed)
    taken = {_identity(row) for row in rows}
    for where, part in frame.groupby(_WHERE, sort=False):
        present = list(part["condition"].unique())
        if baseline not in present:
            continue
        for name in present:
            if name == baseline or name in CONTROLS:
                continue
            keys = dict(zip(_WHERE, where, strict=True))
            keys |= {"condition": name, "baseline": baseline, "measure": "dice"}
            if _identity(keys) not in taken:
                rows += _row(part, keys=keys, role="other", statistics=statistics, seed=seed)
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    others = ~table["is_primary"]
    table.loc[others, "p_holm"] = holm(table.loc[others, "p"])
    return table.assign(n_family=int(others.sum()))


def _identity(row: dict) -> tuple:
    return tuple(row[name] for name in [*_WHERE, "condition", "baseline", "measure"])


def _primary_rows(frame: pd.DataFrame, *, statistics: StatisticsConfig, seed: int) -> list[dict]:
    chosen = statistics.primary
    if not chosen.enabled or frame.empty:
        return []
    # The first cohort is the one that the sweep was split from.
    cohort = frame["test_cohort"].iloc[0]
    part = frame[
        (frame["test_cohort"] == cohort)
        & (frame["prompt"] == chosen.prompt)
        & _has_amount(frame, chosen)
    ]
    if part.empty:
        return []
    keys = dict(zip(_WHERE, (cohort, chosen.prompt, part["amount"].iloc[0]), strict=True))
    keys |= {"condition": chosen.condition, "baseline": chosen.baseline}
    other = next(name for name in get_args(Measure) if name != chosen.measure)
    rows = []
    for measure, role in ((chosen.measure, "primary"), (other, "beside")):
        own = keys | {"measure": measure}
        rows += _row(part, keys=own, role=role, statistics=statistics, seed=seed)
    return rows


def _has_amount(frame: pd.DataFrame, chosen: ContrastConfig) -> pd.Series:
    if chosen.real_fraction is not None:
        return (frame["real_fraction"] - chosen.real_fraction).abs() < 1e-9
    return frame["real_fraction"].isna() & (frame["n_real"] == chosen.real_count)


def _row(
    part: pd.DataFrame, *, keys: dict, role: str, statistics: StatisticsConfig, seed: int
) -> list[dict]:
    try:
        found = paired_contrast(
            part,
            condition=keys["condition"],
            baseline=keys["baseline"],
            measure=keys["measure"],
            seed=seed,
            n_boot=statistics.bootstrap_samples,
            level=statistics.level,
            is_primary=role == "primary",
        )
    except NoPairError:  # no common support and seed, or no pixel size: nothing can be paired
        return []
    own = part[part["condition"] == keys["condition"]].iloc[0]
    carried = {name: own[name] for name in ("real_fraction", "n_real", "n_generator_labels")}
    more = own["n_total_labels"] - own["n_real"] - own["n_val_labels"]
    judged = {"level": statistics.level, "min_effect": statistics.min_effect(keys["measure"])}
    extra = {"n_more_labels": more, "n_trial_pairs": found.n_trials, "role": role}
    return [keys | carried | vars(found) | judged | extra]


def verdict(row: pd.Series) -> Verdict:
    """Classify a contrast.

    Args:
        row: mean, low, high and, if it is to count, min_effect, all in the measure's unit.

    Returns:
        no interval; not shown, where the interval holds zero or the difference is smaller than the
        minimum effect; else raised or lowered, which for an error means worse or better.
    """
    if not np.isfinite([row["low"], row["high"]]).all():
        return "no interval"
    if row["low"] <= 0 <= row["high"] or is_too_small(row):
        return "not shown"
    return "raised" if row["mean"] > 0 else "lowered"


def is_too_small(row: pd.Series) -> bool:
    """Whether the interval excludes zero, but the difference is below the minimum effect."""
    excludes_zero = row["low"] > 0 or row["high"] < 0
    return bool(excludes_zero and abs(row["mean"]) < row.get("min_effect", 0.0))
