"""Figures of a sweep: Dice against the amount of real data, and Dice per trimester.

Every function returns a matplotlib Figure without touching pyplot's state; `save_figure` writes the
same bytes for the same numbers.
"""

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.results.figure_style import (
    RC_PARAMS,
    condition_style,
    draw_levels,
    ordered,
    png_bytes,
    save_figure,
    shared_legend,
)
from experiments.results.findings import prompt_order
from experiments.results.statistics import CONTROLS, average_draws, cluster_bootstrap_ci
from experiments.results.tables import CONDITION_LABELS, PROMPT_LABELS, cells

__all__ = [
    "condition_style",
    "curve_points",
    "figure_amounts",
    "figure_trimesters",
    "png_bytes",
    "save_figure",
]

Amount = Literal["n_real", "n_total_labels"]
_MOST_BANDS = 4
"""With more conditions in a panel, bands hide each other: error bars side by side instead."""
_LOG_FROM = 8
"""Ratio of the largest to the smallest amount from which the axis is logarithmic."""
_DICE_LABEL = "Dice, % (mean over images)"
_AXIS_LABELS = {"n_real": "real training images", "n_total_labels": "labelled images in all"}


def curve_points(
    results: pd.DataFrame,
    *,
    per_image: pd.DataFrame | None = None,
    x: Amount = "n_real",
    seed: int = 0,
) -> pd.DataFrame:
    """Compute what `figure_amounts` draws.

    Returns:
        A row per cell, x ascending: test_cohort, prompt, condition, real_fraction, x (images),
        dice, low, high (per cent; the interval of the table), trial_dice (per cent, each trial).
    """
    summary = cells(results, per_image=per_image, seed=seed)
    if summary.empty:
        return pd.DataFrame(columns=["test_cohort", "prompt", "condition", "x", "dice"])
    amount = (summary["n_real_min"] + summary["n_real_max"]) / 2
    if x == "n_total_labels":
        amount = (summary["n_total_min"] + summary["n_total_max"]) / 2
    return pd.DataFrame(
        {
            "test_cohort": summary["test_cohort"],
            "prompt": summary["prompt"],
            "condition": summary["condition"],
            "real_fraction": summary["real_fraction"],
            "x": amount,
            "dice": 100 * summary["dice_mean"],
            "low": 100 * summary["dice_low"],
            "high": 100 * summary["dice_high"],
            "trial_dice": [tuple(100 * d for d in each) for each in summary["trial_dice"]],
        }
    ).sort_values("x", kind="stable", ignore_index=True)


def figure_amounts(
    results: pd.DataFrame,
    *,
    per_image: pd.DataFrame | None = None,
    x: Amount = "n_real",
    seed: int = 0,
) -> Figure:
    """Draw Dice against the amount of real data: a panel per cohort (row) and prompt (column).

    One line per condition with its 95 % interval (a band, or bars where bands would hide each
    other), and a dot per trial where a cell has several; the controls, which no real image is
    drawn for, are dashed levels. The axis is logarithmic where amounts span a factor of 8; a single
    amount shows its conditions side by side. A prompt under which controls alone were scored has no
    panel, unless that is all there is; a panel without a curve says so in its title.

    Args:
        results: Rows of results.csv; rows that are not done are left out.
        per_image: See `experiments.results.tables.cells`.
        x: Real images of the row, or every labelled image that it used.
        seed: Of the resampling.
    """
    points = curve_points(results, per_image=per_image, x=x, seed=seed)
    present = set(points["test_cohort"])
    cohorts = [c for c in dict.fromkeys(results["test_cohort"]) if c in present] or [""]
    trained = points[~points["condition"].isin(CONTROLS)]
    prompts = prompt_order((points if trained.empty else trained)["prompt"].tolist()) or [""]
    with matplotlib.rc_context(RC_PARAMS):
        has_levels = points["condition"].isin(CONTROLS).any()
        width = 5.2 if has_levels else 4.1
        figure = Figure(figsize=(1.2 + width * len(prompts), 0.9 + 3.1 * len(cohorts)))
        axes = figure.subplots(len(cohorts), len(prompts), squeeze=False)
        drawn = []
        for i, cohort in enumerate(cohorts):
            for j, prompt in enumerate(prompts):
                axis = axes[i, j]
                here = (points["test_cohort"] == cohort) & (points["prompt"] == prompt)
                drawn.append((axis, _draw_curves(axis, points[here])))
                title = PROMPT_LABELS.get(prompt, prompt) + _why_no_curve(points[here])
                if len(cohorts) > 1:
                    title = f"{cohort}, {title}"
                if points.empty:
                    title = "no trial has finished"
                axis.set_title(title, fontsize=10, loc="left")
                axis.set_xlabel(_AXIS_LABELS[x])
                axis.set_ylabel(_DICE_LABEL if j == 0 else "")
        shared_legend(figure, axes.ravel(), levels=drawn)
        return figure


def _why_no_curve(points: pd.DataFrame) -> str:
    if points.empty:
        return ", not scored"
    return ", controls only" if points["condition"].isin(CONTROLS).all() else ""


def _draw_curves(axis: Axes, points: pd.DataFrame) -> pd.Series:
    """Draw a panel; the levels in it by label."""
    is_level = points["condition"].isin(CONTROLS) | (points["x"] == 0)
    lines = points[~is_level]
    conditions = ordered(lines["condition"])
    side_by_side = lines["x"].nunique() == 1 and len(conditions) > 1
    ends = (lines["x"].min(), lines["x"].max())
    for k, condition in enumerate(conditions):
        own = lines[lines["condition"] == condition]
        if side_by_side:
            own = own.assign(x=float(k))
        elif len(conditions) > _MOST_BANDS:
            own = own.assign(x=_aside(own["x"], k - (len(conditions) - 1) / 2, ends=ends))
        _draw_curve(axis, own, condition=condition, n_conditions=len(conditions))
    named = points[is_level].set_index("condition")["dice"]
    levels = named.rename(index=lambda name: CONDITION_LABELS.get(name, name))
    draw_levels(axis, levels)
    if side_by_side:
        middle = (len(conditions) - 1) / 2
        axis.set_xlim(-1, len(conditions))
        axis.set_xticks([middle], [_tick_names(lines)[lines["x"].iloc[0]]])
    elif len(lines):
        _amount_axis(axis, lines)
    else:
        axis.set_xticks([])
    return levels


def _aside(x: pd.Series, place: float, *, ends: tuple[float, float]) -> pd.Series:
    """Move a line by `place` hundredths of the axis, so that its bars stand beside the others'."""
    low, high = ends
    if high / low >= _LOG_FROM:
        return x * (high / low) ** (0.01 * place)
    return x + 0.01 * place * (high - low)


def _draw_curve(axis: Axes, own: pd.DataFrame, *, condition: str, n_conditions: int) -> None:
    style = condition_style(condition)
    label = CONDITION_LABELS.get(condition, condition)
    axis.plot(own["x"], own["dice"], label=label, markersize=4.5, linewidth=1.6, **style)
    for place, each in zip(own["x"], own["trial_dice"], strict=True):
        if len(each) > 1:
            axis.scatter([place] * len(each), each, s=7, color=style["color"], alpha=0.5)
    if len(own) > 1 and n_conditions <= _MOST_BANDS:
        axis.fill_between(
            own["x"],
            own["low"],
            own["high"],
            color=style["color"],
            alpha=0.14 if n_conditions < 3 else 0.08,
            linewidth=0,
        )
    else:
        error = np.array([own["dice"] - own["low"], own["high"] - own["dice"]])
        axis.errorbar(own["x"], own["dice"], error, color=style["color"], capsize=2, linewidth=0.8)


def _amount_axis(axis: Axes, lines: pd.DataFrame) -> None:
    """Put a tick at the amounts themselves, with the fraction above the count."""
    names = _tick_names(lines)
    low, high = lines["x"].min(), lines["x"].max()
    if high / low >= _LOG_FROM:
        axis.set_xscale("log")
        axis.set_xlim(low / 1.25, high * 1.25)
    else:
        pad = 0.08 * (high - low) or 1.0
        axis.set_xlim(low - pad, high + pad)
    kept = _without_crowding(axis, list(names))
    axis.xaxis.set_major_locator(FixedLocator(kept))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, "")))


def _tick_names(lines: pd.DataFrame) -> dict[float, str]:
    base = lines[lines["condition"] == ordered(lines["condition"])[0]]
    names = {x: f"{x:.0f}" for x in sorted(set(base["x"]))}
    for x, share in zip(base["x"], base["real_fraction"], strict=True):
        if pd.notna(share):
            names[x] = f"{100 * share:.4g} %\n{x:.0f}"
    return names


def _without_crowding(axis: Axes, ticks: Sequence[float]) -> list[float]:
    """Drop ticks that stand closer than 8 % of the axis to the one before; the last one stays."""
    place = axis.transScale.transform
    ends = place([(x, 0.5) for x in axis.get_xlim()])[:, 0]
    where = {x: (place((x, 0.5))[0] - ends[0]) / (ends[1] - ends[0]) for x in ticks}
    kept: list[float] = []
    for x in reversed(ticks):
        if not kept or where[kept[-1]] - where[x] >= 0.08:
            kept.append(x)
    return kept[::-1]


def figure_trimesters(
    per_image: pd.DataFrame, *, prompt: str, test_cohort: str, seed: int = 0
) -> Figure:
    """Draw mean Dice per trimester and condition at the smallest and the largest amount.

    Bars would hide that Dice does not start at zero: points with 95 % intervals over exams.

    Args:
        per_image: Rows of per_image.csv; rows without a trimester are left out.
        prompt: Prompt protocol that is shown.
        test_cohort: Cohort that is shown.
        seed: Of the resampling.
    """
    here = (per_image["prompt"] == prompt) & (per_image["test_cohort"] == test_cohort)
    rows = per_image[here & per_image["trimester"].notna() & (per_image["n_real"] > 0)]
    ends = sorted({rows["n_real"].min(), rows["n_real"].max()}) if len(rows) else []
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(1.2 + (4.1 if len(ends) > 1 else 5.2) * max(len(ends), 1), 3.4))
        axes = figure.subplots(1, max(len(ends), 1), squeeze=False, sharey=True)[0]
        for axis, n_real in zip(axes, ends, strict=False):
            _draw_trimesters(axis, average_draws(rows[rows["n_real"] == n_real]), seed=seed)
            axis.set_title(
                f"{n_real:.0f} real images, {PROMPT_LABELS.get(prompt, prompt)}", loc="left"
            )
        axes[0].set_ylabel(_DICE_LABEL)
        shared_legend(figure, axes)
        return figure


def _draw_trimesters(axis: Axes, images: pd.DataFrame, *, seed: int) -> None:
    conditions = ordered(images["condition"])
    # However many there are, those of one trimester stay together.
    step = min(0.12, 0.8 / len(conditions))
    for k, condition in enumerate(conditions):
        own = images[images["condition"] == condition]
        means = own.groupby(["sample_id", "exam_id", "trimester"], as_index=False)["dice"].mean()
        label = CONDITION_LABELS.get(condition, condition)
        places, values, errors = [], [], []
        for trimester, part in means.groupby("trimester"):
            low, high = cluster_bootstrap_ci(part["dice"], part["exam_id"], seed=seed)
            mean = part["dice"].mean()
            places.append(trimester + step * (k - (len(conditions) - 1) / 2))
            values.append(100 * mean)
            errors.append((100 * (mean - low), 100 * (high - mean)))
        style = condition_style(condition)
        bars = np.nan_to_num(np.array(errors).T)
        axis.errorbar(
            places, values, bars, linestyle="", label=label, markersize=5, capsize=2.5, **style
        )
    exams = images.groupby("trimester")["exam_id"].nunique()
    labels = []
    for trimester, name in enumerate(("first", "second", "third"), start=1):
        n = exams.get(trimester, 0)
        labels.append(f"{name}\n{n} exam" + ("" if n == 1 else "s"))
    axis.set_xticks([1, 2, 3], labels)
    axis.set_xlim(0.5, 3.5)
    axis.set_xlabel("trimester")
