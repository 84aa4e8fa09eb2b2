"""Sources of variation: standard deviations over supports, seeds, generator seeds and box draws.

The field often reports the deviation over box draws of one model as if it were over models. Each
source stands apart here, the others held.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.config.conditions import CONTROLS, condition_label
from experiments.results.axes import SERIES, axis_label, own_labels, shown_axes
from experiments.results.rows import amounts, with_defaults

DRAWN: Mapping[str, str] = {
    "support": "supports",
    "seed": "seeds",
    "generator_seed": "generator seeds",
    "draw": "box draws",
}
"""Column of per_image.csv and what its values are."""
_CELL = ["test_cohort", "prompt", "amount", *SERIES, "generator_key"]


def spread_table(per_image: pd.DataFrame) -> pd.DataFrame:
    """Write the standard deviation of the mean Dice over images along each axis, others held.

    Where the other axes have several values, the variances along this one are averaged. The folds
    of a model are pooled.

    Returns:
        Text cells, Dice in per cent, a row per cell: cohort, prompt, condition, the axes of which
        there are several values, real, mean (of the model means), and for each axis of `DRAWN`
        "SD over supports" with the number of values in brackets, "" where there is one. No rows
        for empty input.
    """
    frame = with_defaults(per_image).dropna(subset=["dice"])
    frame = frame.assign(amount=amounts(frame), generator_key=own_labels(frame))
    shown, rows = shown_axes(frame), []
    for where, part in frame.groupby(_CELL, sort=False, dropna=False):
        cell = dict(zip(_CELL, where, strict=True))
        means = part.groupby(list(DRAWN), dropna=False, as_index=False)["dice"].mean()
        row = {"cohort": cell["test_cohort"], "prompt": cell["prompt"].replace("_", " ")}
        row |= {"condition": condition_label(cell["condition"])}
        row |= {name: axis_label(name, cell[name]) for name in shown}
        row |= {"real": "" if cell["condition"] in CONTROLS else cell["amount"]}
        row |= {"mean": f"{100 * means['dice'].mean():.1f}"}
        rows.append(row | {f"SD over {name}": _spread(means, axis) for axis, name in DRAWN.items()})
    return pd.DataFrame(rows)


def _spread(means: pd.DataFrame, axis: str) -> str:
    """Pool the variances along one axis over the values of the others."""
    others = [name for name in DRAWN if name != axis]
    variances = means.groupby(others, dropna=False)["dice"].var(ddof=1).dropna()
    if variances.empty:
        return ""
    return f"{100 * np.sqrt(variances.mean()):.2f} ({means[axis].nunique()})"
