"""The report of a sweep: one HTML file that needs nothing beside it.

`render_report` is pure: numbers and pictures in, text out. It knows no run directories. The page
loads nothing: styles are inline, pictures are data URIs, there is no script.
"""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.attribution import HC18_LICENCE
from experiments.config.conditions import BOX_ALONE, condition_label, in_order
from experiments.config.paths import TEMPLATES
from experiments.config.statistics import StatisticsConfig
from experiments.config.words import counted
from experiments.results.axes import axis_label, each_place, is_control, prompt_label, shown_axes
from experiments.results.cells import cells
from experiments.results.choosing import choice_table
from experiments.results.contrasts import Contrasts, comparisons, level_text, primary_rows, verdict
from experiments.results.findings import finding, interval, size
from experiments.results.panels import DOTS_PER_INCH
from experiments.results.pictures import PREDICTION_RGB, REFERENCE_RGB, encode_png
from experiments.results.rows import generator_alone, with_defaults
from experiments.results.spreads import spread_table
from experiments.results.tables import blocks, footnotes
from experiments.results.text import Block
from experiments.results.verdict import comparison_table, verdict_sentences

HC18_ATTRIBUTION = f"{HC18_LICENCE} Pictures here are resized and carry outlines."
PHANTOM_BANNER = "Procedural phantoms: the numbers say nothing about patients."
_LONGEST_SIDE_PX = 520
_SHOWN_PER_INCH = 130
_LONG_TEXT = 60


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with what stands below it."""

    image: NDArray[np.uint8] | bytes
    """(H, W) grey or (H, W, 3) RGB uint8, shrunk to 520 px if larger; or PNG bytes, kept as is."""
    caption: str


def render_report(
    content: Mapping[str, Any],
    *,
    results: pd.DataFrame,
    per_image: pd.DataFrame,
    contrasts: Contrasts,
    statistics: StatisticsConfig,
) -> str:
    """Render the report.

    Args:
        content: What is shown beside the numbers, see `report_content.gather`: `title`,
            `data_kind`, and parts, of which an absent or empty one leaves its section out.
        results: Rows of results.csv; at least one.
        per_image: Rows of per_image.csv.
        contrasts: Of `all_contrasts`.
        statistics: Whether there is a primary contrast, and when a difference counts.

    Returns:
        A complete HTML document; the same content gives the same text.
    """
    shown = shown_axes(with_defaults(results))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "cell": cell_text, "label": condition_label}
    environment.filters |= {"words": wordy_columns, "strip": interval_strip}
    environment.filters |= {"chart_width": chart_width_px}
    kind = content["data_kind"]
    return environment.get_template("report.html.j2").render(
        content=defaultdict(tuple, content),
        banner=PHANTOM_BANNER if kind == "phantom" else "",
        verdict=verdict_sentences(contrasts, results),
        comparison=comparison_table(contrasts, results, per_image=per_image),
        finding=finding(
            contrasts, results=results, per_image=per_image, has_primary=statistics.primary.enabled
        ),
        status=status_line(results),
        tables=blocks(results, per_image=per_image),
        notes=footnotes(results),
        differences=difference_tables(contrasts, shown=shown),
        choices=choice_table(per_image, contrasts.choices, shown=shown),
        spreads=spread_table(per_image),
        has_boxes=(results["prompt"] == "jittered_box").any(),
        controls=control_sentences(results, per_image=per_image),
        budgets=budgets(results),
        statistics=statistics,
        attributions=[HC18_ATTRIBUTION] if kind == "hc18" else [],
        colors={"reference": REFERENCE_RGB, "prediction": PREDICTION_RGB},
    )


def chart_width_px(png: bytes) -> int:
    """Width of a drawn figure on the page, so that letters are of one size in all of them."""
    width_px = int.from_bytes(png[16:20], "big")  # PNG's header
    return round(width_px / DOTS_PER_INCH * _SHOWN_PER_INCH)


def data_uri(image: NDArray[np.uint8] | bytes) -> str:
    """Encode a picture as a PNG data URI; arrays are shrunk to 520 px on the longest side."""
    if not isinstance(image, bytes):
        scale = _LONGEST_SIDE_PX / max(image.shape[:2])
        if scale < 1:
            size_wh = (round(image.shape[1] * scale), round(image.shape[0] * scale))
            image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
        image = encode_png(image)
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def status_line(results: pd.DataFrame) -> str:
    """Count the trials by status, and their time and memory where known."""
    # Where a trial is scored in part, what is not done speaks for it: done, failed, pending.
    trials = results[~is_control(results)].sort_values(
        "status", key=lambda names: names == "done", kind="stable"
    )
    trials = trials.drop_duplicates("trial_id")
    parts = [counted(len(trials), "trial")]
    parts += [f"{n} {status}" for status, n in trials["status"].value_counts().items()]
    cost = trials.reindex(columns=["seconds", "peak_memory_mib"])
    if cost["seconds"].notna().any():
        parts.append(f"{cost['seconds'].sum() / 60:.1f} min of training and testing")
    if cost["peak_memory_mib"].notna().any():
        parts.append(f"peak memory {cost['peak_memory_mib'].max() / 1024:.1f} GiB")
    return " · ".join(parts)


def difference_tables(
    contrasts: Contrasts, *, shown: Sequence[str] = ()
) -> dict[str, list[dict[str, object]]]:
    """Write contrasts as rows of text under titles: a table per cohort and prompt, leak-free prompt
    first and in it the primary contrast, then one of the segmenters.
    """
    tables, first = {}, primary_rows(contrasts.family)
    others = comparisons(contrasts.family, rivals=True)
    if len(first):
        others = others[~others["role"].isin(first["role"])]
    for cohort, prompt, compared in each_place(pd.concat([first, others])):
        tables[f"{cohort}, {prompt_label(prompt)}"] = [
            {"condition": condition_label(row["condition"])}
            | {name: axis_label(name, row[name]) or "–" for name in shown}
            | {"against": condition_label(row["baseline"])}
            | _difference_cells(row)
            for _, row in compared.iterrows()
        ]
    if len(contrasts.segmenters):
        tables["Segmenters on the same real images, at the largest amount that both have"] = [
            {
                "segmenter": row["segmenter"],
                "against": row["against"],
                "where": f"{row['test_cohort']}, {prompt_label(row['prompt'])}",
                "condition": condition_label(row["condition"]),
            }
            | _difference_cells(row)
            for _, row in contrasts.segmenters.iterrows()
        ]
    return tables


def _difference_cells(row: pd.Series) -> dict[str, str | bool]:
    measure, p = row["measure"], row["p_holm"]
    name = "HC error, mm" if measure != "dice" else "Dice, points"
    return {
        "measure": name + (" (primary)" if row["role"] == "primary" else ""),
        "real": row["amount"],
        "difference": size(row["mean"], measure=measure, sign=True),
        f"{level_text(row)} CI": interval(row) or "–",
        "change": verdict(row),
        "adjusted p": "–" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "is_firm": bool(p < 0.05),
        "exams": f"{row['n_exams']}",
        "trial pairs": f"{row['n_trials']}",
        "SD of trial pairs": (
            "–" if pd.isna(row["sd_trials"]) else size(row["sd_trials"], measure=measure)
        ),
    }


def control_sentences(results: pd.DataFrame, *, per_image: pd.DataFrame) -> list[str]:
    """Set box only beside the trained models under the same cohort and prompt."""
    found, sentences = cells(results, per_image=per_image), []
    for _, box in found[found["condition"].isin(BOX_ALONE)].iterrows():
        same = (found["test_cohort"] == box["test_cohort"]) & (found["prompt"] == box["prompt"])
        dice = 100 * found.loc[same & ~is_control(found), "trial_dice"].explode()
        where = f"{box['test_cohort']}, {prompt_label(box['prompt'])}"
        trained = f"the trained models score {dice.min():.1f} to {dice.max():.1f} %"
        beside = trained if len(dice) else "no trained model was scored here"
        sentences.append(f"{where}: {100 * box['dice_mean']:.1f} % without the image; {beside}.")
    return sentences


def budgets(results: pd.DataFrame) -> pd.DataFrame:
    """List the label budget of each condition by number of real images, each budget once.

    Returns:
        condition, n_real, n_generator_labels, n_val_labels, n_total_labels, and n_more: those that
        only the generator saw.
    """
    columns = ["n_real", "condition", "n_generator_labels", "n_val_labels", "n_total_labels"]
    rows = results.loc[~is_control(results), columns].drop_duplicates()
    rank = rows["condition"].map(in_order(rows["condition"]).index)
    rows = rows.assign(n_more=generator_alone(rows), rank=rank)
    return rows.sort_values(["n_real", "rank"])


def interval_strip(block: Block) -> tuple[float, float, list[tuple[float, float, float] | None]]:
    """Place the intervals of a table's headline on one scale, which the trained rows span.

    Returns:
        The scale's ends, as printed (NaN where there is no interval); and for each row the left end
        and the width of its interval and the place of its mean, in per cent of the scale. None for
        a row without an interval and for a control that reaches beyond the scale.
    """
    points = block.points[["mean", "low", "high"]]
    trained = points if all(block.controls) else points[~np.array(block.controls)]
    low, high = trained["low"].min(), trained["high"].max()
    strips: list[tuple[float, float, float] | None] = [None] * len(points)
    for i, (mean, start, end) in enumerate(points.itertuples(index=False)):
        if low < high and low <= min(start, mean) and max(end, mean) <= high:
            left, right, dot = (100 * (each - low) / (high - low) for each in (start, end, mean))
            strips[i] = (left, right - left, dot)
    return low, high, strips


def wordy_columns(frame: pd.DataFrame) -> list[bool]:
    """Whether each column holds a text so long that its cells are read from the left and wrap."""
    return [any(len(cell_text(value)) > _LONG_TEXT for value in frame[name]) for name in frame]


def cell_text(value: object) -> str:
    """Write a value of a table: NaN and "" as a dash, a number with as many digits as it needs."""
    if pd.isna(value) or value == "":
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
    return str(value)
