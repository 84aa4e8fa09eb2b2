"""What tells one row of a table, and one curve of a figure, from the next, and its words.

A further axis of a sweep is one more name in `SERIES`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from datamodules.choices import choice_label
from experiments.config.conditions import CONDITIONS, CONTROLS, condition_label, in_order

SERIES = ("segmenter", "condition", "generator", "choice")
"""Columns of a series, in the order in which rows of one amount are sorted."""
AXES = tuple(name for name in SERIES if name != "condition")
"""Names of blocks of settings, and of the choice of images; "" where a row depends on none."""
LEAK_FREE_PROMPT = "whole_image"
"""Knows nothing of the head."""
_FIRST_PROMPTS = (LEAK_FREE_PROMPT, "jittered_box")
"""The leak-free one first, then the paper's."""


def prompt_label(name: str) -> str:
    """How tables call a prompt; the leak-free one by what all segmenters share under it, for some
    take no prompt."""
    if name == LEAK_FREE_PROMPT:
        return "no box (whole image)"
    return f"{name.replace('_', '-')} prompt"


def prompt_phrase(name: str) -> str:
    """How sentences call a prompt, likewise."""
    if name == LEAK_FREE_PROMPT:
        return "without a box (the whole image)"
    return f"prompted with the {name.replace('_', ' ')}"


def prompt_order(prompts: Iterable[str]) -> list[str]:
    """Each prompt protocol once: the leak-free one first, then the paper's, then others."""
    present = dict.fromkeys(prompts)
    return sorted(present, key=[*_FIRST_PROMPTS, *present].index)


def each_place(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Give test cohort, prompt and the rows of each: cohorts in the order of the rows, the first
    of which is the main one, and of each the leak-free prompt first.
    """
    for cohort, own in () if rows.empty else rows.groupby("test_cohort", sort=False):
        for prompt in prompt_order(own["prompt"]):
            yield cohort, prompt, own[own["prompt"] == prompt]


def shown_axes(rows: pd.DataFrame) -> list[str]:
    """Axes of which the rows hold more than one value, not counting "": only those are named."""
    return [name for name in AXES if rows.loc[rows[name] != "", name].nunique() > 1]


def orders(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Values of each column of `SERIES` in the order of the tables.

    Segmenters, generators and choices stand in the order of the rows, which is the sweep's.
    """
    found = {name: list(dict.fromkeys(["", *rows[name]])) for name in AXES}
    return found | {"condition": in_order(rows["condition"])}


def series_key(row: Mapping, *, order: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Sort key of a row among those of its amount, controls last; `order` is of `orders`."""
    return (row["condition"] in CONTROLS, *(order[name].index(row[name]) for name in SERIES))


def each_series(rows: pd.DataFrame) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """Give the values of `SERIES` and the rows of each series, in the order of the tables."""
    order, groups = orders(rows), rows.groupby(list(SERIES), sort=False)
    named = [(dict(zip(SERIES, values, strict=True)), own) for values, own in groups]
    return sorted(named, key=lambda series: series_key(series[0], order=order))


def axis_label(name: str, value: str) -> str:
    """What people read for a value of an axis."""
    return choice_label(value) if name == "choice" else value


def series_label(keys: Mapping, *, shown: Sequence[str]) -> str:
    """What a legend calls a series: its condition, and the axes of `shown` that it has."""
    named = [axis_label(name, keys[name]) for name in shown if keys[name]]
    return ", ".join([condition_label(keys["condition"]), *reversed(named)])


def baseline_rows(rows: pd.DataFrame, keys: Mapping, *, baseline: str) -> pd.DataFrame:
    """Rows of one cohort, prompt and amount that the series of `keys` is compared with: they share
    each axis of it, or depend on none. An axis that only the baseline has is at its first value.
    """
    found = rows[rows["condition"] == baseline]
    for name in AXES:
        own = keys[name] or next(iter(found[name]), "")
        found = found[found[name].isin(["", own])]
    return found


def own_labels(rows: pd.DataFrame) -> pd.Series:
    """Generator labels as a key of cells: -1 but for a fixed number.

    On its own labels a generator may see a few more in one support than in the other, and so may
    whatever else makes pairs of the folds of a fraction.
    """
    return rows["n_generator_labels"].where(rows["pair_labels"] == "fixed", -1)


def several_generator_labels(rows: pd.DataFrame) -> pd.Series:
    """The number of labels of a row's generator, where its condition comes with several fixed
    ones; "" elsewhere.
    """
    fixed = rows["n_generator_labels"].where(rows["pair_labels"] == "fixed")
    several = fixed.groupby(rows["condition"]).transform("nunique") > 1
    return fixed.map("{:.0f}".format).where(several & fixed.notna(), "")


def has_synthetic(rows: pd.DataFrame) -> pd.Series:
    """Whether pairs that a generator made are in a row; of a recipe's own condition, any pairs."""
    resized = [name for name, row in CONDITIONS.items() if not row.factors.source.is_generated]
    return (rows["pair_labels"] != "") & ~rows["condition"].isin(resized)


def is_control(rows: pd.DataFrame) -> pd.Series:
    """Whether a row is a control: not fitted, without an amount, not compared, last in a block."""
    return rows["condition"].isin(CONTROLS)
