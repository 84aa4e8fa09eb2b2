"""What the numbers of a sweep say, in plain words, and which cases show it.

The wording is careful in one way: an interval that holds zero means that a change is not shown.
It never means that there is none.
"""

from collections.abc import Sequence

import pandas as pd

from datamodules.choices import choice_label
from experiments.config.conditions import BOX_ALONE, condition_phrase
from experiments.config.words import counted
from experiments.results import axes
from experiments.results.cells import cells
from experiments.results.choosing import choosing_phrase, headline_contrasts
from experiments.results.contrasts import (
    Contrasts,
    comparisons,
    is_surely_small,
    is_too_small,
    level_text,
    primary_rows,
    verdict,
)
from experiments.results.rows import with_amounts, with_defaults

_FEW_EXAMS, _FEW_SUPPORTS = 20, 5
"""Below these an interval is a rough guide."""
_MEASURES = {"dice": "Dice", "hc_abs_err_mm": "HC error"}


def size(value: float, *, measure: str, sign: bool = False) -> str:
    """Write a difference in points of Dice or mm; small non-zero ones keep two decimals."""
    scaled, unit = (100 * value, "points") if measure == "dice" else (value, "mm")
    digits = 2 if 0 < abs(scaled) < 0.095 else 1
    return f"{scaled:{'+' if sign else ''}.{digits}f} {unit}".replace("-", "−")


def comparison_sentence(row: pd.Series, *, against: str = "", shown: Sequence[str] = ()) -> str:
    """Say in one sentence what a row of `contrast_family` found, and against which condition."""
    what, aside = condition_phrase(row["condition"]), []
    if "generator" in shown and row["generator"]:
        aside.append(f"generator {row['generator']}")
    if "choice" in shown:
        aside.append(f"images chosen: {choice_label(row['choice'])}")
    if row["n_more_labels"] > 0:
        aside.append(f"their generator saw {more_labels(row)} labelled images more")
    what += f" ({'; '.join(aside)})" if aside else ""
    than = f" against {condition_phrase(against).rstrip(',')}" if against else ""
    who = f" and segmenter {row['segmenter']}" if "segmenter" in shown else ""
    return f"With {_amount_phrase(row)}{who}, {what} {change_phrase(row, than=than)}."


def more_labels(row: pd.Series) -> str:
    """Labelled images that only the generator saw; the overlap may differ between supports."""
    least, most = row.get("n_more_least", row["n_more_labels"]), row["n_more_labels"]
    return f"{most:.0f}" if least == most else f"{least:.0f} to {most:.0f}"


def change_phrase(row: pd.Series, *, than: str = "") -> str:
    """Say how much a measure changed and whether that is shown, without a full stop."""
    measure = row.get("measure", "dice")
    name, signed = _MEASURES[measure], size(row["mean"], measure=measure, sign=True)
    found, seen = verdict(row), _interval_and_samples(row)
    if found == "no interval":
        return f"changed {name} by {signed}{than}; {seen}"
    if found == "not shown":
        least = size(row.get("min_effect", 0.0), measure=measure)
        small = "smaller than" if is_surely_small(row) else "the estimate is below"
        why = f": {small} the minimum effect of {least}" if is_too_small(row) else ""
        return f"changed {name} by {signed}{than} ({seen}): not shown{why}"
    return f"{found} {name} by {size(abs(row['mean']), measure=measure)}{than} ({seen})"


def interval(row: pd.Series) -> str:
    """Write the interval of a difference, as "2.0 to 4.0 points"; "" where it has none."""
    if verdict(row) == "no interval":
        return ""
    low, high = (size(row[end], measure=row.get("measure", "dice")) for end in ("low", "high"))
    return f"{low.split()[0]} to {high}"


def _interval_and_samples(row: pd.Series) -> str:
    """Write an interval with the sizes of its samples, or that there is none."""
    seen, found = counted(row["n_exams"], "exam"), interval(row)
    if not found:
        return f"{seen} {'gives' if row['n_exams'] == 1 else 'give'} no interval"
    if row.get("n_supports", 1) > 1:
        seen += f", {counted(row['n_supports'], 'support')}"
    return f"{level_text(row)} CI {found.rsplit(' ', 1)[0]}, {seen}"


def primary_sentence(primary: pd.DataFrame, *, shown: Sequence[str] = ()) -> str:
    """Say what the primary contrast found, and its other measure beside it."""
    if "primary" not in _roles(primary):
        return (
            "The recipe's primary contrast has no results: no pair of its trials is done, or none "
            "has the measure."
        )
    row = primary.iloc[0]
    prompt = axes.prompt_phrase(row["prompt"])
    text = comparison_sentence(row, against=row["baseline"], shown=shown).removesuffix(".")
    text = f"Primary contrast, on {row['test_cohort']}, {prompt}: w{text[1:]}"
    if row["n_supports"] == 1:
        text += "; one support, so the interval is over exams alone"
    beside = [f". Beside it, not primary, it {change_phrase(r)}" for _, r in primary[1:].iterrows()]
    return "".join([text, *beside, "."])


def _roles(family: pd.DataFrame) -> set[str]:
    return set(family["role"]) if len(family) else set()


def _place(row: pd.Series) -> str:
    prompt = axes.prompt_phrase(row["prompt"])
    with_what = f"{_amount_phrase(row)} and {condition_phrase(row['condition']).rstrip(',')}"
    return f"On {row['test_cohort']}, {prompt}, with {with_what}"


def _amount_phrase(row: pd.Series) -> str:
    if pd.notna(row["real_fraction"]):
        return f"{row['amount']} of the real images ({row['n_real']:.0f})"
    return counted(row["n_real"], "real image")


def finding(
    contrasts: Contrasts,
    *,
    results: pd.DataFrame,
    per_image: pd.DataFrame,
    has_primary: bool = False,
) -> list[str]:
    """Write the sentences at the head of the report, the main one first.

    The primary contrast leads, then which segmenter is ahead, then what choosing the images
    changed. The rest speaks of the first cohort under the leak-free prompt where that was scored:
    the synthetic conditions at the smallest amount (but for the primary contrast, which was said),
    the count over all amounts, the control without an image, and what limits the reading.
    """
    results, compared = with_defaults(results), comparisons(contrasts.family)
    shown = axes.shown_axes(results)
    sentences = []
    if has_primary:
        sentences.append(primary_sentence(primary_rows(contrasts.family), shown=shown))
    for _, row in contrasts.segmenters.iterrows():
        what = f"segmenter {row['segmenter']} instead of {row['against']}"
        sentences.append(f"{_place(row)}: {what} {change_phrase(row)}.")
    for _, row in headline_contrasts(contrasts.choices).iterrows():
        who = f" and segmenter {row['segmenter']}" if "segmenter" in shown else ""
        what = f"{who}: labelling {choosing_phrase(row, 'instead of')}"
        sentences.append(f"{_place(row)}{what} {change_phrase(row)}.")
    if len(compared):
        cohort, prompt, own = next(axes.each_place(compared))
        where = f"On {cohort}, {axes.prompt_phrase(prompt)}"
        is_said = has_primary and "primary" in _roles(contrasts.family)
        said = ("primary", "beside") if is_said else ()
        sentences += _comparison_sentences(own, where=where, said=said, shown=shown)
    done, trained = results[results["status"] == "done"], results[~axes.is_control(results)]
    box = done[done["condition"].isin(BOX_ALONE) & (done["prompt"] == "jittered_box")]
    if len(box):
        level = cells(box, per_image=per_image)["dice_mean"].iloc[0]
        sentences.append(
            "Under the jittered box, an ellipse drawn into the box without reading the image "
            f"already scores {100 * level:.1f} % Dice."
        )
    if n_failed := trained.loc[trained["status"] == "failed", "trial_id"].nunique():
        trials, are = (
            counted(trained["trial_id"].nunique(), "trial"),
            "is" if n_failed == 1 else "are",
        )
        sentences.append(f"{n_failed} of {trials} failed and {are} listed in the table.")
    return sentences


def _comparison_sentences(
    own: pd.DataFrame, *, where: str, said: Sequence[str], shown: Sequence[str]
) -> list[str]:
    """Sentences of one cohort and prompt; rows whose role is in `said` have theirs already."""
    made = own[axes.has_synthetic(own)]
    listed = made if len(made) else own
    smallest = listed[listed["amount"] == listed["amount"].iloc[0]]
    new = smallest[~smallest["role"].isin(said)]
    sentences = [comparison_sentence(row, shown=shown) for _, row in new.iterrows()]
    if len(listed) > len(smallest):
        counts = listed.apply(verdict, axis=1).value_counts()
        named = [f"{name} in {counts[name]}" for name in counts.index]
        sentences.append(
            f"Over all {len(listed)} comparisons of this kind: {', '.join(named)} (intervals not "
            "adjusted; p in the table of differences is, by Holm over "
            f"{own['n_family'].iloc[0]:.0f} comparisons)."
        )
    if sentences:
        sentences[0] = f"{where}: {sentences[0][0].lower()}{sentences[0][1:]}"
    few = ["exams"] if smallest["n_exams"].min() < _FEW_EXAMS else []
    is_rough = smallest["n_supports"].between(2, _FEW_SUPPORTS - 1)
    few += ["supports"] if is_rough.any() else []
    if few:
        sentences.append(f"So few {' and '.join(few)} make the interval a rough guide only.")
    most = smallest.loc[smallest["n_trials"].idxmax()]
    spread = size(smallest["sd_trials"].max(), measure="dice")
    up_to = "up to " if len(smallest) > 1 else ""
    sentences.append(
        "Each is one support and seed: how far the result varies with them is not measured."
        if most["n_trials"] == 1
        else f"Between {most['n_trials']} pairs of trials the change varied by SD {up_to}{spread}."
    )
    return sentences


def best_trial(per_image: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first trial of the series with the best mean Dice at the largest amount.

    `per_image` is of one cohort, prompt and output, without controls; at least one row.
    """
    named = with_amounts(per_image)
    largest = named[named["amount"] == named.loc[named["n_real"].idxmax(), "amount"]]
    series = largest.groupby(list(axes.SERIES), sort=False)["dice"].mean().idxmax()
    chosen = largest[(largest[list(axes.SERIES)] == list(series)).all(axis="columns")]
    return per_image.loc[chosen.index[chosen["trial_id"] == chosen["trial_id"].iloc[0]]]


def pick_cases(per_image: pd.DataFrame, *, n: int = 2) -> pd.DataFrame:
    """Choose the median, worst and best images of one trial, cohort and prompt by Dice.

    Returns:
        sample_id, dice, trimester, which (median, worst, best), in this order, by Dice and sample
        id within each; at most 3 n rows, no image twice.
    """
    images = (
        per_image.groupby("sample_id").agg({"dice": "mean", "trimester": "first"}).reset_index()
    )
    images = images.sort_values(["dice", "sample_id"], ignore_index=True)
    places = pd.Series(images.index)
    worst, rest = places[:n], places[n:]
    best, rest = rest[-n:], rest[:-n]
    median = sorted(rest, key=lambda i: abs(i - (len(images) - 1) / 2))[:n]
    which = dict.fromkeys(sorted(median), "median") | dict.fromkeys(worst, "worst")
    which |= dict.fromkeys(best, "best")
    return images.loc[[*which]].assign(which=[*which.values()]).reset_index(drop=True)
