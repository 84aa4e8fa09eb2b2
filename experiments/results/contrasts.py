"""Differences between conditions on the same images, and what may be said of them.

Trials are paired within fold, support and seed, so that both saw the same real images and were
tested on the same exams. The interval resamples exams and supports (`resampling`).
"""

from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pandas as pd

from experiments.config.statistics import Measure, StatisticsConfig
from experiments.results import axes
from experiments.results.choosing import choice_contrasts
from experiments.results.resampling import crossed_bootstrap
from experiments.results.rows import generator_alone, with_amounts, with_defaults
from experiments.results.statistics import holm

BASELINE = "real"
"""Condition that every other one is compared with, where a sweep has it."""
_WHERE = ["test_cohort", "prompt", "amount"]
_CONTRAST = [*_WHERE, *axes.SERIES, "baseline", "measure"]
"""What tells one contrast from another."""


class NoPairError(ValueError):
    """Two conditions share no image that was scored with the same fold, support and seed."""


def paired_contrast(
    rows: pd.DataFrame,
    baseline: pd.DataFrame,
    *,
    measure: Measure = "dice",
    n_boot: int = 2000,
    level: float = 0.95,
) -> dict[str, float]:
    """Compare two series on the same images, trials paired by fold, support and seed.

    Box draws are averaged per image, then seeds and generator seeds within support and image.

    Args:
        rows: Rows of per_image.csv of one cohort, prompt, amount and series.
        baseline: Those that are subtracted, of the same cohort, prompt and amount.
        measure: Column; images where it is NaN in either are left out.
        n_boot: Resamples.
        level: Nominal coverage in (0, 1).

    Returns:
        mean: over images (and supports) of the paired differences, in the unit of the measure;
        low, high, p, n_exams, n_supports: of `crossed_bootstrap`; n_images; n_trials: pairs of
        trials of one support and seed, the folds of a pair counted once; sd_trials: standard
        deviation of the mean difference between those pairs, NaN for one pair.

    Raises:
        NoPairError: If no image was scored under both with the same fold, support and seed.
        ValueError: If a difference is infinite.
    """
    pair = ["fold", "support", "seed", "sample_id", "exam_id"]
    # A trial without a support or seed cannot be paired with one that has them, but with its like.
    own, base = (
        with_defaults(part).fillna({"support": -1, "seed": -1}).groupby(pair)[measure].mean()
        for part in (rows, baseline)
    )
    paired = (own - base).dropna().rename("d").reset_index()
    if paired.empty:
        raise NoPairError("no image was scored under both with the same fold, support and seed")
    trial_means = paired.groupby(["support", "seed"])["d"].mean()
    images = paired.groupby(["support", "sample_id", "exam_id"], as_index=False)["d"].mean()
    drawn = {"exams": images["exam_id"], "supports": images["support"]}
    found = crossed_bootstrap(images["d"], n_boot=n_boot, level=level, **drawn)
    same = {name: getattr(found, name) for name in ("low", "high", "p", "n_exams", "n_supports")}
    return same | {
        "mean": found.value,
        "n_images": images["sample_id"].nunique(),
        "n_trials": len(trial_means),
        "sd_trials": float(trial_means.std(ddof=1)),
    }


def contrast_family(per_image: pd.DataFrame, *, statistics: StatisticsConfig) -> pd.DataFrame:
    """Compute every contrast of a report: the primary one, its other measure, and all the rest.

    The rest is Dice of each series against the baseline (`baseline_of`), and of each series with
    synthetic pairs against each of `statistics.rivals`, per cohort, prompt and amount, always
    within one segmenter and one choice of images (`axes.baseline_rows`). Holm's adjustment runs
    over everything but the primary contrast, whatever the segmenter. Controls are not compared.

    Returns:
        A row per contrast: test_cohort, prompt, amount, real_fraction, n_real, the columns of
        `axes.SERIES`, baseline, base (of its segmenter's rest), measure, pair_labels,
        n_generator_labels, n_more_least and n_more_labels (labelled images that only its generator
        saw, the fewest and the most of a trial), the numbers of `paired_contrast`, p_holm (p
        adjusted for the family; the primary's own p is not), level, min_effect, n_family (contrasts
        that are not primary) and role (primary, beside, other, rival). Primary and beside come
        first where they could be computed; no rows, no columns without any contrast.
    """
    frame = with_amounts(per_image)
    rows = _primary_rows(frame, statistics=statistics)
    said = [{name: row[name] for name in _CONTRAST} for row in rows]
    frame = frame[~axes.is_control(frame)]
    # A segmenter may lack the condition that the others have.
    bases = {
        name: baseline_of(own, statistics=statistics)
        for name, own in frame.groupby("segmenter", sort=False)
    }
    for where, part in frame.groupby(_WHERE, sort=False):
        for series, own in axes.each_series(part):
            named = dict(zip(_WHERE, where, strict=True)) | series | {"measure": "dice"}
            against = bases[series["segmenter"]]
            rivals = [name for name in statistics.rivals if name != against]
            for baseline in [against, *(rivals if axes.has_synthetic(own).any() else [])]:
                keys = named | {"baseline": baseline}
                if series["condition"] != baseline and keys not in said:
                    base = axes.baseline_rows(part, series, baseline=baseline)
                    role = "other" if baseline == against else "rival"
                    rows += _row(own, base, keys=keys, role=role, statistics=statistics)
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    others = table["role"] != "primary"
    table["p_holm"] = table["p"]
    table.loc[others, "p_holm"] = holm(table.loc[others, "p"])
    base = table["segmenter"].map(bases).fillna(table["baseline"])
    return table.assign(n_family=int(others.sum()), base=base)


def baseline_of(rows: pd.DataFrame, *, statistics: StatisticsConfig) -> str:
    """Condition that the others are compared with: `real`, or else the primary contrast's, or else
    the first that there is."""
    present, primary = list(dict.fromkeys(rows["condition"])), statistics.primary
    wanted = [BASELINE, primary.baseline] if primary.enabled else [BASELINE]
    return next((name for name in [*wanted, *present] if name in present), BASELINE)


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """All contrasts of a report."""

    family: pd.DataFrame
    """From `contrast_family`."""
    segmenters: pd.DataFrame
    """From `segmenter_contrasts`."""
    choices: pd.DataFrame = field(default_factory=pd.DataFrame)
    """From `choice_contrasts`."""


def all_contrasts(per_image: pd.DataFrame, *, statistics: StatisticsConfig) -> Contrasts:
    """Compute the contrasts of conditions, of segmenters and of choices of images."""
    return Contrasts(
        family=contrast_family(per_image, statistics=statistics),
        segmenters=segmenter_contrasts(per_image, statistics=statistics),
        choices=choice_contrasts(per_image, statistics=statistics),
    )


def comparisons(family: pd.DataFrame, *, rivals: bool = False) -> pd.DataFrame:
    """Take the contrasts that are Dice against the baseline, or on request rivals, by n_real."""
    if family.empty:
        return family
    counts = (family["baseline"] == family["base"]) | (rivals & (family["role"] == "rival"))
    own = family[(family["measure"] == "dice") & counts]
    return own.sort_values("n_real", kind="stable", ignore_index=True)


def primary_rows(family: pd.DataFrame) -> pd.DataFrame:
    """Take the contrast that the recipe named and its other measure, as far as they are there."""
    if family.empty:
        return family
    return family[family["role"].isin(["primary", "beside"])].reset_index(drop=True)


def segmenter_contrasts(per_image: pd.DataFrame, *, statistics: StatisticsConfig) -> pd.DataFrame:
    """Compare the Dice of each segmenter with the first one's, per cohort and prompt.

    Both are fitted on the same real images: the baseline's, or the first condition that both have,
    at the largest amount that both have.

    Returns:
        Rows as of `contrast_family`, with `against` for the first segmenter; p_holm is adjusted for
        these rows. None where no two segmenters share images.
    """
    frame = with_amounts(per_image)
    frame = frame[~axes.is_control(frame) & (frame["segmenter"] != "")]
    frame = frame.assign(is_other=frame["condition"] != BASELINE, down=-frame["n_real"])
    alike, rows = ["amount", "condition", "generator", "choice"], []
    for (cohort, prompt), part in frame.groupby(["test_cohort", "prompt"], sort=False):
        of = dict(list(part.groupby("segmenter", sort=False)))
        first, *others = of
        for name in others:
            both = of[name].merge(of[first][alike].drop_duplicates(), on=alike)
            if both.empty:
                continue
            best = both.sort_values(["is_other", "down"], kind="stable").iloc[0]
            own, base = (of[each][(of[each][alike] == best[alike]).all(axis="columns")]
                         for each in (name, first))  # fmt: skip
            keys = {"test_cohort": cohort, "prompt": prompt, "segmenter": name, "measure": "dice"}
            keys |= best[alike].to_dict() | {"against": first}
            rows += _row(own, base, keys=keys, role="other", statistics=statistics)
    table = pd.DataFrame(rows)
    return table if table.empty else table.assign(p_holm=holm(table["p"]), n_family=len(table))


def _primary_rows(frame: pd.DataFrame, *, statistics: StatisticsConfig) -> list[dict]:
    chosen = statistics.primary
    if not chosen.enabled or frame.empty:
        return []
    # The first cohort is the one that the sweep was split from.
    cohort = frame["test_cohort"].iloc[0]
    if chosen.real_fraction is None:
        has_amount = frame["real_fraction"].isna() & (frame["n_real"] == chosen.real_count)
    else:
        has_amount = (frame["real_fraction"] - chosen.real_fraction).abs() < 1e-9
    is_here = (frame["test_cohort"] == cohort) & (frame["prompt"] == chosen.prompt)
    part = frame[is_here & has_amount]
    for name in axes.AXES:
        wanted = getattr(chosen, name) or next(iter(frame.loc[frame[name] != "", name]), "")
        part = part[part[name].isin(["", wanted])]
    own = part[part["condition"] == chosen.condition]
    if own.empty:
        return []
    keys = dict(zip(_WHERE, (cohort, chosen.prompt, own["amount"].iloc[0]), strict=True))
    keys |= {name: own[name].iloc[0] for name in axes.SERIES} | {"baseline": chosen.baseline}
    base = axes.baseline_rows(part, keys, baseline=chosen.baseline)
    rows = []
    for measure in sorted(get_args(Measure), key=lambda name: name != chosen.measure):
        role = "primary" if measure == chosen.measure else "beside"
        named = keys | {"measure": measure}
        rows += _row(own, base, keys=named, role=role, statistics=statistics)
    return rows


def _row(
    rows: pd.DataFrame,
    baseline: pd.DataFrame,
    *,
    keys: dict,
    role: str,
    statistics: StatisticsConfig,
) -> list[dict]:
    """One contrast, or none where nothing can be paired: no common support and seed, or no pixel
    size.
    """
    measure, more = keys["measure"], generator_alone(rows)
    settings = {"n_boot": statistics.bootstrap_samples, "level": statistics.level}
    try:
        found = paired_contrast(rows, baseline, measure=measure, **settings)
    except NoPairError:
        return []
    carried = ["real_fraction", "n_real", "pair_labels", "n_generator_labels"]
    judged = {"level": statistics.level, "min_effect": statistics.min_effect(measure)}
    extra = {"n_more_least": more.min(), "n_more_labels": more.max()}
    extra |= {"role": role, "p_holm": np.nan}
    return [keys | rows.iloc[0][carried].to_dict() | found | judged | extra]


def verdict(row: pd.Series) -> str:
    """Classify a contrast: raised, lowered (whatever is better), not shown, no interval.

    Not shown: the interval holds zero or the difference is smaller than the minimum effect.
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


def is_surely_small(row: pd.Series) -> bool:
    """Whether `is_too_small` holds for all of the interval, and not for the estimate alone."""
    return is_too_small(row) and bool(max(abs(row["low"]), abs(row["high"])) < row["min_effect"])


def level_text(row: pd.Series) -> str:
    """The nominal coverage of a contrast's interval, as "95 %"."""
    return f"{100 * row.get('level', 0.95):.4g} %"
