"""A sweep's curves for W&B: Dice and HC error against the number of labelled images, a series each.

A name begins with what tells series apart, because the terminal dashboard cuts it at its end.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.results import axes
from experiments.results.cells import cells

CURVES = {"dice": "dice_mean", "hc_mae_mm": "hc_abs_err_mm_mean"}
"""First part of a curve's name, and the column of results.csv that it shows: mean Dice in [0, 1],
and the mean absolute error of the head circumference, mm."""
X = "n_real"


def curves(results: pd.DataFrame, *, per_image: pd.DataFrame) -> dict[float, dict[str, float]]:
    """The points of all curves, as one output's rows of results.csv give them.

    Returns:
        By number of labelled images, ascending: the means over trials by name,
        `MEASURE/[SEGMENTER ]CONDITION[ GENERATOR][ CHOICE]/PROMPT[/COHORT]`, axes of which there is
        one value left out, the first cohort too. A control has its value at every number.
    """
    # Only folds need the images, to be pooled; the rest of the work is for intervals.
    has_folds = results["fold"].nunique() > 1
    found = cells(results, per_image=per_image if has_folds else None)
    points: dict[float, dict[str, float]] = defaultdict(dict)
    if found.empty:
        return points
    shown, main = axes.shown_axes(found), found["test_cohort"].iloc[0]
    found = found.assign(generator_labels=axes.several_generator_labels(found))
    for (cohort, prompt), part in found.groupby(["test_cohort", "prompt"], sort=False):
        place = prompt if cohort == main else f"{prompt}/{cohort}"
        is_level = axes.is_control(part)
        middle = (part["n_real_min"] + part["n_real_max"]) / 2
        trained = sorted(middle[~is_level].unique())
        for i, row in part.iterrows():
            name = _series(row, shown=shown)
            for n_real in trained if is_level[i] else [middle[i]]:
                for measure, column in CURVES.items():
                    if pd.notna(row[column]):
                        points[float(n_real)][f"{measure}/{name}/{place}"] = float(row[column])
    return dict(sorted(points.items()))


def _series(row: Mapping, *, shown: Sequence[str]) -> str:
    words = [row[name] for name in axes.SERIES if name == "condition" or name in shown]
    if row["generator_labels"]:
        words.append(f"on {row['generator_labels']}")
    return " ".join(filter(None, words))
