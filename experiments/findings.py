"""What the numbers of a sweep say, in plain words, and which cases show it.

The wording is careful in one way: an interval that holds zero means that a change is not shown.
It never means that there is none.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.statistics import amounts, holm, paired_difference

BASELINE = "real"
FEW_EXAMS = 20
"""Below this many exams a bootstrap interval is known to be too narrow."""
_PROMPT_PHRASES = {
    "whole_image": "prompted with the whole image",
    "jittered_box": "prompted with the jittered box",
    "tight_box": "prompted with the tight box",
    "predicted_box": "prompted with its own first box",
}
_PHRASES = {
    "real_repeated": "repeating the real pairs",
    "weak": "weak augmentation",
    "strong": "strong augmentation",
    "warp": "warped pairs",
    "phantom": "phantom pairs",
    "synthetic": "synthetic pairs",
    "synthetic_same_budget": "synthetic pairs on the same label budget",
    "synthetic_same_budget_strong": "synthetic pairs on the same label budget, strongly augmented,",
}


def prompt_order(prompts: Sequence[str]) -> list[str]:
    """Order prompt protocols: the leak-free one first, then the paper's, then others."""
    first = ["whole_image", "jittered_box"]
    rest = [p for p in dict.fromkeys(prompts) if p not in first]
    return [p for p in first if p in set(prompts)] + rest


def compare(per_image: pd.DataFrame, *, baseline: str = BASELINE, seed: int = 0) -> pd.DataFrame:
    """Compare every condition with the baseline, per cohort, prompt and amount.

    Args:
        per_image: Rows of per_image.csv; box_only is a control and is not compared.
        baseline: Condition that is subtracted.
        seed: Of the resampling.

    Returns:
        A row per comparison: test_cohort, prompt, amount, real_fraction, n_real, condition,
        n_generator_labels, n_more_labels (labelled images that only its generator
        saw), the fields of `Difference`, and p_holm over all rows. Without a
        comparison: no rows, no columns.
    """
    rows = []
    frame = per_image.assign(amount=amounts(per_image))
    for where, part in frame.groupby(["test_cohort", "prompt", "amount"], sort=False):
        names = [c for c in part["condition"].unique() if c not in (baseline, "box_only")]
        if baseline not in set(part["condition"]):
            continue
        for name in names:
            try:
                found = paired_difference(part, baseline=baseline, condition=name, seed=seed)
            except ValueError:  # no common support and seed: nothing can be paired
                continue
            own = part[part["condition"] == name].iloc[0]
            keys = dict(zip(["test_cohort", "prompt", "amount"], where, strict=True))
            shown = ["real_fraction", "n_real", "condition", "n_generator_labels"]
            n_more = own["n_total_labels"] - own["n_real"] - own["n_val_labels"]
            extra = {"n_more_labels": n_more}
            rows.append(keys | {key: own[key] for key in shown} | extra | vars(found))
    table = pd.DataFrame(rows)
    if not table.empty:
        table["p_holm"] = holm(table["p_wilcoxon"])
        table = table.sort_values(["n_real"], kind="stable", ignore_index=True)
    return table


def verdict(row: pd.Series) -> str:
    """Classify a comparison: raised, lowered, not shown, or no interval."""
    if not np.isfinite([row["low"], row["high"]]).all():
        return "no interval"
    if row["low"] > 0:
        return "raised"
    return "lowered" if row["high"] < 0 else "not shown"


def points(value: float, *, sign: bool = False) -> str:
    """Write a Dice difference as percentage points; small non-zero ones keep two decimals."""
    scaled = 100 * value
    text = f"{abs(scaled):.{2 if 0 < abs(scaled) < 0.095 else 1}f}"
    if scaled < 0:
        return f"−{text}"
    return f"+{text}" if sign else text


def comparison_sentence(row: pd.Series) -> str:
    """Say in one sentence what one comparison found.

    Args:
        row: A row of `compare`.
    """
    amount = _amount_phrase(row)
    what = _PHRASES.get(row["condition"], row["condition"])
    if row["n_more_labels"] > 0:
        what += f" (their generator saw {row['n_more_labels']:.0f} labelled images more)"
    exams = f"{row['n_exams']} exam" + ("" if row["n_exams"] == 1 else "s")
    found = verdict(row)
    if found == "no interval":
        change = points(row["mean"], sign=True)
        give = "gives" if row["n_exams"] == 1 else "give"
        return f"With {amount}, {what} changed Dice by {change} points; {exams} {give} no interval."
    interval = f"95 % CI {points(row['low'])} to {points(row['high'])}, {exams}"
    if found == "not shown":
        change = points(row["mean"], sign=True)
        return f"With {amount}, {what} changed Dice by {change} points ({interval}): not shown."
    size = points(abs(row["mean"]))
    return f"With {amount}, {what} {found} Dice by {size} points ({interval})."


def _amount_phrase(row: pd.Series) -> str:
    n_real = int(row["n_real"])
    if pd.notna(row["real_fraction"]):
        return f"{row['amount']} of the real images ({n_real})"
    return f"{n_real} real image" + ("" if n_real == 1 else "s")


def finding(comparisons: pd.DataFrame, *, results: pd.DataFrame) -> list[str]:
    """Write the sentences at the head of the report, the main one first.

    They speak of one cohort (the first) under the leak-free prompt where that was scored: the
    synthetic conditions at the smallest amount, the count over all amounts, the label budget, the
    control without an image, and what limits the reading.

    Args:
        comparisons: From `compare`; may be empty.
        results: Rows of results.csv.
    """
    done = results[results["status"] == "done"]
    sentences = []
    if comparisons.empty:
        sentences.append("No two conditions can be compared yet.")
    else:
        cohort = comparisons["test_cohort"].iloc[0]
        own = comparisons[comparisons["test_cohort"] == cohort]
        prompt = prompt_order(own["prompt"].tolist())[0]
        own = own[own["prompt"] == prompt]
        sentences += _comparison_sentences(own, n_family=len(comparisons))
        sentences[0] = f"On {cohort}, {_PROMPT_PHRASES.get(prompt, prompt)}: w" + sentences[0][1:]
    sentences += _control_sentence(done)
    n_failed = int((results["status"] == "failed").sum())
    if n_failed:
        n_trials = results.loc[results["condition"] != "box_only", "trial_id"].nunique()
        were = "failed and is" if n_failed == 1 else "failed and are"
        trials = "trial" if n_trials == 1 else "trials"
        sentences.append(f"{n_failed} of {n_trials} {trials} {were} listed in the table.")
    return sentences


def _comparison_sentences(own: pd.DataFrame, *, n_family: int) -> list[str]:
    made = own[own["condition"].str.startswith("synthetic")]
    shown = made if len(made) else own
    smallest = shown[shown["amount"] == shown["amount"].iloc[0]]
    sentences = [comparison_sentence(row) for _, row in smallest.iterrows()]
    if len(shown) > len(smallest):
        counts = shown.apply(verdict, axis=1).value_counts()
        named = [f"{name} in {counts[name]}" for name in counts.index]
        sentences.append(
            f"Over all {len(shown)} comparisons of this kind: {', '.join(named)} "
            f"(intervals are not adjusted for the {n_family} comparisons made; the table of "
            "differences has adjusted p-values)."
        )
    if smallest["n_exams"].min() < FEW_EXAMS:
        sentences.append("So few exams make the interval a rough guide only.")
    pairs = int(smallest["n_trial_pairs"].min())
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
