"""The box figure: how much of a score comes from the prompt's box alone?

One fitted SAM, the ellipse inscribed in the box and the constant mean mask are scored under
increasing box jitter; what needs no reference stands beside them as levels.
"""

from itertools import product
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from datamodules.storage import write_atomic
from experiments.config.words import counted
from experiments.results.panels import Curve, Panel, condition_style, draw_panels, save_figure
from experiments.results.statistics import cluster_bootstrap_ci
from experiments.results.text import bullets, markdown_table

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


def box_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the rows of the box stage by what was scored, prompt, jitter and trimester.

    Draws are averaged per image first; the mean is over images, the 95 % interval over exams.

    Args:
        rows: what, prompt, jitter_px (px of a 256x256 frame; empty for prompts without jitter),
            draw, sample_id, exam_id, trimester (1, 2, 3 or empty), dice in [0, 1], hc_abs_err_mm
            (empty or absent without a pixel size).

    Returns:
        A row per what, prompt, jitter_px, trimester (0 for all) and measure that has a value:
        value, low, high (per cent for Dice, mm for ADF; NaN interval with fewer than two exams),
        n_images, n_exams.
    """
    scored = ["what", "prompt", "jitter_px"]
    # A column of nothing but blanks is read as text or objects; one of mm may be absent.
    typed = rows.reindex(columns=rows.columns.union(list(MEASURES), sort=False)).assign(
        jitter_px=pd.to_numeric(rows["jitter_px"]), trimester=pd.to_numeric(rows["trimester"])
    )
    images = typed.groupby([*scored, "sample_id", "exam_id", "trimester"], dropna=False,
                           sort=False, as_index=False)[list(MEASURES)].mean()  # fmt: skip
    made = []
    for where, part in images.groupby(scored, dropna=False):
        for trimester, (measure, (_, factor)) in product(_GROUPS, MEASURES.items()):
            own = part if trimester == 0 else part[part["trimester"] == trimester]
            known = own.dropna(subset=[measure])
            if len(known):
                ends = cluster_bootstrap_ci(known[measure], known["exam_id"])
                numbers = [factor * value for value in (known[measure].mean(), *ends)]
                counts = [len(known), known["exam_id"].nunique()]
                made.append([*where, trimester, measure, *numbers, *counts])
    numbers = ["value", "low", "high", "n_images", "n_exams"]
    return pd.DataFrame(made, columns=[*scored, "trimester", "measure", *numbers])


def figure_box(rows: pd.DataFrame) -> Figure:
    """Draw Dice and ADF (rows) against the box's jitter, for all and by trimester (columns).

    ADF is absent where no image has a pixel size, trimesters where none is known. Jitters are
    evenly spaced, not to scale.
    """
    points = box_points(rows)
    places = {jitter: k for k, jitter in enumerate(sorted(points["jitter_px"].dropna().unique()))}
    points = points.assign(x=points["jitter_px"].map(places), y=points["value"])
    exams, grid = points.groupby("trimester")["n_exams"].max(), []
    for measure, of_measure in points.groupby("measure"):
        # The constant mask would flatten the rest of an error.
        least, most = of_measure["y"].min(), of_measure["y"].max()
        panels = [
            Panel(
                title=f"{_GROUPS[group]}, {counted(n, 'exam')}",
                curves=_curves(of_measure[of_measure["trimester"] == group]),
                x_label="maximum box jitter, px of 256",
                y_label=MEASURES[measure][0],
                ticks={k: f"{jitter:.0f}" for jitter, k in places.items()},
                is_log_y=measure != "dice" and 0 < 8 * least < most,
            )
            for group, n in exams.items()
        ]
        grid.append(panels)
    return draw_panels(grid, size_in=(2.7, 2.5), share_y="row")


def _curves(points: pd.DataFrame) -> list[Curve]:
    curves = []
    for (what, prompt), (label, color, marker, dashes) in _LINES.items():
        own = points[(points["what"] == what) & (points["prompt"] == prompt)].sort_values("x")
        if len(own):
            shown = own[["y"]] if own["x"].isna().all() else own
            style = {"color": color, "marker": marker, "linestyle": dashes}
            curves.append(Curve(label=label, points=shown, style=style))
    return curves


def table_box(rows: pd.DataFrame) -> str:
    """Write the numbers behind the figure as Markdown, with what they say of the headline."""
    points, texts = box_points(rows), []
    for _, row in points.iterrows():
        digits = 1 if row["measure"] == "dice" else 2
        value, low, high = (f"{row[name]:.{digits}f}" for name in ("value", "low", "high"))
        texts.append(value if pd.isna(row["low"]) else f"{value} [{low}, {high}]")
    points, index = points.assign(text=texts), ["what", "prompt", "jitter_px"]
    wide = points.pivot(index=index, columns=["measure", "trimester"], values="text")
    wide = wide.sort_index(axis="columns").fillna("–")
    wide.columns = [
        f"{'Dice %' if measure == 'dice' else 'ADF mm'}, {_GROUPS[group]}"
        for measure, group in wide.columns
    ]
    parts = []
    for key, (label, *_) in _LINES.items():
        own = wide[[index[:2] == key for index in wide.index]].reset_index()
        jitters = own["jitter_px"].map(lambda px: "–" if pd.isna(px) else f"{px:.0f}")
        own = own.assign(what=label, jitter_px=jitters).drop(columns="prompt")
        parts.append(own.rename(columns={"jitter_px": "jitter px"}))
    notes = [
        "Mean over images, draws averaged per image first; [95 % interval] over exams, for this "
        "one fitted model.",
        "jitter px: each side of the reference's box is displaced outward by a whole number from 0 "
        "to this, in pixels of a 256x256 squashed frame; the ellipse is shrunk by the mean jitter.",
    ]
    lines = markdown_table(pd.concat(parts), left=["what"])
    return "\n".join([*lines, "", *bullets([*_verdicts(points), *notes]), ""])


def _verdicts(points: pd.DataFrame) -> list[str]:
    """Say how much of the Dice under the paper's box the box alone gives, as far as it is known."""
    dice = points[(points["measure"] == "dice") & (points["trimester"] == 0)]
    value = dice.set_index(["what", "prompt", "jitter_px"])["value"].to_dict()
    of_model = {key[1:]: x for key, x in value.items() if key[0] == "model"}
    jittered = {px: x for (prompt, px), x in of_model.items() if prompt == "jittered_box"}
    levels = {prompt: x for (prompt, _), x in of_model.items()}
    whole, own = levels.get("whole_image"), levels.get("predicted_box")
    said, model = [], jittered.get(PAPER_JITTER_PX)
    shares = []
    for px, both in jittered.items():
        ellipse = value.get(("ellipse", "jittered_box", px))
        if ellipse is not None:
            words = _box_alone(model=both, ellipse=ellipse)
            shares.append(f"{px:.0f} px {ellipse:.1f} of {both:.1f} % ({words})")
    if shares:
        said.append(
            "Of the model's Dice under the reference's box, what the ellipse in the same box "
            f"gives, which reads no pixel, by jitter ({PAPER_JITTER_PX} px is about the paper's): "
            f"{'; '.join(shares)}."
        )
    if whole is not None and model is not None:
        said.append(
            f"Without a box (whole image) the same model has {whole:.1f} %: the box from "
            f"the reference is worth {model - whole:+.1f} points."
        )
    if whole is not None and own is not None:
        said.append(
            f"A box from the model's own first prediction changes that by "
            f"{own - whole:+.1f} points and reads no reference."
        )
    return said


def _box_alone(*, model: float, ellipse: float) -> str:
    """Say what the image adds to the box, as printed; per cent."""
    lead = round(ellipse, 1) - round(model, 1)
    if lead < 0:
        return f"the image adds {-lead:.1f} points"
    if lead == 0:
        return "the box alone does as well as the model"
    return f"the box alone does better than the model, by {lead:.1f} points"


def write_box_outputs(rows: pd.DataFrame, folder: Path) -> None:
    """Write figure_box.png, figure_box.pdf and table_box.md."""
    save_figure(figure_box(rows), stem=folder / "figure_box")
    write_atomic(folder / "table_box.md", table_box(rows))
