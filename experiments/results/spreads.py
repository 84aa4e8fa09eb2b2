"""Sources of variation: standard deviations over supports, seeds, generator seeds and box draws.

The field often reports the deviation over box draws of one model as if it were over models. Each
source stands apart here, the others held.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.config.conditions import condition_label
from experiments.results.axes import SERIES, axis_label, is_control, own_labels, shown_axes
from experiments.results.rows import amounts, with_defaults

DRAWN: Mapping[str, str] = {
    "support": "supports",
    "seed": "seeds",
    "generator_seed": "generator seeds",
    "draw": "box draws",
}
"""Column of per_image.csv and what its values are."""
_CELL = ["test_cohort", "prompt", "amount", *SERIES, "generator_key"]


def spreads(per_image: pd.DataFrame) -> pd.DataFrame:
    """Standard deviation of the mean Dice over images along each axis, the other axes held.

    Where the other axes have several values, the variances along this one are averaged. The folds
    of a model are pooled.

    Returns:
        A row per cell: test_cohort, prompt, amount, the columns of `SERIES`, n_generator_labels
        (the most), mean (of the model means), and for each axis of `DRAWN` n_AXIS (its values; 0
        where it does not apply) and sd_AXIS (None where the axis has one value). No rows for empty
        input.
    """
    frame = with_defaults(per_image).dropna(subset=["dice"])
    frame = frame.assign(amount=amounts(frame), generator_key=own_labels(frame))
    rows = []
    for where, part in frame.groupby(_CELL, sort=False, dropna=False):
        means = part.groupby(list(DRAWN), dropna=False, as_index=False)["dice"].mean()
        row = dict(zip(_CELL[:-1], where[:-1], strict=True))
        row |= {"n_generator_labels": part["n_generator_labels"].max()}
        row |= {"mean": means["dice"].mean()}
        for axis in DRAWN:
            row |= {f"n_{axis}": means[axis].nunique(), f"sd_{axis}": _spread(means, axis)}
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in [f"sd_{axis}" for axis in DRAWN if not table.empty]:
        # NaN would read as a spread that could not be computed.
        table[name] = table[name].astype(object).where(table[name].notna(), None)
    return table


def _spread(means: pd.DataFrame, axis: str) -> float | None:
    """Pool the variances along one axis over the values of the others; None for one value."""
    others = [name for name in DRAWN if name != axis]
    variances = means.groupby(others, dropna=False)["dice"].var(ddof=1).dropna()
    return None if variances.empty else float(np.sqrt(variances.mean()))


def spread_table(found: pd.DataFrame) -> pd.DataFrame:
    """Write `spreads` as text cells, in per cent.

    Returns:
        cohort, prompt, condition, the axes of which there are several values, real, mean, and per
        axis "SD over supports" with the number of values in brackets, empty where there is one.
    """
    shown = [] if found.empty else shown_axes(found)
    heads = ["cohort", "prompt", "condition", *shown, "real", "mean"]
    heads += [f"SD over {name}" for name in DRAWN.values()]
    if found.empty:
        return pd.DataFrame(columns=heads)
    text = pd.DataFrame(
        {
            "cohort": found["test_cohort"],
            "prompt": found["prompt"].str.replace("_", " "),
            "condition": found["condition"].map(condition_label),
            **{name: [axis_label(name, each) for each in found[name]] for name in shown},
            "real": found["amount"].mask(is_control(found), ""),
            "mean": [f"{100 * mean:.1f}" for mean in found["mean"]],
        }
    )
    for axis, name in DRAWN.items():
        pairs = zip(found[f"sd_{axis}"], found[f"n_{axis}"], strict=True)
        text[f"SD over {name}"] = [
            "" if pd.isna(sd) else f"{100 * sd:.2f} ({n})" for sd, n in pairs
        ]
    return text
