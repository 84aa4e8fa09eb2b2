"""Figures of a sweep: Dice against the amount of real data, and Dice per trimester."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.config.conditions import CONTROLS
from experiments.config.words import counted
from experiments.results import axes
from experiments.results.cells import cells
from experiments.results.panels import Curve, Panel, condition_style, draw_panels, series_style
from experiments.results.rows import with_amounts
from experiments.results.statistics import average_draws, cluster_bootstrap_ci
from experiments.results.text import counted_span

Amount = Literal["n_real", "n_total_labels"]
DICE_LABEL = "Dice, % (mean over images)"
_MOST_STYLES = 2
"""With more segmenters, each has a row of panels; two are told apart by their lines."""
_LOG_FROM = 8
"""Ratio of the largest to the smallest amount from which the axis is logarithmic."""

_MOST_STEP = 0.025
"""Between the series of an amount, as a share of the axis."""


def curve_points(
    results: pd.DataFrame,
    *,
    per_image: pd.DataFrame | None = None,
    x: Amount = "n_real",
) -> pd.DataFrame:
    """Compute what `figure_amounts` draws.

    Returns:
        A row per cell, x (images) ascending: test_cohort, prompt, the columns of `SERIES`,
        real_fraction, x, and in per cent y (Dice), low, high, trials (each model).
    """
    summary = cells(results, per_image=per_image)
    stem = "n_total" if x == "n_total_labels" else "n_real"
    kept = summary[["test_cohort", "prompt", *axes.SERIES, "real_fraction"]]
    return kept.assign(
        x=(summary[f"{stem}_min"] + summary[f"{stem}_max"]) / 2,
        y=100 * summary["dice_mean"],
        low=100 * summary["dice_low"],
        high=100 * summary["dice_high"],
        trials=[tuple(100 * d for d in each) for each in summary["trial_dice"]],
    ).sort_values("x", kind="stable", ignore_index=True)


def figure_amounts(results: pd.DataFrame, *, per_image: pd.DataFrame | None = None) -> Figure:
    """Draw Dice against the amount of real data: a panel per cohort (row) and prompt (column).

    One line per series with 95 % intervals, and a dot per trial where a cell has several. More than
    two segmenters have a row of panels each. A prompt under which controls alone were scored has no
    panel, unless that is all there is; a panel without a curve says so in its title.
    """
    points = curve_points(results, per_image=per_image)
    present = set(points["test_cohort"])
    cohorts = [c for c in dict.fromkeys(results["test_cohort"]) if c in present] or [""]
    trained = points[~axes.is_control(points)]
    prompts = axes.prompt_order((points if trained.empty else trained)["prompt"]) or [""]
    order, shown = axes.orders(points), axes.shown_axes(points)
    segmenters = [name for name in order["segmenter"] if name]
    is_split = len(segmenters) > _MOST_STYLES
    named = [name for name in shown if not is_split or name != "segmenter"]
    grid = []
    for cohort in cohorts:
        for segmenter in segmenters if is_split else [""]:
            row = []
            for prompt in prompts:
                here = points[(points["test_cohort"] == cohort) & (points["prompt"] == prompt)]
                if segmenter:
                    here = here[here["segmenter"].isin(["", segmenter])]
                words = [cohort] * (len(cohorts) > 1) + [segmenter] * is_split
                words.append(axes.prompt_label(prompt))
                if axes.is_control(here).all():
                    words.append("not scored" if here.empty else "controls only")
                title = ", ".join(words) if len(points) else "no trial has finished"
                row.append(amount_panel(here, title=title, order=order, shown=named))
            grid.append(row)
    return draw_panels(grid)


def amount_panel(
    points: pd.DataFrame,
    *,
    title: str,
    order: Mapping[str, Sequence[str]],
    shown: Sequence[str],
    x: Amount = "n_real",
) -> Panel:
    """Lay out Dice against an amount; controls, which have none, are levels named in the title.

    A single amount has its series side by side, several have them up to a fortieth of the axis
    apart, so that their intervals stand beside each other and near their own amount. The axis is
    logarithmic where amounts span a factor of 8.

    Args:
        points: Of `curve_points`, of one cohort and prompt.
        title: What they are of.
        order: From `axes.orders`.
        shown: Axes that the legend names.
        x: What the points' x are.
    """
    is_level = axes.is_control(points) | (points["x"] == 0)
    lines = points[~is_level].dropna(subset=["x"])
    series, low, high = list(axes.each_series(lines)), lines["x"].min(), lines["x"].max()
    is_log = bool(high / low >= _LOG_FROM) if len(lines) else False
    step, curves = _step(lines["x"], n_series=len(series), is_log=is_log), []
    for k, (keys, own) in enumerate(series):
        place = k - (len(series) - 1) / 2
        here = (
            own["x"] * (high / low) ** (step * place)
            if is_log
            else own["x"] + (high - low or 1) * step * place
        )
        label, style = axes.series_label(keys, shown=shown), series_style(keys, order=order)
        curves.append(Curve(label=label, points=own.assign(x=here), style=style))
    return Panel(
        title="; ".join([title, *level_names(points[is_level], shown=shown)]),
        curves=[*curves, *level_curves(points[is_level], shown=shown)],
        x_label="real training images" if x == "n_real" else "labelled images in all",
        y_label=DICE_LABEL,
        ticks=_tick_names(lines, x=x),
        is_log_x=is_log,
    )


def _step(x: pd.Series, *, n_series: int, is_log: bool) -> float:
    """Between the series of an amount, as a share of the axis; 1 for a single amount."""
    places = np.unique(np.log(x) if is_log else x)
    if len(places) < 2:
        return 1.0
    return min(_MOST_STEP, 0.4 * float(np.diff(places).min() / np.ptp(places)) / n_series)


def level_curves(points: pd.DataFrame, *, shown: Sequence[str]) -> list[Curve]:
    """Levels of rows without an amount."""
    return [
        Curve(
            label=axes.series_label(row, shown=shown),
            points=pd.DataFrame({"y": [row["y"]]}),
            style=condition_style(row["condition"])
            | {"marker": "", "linestyle": (0, (5, 1 + 2 * [*CONTROLS].index(row["condition"])))},
        )
        for _, row in points.iterrows()
    ]


def level_names(points: pd.DataFrame, *, shown: Sequence[str]) -> list[str]:
    """Name the levels with their values, also of those that a panel has no room for."""
    return [f"{axes.series_label(row, shown=shown)} {row['y']:.1f}" for _, row in points.iterrows()]


def _tick_names(lines: pd.DataFrame, *, x: Amount) -> dict[float, str]:
    """The amounts themselves, with the share above the count."""
    names = {}
    for place, share in lines[["x", "real_fraction"]].sort_values("x").itertuples(index=False):
        has_share = x == "n_real" and pd.notna(share)
        names[place] = (f"{100 * share:.4g} %\n" if has_share else "") + f"{place:.0f}"
    return names


def figure_trimesters(per_image: pd.DataFrame, *, prompt: str, test_cohort: str) -> Figure:
    """Draw mean Dice per trimester and series at the smallest and the largest amount.

    Points with 95 % intervals over exams: bars would hide that Dice does not start at zero. Several
    segmenters have a row of panels each.
    """
    rows = with_amounts(per_image)
    shown, order = axes.shown_axes(rows), axes.orders(rows)
    segmenters = [name for name in order["segmenter"] if name] if "segmenter" in shown else [""]
    here = (rows["prompt"] == prompt) & (rows["test_cohort"] == test_cohort)
    rows = rows[here & rows["trimester"].notna() & (rows["n_real"] > 0)]
    rows = rows.sort_values("n_real", kind="stable")
    counts = rows.groupby("amount", sort=False)["n_real"].agg(["min", "max"])
    words = axes.prompt_label(prompt)
    named = [name for name in shown if name != "segmenter"]
    grid = []
    for segmenter in segmenters:
        own, panels = rows[rows["segmenter"] == segmenter] if segmenter else rows, []
        for amount in dict.fromkeys([*counts.index[:1], *counts.index[-1:]]):
            images = average_draws(own[own["amount"] == amount])
            least, most = counts.loc[amount]
            count = counted_span(least, most, "real image")
            exams = images.groupby("trimester")["exam_id"].nunique()
            panel = Panel(
                title=", ".join(filter(None, [segmenter, count, words])),
                curves=_trimester_curves(images, order=order, shown=named),
                x_label="trimester",
                y_label=DICE_LABEL,
                ticks={
                    number: f"{name}\n{counted(exams.get(number, 0), 'exam')}"
                    for number, name in enumerate(("first", "second", "third"), start=1)
                },
            )
            panels.append(panel)
        grid.append(panels or [Panel(title="no trimester is known")])
    return draw_panels(grid, share_y="all")


def _trimester_curves(images: pd.DataFrame, *, order: Mapping, shown: Sequence[str]) -> list[Curve]:
    series, curves = list(axes.each_series(images)), []
    # However many there are, those of one trimester stay together.
    step = min(0.12, 0.8 / max(len(series), 1))
    for k, (keys, own) in enumerate(series):
        means = own.groupby(["sample_id", "exam_id", "trimester"], as_index=False)["dice"].mean()
        points = []
        for trimester, part in means.groupby("trimester"):
            dice = part["dice"].mean(), *cluster_bootstrap_ci(part["dice"], part["exam_id"])
            place = trimester + step * (k - (len(series) - 1) / 2)
            points.append([place, *(100 * value for value in dice)])
        table = pd.DataFrame(points, columns=["x", "y", "low", "high"])
        label = axes.series_label(keys, shown=shown)
        style = series_style(keys, order=order) | {"markersize": 5}
        curves.append(Curve(label=label, points=table, style=style, is_joined=False))
    return curves
