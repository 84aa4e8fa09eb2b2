"""What the numbers of a sweep say, in plain words, and which cases show it.

The wording is careful in one way: an interval that holds zero means that a change is not shown.
It never means that there is none.
"""

from collections.abc import Sequence

import pandas as pd

from experiments.config.statistics import ContrastConfig, StatisticsConfig
from experiments.results.contrasts import contrast_family, is_too_small, verdict
from experiments.results.statistics import CONTROLS

BASELINE = "real"
FEW_EXAMS = 20
"""Below this many exams an interval is a rough guide."""
FEW_SUPPORTS = 5
"""Likewise of supports."""
_PROMPT_PHRASES = {
    "whole_image": "prompted with the whole image",
    "jittered_box": "prompted with the jittered box",
    "tight_box": "prompted with the tight box",
    "predicted_box": "prompted with its own first box",
}
_PHRASES = {
    "real": "real pairs alone",
    "real_repeated": "repeating the real pairs",
    "weak": "weak augmentation",
    "strong": "strong augmentation",
    "warp": "warped pairs",
    "phantom": "phantom pairs",
    "synthetic": "synthetic pairs",
    "synthetic_same_budget": "synthetic pairs on the same label budget",
    "synthetic_same_budget_strong": "synthetic pairs on the same label budget, strongly augmented,",
    "real_resized": "real pairs at the generator's size",
    "synthetic_no_gate": "synthetic pairs without a gate",
    "synthetic_random_subset": "a random subset of the synthetic pairs",
    "unet": "a U-Net without a prompt",
}
_MEASURES = {"dice": "Dice", "hc_abs_err_mm": "HC error"}


def prompt_order(prompts: Sequence[str]) -> list[str]:
    """Order prompt protocols: the leak-free one first, then the paper's, then others."""
    first = ["whole_image", "jittered_box"]
    rest = [p for p in dict.fromkeys(prompts) if p not in first]
    return [p for p in first if p in set(prompts)] + rest


def compare(
    per_image: pd.DataFrame,
    *,
    baseline: str = BASELINE,
    seed: int = 0,
    statistics: StatisticsConfig | None = None,
) -> pd.DataFrame:
    """Compare every condition's Dice with the baseline's, per cohort, prompt and amount.

    Args:
        per_image: Rows of per_image.csv; controls are not compared.
        baseline: Condition that is subtracted.
        seed: Of the resampling.
        statistics: Minimum effects, resampling and primary contrast; none gives the defaults
            without a primary contrast.

    Returns:
        The rows of `contrast_family` that are Dice against the baseline, by n_real. p_holm counts
        the primary contrast's other measure too. Without a comparison: no rows.
    """
    family = contrast_family(
        per_image, statistics=_settings(statistics), baseline=baseline, seed=seed
    )
    if family.empty:
        return family
    own = family[(family["measure"] == "dice") & (family["baseline"] == baseline)]
    return own.sort_values("n_real", kind="stable", ignore_index=True)


def primary_contrast(
    per_image: pd.DataFrame,
    *,
    baseline: str = BASELINE,
    seed: int = 0,
    statistics: StatisticsConfig,
) -> pd.DataFrame:
    """Compute the contrast that the recipe named, and its other measure below it.

    Args:
        per_image: Rows of per_image.csv.
        baseline: Of the other comparisons, which p_holm of the second row counts.
        seed: Of the resampling.
        statistics: Names the contrast.

    Returns:
        Up to two rows of `contrast_family`; none where the sweep holds no such pair of trials.
    """
    family = contrast_family(per_image, statistics=statistics, baseline=baseline, seed=seed)
    return family if family.empty else family[family["role"] != "other"].reset_index(drop=True)


def _settings(statistics: StatisticsConfig | None) -> StatisticsConfig:
    if statistics is None:
        return StatisticsConfig(primary=ContrastConfig(enabled=False))
    return statistics


def points(value: float, *, sign: bool = False) -> str:
    """Write a Dice difference as percentage points; small non-zero ones keep two decimals."""
    scaled = 100 * value
    text = f"{abs(scaled):.{2 if 0 < abs(scaled) < 0.095 else 1}f}"
    if scaled < 0:
        return f"−{text}"
    return f"+{text}" if sign else text


def size(value: float, *, measure: str, sign: bool = False) -> str:
    """Write a difference in its unit: points of Dice, or mm; small ones keep two decimals."""
    number = points(value if measure == "dice" else value / 100, sign=sign)
    return f"{number} {'points' if measure == 'dice' else 'mm'}"


def comparison_sentence(row: pd.Series, *, against: str = "") -> str:
    """Say in one sentence what one comparison found.

    Args:
        row: A row of `compare` or `primary_contrast`.
        against: Condition to name as the baseline; empty leaves it out.
    """
    what = _PHRASES.get(row["condition"], row["condition"])
    if row["n_more_labels"] > 0:
        what += f" (their generator saw {row['n_more_labels']:.0f} labelled images more)"
    than = f" against {_PHRASES.get(against, against).rstrip(',')}" if against else ""
    return f"With {_amount_phrase(row)}, {what} {change_phrase(row, than=than)}."


def change_phrase(row: pd.Series, *, than: str = "") -> str:
    """Say how much a measure changed and whether that is shown, without a full stop.

    Args:
        row: A row of `compare` or `primary_contrast`.
        than: Words after the size, with a leading space.
    """
    measure = row.get("measure", "dice")
    name, signed = _MEASURES[measure], size(row["mean"], measure=measure, sign=True)
    found = verdict(row)
    if found == "no interval":
        give = "gives" if row["n_exams"] == 1 else "give"
        return f"changed {name} by {signed}{than}; {_count(row, 'exam')} {give} no interval"
    level = f"{100 * row.get('level', 0.95):.4g} % CI"
    ends = f"{size(row['low'], measure=measure).split()[0]} to "
    ends += size(row["high"], measure=measure).split()[0]
    seen = _count(row, "exam")
    if row.get("n_supports", 1) > 1:
        seen += f", {_count(row, 'support')}"
    interval = f"({level} {ends}, {seen})"
    if found == "not shown":
        least = size(row.get("min_effect", 0.0), measure=measure)
        why = f": smaller than the minimum effect of {least}" if is_too_small(row) else ""
        return f"changed {name} by {signed}{than} {interval}: not shown{why}"
    return f"{found} {name} by {size(abs(row['mean']), measure=measure)}{than} {interval}"


def _count(row: pd.Series, noun: str) -> str:
    n = int(row[f"n_{noun}s"])
    return f"{n} {noun}" + ("" if n == 1 else "s")


def primary_sentence(primary: pd.DataFrame) -> str:
    """Say what the primary contrast found, and its other measure beside it.

    Args:
        primary: From `primary_contrast`; empty where the sweep has no such trials.
    """
    if primary.empty or not primary["is_primary"].iloc[0]:
        return "The recipe's primary contrast has no results: no pair of its trials is done."
    row = primary.iloc[0]
    prompt = _PROMPT_PHRASES.get(row["prompt"], row["prompt"])
    text = comparison_sentence(row, against=row["baseline"]).removesuffix(".")
    text = f"Primary contrast, on {row['test_cohort']}, {prompt}: w{text[1:]}"
    if row["n_supports"] == 1:
        text += "; one support, so the interval is over exams alone"
    for _, other in primary.iloc[1:].iterrows():
        text += f". Beside it, not primary, it {change_phrase(other)}"
    return f"{text}."


def _amount_phrase(row: pd.Series) -> str:
    n_real = int(row["n_real"])
    if pd.notna(row["real_fraction"]):
        return f"{row['amount']} of the real images ({n_real})"
    return f"{n_real} real image" + ("" if n_real == 1 else "s")


def finding(
    comparisons: pd.DataFrame, *, results: pd.DataFrame, primary: pd.DataFrame | None = None
) -> list[str]:
    """Write the sentences at the head of the report, the main one first.

    The primary contrast leads where there is one. The rest speaks of one cohort (the first) under
    the leak-free prompt where that was scored: the synthetic conditions at the smallest amount, the
    count over all amounts, the control without an image, and what limits the reading.

    Args:
        comparisons: From `compare`; may be empty.
        results: Rows of results.csv.
        primary: From `primary_contrast`; none where the recipe names none.
    """
    sentences = [] if primary is None else [primary_sentence(primary)]
    if comparisons.empty:
        sentences.append("No two conditions can be compared yet.")
    else:
        cohort = comparisons["test_cohort"].iloc[0]
        own = comparisons[comparisons["test_cohort"] == cohort]
        prompt = prompt_order(own["prompt"].tolist())[0]
        more = _comparison_sentences(own[own["prompt"] == prompt])
        where = f"On {cohort}, {_PROMPT_PHRASES.get(prompt, prompt)}: w"
        sentences += [where + more[0][1:], *more[1:]]
    sentences += _control_sentence(results[results["status"] == "done"])
    trained = results[~results["condition"].isin(CONTROLS)]
    n_failed = int((trained["status"] == "failed").sum())
    if n_failed:
        n_trials = trained["trial_id"].nunique()
        were = "failed and is" if n_failed == 1 else "failed and are"
        trials = "trial" if n_trials == 1 else "trials"
        sentences.append(f"{n_failed} of {n_trials} {trials} {were} listed in the table.")
    return sentences


def _comparison_sentences(own: pd.DataFrame) -> list[str]:
    made = own[own["condition"].str.startswith("synthetic")]
    shown = made if len(made) else own
    smallest = shown[shown["amount"] == shown["amount"].iloc[0]]
    sentences = [comparison_sentence(row) for _, row in smallest.iterrows()]
    n_family = int(own["n_family"].iloc[0])
    if len(shown) > len(smallest):
        counts = shown.apply(verdict, axis=1).value_counts()
        named = [f"{name} in {counts[name]}" for name in counts.index]
        sentences.append(
            f"Over all {len(shown)} comparisons of this kind: {', '.join(named)} (intervals not "
            f"adjusted; p in the table of differences is, by Holm over {n_family} comparisons)."
        )
    few = []
    if smallest["n_exams"].min() < FEW_EXAMS:
        few.append("exams")
    if 1 < smallest["n_supports"].min() < FEW_SUPPORTS:
        few.append("supports")
    if few:
        sentences.append(f"So few {' and '.join(few)} make the interval a rough guide only.")
    pairs = int(smallest["n_trials"].min())
    if pairs == 1:
        sentences.append(
            "Each is one training run: how far the result varies with the images drawn and the "
            "seed is not measured."
        )
    else:
        spread = points(smallest["sd_trials"].max())
        sentences.append(
            f"Between {pairs} pairs of trials the change varied by SD {spread} points."
        )
    return sentences


def _control_sentence(done: pd.DataFrame) -> list[str]:
    box = done[(done["condition"] == "box_only") & (done["prompt"] == "jittered_box")]
    if box.empty:
        return []
    score = 100 * box["dice_mean"].iloc[0]
    return [
        f"Under the jittered box, an ellipse drawn into the box without reading the image already "
        f"scores {score:.1f} % Dice."
    ]


def pick_cases(per_image: pd.DataFrame, *, n: int = 2) -> pd.DataFrame:
    """Choose the worst, median and best images of one trial, cohort and prompt by Dice.

    Draws are averaged per image; ties are broken by sample id; no image is chosen twice.

    Args:
        per_image: Rows of one trial, cohort and prompt.
        n: Images of each kind.

    Returns:
        Columns sample_id, dice, trimester, which (worst, median, best), worst first; fewer rows
        where there are fewer images than 3 n.
    """
    images = per_image.groupby("sample_id", as_index=False).agg(
        dice=("dice", "mean"), trimester=("trimester", "first")
    )
    images = images.sort_values(["dice", "sample_id"], ignore_index=True)
    worst = list(range(min(n, len(images))))
    best = [i for i in range(len(images) - 1, -1, -1) if i not in worst][:n]
    middle = (len(images) - 1) / 2
    rest = [i for i in range(len(images)) if i not in worst and i not in best]
    median = sorted(sorted(rest, key=lambda i: (abs(i - middle), i))[:n])
    chosen = images.loc[[*worst, *median, *sorted(best)]].reset_index(drop=True)
    chosen["which"] = ["worst"] * len(worst) + ["median"] * len(median) + ["best"] * len(best)
    return chosen
