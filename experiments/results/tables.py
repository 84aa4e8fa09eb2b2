"""The ablation table: rows of results.csv to table.md, table.tex and the report.

A table is a list of blocks, one per test cohort and prompt; a block's cells are text that is ready
to read, so that Markdown, LaTeX and HTML show the same digits.
"""

from collections.abc import Sequence

import pandas as pd

from experiments.results.cells import MEANS, Block, cells
from experiments.results.findings import prompt_order
from experiments.results.latex import escape_latex, latex_table, to_latex
from experiments.results.statistics import CONTROLS, amounts, with_defaults

__all__ = [
    "COLUMNS",
    "CONDITION_LABELS",
    "CONTROLS",
    "PROMPT_LABELS",
    "Block",
    "blocks",
    "cells",
    "escape_latex",
    "footnotes",
    "latex_table",
    "to_latex",
    "to_markdown",
]

CONDITION_LABELS = {
    "real": "real only",
    "real_repeated": "real, repeated",
    "weak": "weak augmentation",
    "strong": "strong augmentation",
    "warp": "+ warped pairs",
    "phantom": "+ phantom pairs",
    "synthetic": "+ synthetic",
    "synthetic_same_budget": "+ synthetic, same labels",
    "synthetic_same_budget_strong": "+ synthetic, same labels, strong",
    "real_resized": "+ real pairs at the generator's size",
    "synthetic_no_gate": "+ synthetic, no gate",
    "synthetic_random_subset": "+ synthetic, random subset",
    "unet": "U-Net (no prompt)",
    "box_only": "box only (no image)",
    "mean_mask": "constant mean mask",
    "zero_shot": "zero-shot backbone",
}
"""Conditions in the order of a block; the controls close it."""
PROMPT_LABELS = {
    "whole_image": "whole-image prompt",
    "jittered_box": "jittered-box prompt",
    "tight_box": "tight-box prompt",
    "predicted_box": "predicted-box prompt",
}
_DIGITS = {
    "dice_trimester_weighted_mean": ("weighted Dice %", 1),
    "dice_mean": ("Dice %", 1),
    "dice_median": ("median %", 1),
    "dice_share_below_090": ("share below 0.9", 2),
    "dice_256_mean": ("Dice@256 %", 1),
    "hausdorff_mm_mean": ("HD mm", 2),
    "hc_abs_err_mm_mean": ("HC error mm", 2),
    "hc_abs_err_mm_p95": ("HC error p95 mm", 2),
}
_SPREADS = {
    "dice_trimester_weighted_sd": ("weighted Dice %", 100, 1),
    "dice_sd": ("Dice %", 100, 1),
    "hc_abs_err_mm_sd": ("HC error mm", 1, 2),
}
"""Column of `cells` to the heading it belongs to, the factor of its unit, and digits."""
_BETTER_HIGH = {
    "weighted Dice %": True,
    "Dice %": True,
    "median %": True,
    "share below 0.9": False,
    "HC error mm": False,
    "HC error p95 mm": False,
    "HD mm": False,
    "Dice@256 %": True,
    "not found": False,
}
"""Whether the highest of a heading is its best; headings without a best are absent."""
COLUMNS = [
    "condition",
    "real",
    "n real",
    "generator labels",
    "validation labels",
    "total labels",
    "weighted Dice %",
    "weighted 95 % CI",
    "Dice %",
    "95 % CI",
    "SD of trials",
    "median %",
    "share below 0.9",
    "HC error mm",
    "HC error p95 mm",
    "HD mm",
    "Dice@256 %",
    "not found",
    "exams",
    "supports",
    "trials",
]
"""Headings in order, the headline first; those of `_OPTIONAL` go where every row is empty."""
_OPTIONAL = ["weighted Dice %", "weighted 95 % CI", "SD of trials", "not found"]
_OPTIONAL += ["HD mm", "HC error mm", "HC error p95 mm"]


def blocks(
    results: pd.DataFrame, *, per_image: pd.DataFrame | None = None, seed: int = 0
) -> list[Block]:
    """Lay the results out as tables: per cohort the whole image first, then the jittered box.

    Rows go by amount and condition; the controls close their block. A trial that failed or waits
    is a row of every block it would have been in, or of all blocks where it names no cohort.

    Args:
        results: Rows of results.csv; not empty.
        per_image: See `cells`.
        seed: See `cells`.
    """
    summary = cells(results, per_image=per_image, seed=seed)
    waiting = results[results["status"] != "done"]
    waiting = waiting.assign(amount=amounts(waiting))
    if summary.empty:
        return [_block(summary, waiting=waiting, test_cohort="", prompt="")]
    made = []
    for cohort in summary["test_cohort"].unique():
        own = summary[summary["test_cohort"] == cohort]
        for prompt in prompt_order(own["prompt"].tolist()):
            here = waiting[
                (waiting["test_cohort"].isna() | (waiting["test_cohort"] == cohort))
                & (waiting["prompt"].isna() | (waiting["prompt"] == prompt))
            ]
            scored = own[own["prompt"] == prompt]
            made.append(_block(scored, waiting=here, test_cohort=cohort, prompt=prompt))
    return made


def _block(scored: pd.DataFrame, *, waiting: pd.DataFrame, test_cohort: str, prompt: str) -> Block:
    conditions = list(CONDITION_LABELS)
    entries = []
    for _, row in scored.iterrows():
        amount = None if row["condition"] in CONTROLS else row["amount"]
        texts = (_scored_text(row), _spread_text(row), "", amount)
        entries.append((_sort_key(row, conditions), *texts))
    for _, row in waiting.iterrows():
        reason = row.get("reason")
        status = str(row["status"])
        note = f"{status}: {reason}" if isinstance(reason, str) and reason else status
        entries.append((_sort_key(row, conditions), _label_text(row), {}, note, None))
    entries.sort(key=lambda entry: entry[0])
    _, rows, spreads, notes, compared = zip(*entries, strict=True) if entries else ((),) * 5
    frame = pd.DataFrame(list(rows), columns=COLUMNS, dtype=object).fillna("")
    empty = [name for name in _OPTIONAL if (frame[name] == "").all()]
    if frame["supports"].isin(["", "1"]).all():
        empty.append("supports")
    shown = frame.drop(columns=empty)
    around = pd.DataFrame(list(spreads), index=shown.index, columns=shown.columns, dtype=object)
    prompt_label = PROMPT_LABELS.get(prompt, prompt)
    if len(scored) == len(frame) and scored["condition"].isin(CONTROLS).all():
        prompt_label += ", controls only"
    return Block(
        test_cohort=test_cohort,
        prompt=prompt,
        title=f"{test_cohort}, {prompt_label}" if test_cohort else "no trial has finished",
        rows=shown,
        notes=tuple(notes),
        spreads=around.fillna(""),
        best=_best(shown, amounts_of_rows=compared),
    )


def _best(rows: pd.DataFrame, *, amounts_of_rows: Sequence[str | None]) -> pd.DataFrame:
    """Mark the best printed values of each amount; rows without an amount are not compared."""
    best = pd.DataFrame(False, index=rows.index, columns=rows.columns)
    groups = pd.Series(amounts_of_rows, index=rows.index, dtype=object)
    for heading, is_better_high in _BETTER_HIGH.items():
        if heading not in rows:
            continue
        numbers = pd.to_numeric(rows[heading].str.rstrip("*"), errors="coerce")
        for _, own in numbers.groupby(groups):
            if own.count() > 1:
                best.loc[own.index, heading] = own.eq(own.max() if is_better_high else own.min())
    return best


def _sort_key(row: pd.Series, conditions: Sequence[str]) -> tuple:
    known = row["condition"] in conditions
    order = conditions.index(row["condition"]) if known else len(conditions)
    n_real = row.get("n_real_min", row.get("n_real"))
    return (row["condition"] in CONTROLS, n_real, order, row["condition"])


def _label_text(row: pd.Series) -> dict[str, str]:
    n_min, n_max = (row.get(f"n_real_{end}", row.get("n_real")) for end in ("min", "max"))
    total = [row.get(f"n_total_{end}", row.get("n_total_labels")) for end in ("min", "max")]
    text = {
        "condition": CONDITION_LABELS.get(row["condition"], str(row["condition"])),
        "real": row["amount"] if pd.notna(row["real_fraction"]) else "",
        "n real": _span(n_min, n_max),
        "generator labels": _number(row["n_generator_labels"], 0),
        "validation labels": _number(row["n_val_labels"], 0),
        "total labels": _span(*total) or "unknown",
    }
    if row["condition"] in CONTROLS:
        # The mean mask is made of training labels, which makes it no row of an amount.
        text |= dict.fromkeys(list(text)[1:], "")
        text["total labels"] = _span(*total) if max(total) > 0 else ""
    return text


def _scored_text(row: pd.Series) -> dict[str, str]:
    text = _label_text(row)
    for name, (heading, digits) in _DIGITS.items():
        text[heading] = _number(row[name] * MEANS[name], digits)
    if isinstance(row["trimesters_missing"], str) and row["trimesters_missing"]:
        text["weighted Dice %"] += "*" if text["weighted Dice %"] else ""
    text["weighted 95 % CI"] = _interval(row, "dice_trimester_weighted")
    text["95 % CI"] = _interval(row, "dice")
    text["SD of trials"] = _number(100 * row["dice_sd"], 1)
    # A mean over models, so it may be no whole number.
    text["not found"] = _number(row["n_not_found"], 1).removesuffix(".0")
    text["exams"] = _number(row["n_exams"], 0)
    text["supports"] = "" if row["condition"] in CONTROLS else _number(row["n_supports"], 0)
    text["trials"] = _number(row["n_trials"], 0)
    return text


def _spread_text(row: pd.Series) -> dict[str, str]:
    return {
        heading: _number(factor * row[name], digits)
        for name, (heading, factor, digits) in _SPREADS.items()
    }


def _interval(row: pd.Series, stem: str) -> str:
    low, high = (_number(100 * row[f"{stem}_{end}"], 1) for end in ("low", "high"))
    return f"[{low}, {high}]" if low and high else ""


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _span(low: float, high: float) -> str:
    if pd.isna(low):
        return ""
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


_NOTES = {
    "box_only": "Box only (no image): an ellipse inscribed in the prompt box, no pixel read. What "
    "it scores, the prompt gave away.",
    "mean_mask": "Constant mean mask: the training masks made into one for every image, no pixel "
    "and no prompt read.",
    "zero_shot": "Zero-shot backbone: the published weights, not fitted on any image here.",
    "real_resized": "+ real pairs at the generator's size: the labelled images of the generator, "
    "passed through its resolution, in the place of its synthetic pairs.",
}


def footnotes(results: pd.DataFrame) -> list[str]:
    """Say what the columns mean, as far as these results need it."""
    notes = [
        "Weighted Dice, the headline: mean of trimester means with the shares of the HC18 training "
        "set (165, 693 and 141 of 999 images); trimesters are derived from the head circumference.",
        "Dice and its median and share are over images, prompt draws averaged per image. [95 % CI] "
        "is a percentile bootstrap that resamples exams; in a row of several supports it resamples "
        "supports too and is widened for their small number (t quantiles). With one support it "
        "speaks of other exams for these trained models, not of other training runs.",
        "total labels: distinct labelled images behind a row, its own, those that its generator "
        "and the gate of its synthetic set saw, and those of validation where they chose anything.",
    ]
    notes += _notes_of_columns(results)
    controls = results["condition"].isin(CONTROLS)
    if (results.get("trimesters_missing", pd.Series(dtype=str)).fillna("") != "").any():
        notes.append("* A trimester has no test image; the other weights were scaled up.")
    more = results["n_total_labels"] - results["n_real"] - results["n_val_labels"]
    if (more[~controls] > 0).any():
        notes.append(
            "The generator behind + synthetic may have seen more labelled images than the "
            "real-only row of the same amount: compare at equal total labels."
        )
    if results["n_total_labels"].isna().any():
        notes.append(
            "unknown: how many labelled images the maker of the imported synthetic pairs used is "
            "not known, so neither is the row's total."
        )
    notes += [text for name, text in _NOTES.items() if (results["condition"] == name).any()]
    if (results["status"] != "done").any():
        notes.append("Trials that failed or are not done stand as rows without numbers.")
    return notes


def _notes_of_columns(results: pd.DataFrame) -> list[str]:
    notes = []
    if results["hc_abs_err_mm_mean"].notna().any():
        notes.append("HC error: absolute difference of the head circumference (ADF).")
    if results.get("n_not_found", pd.Series(dtype=float)).notna().any():
        notes.append(
            "not found: test images with an empty prediction, a mean over trials; they count with "
            "the worst score, never dropped."
        )
    folds = with_defaults(results)["fold"].nunique()
    if folds > 1:
        notes.append(
            f"Cross-tested: the exams of a row are pooled over {folds} folds, each tested by a "
            "model that was trained without it."
        )
    return notes


def to_markdown(tables: Sequence[Block], *, notes: Sequence[str]) -> str:
    """Write the blocks as GitHub Markdown with the notes below."""
    parts = []
    for block in tables:
        parts.append(f"### {block.title}\n")
        parts.append("| " + " | ".join(block.rows.columns) + " |")
        parts.append("|" + "|".join(_align(name) for name in block.rows.columns) + "|")
        for (_, row), note in zip(block.rows.iterrows(), block.notes, strict=True):
            shown = row.replace("", "–") if not note else row
            first = next(name for name in block.rows.columns if name.endswith("Dice %"))
            text = shown.to_dict() | ({first: note} if note else {})
            parts.append("| " + " | ".join(_escape_markdown(c) for c in text.values()) + " |")
        parts.append("")
    parts += [f"- {_escape_markdown(note)}" for note in notes]
    return "\n".join(parts) + "\n"


def _align(name: str) -> str:
    return " :-- " if name == "condition" else " --: "


def _escape_markdown(text: str) -> str:
    for mark in ("\\", "|", "*", "<"):
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ")
