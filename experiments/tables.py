"""The ablation table: rows of results.csv to table.md, table.tex and the report.

A table is a list of blocks, one per test cohort and prompt; a block's cells are text that is ready
to read, so that Markdown, LaTeX and HTML show the same digits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from experiments.findings import prompt_order
from experiments.statistics import amounts, average_draws, cluster_bootstrap_ci

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
    "box_only": "box only (no image)",
}
PROMPT_LABELS = {
    "whole_image": "whole-image prompt",
    "jittered_box": "jittered-box prompt",
    "tight_box": "tight-box prompt",
    "predicted_box": "predicted-box prompt",
}
_CELL = ["test_cohort", "prompt", "amount", "condition", "n_generator_labels", "n_val_labels"]
_MEANS = {
    "dice_mean": 100,
    "dice_median": 100,
    "dice_share_below_090": 1,
    "dice_trimester_weighted_mean": 100,
    "dice_256_mean": 100,
    "hausdorff_mm_mean": 1,
    "hc_abs_err_mm_mean": 1,
    "hc_abs_err_mm_p95": 1,
}
_DIGITS = {
    "dice_mean": ("Dice %", 1),
    "dice_median": ("median %", 1),
    "dice_share_below_090": ("share below 0.9", 2),
    "dice_trimester_weighted_mean": ("trimester-weighted %", 1),
    "dice_256_mean": ("Dice@256 %", 1),
    "hausdorff_mm_mean": ("HD mm", 2),
    "hc_abs_err_mm_mean": ("HC error mm", 2),
    "hc_abs_err_mm_p95": ("HC error p95 mm", 2),
}
_OPTIONAL = ["SD of trials", "HD mm", "HC error mm", "HC error p95 mm"]
_LATEX_HEADINGS = {
    "n real": "n",
    "generator labels": "gen.",
    "validation labels": "val.",
    "total labels": "labels",
    "SD of trials": "SD",
    "share below 0.9": "share",
    "trimester-weighted %": "weighted %",
    "Dice@256 %": "@256 %",
    "HC error mm": "ADF mm",
    "HC error p95 mm": "p95 mm",
}
COLUMNS = [
    "condition",
    "real",
    "n real",
    "generator labels",
    "validation labels",
    "total labels",
    "Dice %",
    "95 % CI",
    "SD of trials",
    "median %",
    "share below 0.9",
    "trimester-weighted %",
    "Dice@256 %",
    "HD mm",
    "HC error mm",
    "HC error p95 mm",
    "exams",
    "trials",
]
"""Headings in order; those of `_OPTIONAL` are left out where every row is empty."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One table: the rows of one test cohort and prompt."""

    test_cohort: str
    prompt: str
    title: str
    rows: pd.DataFrame
    """Text cells under `COLUMNS`; empty where there is nothing to say."""
    notes: tuple[str, ...]
    """What a row did not deliver, aligned with the rows: "failed: reason", "pending" or ""."""


def cells(
    results: pd.DataFrame, *, per_image: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Average the done trials of each cell (cohort, prompt, amount, condition, label counts).

    A cell of one trial shows that trial's row. In a cell of several, numbers are means over trials,
    `dice_sd` is the standard deviation of the trials' mean Dice, and the interval resamples exams
    after each image was averaged over the trials.

    Args:
        results: Rows of results.csv.
        per_image: Rows of per_image.csv; without them a cell of several trials has no interval.
        seed: Of the resampling.

    Returns:
        A row per cell: the columns of `_CELL`, real_fraction, n_real_min, n_real_max, n_trials,
        trial_ids, trial_dice, the means, dice_low, dice_high, dice_sd, n_exams, trimesters_missing.
    """
    done = results[results["status"] == "done"]
    done = done.assign(amount=amounts(done))
    images = None if per_image is None else average_draws(per_image)
    rows = []
    for where, part in done.groupby(_CELL, sort=False, dropna=False):
        row = dict(zip(_CELL, where, strict=True))
        row |= {name: part[name].mean() for name in _MEANS}
        row |= {
            "real_fraction": part["real_fraction"].iloc[0],
            "n_real_min": part["n_real"].min(),
            "n_real_max": part["n_real"].max(),
            "n_total_min": part["n_total_labels"].min(),
            "n_total_max": part["n_total_labels"].max(),
            "n_trials": len(part),
            "trial_ids": tuple(part["trial_id"]),
            "trial_dice": tuple(part["dice_mean"]),
            "dice_low": part["dice_low"].iloc[0],
            "dice_high": part["dice_high"].iloc[0],
            "dice_sd": part["dice_mean"].std(ddof=1),
            "n_exams": part["n_exams"].max(),
            "trimesters_missing": part.get("trimesters_missing", pd.Series([""])).iloc[0],
        }
        if len(part) > 1:
            row["dice_low"], row["dice_high"] = _pooled_interval(images, row=row, seed=seed)
        rows.append(row)
    return pd.DataFrame(rows)


def _pooled_interval(images: pd.DataFrame | None, *, row: dict, seed: int) -> tuple[float, float]:
    if images is None:
        return math.nan, math.nan
    own = images[
        images["trial_id"].isin(row["trial_ids"])
        & (images["test_cohort"] == row["test_cohort"])
        & (images["prompt"] == row["prompt"])
    ]
    means = own.groupby(["sample_id", "exam_id"], as_index=False)["dice"].mean()
    return cluster_bootstrap_ci(means["dice"], means["exam_id"], seed=seed)


def blocks(
    results: pd.DataFrame, *, per_image: pd.DataFrame | None = None, seed: int = 0
) -> list[Block]:
    """Lay the results out as tables: per cohort the whole image first, then the jittered box.

    Rows go by amount and condition; box only closes its block. A trial that failed or waits is a
    row of every block it would have been in, or of all blocks where it names no cohort.

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
        entries.append((_sort_key(row, conditions), _scored_text(row), ""))
    for _, row in waiting.iterrows():
        reason = row.get("reason")
        status = str(row["status"])
        note = f"{status}: {reason}" if isinstance(reason, str) and reason else status
        entries.append((_sort_key(row, conditions), _label_text(row), note))
    entries.sort(key=lambda entry: entry[0])
    frame = pd.DataFrame([text for _, text, _ in entries], columns=COLUMNS).fillna("")
    empty = [name for name in _OPTIONAL if (frame[name] == "").all()]
    prompt_label = PROMPT_LABELS.get(prompt, prompt)
    return Block(
        test_cohort=test_cohort,
        prompt=prompt,
        title=f"{test_cohort}, {prompt_label}" if test_cohort else "no trial has finished",
        rows=frame.drop(columns=empty),
        notes=tuple(note for _, _, note in entries),
    )


def _sort_key(row: pd.Series, conditions: Sequence[str]) -> tuple:
    known = row["condition"] in conditions
    order = conditions.index(row["condition"]) if known else len(conditions)
    n_real = row.get("n_real_min", row.get("n_real"))
    return (row["condition"] == "box_only", n_real, order, row["condition"])


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
    if row["condition"] == "box_only":
        text |= dict.fromkeys(list(text)[1:], "")
    return text


def _scored_text(row: pd.Series) -> dict[str, str]:
    text = _label_text(row)
    for name, (heading, digits) in _DIGITS.items():
        text[heading] = _number(row[name] * _MEANS[name], digits)
    if isinstance(row["trimesters_missing"], str) and row["trimesters_missing"]:
        text["trimester-weighted %"] += "*" if text["trimester-weighted %"] else ""
    low, high = _number(100 * row["dice_low"], 1), _number(100 * row["dice_high"], 1)
    text["95 % CI"] = f"[{low}, {high}]" if low and high else ""
    text["SD of trials"] = _number(100 * row["dice_sd"], 1)
    text["exams"] = _number(row["n_exams"], 0)
    text["trials"] = _number(row["n_trials"], 0)
    return text


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _span(low: float, high: float) -> str:
    if pd.isna(low):
        return ""
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


def footnotes(results: pd.DataFrame) -> list[str]:
    """Say what the columns mean, as far as these results need it."""
    notes = [
        "Dice and its mean, median and share are over images, prompt draws averaged per image; "
        "[95 % CI] is a percentile bootstrap that resamples exams. It speaks of other exams for "
        "these trained models, not of other training runs.",
        "total labels: distinct labelled images behind a row, its own, those that its generator "
        "and the gate of its synthetic set saw, and those of validation where they chose anything.",
        "Trimester-weighted: mean of trimester means with the shares of the HC18 training set "
        "(165, 693 and 141 of 999 images); trimesters are derived from the head circumference.",
    ]
    if (results.get("trimesters_missing", pd.Series(dtype=str)).fillna("") != "").any():
        notes.append("* A trimester has no test image; the other weights were scaled up.")
    more = results["n_total_labels"] - results["n_real"] - results["n_val_labels"]
    if (more[results["condition"] != "box_only"] > 0).any():
        notes.append(
            "The generator behind + synthetic may have seen more labelled images than the "
            "real-only row of the same amount: compare at equal total labels."
        )
    if results["n_total_labels"].isna().any():
        notes.append(
            "unknown: how many labelled images the maker of the imported synthetic pairs used is "
            "not known, so neither is the row's total."
        )
    if (results["condition"] == "box_only").any():
        notes.append(
            "Box only (no image): an ellipse inscribed in the prompt box, no pixel read. What it "
            "scores, the prompt gave away."
        )
    if results["hc_abs_err_mm_mean"].notna().any():
        notes.append("HC error: absolute difference of the head circumference (ADF).")
    if (results["status"] != "done").any():
        notes.append("Trials that failed or are not done stand as rows without numbers.")
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
            text = shown.to_dict() | ({"Dice %": note} if note else {})
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


def to_latex(tables: Sequence[Block], *, notes: Sequence[str]) -> str:
    """Write the blocks as LaTeX tables (packages booktabs and siunitx) with the notes below.

    Headings are short and the reason of a failure stands below, so that a landscape page holds it.
    """
    parts = ["% Needs \\usepackage{booktabs,siunitx}; the tables fit a landscape page."]
    parts.append("{\\footnotesize\\setlength{\\tabcolsep}{3pt}")
    reasons = []
    for block in tables:
        frame = block.rows.copy()
        for i, note in enumerate(block.notes):
            if note:
                frame.loc[i, "95 % CI"] = note.split(":")[0]
                named = (
                    f"{frame.loc[i, 'condition']}, {frame.loc[i, 'n real']} real images: {note}."
                )
                reasons += [named] if named not in reasons else []
        frame = frame.rename(columns=_LATEX_HEADINGS)
        label = f"tab:{block.test_cohort}-{block.prompt}"
        parts.append(latex_table(frame, caption=block.title, label=label))
    parts += [f"\\noindent {escape_latex(note)}\\par" for note in [*notes, *reasons]]
    return "\n".join([*parts, "}", ""])


def latex_table(frame: pd.DataFrame, *, caption: str, label: str) -> str:
    """Write text cells as a booktabs table; columns of plain numbers become siunitx S columns."""
    numeric = [name for name in frame.columns if _is_numeric(frame[name])]
    style = frame.style.hide(axis="index").format(escape="latex")
    style = style.format(lambda text: text or "{--}", subset=numeric)
    style = style.format_index(escape="latex", axis=1)
    kinds = [_number_column(frame[name]) if name in numeric else "l" for name in frame.columns]
    return style.to_latex(
        hrules=True,
        siunitx=True,
        caption=escape_latex(caption),
        label=label,
        position="htbp",
        position_float="centering",
        column_format="".join(kinds),
    )


def _is_numeric(cells_of_column: pd.Series) -> bool:
    filled = cells_of_column[cells_of_column != ""]
    return len(filled) > 0 and bool(pd.to_numeric(filled, errors="coerce").notna().all())


def _number_column(cells_of_column: pd.Series) -> str:
    halves = [text.partition(".")[::2] for text in cells_of_column]
    whole, part = (max(len(half) for half in side) for side in zip(*halves, strict=True))
    return f"S[table-format={whole}.{part}]"


def escape_latex(text: str) -> str:
    """Escape LaTeX's special characters in running text."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "\\": "\\textbackslash{}",
        "<": "\\textless{}",
        ">": "\\textgreater{}",
    }
    return "".join(special.get(c, c) for c in text)
