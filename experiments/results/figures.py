"""Figures of a sweep: Dice against the amount of real data, and Dice per trimester.

Every function returns a matplotlib Figure without touching pyplot's state; `save_figure` writes the
same bytes for the same numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.results.axes import (
    SERIES,
    each_series,
    is_control,
    orders,
    prompt_order,
    prompt_words,
    series_label,
    shown_axes,
)
from experiments.results.cells import cells
from experiments.results.figure_style import (
    RC_PARAMS,
    draw_curve,
    draw_levels,
    series_style,
    shared_legend,
)
from experiments.results.rows import with_defaults
from experiments.results.statistics import average_draws, cluster_bootstrap_ci
from experiments.results.text import counted

Amount = Literal["n_real", "n_total_labels"]
_MOST_STYLES = 2
"""With more segmenters, each has a row of panels; two are told apart by their lines."""
_MOST_BANDS = 4
"""With more curves in a panel, bands hide each other: error bars side by side instead."""
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
        A row per cell, x ascending: test_cohort, prompt, segmenter, condition, generator,
        real_fraction, x (images), dice, low, high (per cent; the interval of the table), trial_dice
        (per cent, each trial).
    """
    summary = cells(results, per_image=per_image, seed=seed)
    if summary.empty:
        return pd.DataFrame(columns=["test_cohort", "prompt", *SERIES, "x", "dice"])
    stem = "n_total" if x == "n_total_labels" else "n_real"
    kept = summary[["test_cohort", "prompt", *SERIES, "real_fraction"]]
    return kept.assign(
        x=(summary[f"{stem}_min"] + summary[f"{stem}_max"]) / 2,
        dice=100 * summary["dice_mean"],
        low=100 * summary["dice_low"],
        high=100 * summary["dice_high"],
        trial_dice=[tuple(100 * d for d in each) for each in summary["trial_dice"]],
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
    drawn for, are dashed levels. Two segmenters have lines of two kinds, more have a row of panels
    each; generators differ by the fill of their marks. The axis is logarithmic where amounts span
    a factor of 8; a single amount shows its conditions side by side. A prompt under which controls
    alone were scored has no panel, unless that is all there is; a panel without a curve says so in
    its title.
    """
    points = curve_points(results, per_image=per_image, x=x, seed=seed)
    present = set(points["test_cohort"])
    cohorts = [c for c in dict.fromkeys(results["test_cohort"]) if c in present] or [""]
    trained = points[~is_control(points)]
    prompts = prompt_order((points if trained.empty else trained)["prompt"]) or [""]
    order, shown = orders(points), shown_axes(points)
    segmenters: list[str] = []
    if len(list(filter(None, order["segmenter"]))) > _MOST_STYLES:
        segmenters = [name for name in order["segmenter"] if name]
        shown.remove("segmenter")
    places = [(cohort, name) for cohort in cohorts for name in segmenters or [""]]
    with matplotlib.rc_context(RC_PARAMS):
        width = 5.2 if is_control(points).any() else 4.1
        figure = Figure(figsize=(1.2 + width * len(prompts), 0.9 + 3.1 * len(places)))
        axes = figure.subplots(len(places), len(prompts), squeeze=False)
        drawn = []
        for i, (cohort, segmenter) in enumerate(places):
            for j, prompt in enumerate(prompts):
                axis = axes[i, j]
                here = points[(points["test_cohort"] == cohort) & (points["prompt"] == prompt)]
                if segmenter:
                    here = here[here["segmenter"].isin(["", segmenter])]
                drawn.append((axis, _draw_curves(axis, here, order=order, shown=shown)))
                words = prompt_words(prompt, shown=["segmenter"] if segmenters else shown)
                named = [cohort] * (len(cohorts) > 1) + [segmenter] * bool(segmenter)
                title = ", ".join([*named, words.label + _why_no_curve(here)])
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
    return ", controls only" if is_control(points).all() else ""


def _draw_curves(
    axis: Axes, points: pd.DataFrame, *, order: Mapping, shown: Sequence[str]
) -> pd.Series:
    """Draw a panel; the levels in it by label."""
    is_level = is_control(points) | (points["x"] == 0)
    lines = points[~is_level]
    series = list(each_series(lines))
    side_by_side = lines["x"].nunique() == 1 and len(series) > 1
    ends = (lines["x"].min(), lines["x"].max())
    for k, (keys, own) in enumerate(series):
        if side_by_side:
            own = own.assign(x=float(k))
        elif len(series) > _MOST_BANDS:
            own = own.assign(x=_aside(own["x"], k - (len(series) - 1) / 2, ends=ends))
        label, style = series_label(keys, shown=shown), series_style(keys, order=order)
        _draw_curve(axis, own, label=label, style=style, n_curves=len(series))
    levels = named_levels(points[is_level], shown=shown)
    draw_levels(axis, levels)
    if side_by_side:
        tick = _tick_names(lines)[lines["x"].iloc[0]]
        axis.set_xlim(-1, len(series))
        axis.set_xticks(*_groups_of_segmenters([keys for keys, _ in series], tick, shown=shown))
    elif len(lines):
        _amount_axis(axis, lines)
    else:
        axis.set_xticks([])
    return levels


def _groups_of_segmenters(
    series: Sequence[Mapping], tick: str, *, shown: Sequence[str]
) -> tuple[list[float], list[str]]:
    """Places and names of the ticks below series side by side: one of all, or one a segmenter."""
    groups: dict[str, list[int]] = {}
    for k, keys in enumerate(series):
        groups.setdefault(keys["segmenter"] if "segmenter" in shown else "", []).append(k)
    places = [sum(members) / len(members) for members in groups.values()]
    return places, [f"{tick}\n{name}" if name else tick for name in groups]


def named_levels(points: pd.DataFrame, *, shown: Sequence[str]) -> pd.Series:
    """Dice of rows without an amount by their label."""
    labels = [series_label(row, shown=shown) for _, row in points.iterrows()]
    return pd.Series(points["dice"].to_numpy(dtype=float), index=labels)


def _aside(x: pd.Series, place: float, *, ends: tuple[float, float]) -> pd.Series:
    """Move a line by `place` hundredths of the axis, so that its bars stand beside the others'."""
    low, high = ends
    if high / low >= _LOG_FROM:
        return x * (high / low) ** (0.01 * place)
    return x + 0.01 * place * (high - low)


def _draw_curve(
    axis: Axes, own: pd.DataFrame, *, label: str, style: Mapping[str, str], n_curves: int
) -> None:
    color = style["color"]
    axis.plot(own["x"], own["dice"], label=label, markersize=4.5, linewidth=1.6, **style)
    for place, each in zip(own["x"], own["trial_dice"], strict=True):
        if len(each) > 1:
            axis.scatter([place] * len(each), each, s=7, color=color, alpha=0.5)
    if len(own) > 1 and n_curves <= _MOST_BANDS:
        alpha = 0.14 if n_curves < 3 else 0.08
        axis.fill_between(own["x"], own["low"], own["high"], color=color, alpha=alpha, linewidth=0)
    else:
        error = np.array([own["dice"] - own["low"], own["high"] - own["dice"]])
        dashes = {"linestyle": style["linestyle"]} if len(own) > 1 else {}
        axis.errorbar(own["x"], own["dice"], error, color=color, capsize=2, linewidth=0.8, **dashes)


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
    _, base = next(each_series(lines))
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

    Bars would hide that Dice does not start at zero: points with 95 % intervals over exams. Several
    segmenters have a row of panels each.
    """
    rows = with_defaults(per_image)
    shown, order = shown_axes(rows), orders(rows)
    segmenters = [name for name in order["segmenter"] if name] if "segmenter" in shown else [""]
    here = (rows["prompt"] == prompt) & (rows["test_cohort"] == test_cohort)
    rows = rows[here & rows["trimester"].notna() & (rows["n_real"] > 0)]
    ends = sorted({rows["n_real"].min(), rows["n_real"].max()}) if len(rows) else []
    n_columns = max(len(ends), 1)
    with matplotlib.rc_context(RC_PARAMS):
        width = 1.2 + (4.1 if n_columns > 1 else 5.2) * n_columns
        figure = Figure(figsize=(width, 3.4 * len(segmenters)))
        axes = figure.subplots(len(segmenters), n_columns, squeeze=False, sharey=True)
        words = prompt_words(prompt, shown=shown).label
        named = [name for name in shown if name != "segmenter"]
        for i, segmenter in enumerate(segmenters):
            own = rows[rows["segmenter"] == segmenter] if segmenter else rows
            for axis, n_real in zip(axes[i], ends, strict=False):
                images = average_draws(own[own["n_real"] == n_real])
                _draw_trimesters(axis, images, order=order, shown=named, seed=seed)
                title = ", ".join(filter(None, [segmenter, f"{n_real:.0f} real images", words]))
                axis.set_title(title, loc="left")
            axes[i, 0].set_ylabel(_DICE_LABEL)
        shared_legend(figure, axes.ravel())
        return figure


def _draw_trimesters(
    axis: Axes, images: pd.DataFrame, *, order: Mapping, shown: Sequence[str], seed: int
) -> None:
    series = list(each_series(images))
    # However many there are, those of one trimester stay together.
    step = min(0.12, 0.8 / max(len(series), 1))
    for k, (keys, own) in enumerate(series):
        means = own.groupby(["sample_id", "exam_id", "trimester"], as_index=False)["dice"].mean()
        points = []
        for trimester, part in means.groupby("trimester"):
            low, high = cluster_bootstrap_ci(part["dice"], part["exam_id"], seed=seed)
            points.append([trimester, 100 * part["dice"].mean(), 100 * low, 100 * high])
        table = pd.DataFrame(points, columns=["trimester", "dice", "low", "high"])
        places = table["trimester"] + step * (k - (len(series) - 1) / 2)
        style = series_style(keys, order=order) | {"linestyle": "", "markersize": 5}
        style |= {"capsize": 2.5, "linewidth": None, "elinewidth": None}
        draw_curve(axis, places, table, label=series_label(keys, shown=shown), style=style)
    exams = images.groupby("trimester")["exam_id"].nunique()
    labels = []
    for trimester, name in enumerate(("first", "second", "third"), start=1):
        labels.append(f"{name}\n{counted(exams.get(trimester, 0), 'exam')}")
    axis.set_xticks([1, 2, 3], labels)
    axis.set_xlim(0.5, 3.5)
    axis.set_xlabel("trimester")
