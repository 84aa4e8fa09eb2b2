"""What every figure is: a grid of panels of curves with intervals, above one legend.

Figures are drawn without pyplot's state; equal numbers give files of equal bytes.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from datamodules.storage import write_atomic
from experiments.config.conditions import ROWS
from experiments.results.axes import AXES

_RC_PARAMS = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # TrueType, which journals ask for; matplotlib's default of Type 3 is often refused.
    "pdf.fonttype": 42,
}
_LINE = {"markersize": 4.5, "linewidth": 1.4, "elinewidth": 0.8, "capsize": 2}
_UNKNOWN = ("#b8a400", "8")
_LINES = ("-", "--", "-.", ":")
"""Of each choice of images of the first segmenter of a figure, then of the second..."""
_SIDES = ("left", "right", "bottom", "top")
_FILLS: tuple[Mapping[str, object], ...] = (
    {},
    # White, for the bars would be seen through it; and larger, to be told from a full one.
    {"markerfacecolor": "white", "markersize": 6},
    *({"fillstyle": side, "markerfacecoloralt": "white", "markersize": 6} for side in _SIDES),
)
"""Markers of the first generator of a figure, of the second..."""
DOTS_PER_INCH = 200
"""Of a PNG."""
_LEGEND_IN, _MARK_IN, _LEGEND_LETTERS_PER_INCH = 0.24, 0.6, 16
"""Height of a line of the legend, width of a mark with the space around, and letters of a name."""
_SINGLE_IN, _BESIDE_IN = (3.0, 2.9), (4.1, 3.1)
"""Width and height of a panel that has none beside it, and of others."""
_LETTERS_PER_INCH = 13
"""Of a title."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of points, or a level across the panel where it has no x."""

    label: str
    points: pd.DataFrame
    """y, and where there are any x (ascending), low and high (NaN where unknown), and trials: for
    each point the y of its trials."""
    style: Mapping[str, object]
    """Of matplotlib's line; its dashes are those of the intervals too."""
    is_joined: bool = True
    """Whether a line joins the points."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot of a figure."""

    title: str
    curves: Sequence[Curve] = ()
    x_label: str = ""
    y_label: str = ""
    """Shown where the panel is the first of its row."""
    ticks: Mapping[float, str] = field(default_factory=dict)
    """Ascending places of the x axis and their names; one that would crowd the next has none."""
    is_log_x: bool = False
    is_log_y: bool = False


def condition_style(condition: str) -> dict[str, str]:
    """Colour and marker of a condition, the same in every figure; one for all unknown ones."""
    row = ROWS.get(condition)
    color, marker = _UNKNOWN if row is None else (row.color, row.marker)
    return {"color": color, "marker": marker}


def series_style(
    keys: Mapping[str, str], *, order: Mapping[str, Sequence[str]]
) -> dict[str, object]:
    """Style of a series: colour and marker by condition, line by segmenter and choice of images,
    fill by generator.
    """
    # The first name is "", of rows that depend on none.
    place = {name: max(order[name].index(keys[name]) - 1, 0) for name in AXES}
    line = place["segmenter"] * max(len(order["choice"]) - 1, 1) + place["choice"]
    return {
        **condition_style(keys["condition"]),
        "linestyle": _LINES[line % len(_LINES)],
        **_FILLS[place["generator"] % len(_FILLS)],
    }


def draw_panels(
    grid: Sequence[Sequence[Panel]],
    *,
    size_in: tuple[float, float] | None = None,
    share_y: Literal["none", "row", "all"] = "none",
) -> Figure:
    """Draw rows of panels of one size (width, height) with one legend below all of them.

    Without a size, panels one beside another suit a page, and a single column of panels one column
    of a paper: at 85 mm its letters are 7 points high.
    """
    n_rows, n_columns = len(grid), len(grid[0])
    size_in = size_in or (_SINGLE_IN if n_columns == 1 else _BESIDE_IN)
    panels = [panel for row in grid for panel in row]
    names = {curve.label for panel in panels for curve in panel.curves}
    width = 1.2 + size_in[0] * n_columns
    # A figure of one panel is too narrow for four names in a row.
    name_width = _MARK_IN + max(map(len, names), default=0) / _LEGEND_LETTERS_PER_INCH
    n_names = max(1, min(4, int(width / name_width)))
    height = 0.7 + size_in[1] * n_rows + _LEGEND_IN * math.ceil(len(names) / n_names)
    with matplotlib.rc_context(_RC_PARAMS):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False, sharey=share_y).ravel()
        handles = {}
        for axis, panel in zip(axes, panels, strict=True):
            title = textwrap.fill(panel.title, int(_LETTERS_PER_INCH * size_in[0]))
            axis.set(title=title, xlabel=panel.x_label)
            axis.set_ylabel(panel.y_label if axis in axes[::n_columns] else "")
            _draw_curves(axis, panel)
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center",
                          ncols=min(len(handles), n_names))  # fmt: skip
        return figure


def _draw_curves(axis: Axes, panel: Panel) -> None:
    if panel.is_log_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    lines = [curve for curve in panel.curves if "x" in curve.points]
    for curve in lines:
        points, bars = curve.points, None
        if "low" in points:
            bars = np.array([points["y"] - points["low"], points["high"] - points["y"]])
            bars = np.nan_to_num(bars).clip(min=0)
        style = {**_LINE, **curve.style} | ({} if curve.is_joined else {"linestyle": ""})
        _, _, drawn = axis.errorbar(points["x"], points["y"], bars, label=curve.label, **style)
        for intervals in drawn:
            # Points of one place have no line that would tell them apart.
            intervals.set_linestyle(curve.style.get("linestyle") or "-")
        for x, each in zip(points["x"], points.get("trials", ()), strict=False):
            if len(each) > 1:
                axis.scatter([x] * len(each), each, s=7, color=curve.style["color"], alpha=0.5)
    _set_x_axis(axis, panel, x=[x for curve in lines for x in curve.points["x"]])
    low, high = axis.get_ylim()
    reach = high - low if lines and not panel.is_log_y else math.inf
    for curve in panel.curves:
        # A level further from the lines than their own range would squeeze them.
        value = curve.points["y"].iloc[0] if "x" not in curve.points else math.nan
        if low - reach <= value <= high + reach:
            axis.axhline(value, label=curve.label, linewidth=1.2, **curve.style)


def _set_x_axis(axis: Axes, panel: Panel, *, x: Sequence[float]) -> None:
    scale = math.log if panel.is_log_x else float
    axis.set_xscale("log" if panel.is_log_x else "linear")
    if len(x):
        low, high = min(x), max(x)
        pad = max(0.06 * (high - low), 0.4)
        axis.set_xlim((low / 1.25, high * 1.25) if panel.is_log_x else (low - pad, high + pad))
    start, end = map(scale, axis.get_xlim())
    kept: list[float] = []
    for tick in reversed(panel.ticks):
        if not kept or scale(kept[-1]) - scale(tick) >= 0.08 * (end - start):
            kept.append(tick)
    kept.reverse()
    axis.set_xticks(kept, [panel.ticks[tick] for tick in kept])
    axis.set_xticks([], minor=True)


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG without the software's name or a date."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, *, stem: Path) -> None:
    """Write `stem`.png and `stem`.pdf; equal figures give equal bytes."""
    pdf = BytesIO()
    with matplotlib.rc_context(_RC_PARAMS):
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    write_atomic(stem.with_suffix(".png"), png_bytes(figure))
    write_atomic(stem.with_suffix(".pdf"), pdf.getvalue())
