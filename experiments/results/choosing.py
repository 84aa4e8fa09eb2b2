"""What choosing the labelled images buys: each choice against the first one.

A support of one choice has nothing in common with the same number of another, so trials are not
paired: per test image, the means over supports and seeds are.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from datamodules.choices import CHOICES, DEFAULT
from experiments.config.conditions import condition_label
from experiments.config.statistics import StatisticsConfig
from experiments.results.axes import (
    SERIES,
    axis_label,
    each_place,
    each_series,
    is_control,
    prompt_label,
)
from experiments.results.resampling import crossed_bootstrap
from experiments.results.rows import with_amounts
from experiments.results.statistics import holm

_LIKE = ["test_cohort", "prompt", "amount", *(name for name in SERIES if name != "choice")]
"""What both sides of a comparison share."""
_IMAGE = ["fold", "sample_id", "exam_id"]


def unpaired_contrast(
    rows: pd.DataFrame, baseline: pd.DataFrame, *, level: float = 0.95, n_boot: int = 2000
) -> dict[str, float]:
    """Compare the Dice of two sets of trials that share test images, but no supports.

    Args:
        rows: Rows of per_image.csv of one cohort, prompt, amount and series.
        baseline: Those that are subtracted.
        level: Nominal coverage in (0, 1).
        n_boot: Resamples, where exams alone are resampled.

    Returns:
        mean: over images, of the difference of the means over supports (each the mean over its
        seeds); low, high: interval by Student's t from the variances over exams (paired by image)
        and over the supports of either side, or over exams alone where a side has one support; p:
        two-sided, not adjusted; n_images, n_exams, n_supports (of the side that has fewer).
        Interval and p are NaN for one exam; all but the counts are without a common image.

    Source: Welch 1947 for unpaired means, Satterthwaite 1946 for the degrees of freedom.
    """
    sides = [_support_means(side) for side in (rows, baseline)]
    means = [side.groupby(_IMAGE)["dice"].mean() for side in sides]
    both = (means[0] - means[1]).dropna().rename("d").reset_index()
    n_supports = [side["support"].nunique() for side in sides]
    over_exams = crossed_bootstrap(
        both["d"], exams=both["exam_id"], supports=np.zeros(len(both)), level=level, n_boot=n_boot
    )
    found = {name: getattr(over_exams, name) for name in ("low", "high", "p", "n_exams")}
    found |= {"mean": over_exams.value, "n_images": both["sample_id"].nunique()}
    found |= {"n_supports": min(n_supports)}
    if min(n_supports) < 2 or not over_exams.standard_error > 0:
        return found
    from scipy.stats import t  # slow to import, needed here only

    # A support's mean is over the common images, so that no other image moves it.
    common = [side.merge(both[_IMAGE], on=_IMAGE) for side in sides]
    own = [side.groupby("support")["dice"].mean().var(ddof=1) for side in common]
    parts = [variance / n for variance, n in zip(own, n_supports, strict=True)]
    variance = over_exams.standard_error**2 + sum(parts)
    spread = over_exams.standard_error**4 / over_exams.degrees
    spread += sum(part**2 / (n - 1) for part, n in zip(parts, n_supports, strict=True))
    error, degrees = math.sqrt(variance), variance**2 / spread
    reach = float(t.ppf((1 + level) / 2, degrees)) * error
    ends = {"low": over_exams.value - reach, "high": over_exams.value + reach}
    return found | ends | {"p": float(2 * t.sf(abs(over_exams.value) / error, degrees))}


def _support_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the draws and seeds of each test image and support: a row each."""
    known = rows.fillna({"support": -1})
    return known.groupby([*_IMAGE, "support"], as_index=False)["dice"].mean()


def choice_contrasts(per_image: pd.DataFrame, *, statistics: StatisticsConfig) -> pd.DataFrame:
    """Compare each choice with the first one (`random` where the sweep has it), under each
    condition, segmenter, generator and amount that both have.

    Returns:
        Rows as of `contrasts.contrast_family`, with `against` for the first choice; p_holm is
        adjusted for their number, n_family. No rows with a single choice.
    """
    frame = _trained(per_image)
    present = list(dict.fromkeys(frame["choice"]))
    against = DEFAULT if DEFAULT in present else next(iter(present), "")
    rows = []
    for where, part in frame.groupby(_LIKE, sort=False):
        of = dict(list(part.groupby("choice", sort=False)))
        for choice in [name for name in of if name != against and against in of]:
            found = unpaired_contrast(
                of[choice],
                of[against],
                n_boot=statistics.bootstrap_samples,
                level=statistics.level,
            )
            if found["n_images"] > 0:
                keys = dict(zip(_LIKE, where, strict=True)) | {"choice": choice, "against": against}
                keys |= of[choice].iloc[0][["n_real", "real_fraction"]].to_dict()
                judged = {"level": statistics.level, "min_effect": statistics.min_effect("dice")}
                rows.append(keys | {"measure": "dice"} | found | judged)
    table = pd.DataFrame(rows)
    return table if table.empty else table.assign(p_holm=holm(table["p"]), n_family=len(table))


def choice_table(
    per_image: pd.DataFrame, contrasts: pd.DataFrame, *, shown: Sequence[str]
) -> tuple[str, pd.DataFrame]:
    """Write choice x condition as text: mean Dice at each amount, and the difference to random.

    Returns:
        Cohort (the first) and prompt (leak-free where that was scored) in words; and rows of
        choice, the other axes shown, condition, and a column an amount: `93.7`, and for other
        choices than the first `94.9 (+1.2 [0.1, 2.3])`, without the bracket where one exam gives no
        interval. No rows with a single choice.
    """
    if contrasts.empty:
        return "", pd.DataFrame()
    cohort, prompt, frame = next(each_place(_trained(per_image)))
    own = contrasts[(contrasts["test_cohort"] == cohort) & (contrasts["prompt"] == prompt)]
    known = 100 * own.set_index(["amount", *SERIES])[["mean", "low", "high"]]
    columns = frame.sort_values("n_real", kind="stable")["amount"].unique()
    heads = ["choice", *(name for name in shown if name != "choice")]
    rows = []
    for keys, part in each_series(frame):
        words = {name: axis_label(name, keys[name]) for name in heads}
        words |= {"condition": condition_label(keys["condition"])} | dict.fromkeys(columns, "")
        for amount, images in part.groupby("amount"):
            words[amount] = f"{100 * _support_means(images)['dice'].mean():.1f}"
            if (place := (amount, *keys.values())) in known.index:
                mean, low, high = known.loc[place]
                bracket = "" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]"
                words[amount] += f" ({mean:+.1f}{bracket})"
        rows.append(words)
    return f"{cohort}, {prompt_label(prompt)}", pd.DataFrame(rows)


def headline_contrasts(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Take one comparison a choice: the first cohort, prompt and condition, the least labels."""
    if contrasts.empty:
        return contrasts
    _, _, own = next(each_place(contrasts))
    ordered = own.sort_values("n_real", kind="stable")
    return ordered.drop_duplicates("choice").sort_index()


def choosing_phrase(row: pd.Series, between: str) -> str:
    """Say which images are compared with which, with words between them."""
    return f"{CHOICES[row['choice']].phrase} {between} {CHOICES[row['against']].phrase}"


def _trained(per_image: pd.DataFrame) -> pd.DataFrame:
    return with_amounts(per_image[~is_control(per_image)]).dropna(subset=["dice"])
