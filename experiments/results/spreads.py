"""How far results vary with each thing that was drawn: supports, seeds, generator seeds, boxes.

The field often reports the spread over box draws of one model as if it were the spread over
models. Each axis stands apart here, the others held.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.results.statistics import CONTROLS, amounts, with_defaults

AXES: Mapping[str, str] = {
    "support": "supports",
    "seed": "seeds",
    "generator_seed": "generator seeds",
    "draw": "box draws",
}
"""Column of per_image.csv and what its values are."""
_CELL = ["test_cohort", "prompt", "amount", "condition", "budget"]


def spreads(per_image: pd.DataFrame, *, column: str = "dice") -> pd.DataFrame:
    """Standard deviation of the mean over images along each axis, the other axes held.

    Where the other axes have several values, the variances along this one are averaged.

    Args:
        per_image: Rows of per_image.csv; the folds of a model are pooled.
        column: Measure, in its own unit.

    Returns:
        A row per cell: test_cohort, prompt, amount, condition, n_generator_labels (the most),
        mean (of the model means), and for each axis of `AXES` n_AXIS (its values; 0 where it does
        not apply) and sd_AXIS (in the unit of the column; None where the axis has one value). No
        rows for empty input.
    """
    frame = with_defaults(per_image).dropna(subset=[column])
    frame = frame.assign(amount=amounts(frame))
    own = frame["condition"].str.startswith("synthetic_same_budget")
    frame = frame.assign(budget=frame["n_generator_labels"].mask(own, -1))
    rows = []
    for where, part in frame.groupby(_CELL, sort=False, dropna=False):
        means = part.groupby(list(AXES), dropna=False, as_index=False)[column].mean()
        row = dict(zip(_CELL[:-1], where[:-1], strict=True))
        row |= {"n_generator_labels": part["n_generator_labels"].max()}
        row |= {"mean": means[column].mean()}
        for axis in AXES:
            row |= {f"n_{axis}": means[axis].nunique(), f"sd_{axis}": _spread(means, axis, column)}
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in [f"sd_{axis}" for axis in AXES if not table.empty]:
        # NaN would read as a spread that could not be computed.
        table[name] = table[name].astype(object).where(table[name].notna(), None)
    return table


def _spread(means: pd.DataFrame, axis: str, column: str) -> float | None:
    """Pool the variances along one axis over the values of the others; None for one value."""
    others = [name for name in AXES if name != axis]
    variances = means.groupby(others, dropna=False)[column].var(ddof=1).dropna()
    return None if variances.empty else float(np.sqrt(variances.mean()))


def spread_table(
    found: pd.DataFrame, *, labels: Mapping[str, str], scale: float = 100
) -> pd.DataFrame:
    """Write spreads as text cells, a row per cell and a column per axis.

    Args:
        found: From `spreads`.
        labels: Names of conditions, `tables.CONDITION_LABELS`.
        scale: Factor of the printed unit: 100 for Dice in points, 1 for mm.

    Returns:
        cohort, prompt, condition, real, mean, and per axis "SD over supports" with the number of
        values in brackets, empty where there is one; ready for `latex_table` and the report.
    """
    rows = []
    for _, row in found.iterrows():
        text = {
            "cohort": row["test_cohort"],
            "prompt": row["prompt"].replace("_", " "),
            "condition": labels.get(row["condition"], row["condition"]),
            "real": "" if row["condition"] in CONTROLS else row["amount"],
            "mean": f"{scale * row['mean']:.1f}",
        }
        for axis, name in AXES.items():
            sd = row[f"sd_{axis}"]
            one = sd is None or pd.isna(sd)
            text[f"SD over {name}"] = "" if one else f"{scale * sd:.2f} ({row[f'n_{axis}']})"
        rows.append(text)
    heads = ["cohort", "prompt", "condition", "real", "mean"]
    return pd.DataFrame(rows, columns=[*heads, *(f"SD over {name}" for name in AXES.values())])
