"""Sources of variation: standard deviations over supports, seeds, generator seeds and box draws.

The field often reports the deviation over box draws of one model as if it were over models. Each
source stands apart here, the others held.
"""

import numpy as np
import pandas as pd

from experiments.config.conditions import CONTROLS, condition_label
from experiments.results.axes import SERIES, axis_label, own_labels, shown_axes
from experiments.results.rows import with_amounts

_DRAWN = {"support": "supports", "seed": "seeds", "generator_seed": "generator seeds"}
_DRAWN |= {"draw": "box draws"}
"""Column of per_image.csv and what its values are."""


def spread_table(per_image: pd.DataFrame) -> pd.DataFrame:
    """Write the standard deviation of the mean Dice over images along each axis, others held.

    Where the other axes have several values, the variances along this one are averaged. The folds
    of a model are pooled.

    Returns:
        Text cells, Dice in per cent, a row per cell: cohort, prompt, condition, the axes of which
        there are several values, real, mean (of the model means), and for each drawn axis "SD over
        supports" with the number of values in brackets, "" where there is one.
    """
    frame = with_amounts(per_image).dropna(subset=["dice"])
    frame = frame.assign(generator_key=own_labels(frame))
    shown, rows = shown_axes(frame), []
    keys = ["test_cohort", "prompt", "amount", *SERIES, "generator_key"]
    for where, part in frame.groupby(keys, sort=False, dropna=False):
        cell = dict(zip(keys, where, strict=True))
        means = part.groupby(list(_DRAWN), dropna=False, as_index=False)["dice"].mean()
        rows.append(
            {
                "cohort": cell["test_cohort"],
                "prompt": cell["prompt"].replace("_", " "),
                "condition": condition_label(cell["condition"]),
                **{name: axis_label(name, cell[name]) for name in shown},
                "real": "" if cell["condition"] in CONTROLS else cell["amount"],
                "mean": f"{100 * means['dice'].mean():.1f}",
                **{f"SD over {name}": _spread(means, axis) for axis, name in _DRAWN.items()},
            }
        )
    return pd.DataFrame(rows)


def _spread(means: pd.DataFrame, axis: str) -> str:
    """Pool the variances along one axis over the values of the others."""
    others = [name for name in _DRAWN if name != axis]
    variances = means.groupby(others, dropna=False)["dice"].var(ddof=1).dropna()
    if variances.empty:
        return ""
    return f"{100 * np.sqrt(variances.mean()):.2f} ({means[axis].nunique()})"
