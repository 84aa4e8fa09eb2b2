"""The report of a sweep: one HTML file that needs nothing beside it.

`render_report` is pure: numbers and pictures in, text out. It knows no run directories. The page
loads nothing: styles are inline, pictures are data URIs, there is no script.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import cv2
import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.attribution import HC18_LICENCE
from experiments.config.conditions import BOX_ALONE, condition_label, in_order
from experiments.config.paths import TEMPLATES
from experiments.config.statistics import StatisticsConfig
from experiments.results.axes import is_control, prompt_order, prompt_words, shown_axes
from experiments.results.contrasts import all_contrasts, comparisons, verdict
from experiments.results.findings import finding, size
from experiments.results.pictures import PREDICTION_RGB, REFERENCE_RGB, encode_png
from experiments.results.rows import with_defaults
from experiments.results.spreads import spread_table, spreads
from experiments.results.tables import Block, blocks, footnotes
from experiments.results.text import counted

HC18_ATTRIBUTION = f"{HC18_LICENCE} Pictures here are resized and carry outlines."
PHANTOM_BANNER = "Procedural phantoms: the numbers say nothing about patients."
_LONGEST_SIDE_PX = 520


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with what stands below it."""

    image: NDArray[np.uint8] | bytes
    """(H, W) grey or (H, W, 3) RGB uint8, shrunk to 520 px if larger; or PNG bytes, kept as is."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What the gate did with one generator's candidates."""

    n_made: int
    n_kept: int
    reasons: Mapping[str, int]
    """Rejected candidates by first reason; adds up to n_made - n_kept."""
    rejected: Sequence[Picture] = ()
    """Some rejected candidates, the reason in the caption."""
    name: str = ""
    """Which generator, where a sweep has several."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One synthetic set measured against the images its generator saw."""

    name: str
    rows: pd.DataFrame
    """Text cells: measure, synthetic, the control, how to read it."""
    notes: Sequence[str] = ()
    nearest: Sequence[tuple[Picture, Picture]] = ()
    """(synthetic, nearest training image) by pixels."""


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything that the report shows. Empty parts leave their section out."""

    title: str
    data_kind: Literal["hc18", "phantom", "other"]
    """Decides the banner and the attribution."""
    results: pd.DataFrame
    """Rows of results.csv."""
    per_image: pd.DataFrame
    """Rows of per_image.csv."""
    figures: Sequence[Picture] = ()
    """The curve first; others below it."""
    real: Sequence[Picture] = ()
    synthetic: Sequence[Picture] = ()
    """Sample pairs, mask outlines drawn, shown side by side."""
    predictions: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    """Group title (Worst, Median, Best) to test images with reference and predicted outline."""
    predictions_note: str = ""
    """Which trial, cohort and prompt the predictions are of."""
    candidates: Sequence[Candidates] = ()
    gate_effect: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Dice downstream of the gate, no gate and a random subset."""
    fidelity: Sequence[Fidelity] = ()
    near_copies: Sequence[tuple[Picture, Picture]] = ()
    """(synthetic, nearest training image); similarity in the captions."""
    near_copies_note: str = ""
    """How similarity is measured and what held-out real images score."""
    data_facts: Mapping[str, str] = field(default_factory=dict)
    data_summary: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per part: images, exams, trimesters."""
    protocol: Sequence[str] = ()
    """What chose what, on which labels; one sentence each."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """git sha, dirty, versions, machine, command..."""
    config_yaml: str = ""
    runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per run: id, stage, seconds, peak memory..."""
    attributions: Sequence[str] = ()
    """Of cohorts other than HC18, which is added by itself."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    """The primary contrast, and when a difference counts."""
    seed: int = 0
    """Of the bootstrap."""


def render_report(content: ReportContent) -> str:
    """Render the report.

    Args:
        content: What to show; results must have at least one row.

    Returns:
        A complete HTML document; the same content gives the same text.
    """
    chosen = content.statistics
    found = all_contrasts(content.per_image, statistics=chosen, seed=content.seed)
    shown = shown_axes(with_defaults(content.results))
    tables = blocks(content.results, per_image=content.per_image, seed=content.seed)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    attributions = [HC18_ATTRIBUTION] if content.data_kind == "hc18" else []
    return environment.get_template("report.html.j2").render(
        content=content,
        banner=PHANTOM_BANNER if content.data_kind == "phantom" else "",
        finding=finding(found, results=content.results, has_primary=chosen.primary.enabled),
        status=status_line(content.results),
        tables=[table_view(block) for block in tables],
        notes=footnotes(content.results),
        differences=[
            *difference_views(comparisons(found.family), shown=shown),
            *segmenter_views(found.segmenters, shown=shown),
        ],
        spreads=frame_view(spread_table(spreads(content.per_image))),
        gate_effect=frame_view(content.gate_effect),
        fidelity=[(each, frame_view(each.rows)) for each in content.fidelity],
        controls=control_sentences(content.results),
        budgets=budget_rows(content.results),
        data_summary=frame_view(content.data_summary),
        runs=frame_view(content.runs),
        attributions=[*attributions, *content.attributions],
        colors={"reference": REFERENCE_RGB, "prediction": PREDICTION_RGB},
    )


def data_uri(image: NDArray[np.uint8] | bytes) -> str:
    """Encode a picture as a PNG data URI; arrays are shrunk to 520 px on the longest side."""
    if isinstance(image, bytes):
        data = image
    else:
        scale = _LONGEST_SIDE_PX / max(image.shape[:2])
        if scale < 1:
            size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        data = encode_png(image)
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def status_line(results: pd.DataFrame) -> str:
    """Count the trials by status, and their time and memory where known."""
    trials = results[~is_control(results)].drop_duplicates("trial_id")
    counts = trials["status"].value_counts()
    parts = [counted(len(trials), "trial")]
    parts += [f"{counts[name]} {name}" for name in counts.index]
    if "seconds" in trials and trials["seconds"].notna().any():
        parts.append(f"{trials['seconds'].sum() / 60:.1f} min of training and testing")
    if "peak_memory_mib" in trials and trials["peak_memory_mib"].notna().any():
        parts.append(f"peak memory {trials['peak_memory_mib'].max() / 1024:.1f} GiB")
    return " · ".join(parts)


def table_view(block: Block) -> dict[str, object]:
    """Lay a block out for the page: label columns moved to the budget table, an interval strip.

    The strip places the headline and its interval between the block's lowest and highest bound.
    """
    hidden = ["generator labels", "validation labels"]
    frame = block.rows.drop(columns=hidden)
    if frame["trials"].isin(["", "1"]).all():
        frame = frame.drop(columns="trials")
    weighted = "weighted 95 % CI" in frame and (frame["weighted 95 % CI"] != "").any()
    interval = "weighted 95 % CI" if weighted else "95 % CI"
    headline = "weighted Dice %" if weighted else "Dice %"
    bounds = [_bounds(text) for text in frame[interval]]
    known = [value for pair in bounds if pair for value in pair]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    rows = []
    for i, (_, row) in enumerate(frame.iterrows()):
        strip = None
        if bounds[i] and high > low and row[headline]:
            start, end = ((value - low) / (high - low) * 100 for value in bounds[i])
            middle = (float(row[headline].rstrip("*")) - low) / (high - low) * 100
            strip = {"left": f"{start:.1f}", "width": f"{end - start:.1f}", "dot": f"{middle:.1f}"}
        rows.append(
            {
                "cells": row.to_dict(),
                "note": block.notes[i],
                "strip": strip,
                "is_control": block.controls[i],
                "starts_group": i > 0 and row["n real"] != frame["n real"].iloc[i - 1],
            }
        )
    return {
        "title": block.title,
        "columns": list(frame.columns),
        "n_labels": list(frame.columns).index("total labels") + 1,
        "rows": rows,
        "interval": interval,
        "headline": headline,
        "range": f"{low:.1f} to {high:.1f} %" if known else "",
    }


def _bounds(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    low, high = text.strip("[]").split(", ")
    return float(low), float(high)


def difference_views(
    compared: pd.DataFrame, *, shown: Sequence[str] = ()
) -> list[dict[str, object]]:
    """Write comparisons as text, one table per cohort and prompt, leak-free prompt first."""
    views = []
    for cohort in [] if compared.empty else compared["test_cohort"].unique():
        own = compared[compared["test_cohort"] == cohort]
        for prompt in prompt_order(own["prompt"]):
            rows = [
                {"condition": condition_label(row["condition"])}
                | {name: row[name] or "–" for name in shown}
                | {"against": condition_label(row["baseline"])}
                | _difference_cells(row)
                for _, row in own[own["prompt"] == prompt].iterrows()
            ]
            title = f"{cohort}, {prompt_words(prompt, shown=shown).label}"
            views.append(_view(title, rows))
    return views


def segmenter_views(
    segmenters: pd.DataFrame, *, shown: Sequence[str] = ()
) -> list[dict[str, object]]:
    """Write the contrasts of segmenters as one table, or none without any."""
    rows = [
        {
            "segmenter": row["segmenter"],
            "against": row["against"],
            "where": f"{row['test_cohort']}, {prompt_words(row['prompt'], shown=shown).label}",
            "condition": condition_label(row["condition"]),
        }
        | _difference_cells(row)
        for _, row in segmenters.iterrows()
    ]
    if not rows:
        return []
    title = "Segmenters on the same real images, at the largest amount that both have"
    return [_view(title, rows)]


def _view(title: str, rows: list[dict[str, object]]) -> dict[str, object]:
    columns = [name for name in rows[0] if name != "is_firm"]
    return {"title": title, "columns": columns, "rows": rows}


def _difference_cells(row: pd.Series) -> dict[str, str | bool]:
    measure, p = row["measure"], row["p_holm"]
    ends = [size(row[end], measure=measure) for end in ("low", "high")]
    known = np.isfinite([row["low"], row["high"]]).all()
    name = "HC error, mm" if measure != "dice" else "Dice, points"
    return {
        "measure": name + (" (primary)" if row["role"] == "primary" else ""),
        "real": row["amount"],
        "difference": size(row["mean"], measure=measure, sign=True),
        "95 % CI": " to ".join(ends) if known else "–",
        "change": verdict(row),
        "adjusted p": "–" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "is_firm": bool(p < 0.05),
        "exams": f"{row['n_exams']}",
        "trial pairs": f"{row['n_trials']}",
        "SD of trial pairs": (
            "–" if pd.isna(row["sd_trials"]) else size(row["sd_trials"], measure=measure)
        ),
    }


def control_sentences(results: pd.DataFrame) -> list[str]:
    """Set box only beside the best trial under the same cohort and prompt."""
    done = results[results["status"] == "done"]
    sentences = []
    for _, box in done[done["condition"].isin(BOX_ALONE)].iterrows():
        same = (done["test_cohort"] == box["test_cohort"]) & (done["prompt"] == box["prompt"])
        trained = done[same & ~is_control(done)]
        prompt = prompt_words(box["prompt"]).label
        text = f"{box['test_cohort']}, {prompt}: {100 * box['dice_mean']:.1f} % without the image"
        if len(trained):
            ends = 100 * trained["dice_mean"].min(), 100 * trained["dice_mean"].max()
            text += f"; the trained models score {ends[0]:.1f} to {ends[1]:.1f} %"
        else:
            text += "; no trained model was scored here"
        sentences.append(text + ".")
    return sentences


def budget_rows(results: pd.DataFrame) -> list[dict[str, str]]:
    """List the label budget of each condition: real images, generator, validation, and
    how many distinct ones that is; the bar shows own, only generator, validation.

    Rows go by number of real images and condition; a budget that several trials share stands once.
    """
    columns = ["n_real", "condition", "n_generator_labels", "n_val_labels", "n_total_labels"]
    rows = results.loc[~is_control(results), columns].drop_duplicates()
    rank = rows["condition"].map(in_order(rows["condition"]).index)
    rows = rows.assign(rank=rank).sort_values(["n_real", "rank"])
    most = rows["n_total_labels"].max()
    listed = []
    for _, row in rows.iterrows():
        counts = [row["n_real"], row["n_generator_labels"], row["n_val_labels"]]
        total = row["n_total_labels"]
        parts = [row["n_real"], total - row["n_real"] - row["n_val_labels"], row["n_val_labels"]]
        listed.append(
            {
                "condition": condition_label(row["condition"]),
                "counts": ["unknown" if pd.isna(n) else f"{n:.0f}" for n in counts],
                "total": "unknown" if pd.isna(total) else f"{total:.0f}",
                "widths": [f"{100 * n / most:.2f}" if most and n > 0 else "0" for n in parts],
            }
        )
    return listed


def frame_view(frame: pd.DataFrame) -> dict[str, list]:
    """Turn a DataFrame into header and text rows; NaN becomes a dash."""
    rows = [[_text(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return {"columns": [str(name) for name in frame.columns], "rows": rows}


def _text(value: object) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
    return str(value)
