"""The ablation table: rows of results.csv to table.md, table.tex and the report.

A table is a list of blocks, one per test cohort and prompt; a block's cells are text that is ready
to read, so that Markdown, LaTeX and HTML show the same digits.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.config.conditions import CONDITIONS, CONTROLS, condition_label
from experiments.results.axes import (
    AXES,
    is_control,
    orders,
    prompt_order,
    prompt_words,
    series_key,
    shown_axes,
)
from experiments.results.cells import Block, cells
from experiments.results.measures import MEASURES
from experiments.results.rows import amounts, with_defaults
from experiments.results.text import bullets, escape_markdown, markdown_table

LABELS = ["condition", *AXES]
"""Headings that are text."""
COLUMNS = [
    *LABELS,
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
_OPTIONAL = [*AXES, "weighted Dice %", "weighted 95 % CI", "SD of trials", "not found"]
_OPTIONAL += ["HD mm", "HC error mm", "HC error p95 mm"]


def blocks(
    results: pd.DataFrame, *, per_image: pd.DataFrame | None = None, seed: int = 0
) -> list[Block]:
    """Lay the results out as tables: per cohort the whole image first, then the jittered box.

    Rows go by amount, segmenter and condition; the controls close their block. A trial that failed
    or waits is a row of every block it would have been in, or of all blocks where it names no
    cohort. Segmenter and generator have a column where the results hold several.
    """
    results = with_defaults(results)
    summary = cells(results, per_image=per_image, seed=seed)
    waiting = results[results["status"] != "done"]
    waiting = waiting.assign(amount=amounts(waiting))
    common = {"shown": shown_axes(results), "order": orders(results)}
    if summary.empty:
        return [_block(summary, waiting=waiting, where=("", ""), **common)]
    made = []
    for cohort in summary["test_cohort"].unique():
        own = summary[summary["test_cohort"] == cohort]
        for prompt in prompt_order(own["prompt"]):
            here = waiting[
                (waiting["test_cohort"].isna() | (waiting["test_cohort"] == cohort))
                & (waiting["prompt"].isna() | (waiting["prompt"] == prompt))
            ]
            scored = own[own["prompt"] == prompt]
            made.append(_block(scored, waiting=here, where=(cohort, prompt), **common))
    return made


def _block(
    scored: pd.DataFrame,
    *,
    waiting: pd.DataFrame,
    where: tuple[str, str],
    shown: Sequence[str],
    order: Mapping[str, Sequence[str]],
) -> Block:
    entries = []
    for _, row in scored.iterrows():
        amount = None if is_control_row(row) else row["amount"]
        texts = (_scored_text(row, shown=shown), _spread_text(row), "", amount)
        entries.append((_sort_key(row, order=order), *texts))
    for _, row in waiting.iterrows():
        reason, note = row.get("reason"), str(row["status"])
        if isinstance(reason, str) and reason:
            note = f"{note}: {reason}"
        text = _label_text(row, shown=shown)
        entries.append((_sort_key(row, order=order), text, {}, note, None))
    entries.sort(key=lambda entry: entry[0])
    keys, rows, spreads, notes, compared = zip(*entries, strict=True) if entries else ((),) * 5
    frame = pd.DataFrame(list(rows), columns=COLUMNS, dtype=object).fillna("")
    empty = [name for name in _OPTIONAL if (frame[name] == "").all()]
    if frame["supports"].isin(["", "1"]).all():
        empty.append("supports")
    kept = frame.drop(columns=empty)
    around = pd.DataFrame(list(spreads), index=kept.index, columns=kept.columns, dtype=object)
    cohort, prompt = where
    title = f"{cohort}, {prompt_words(prompt, shown=shown).label}"
    if len(scored) == len(frame) and len(scored) and is_control(scored).all():
        title += ", controls only"
    return Block(
        test_cohort=cohort,
        prompt=prompt,
        title=title if cohort else "no trial has finished",
        rows=kept,
        notes=tuple(notes),
        controls=tuple(key[0] for key in keys),
        spreads=around.fillna(""),
        best=_best(kept, amounts_of_rows=compared),
    )


def _best(rows: pd.DataFrame, *, amounts_of_rows: Sequence[str | None]) -> pd.DataFrame:
    """Mark the best printed values of each amount; rows without an amount are not compared."""
    best = pd.DataFrame(False, index=rows.index, columns=rows.columns)
    groups = pd.Series(amounts_of_rows, index=rows.index, dtype=object)
    for measure in MEASURES.values():
        if measure.heading not in rows:
            continue
        numbers = pd.to_numeric(rows[measure.heading].str.rstrip("*"), errors="coerce")
        for _, own in numbers.groupby(groups):
            if own.count() > 1:
                wanted = own.max() if measure.is_better_high else own.min()
                best.loc[own.index, measure.heading] = own.eq(wanted)
    return best


def is_control_row(row: Mapping) -> bool:
    """Whether one row is a control's."""
    return row["condition"] in CONTROLS


def _sort_key(row: pd.Series, *, order: Mapping[str, Sequence[str]]) -> tuple:
    n_real = row.get("n_real_min", row.get("n_real"))
    return (is_control_row(row), n_real, *series_key(row, order=order))


def _label_text(row: pd.Series, *, shown: Sequence[str]) -> dict[str, str]:
    n_min, n_max = (row.get(f"n_real_{end}", row.get("n_real")) for end in ("min", "max"))
    total = [row.get(f"n_total_{end}", row.get("n_total_labels")) for end in ("min", "max")]
    text = {
        "real": row["amount"] if pd.notna(row["real_fraction"]) else "",
        "n real": _span(n_min, n_max),
        "generator labels": _number(row["n_generator_labels"], 0),
        "validation labels": _number(row["n_val_labels"], 0),
        "total labels": _span(*total) or "unknown",
    }
    if is_control_row(row):
        # The mean mask is made of training labels, which makes it no row of an amount.
        text = dict.fromkeys(text, "")
        text["total labels"] = _span(*total) if max(total) > 0 else ""
    named = {name: row[name] for name in shown}
    return {"condition": condition_label(row["condition"])} | named | text


def _scored_text(row: pd.Series, *, shown: Sequence[str]) -> dict[str, str]:
    text = _label_text(row, shown=shown)
    for name, measure in MEASURES.items():
        text[measure.heading] = _number(row[name] * measure.factor, measure.digits)
    if isinstance(row["trimesters_missing"], str) and row["trimesters_missing"]:
        text["weighted Dice %"] += "*" if text["weighted Dice %"] else ""
    text["weighted 95 % CI"] = _interval(row, "dice_trimester_weighted")
    text["95 % CI"] = _interval(row, "dice")
    text["SD of trials"] = _number(100 * row["dice_sd"], 1)
    text["not found"] = text["not found"].removesuffix(".0")
    text["exams"] = _number(row["n_exams"], 0)
    text["supports"] = "" if is_control_row(row) else _number(row["n_supports"], 0)
    text["trials"] = _number(row["n_trials"], 0)
    return text


def _spread_text(row: pd.Series) -> dict[str, str]:
    return {
        measure.heading: _number(measure.factor * row[measure.spread_column], measure.digits)
        for measure in MEASURES.values()
        if measure.has_spread
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
    if (results.get("trimesters_missing", pd.Series(dtype=str)).fillna("") != "").any():
        notes.append("* A trimester has no test image; the other weights were scaled up.")
    more = results["n_total_labels"] - results["n_real"] - results["n_val_labels"]
    if (more[~is_control(results)] > 0).any():
        notes.append(
            "The generator behind + synthetic may have seen more labelled images than the "
            "real-only row of the same amount: compare at equal total labels."
        )
    if results["n_total_labels"].isna().any():
        notes.append(
            "unknown: how many labelled images the maker of the imported synthetic pairs used is "
            "not known, so neither is the row's total."
        )
    present, own = set(results["condition"]), CONTROLS | CONDITIONS
    notes += [row.note for name, row in own.items() if row.note and name in present]
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
        frame = block.rows.copy()
        first = next(name for name in frame.columns if name.endswith("Dice %"))
        for i, note in enumerate(block.notes):
            frame.loc[i] = frame.loc[i].replace("", "–") if not note else frame.loc[i]
            frame.loc[i, first] = note or frame.loc[i, first]
        lines = markdown_table(frame.map(escape_markdown), left=LABELS)
        parts += [f"### {block.title}\n", *lines, ""]
    return "\n".join([*parts, *bullets(notes)]) + "\n"
