"""What all figures share: colours, legend, levels with their labels, files of stable bytes."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.config.conditions import ROWS
from experiments.results.axes import AXES

RC_PARAMS = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}
LEVEL_COLOR = "#444444"
_LEVEL_GAP_PT = 11.0
"""Between the labels of two levels: a line of text of 8 points."""
_UNKNOWN = ("#b8a400", "8")
_LINES = ("-", "--", "-.", ":")
"""Of the first segmenter of a figure, the second..."""
_FILLS = ("full", "none", "left", "right", "bottom", "top")
"""Of the markers of the first generator of a figure, the second..."""


def condition_style(condition: str) -> dict[str, str]:
    """Colour and marker of a condition, the same in every figure; one for all unknown ones."""
    row = ROWS.get(condition)
    color, marker = _UNKNOWN if row is None else (row.color, row.marker)
    return {"color": color, "marker": marker}


def series_style(keys: Mapping[str, str], *, order: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Style of a series: colour and marker by condition, line by segmenter, fill by generator."""
    # The first name is "", of rows that depend on none.
    place = {name: max(order[name].index(keys[name]) - 1, 0) for name in AXES}
    return condition_style(keys["condition"]) | {
        "linestyle": _LINES[place["segmenter"] % len(_LINES)],
        "fillstyle": _FILLS[place["generator"] % len(_FILLS)],
    }


def draw_curve(
    axis: Axes, places: pd.Series, points: pd.DataFrame, *, label: str, style: Mapping[str, str]
) -> None:
    """Draw a curve with its intervals as bars; one that is not known is absent."""
    bars = np.array([points["dice"] - points["low"], points["high"] - points["dice"]])
    axis.errorbar(
        places,
        points["dice"],
        np.nan_to_num(bars).clip(min=0),
        label=label,
        **{"markersize": 4.5, "linewidth": 1.4, "elinewidth": 0.8, "capsize": 2} | dict(style),
    )


INCHES_PER_NAME = 2.3
"""Width of the longest condition's name with its mark, in the legend."""


def shared_legend(
    figure: Figure,
    axes: Sequence[Axes],
    *,
    levels: Sequence[tuple[Axes, pd.Series]] = (),
    columns: int = 4,
) -> None:
    """Put one legend of all axes below them, name the levels, lay the figure out around both."""
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    # A figure of one panel is too narrow for four names in a row.
    columns = max(1, min(columns, int(figure.get_figwidth() / INCHES_PER_NAME)))
    rows = -(-len(handles) // columns)
    reserved = (0.06 + 0.24 * rows) / figure.get_figheight()
    figure.tight_layout(rect=(0, reserved, 1, 1))
    for axis, named in levels:
        label_levels(axis, named)
    if any(len(named) for _, named in levels):
        # The labels take width only, so that their places on the height stay right.
        figure.tight_layout(rect=(0, reserved, 1, 1))
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="lower center", ncols=min(len(handles), columns)
        )


def draw_levels(axis: Axes, levels: pd.Series) -> None:
    """Draw horizontal dashed levels behind an axis' curves, and keep the curves readable.

    A level further from the curves than their own range would squeeze them: it is not drawn,
    and `label_levels` names it at the edge with an arrow. Call it after the curves.

    Args:
        axis: Holds the curves, if any.
        levels: Values in data units by label; may be empty.
    """
    shown = levels.dropna()
    if axis.has_data():
        low, high = axis.get_ylim()
        reach = high - low
        shown = shown[(shown >= low - reach) & (shown <= high + reach)]
    for value in shown:
        axis.axhline(value, color=LEVEL_COLOR, linestyle=(0, (5, 3)), linewidth=1.1)


def label_levels(axis: Axes, levels: pd.Series, *, digits: int = 1) -> None:
    """Name levels at the right of an axis, none over another; call it once the height stands.

    Args:
        axis: After `draw_levels`.
        levels: The same levels.
        digits: Decimals of the value behind each name.
    """
    named = levels.dropna().sort_values(kind="stable")
    if named.empty:
        return
    low, high = axis.get_ylim()
    pixels_per_point = axis.figure.dpi / 72
    base = axis.transData.transform((0, low))[1] / pixels_per_point
    top = axis.transData.transform((0, high))[1] / pixels_per_point - base
    wanted, arrows = [], []
    for value in named:
        inside = low <= value <= high
        at = axis.transData.transform((0, min(max(value, low), high)))[1] / pixels_per_point - base
        wanted.append(at)
        arrows.append("" if inside else (" ↓" if value < low else " ↑"))
    places = spread(wanted, gap=_LEVEL_GAP_PT, low=0.0, high=max(top, 0.0))
    for (label, value), place, arrow in zip(named.items(), places, arrows, strict=True):
        axis.annotate(
            f"{label} {value:.{digits}f}{arrow}",
            (1, 0),
            xycoords="axes fraction",
            xytext=(4, place),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=8,
            color=LEVEL_COLOR,
        )


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move ascending places apart by at least `gap`, as little as that needs, within [low, high].

    Args:
        wanted: (N,) ascending.
        gap: Least distance of two neighbours.
        low: Least place.
        high: Greatest place; where N labels do not fit, they start at `low` and go beyond it.

    Returns:
        (N,) ascending places; empty for none.
    """
    room = gap * np.arange(len(wanted))
    places = np.maximum.accumulate(np.maximum(wanted, low) - room) + room
    if len(places) and places[-1] > high:
        places = np.minimum(places, max(high, low + room[-1]))
        places = np.minimum.accumulate((places - room)[::-1])[::-1] + room
    return places.tolist()


def count_axis(axis: Axes, counts: Sequence[float]) -> None:
    """Make a logarithmic axis of image counts with ticks at the counts that do not crowd."""
    values = np.unique(np.asarray(counts, dtype=np.float64))
    axis.set_xscale("log")
    shown: list[float] = []
    for value in values:
        if not shown or value / shown[-1] > 1.3:
            shown.append(float(value))
    axis.set_xticks(shown, [f"{value:.0f}" for value in shown])
    axis.set_xticks([], minor=True)


def png_bytes(figure: Figure, *, dpi: int = 150) -> bytes:
    """Render a figure as PNG without the software's name or a date."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, *, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.png and `stem`.pdf; equal figures give equal bytes."""
    paths = stem.with_suffix(".png"), stem.with_suffix(".pdf")
    paths[0].write_bytes(png_bytes(figure))
    figure.savefig(paths[1], metadata={"CreationDate": None})
    return paths
