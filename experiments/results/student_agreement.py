"""How well students agree with each other, beside how well they agree with the annotation.

Students of one row differ in their labelled images or in a seed. Where they agree with each other
far better than with the annotation, a better student would hardly show: what is missing is the
annotation's own spread, or a fault that all of them share.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd

from experiments.config.conditions import condition_label
from experiments.results.axes import axis_label, each_series, is_control, shown_axes
from experiments.results.rows import with_amounts
from lightning_modules.metrics import dice_score

_PROMPTS = ("whole_image", "predicted_box")
"""Those that know nothing of the annotation: students that share its box agree by that alone."""

MaskOf = Callable[[str, str, str], np.ndarray]
"""From a trial's id, a prompt and a sample's id to the mask that is scored, (H, W)."""


def agreement_table(per_image: pd.DataFrame, *, mask_of: MaskOf) -> pd.DataFrame:
    """Mean Dice of the students of a row with each other and with the annotation, by trimester.

    Args:
        per_image: Rows of per_image.csv of one cohort and output; the first of _PROMPTS counts.
        mask_of: Reads a prediction.

    Returns:
        Text cells, Dice in per cent, two rows for each series that has several trials on the same
        images, at the largest amount where it has them: condition, the axes of which there are
        several values, real, students, "agreement with", all, and the trimesters that are known.
    """
    rows = with_amounts(per_image[~is_control(per_image)]).dropna(subset=["dice"])
    prompt = next((prompt for prompt in _PROMPTS if prompt in set(rows["prompt"])), None)
    rows = rows[rows["prompt"] == prompt]
    shown, lines = shown_axes(rows), []
    for keys, series in each_series(rows) if len(rows) else ():
        n_students = series.groupby(["amount", "sample_id"])["trial_id"].nunique()
        several = n_students[n_students > 1]
        if several.empty:
            continue
        # Of a fraction the folds have unequal numbers of images.
        sizes = series.groupby("amount")["n_real"].max()
        largest = sizes[several.index.unique("amount")].idxmax()
        images = several.loc[largest].index
        here = series[(series["amount"] == largest) & series["sample_id"].isin(images)]
        cell = {"condition": condition_label(keys["condition"])}
        cell |= {name: axis_label(name, keys[name]) for name in shown}
        cell |= {"real": here["amount"].iloc[0], "students": str(here["trial_id"].nunique())}
        between = here.groupby("sample_id").apply(_between, prompt, mask_of, include_groups=False)
        scored = here.groupby("sample_id")["dice"].mean()
        trimesters = here.groupby("sample_id")["trimester"].first()
        for name, dice in (("each other", between), ("the annotation", scored)):
            by_trimester = 100 * dice.groupby(trimesters).mean()
            known = {f"trimester {number:.0f}": f"{x:.1f}" for number, x in by_trimester.items()}
            lines.append(cell | {"agreement with": name, "all": f"{100 * dice.mean():.1f}"} | known)
    return pd.DataFrame(lines).fillna("")


def _between(image: pd.DataFrame, prompt: str, mask_of: MaskOf) -> float:
    """Mean Dice over the pairs of students of one image, of which there are several."""
    masks = [mask_of(trial_id, prompt, image.name) for trial_id in image["trial_id"].unique()]
    return float(np.mean([dice_score(one, other) for one, other in combinations(masks, 2)]))
