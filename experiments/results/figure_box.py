"""The box figure: how much of a score comes from the prompt's box alone?

One fitted SAM, the ellipse inscribed in the box (no pixel read) and the constant mean mask are
scored under increasing box jitter. What needs no reference, the whole image as a prompt and the
model's own predicted box, stands beside them as levels.
"""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from datamodules.storage import write_atomic
from experiments.results.figure_style import (
    RC_PARAMS,
    condition_style,
    draw_curve,
    save_figure,
    shared_legend,
)
from experiments.results.statistics import cluster_bootstrap_ci
from experiments.results.text import bullets, counted, markdown_table

MEASURES = {"dice": ("Dice, %", 100.0), "hc_abs_err_mm": ("HC error (ADF), mm", 1.0)}
"""Column to its axis label and the factor of its unit."""
PAPER_JITTER_PX = 20
"""Of the boxes that are scored, the nearest to the paper's U{0..19} px."""
_GROUPS = {0: "all", 1: "trimester 1", 2: "trimester 2", 3: "trimester 3"}
_BLUE, _ORANGE, _GREY = "#0173b2", "#de8f05", condition_style("mean_mask")["color"]
# What a line is, its label, its colour, marker and dashes.
_LINES = {
    ("model", "jittered_box"): ("model, box from the reference", _BLUE, "o", "-"),
    ("ellipse", "jittered_box"): ("ellipse in that box (no image)", _ORANGE, "s", "-"),
    ("mean_mask", "jittered_box"): ("constant mean mask (no image)", _GREY, "|", "-"),
    ("model", "predicted_box"): ("model, its own predicted box", _BLUE, "", "--"),
    ("model", "whole_image"): ("model, whole image", _BLUE, "", ":"),
    ("mean_mask", "whole_image"): ("constant mean mask (no image)", _GREY, "", "-."),
}
_INTERVAL_SEED = 0


def box_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the rows of the box stage by what was scored, prompt, jitter and trimester.

    Draws are averaged per image first; the mean is over images, the 95 % interval over exams.

    Args:
        rows: what, prompt, jitter_px (px of a 256x256 frame; empty for prompts without jitter),
            draw, sample_id, exam_id, trimester (1, 2, 3 or empty), dice in [0, 1], hc_abs_err_mm
            (empty or absent without a pixel size).

    Returns:
        A row per what, prompt, jitter_px, trimester (0 for all) and measure: value, low, high (per
        cent for Dice, mm for ADF; the interval is NaN with fewer than two exams), n_images,
        n_exams. Groups without a value are absent; empty input gives no row.
    """
    columns = ["what", "prompt", "jitter_px", "trimester", "measure"]
    columns += ["value", "low", "high", "n_images", "n_exams"]
    image = ["what", "prompt", "jitter_px", "sample_id", "exam_id", "trimester"]
    # A column of nothing but blanks is read as text or objects; one of mm may be absent.
    typed = rows.reindex(columns=rows.columns.union(list(MEASURES), sort=False)).assign(
        jitter_px=pd.to_numeric(rows["jitter_px"]), trimester=pd.to_numeric(rows["trimester"])
    )
    images = typed.groupby(image, dropna=False, sort=False, as_index=False)[list(MEASURES)].mean()
    made = []
    for (what, prompt, jitter), part in images.groupby(
        ["what", "prompt", "jitter_px"], dropna=False
    ):
        for trimester in _GROUPS:
            own = part if trimester == 0 else part[part["trimester"] == trimester]
            for measure, (_, factor) in MEASURES.items():
                known = own.dropna(subset=[measure])
                if known.empty:
                    continue
                ends = cluster_bootstrap_ci(known[measure], known["exam_id"], seed=_INTERVAL_SEED)
                numbers = [factor * value for value in (known[measure].mean(), *ends)]
                counts = [len(known), known["exam_id"].nunique()]
                made.append([what, prompt, jitter, trimester, measure, *numbers, *counts])
    return pd.DataFrame(made, columns=columns)


def figure_box(rows: pd.DataFrame) -> Figure:
    """Draw Dice and ADF (rows) against the box's jitter, for all and by trimester (columns).

    Bars are 95 % intervals over exams. ADF is absent where no image has a pixel size, trimesters
    where none is known. Jitters are evenly spaced, not to scale.
    """
    points = box_points(rows)
    measures = [name for name in MEASURES if (points["measure"] == name).any()]
    groups = [number for number in _GROUPS if (points["trimester"] == number).any()]
    jitters = sorted(points["jitter_px"].dropna().unique())
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(1.2 + 2.7 * len(groups), 1.1 + 2.5 * len(measures)))
        axes = figure.subplots(len(measures), len(groups), squeeze=False, sharey="row")
        for i, measure in enumerate(measures):
            for j, group in enumerate(groups):
                axis = axes[i, j]
                here = (points["measure"] == measure) & (points["trimester"] == group)
                _draw_panel(axis, points[here], jitters=jitters)
                if i == 0:
                    exams = counted(points.loc[here, "n_exams"].max(), "exam")
                    axis.set_title(f"{_GROUPS[group]}, {exams}", fontsize=9, loc="left")
                if i == len(measures) - 1:
                    axis.set_xlabel("maximum box jitter, px of 256")
            axes[i, 0].set_ylabel(MEASURES[measure][0])
            if measure != "dice":
                _widen(axes[i, 0], points.loc[points["measure"] == measure, "value"])
        shared_legend(figure, axes.ravel(), columns=3)
        return figure


def _draw_panel(axis: Axes, points: pd.DataFrame, *, jitters: list[float]) -> None:
    places = {jitter: float(k) for k, jitter in enumerate(jitters)}
    for (what, prompt), (label, color, marker, dashes) in _LINES.items():
        own = points[(points["what"] == what) & (points["prompt"] == prompt)]
        if own.empty:
            continue
        if own["jitter_px"].isna().all():
            axis.axhline(
                own["value"].iloc[0], label=label, color=color, linestyle=dashes, linewidth=1.3
            )
            continue
        own = own.dropna(subset=["jitter_px"]).sort_values("jitter_px")
        named = own.rename(columns={"value": "dice"})
        style = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.3}
        draw_curve(axis, own["jitter_px"].map(places), named, label=label, style=style)
    axis.set_xticks(list(places.values()), [f"{jitter:.0f}" for jitter in jitters])


def _widen(axis: Axes, values: pd.Series) -> None:
    """Make the error's axis logarithmic where the constant mask would flatten the rest."""
    if values.min() > 0 and values.max() / values.min() > 8:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def table_box(rows: pd.DataFrame) -> str:
    """Write the numbers behind the figure as Markdown, with what they say of the headline."""
    points = box_points(rows)
    measures = [name for name in MEASURES if (points["measure"] == name).any()]
    groups = [number for number in _GROUPS if (points["trimester"] == number).any()]
    heads = [(m, g) for m in measures for g in groups]
    names = [f"{'Dice %' if m == 'dice' else 'ADF mm'}, {_GROUPS[g]}" for m, g in heads]
    rows = []
    for (what, prompt), (label, *_) in _LINES.items():
        own = points[(points["what"] == what) & (points["prompt"] == prompt)]
        for jitter, part in own.groupby("jitter_px", dropna=False):
            cells = [_cell(part, measure=m, group=g) for m, g in heads]
            rows.append([label, "–" if pd.isna(jitter) else f"{jitter:.0f}", *cells])
    text = pd.DataFrame(rows, columns=["what", "jitter px", *names])
    lines = markdown_table(text, left=["what"])
    notes = [
        "Mean over images, draws averaged per image first; [95 % interval] over exams, for this "
        "one fitted model.",
        "jitter px: each side of the reference's box is displaced outward by a whole number from 0 "
        "to this, in pixels of a 256x256 squashed frame; the ellipse is shrunk by the mean jitter.",
    ]
    return "\n".join([*lines, "", *bullets([*_verdicts(points), *notes]), ""])


def _cell(points: pd.DataFrame, *, measure: str, group: int) -> str:
    found = points[(points["measure"] == measure) & (points["trimester"] == group)]
    if found.empty:
        return "–"
    row, digits = found.iloc[0], 1 if measure == "dice" else 2
    text = f"{row['value']:.{digits}f}"
    if pd.isna(row["low"]):
        return text
    return f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _verdicts(points: pd.DataFrame) -> list[str]:
    """Say how much of the Dice under the paper's box the box alone gives, as far as it is known."""
    dice = points[(points["measure"] == "dice") & (points["trimester"] == 0)]
    value = dice.set_index(["what", "prompt", "jitter_px"])["value"]
    model, ellipse = (
        value.get((what, "jittered_box", float(PAPER_JITTER_PX))) for what in ("model", "ellipse")
    )
    said = []
    if model is not None and ellipse is not None:
        better = _box_alone(model=model, ellipse=ellipse)
        worth = better or f"the image adds {model - ellipse:+.1f} points to what the box gives"
        said.append(
            f"With a jitter of {PAPER_JITTER_PX} px, about the paper's, the model has Dice "
            f"{model:.1f} % and the ellipse in the same box, which reads no pixel, "
            f"{ellipse:.1f} %: {worth}."
        )
    others = _shares(dice)
    if others:
        said.append(
            "Of the model's Dice under the reference's box, what the box alone gives, by jitter: "
            + "; ".join(others)
            + "."
        )
    whole = dice[(dice["what"] == "model") & (dice["prompt"] == "whole_image")]["value"]
    if model is not None and len(whole):
        said.append(
            f"Without a box (whole image) the same model has {whole.iloc[0]:.1f} %: the box from "
            f"the reference is worth {model - whole.iloc[0]:+.1f} points."
        )
    own = dice[(dice["what"] == "model") & (dice["prompt"] == "predicted_box")]["value"]
    if len(own) and len(whole):
        said.append(
            f"A box from the model's own first prediction changes that by "
            f"{own.iloc[0] - whole.iloc[0]:+.1f} points and reads no reference."
        )
    return said


def _shares(dice: pd.DataFrame) -> list[str]:
    """Set the ellipse beside the model at each jitter where both are known."""
    jittered = dice[dice["prompt"] == "jittered_box"]
    wide = jittered.pivot(index="jitter_px", columns="what", values="value")
    both = wide.reindex(columns=["model", "ellipse"]).dropna()
    said = []
    for jitter, row in both.iterrows():
        better = _box_alone(model=row["model"], ellipse=row["ellipse"])
        share = f"{jitter:.0f} px {row['ellipse']:.1f} of {row['model']:.1f} %"
        said.append(f"{share} ({better})" if better else share)
    return said


def _box_alone(*, model: float, ellipse: float) -> str:
    """Say that the box alone reaches the model, as printed; "" where it does not. Per cent."""
    lead = round(ellipse, 1) - round(model, 1)
    if lead < 0:
        return ""
    if lead == 0:
        return "the box alone does as well as the model"
    return f"the box alone does better than the model, by {lead:.1f} points"


def write_box_outputs(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Write figure_box.png, figure_box.pdf and table_box.md; the paths in that order."""
    paths = list(save_figure(figure_box(rows), stem=folder / "figure_box"))
    write_atomic(folder / "table_box.md", table_box(rows))
    return [*paths, folder / "table_box.md"]
