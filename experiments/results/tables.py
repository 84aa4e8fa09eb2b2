"""The ablation table: rows of results.csv to table.md, table.tex and the report.

A table is a list of blocks, one per test cohort and prompt; a block's cells are text that is ready
to read, so that Markdown, LaTeX and HTML show the same digits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from datamodules.choices import CHOICES
from experiments.config.conditions import CONDITIONS, CONTROLS, condition_label
from experiments.results import axes
from experiments.results.cells import cells
from experiments.results.measures import MEASURES
from experiments.results.rows import generator_alone, with_amounts, with_defaults
from experiments.results.text import Block, counted_span

LABELS = ["condition", *axes.AXES]
"""Headings that are text."""
_EMPTY = ("",)


@dataclass(frozen=True)
class Column:
    """A column: its heading, and a row of `cells` to its text; "" where there is nothing to say."""

    heading: str
    text: Callable[[Mapping], str]
    latex: str = ""
    """Heading of the LaTeX table, whose page is narrow; "" for the same."""
    idle: tuple[str, ...] = ()
    """It goes where every row has one of these texts."""
    is_trained: bool = False
    """Whether it says nothing of a control."""


def _number(value: float, digits: int = 0) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _span(row: Mapping, stem: str) -> str:
    low, high = row[f"{stem}_min"], row[f"{stem}_max"]
    return _number(low) if pd.isna(low) or low == high else f"{low:.0f}–{high:.0f}"


def _total(row: Mapping) -> str:
    if row["condition"] in CONTROLS:
        # The mean mask is made of training labels, which makes it no row of an amount.
        return _span(row, "n_total") if row["n_total_max"] > 0 else ""
    return _span(row, "n_total") or "unknown"


def _measure(column: str, latex: str = "", *, idle: tuple[str, ...] = ()) -> Column:
    one = MEASURES[column]
    return Column(
        one.heading, lambda row: _number(row[column] * one.factor, one.digits), latex, idle
    )


def _axis(name: str) -> Column:
    return Column(name, lambda row: axes.axis_label(name, row[name]), idle=_EMPTY)


def _count(column: str, latex: str) -> Column:
    heading = MEASURES[column].heading
    return Column(heading, lambda row: _number(row[column], 1).removesuffix(".0"), latex, _EMPTY)


def _starred(row: Mapping) -> str:
    text = _measure("dice_trimester_weighted_mean").text(row)
    missing = row["trimesters_missing"]
    return f"{text}*" if text and isinstance(missing, str) and missing else text


def _interval(stem: str) -> Callable[[Mapping], str]:
    def text(row: Mapping) -> str:
        low, high = (_number(100 * row[f"{stem}_{end}"], 1) for end in ("low", "high"))
        return f"[{low}, {high}]" if low and high else ""

    return text


# fmt: off
_COLUMNS = [
    Column("condition", lambda row: condition_label(row["condition"])),
    *map(_axis, axes.AXES),
    Column("real", lambda row: row["amount"] if pd.notna(row["real_fraction"]) else "",
           is_trained=True),
    Column("n real", lambda row: _span(row, "n_real"), "n", is_trained=True),
    Column("generator labels", lambda row: _number(row["n_generator_labels"]), "gen.",
           is_trained=True),
    Column("validation labels", lambda row: _number(row["n_val_labels"]), "val.", is_trained=True),
    Column("total labels", _total, "labels"),
    Column("unlabelled", lambda row: _number(row["n_unlabelled"] or float("nan")), "unlab.",
           _EMPTY, is_trained=True),
    Column("weighted Dice %", _starred, "weighted %", _EMPTY),
    Column("weighted 95 % CI", _interval("dice_trimester_weighted"), "weighted CI", _EMPTY),
    _measure("dice_mean"),
    Column("95 % CI", _interval("dice")),
    Column("SD of trials", lambda row: _number(100 * row["dice_sd"], 1), idle=_EMPTY),
    _measure("mask_dice_mean", "mask %", idle=_EMPTY),
    _measure("ellipse_dice_mean", "ellipse %", idle=_EMPTY),
    _measure("dice_median"),
    _measure("dice_share_below_090", "share"),
    _measure("hc_abs_err_mm_mean", "ADF mm", idle=_EMPTY),
    _measure("hc_abs_err_mm_p95", "p95 mm", idle=_EMPTY),
    _measure("hausdorff_mm_mean", idle=_EMPTY),
    _measure("dice_256_mean", "@256 %"),
    _count("n_not_found", "none"),
    _count("n_not_fitted", "no ell."),
    Column("exams", lambda row: _number(row["n_exams"])),
    Column("supports", lambda row: _number(row["n_supports"]), idle=("", "1"), is_trained=True),
    Column("trials", lambda row: _number(row["n_trials"])),
]
# fmt: on
COLUMNS = {column.heading: column for column in _COLUMNS}
"""In the order of the table, the headline first."""


def blocks(results: pd.DataFrame, *, per_image: pd.DataFrame | None = None) -> list[Block]:
    """Lay the results out as tables: per cohort the whole image first, then the jittered box.

    Rows go by amount, segmenter and condition; the controls close their block. A trial that failed
    or waits is a row of every block that it would have been in. An axis has a column where the
    results hold several values.
    """
    results = with_defaults(results)
    summary = cells(results, per_image=per_image).assign(note="")
    waiting = _waiting(results[results["status"] != "done"])
    parts = [part for part in (summary, waiting) if len(part)]
    rows = pd.concat(parts, ignore_index=True).reindex(columns=summary.columns)
    common = {"shown": axes.shown_axes(results), "order": axes.orders(results)}
    return [_block(here, where=where, **common) for *where, here in axes.each_place(rows)]


def _waiting(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as of `cells` for trials without numbers, with a note of why."""
    reason = rows.reindex(columns=["reason"])["reason"].fillna("").astype(str)
    note = rows["status"].astype(str) + (": " + reason).where(reason != "", "")
    labels = {f"n_real_{end}": rows["n_real"] for end in ("min", "max")}
    labels |= {f"n_total_{end}": rows["n_total_labels"] for end in ("min", "max")}
    return with_amounts(rows).assign(note=note, **labels)


def _block(
    rows: pd.DataFrame,
    *,
    where: Sequence[str],
    shown: Sequence[str],
    order: Mapping[str, Sequence[str]],
) -> Block:
    records = rows.to_dict("records")
    records.sort(key=lambda row: (row["condition"] in CONTROLS, row["n_real_min"],
                                  *axes.series_key(row, order=order)))  # fmt: skip
    controls = tuple(row["condition"] in CONTROLS for row in records)
    text = {}
    for name, column in COLUMNS.items():
        found = [
            "" if column.is_trained and is_control else column.text(row)
            for row, is_control in zip(records, controls, strict=True)
        ]
        if (name in shown or name not in axes.AXES) and not set(found) <= set(column.idle):
            text[name] = found
    kept, numbers = pd.DataFrame(text, dtype=object), pd.DataFrame(records, columns=rows.columns)
    spreads = pd.DataFrame("", index=kept.index, columns=kept.columns)
    best = pd.DataFrame(False, index=kept.index, columns=kept.columns)
    groups = numbers["amount"].mask(numbers["condition"].isin(CONTROLS) | (numbers["note"] != ""))
    for one in MEASURES.values():
        if one.heading in kept:
            if one.has_spread:
                sds = numbers[one.spread_column] * one.factor
                spreads[one.heading] = [_number(sd, one.digits) for sd in sds]
            printed = pd.Series([round(v * one.factor, one.digits) for v in numbers[one.column]])
            best[one.heading] = _best(printed, groups=groups, is_better_high=one.is_better_high)
    title = f"{where[0]}, {axes.prompt_label(where[1])}"
    notes = tuple(row["note"] for row in records)
    title += ", no trial has finished" if all(notes) else ", controls only" if all(controls) else ""
    stem = "dice_trimester_weighted" if "weighted 95 % CI" in kept else "dice"
    ends = {end: 100 * numbers[f"{stem}_{end}"].astype(float) for end in ("mean", "low", "high")}
    return Block(
        test_cohort=where[0],
        prompt=where[1],
        title=title,
        rows=kept,
        heads=[name for name in LABELS if name in kept],
        notes=notes,
        amounts=tuple(
            "" if is_control else counted_span(row["n_real_min"], row["n_real_max"], "real image")
            for row, is_control in zip(records, controls, strict=True)
        ),
        controls=controls,
        spreads=spreads,
        best=best,
        headline="Dice %" if stem == "dice" else "weighted Dice %",
        points=pd.DataFrame(ends),
    )


def _best(values: pd.Series, *, groups: pd.Series, is_better_high: bool) -> pd.Series:
    """Whether a printed value is the best of its group, where there is more than one."""
    grouped = values.groupby(groups)
    wanted = grouped.transform("max" if is_better_high else "min")
    return values.eq(wanted) & (grouped.transform("count") > 1)


def footnotes(results: pd.DataFrame) -> list[str]:
    """Say what the columns mean, as far as these results need it."""
    results = with_defaults(results)
    needed = ["trimesters_missing", "dice_trimester_weighted_mean", "n_not_found", "n_not_fitted"]
    needed += ["hausdorff_mm_mean"]
    results = results.reindex(columns=results.columns.union(needed, sort=False))
    present, chosen = set(results["condition"]), set(results["choice"])
    folds, is_short = results["fold"].nunique(), results["trimesters_missing"].fillna("") != ""
    notes = {
        "Scores are those of the ellipse fitted to each predicted mask; mask Dice beside them is "
        "of the mask as it is.": (results["output"] == "ellipse").any(),
        "no ellipse: test images whose prediction gives no ellipse, a mean over trials; the mask's "
        "own scores count.": (results["n_not_fitted"] > 0).any(),
        "Weighted Dice, the headline: mean of trimester means with the shares of the HC18 training "
        "set (165, 693 and 141 of 999 images); trimesters are derived from the head "
        "circumference.": results["dice_trimester_weighted_mean"].notna().any(),
        "Dice and its median and share are over images, prompt draws averaged per image. [95 % CI] "
        "is a percentile bootstrap that resamples exams; in a row of several supports it resamples "
        "supports too and is widened for their small number (t quantiles). With one support it "
        "speaks of other exams for these trained models, not of other training runs.": True,
        "total labels: distinct labelled images behind a row, its own, those that its generator "
        "and the gate of its synthetic set saw, and those of validation where they chose "
        "anything.": True,
        "unlabelled: images without labels, or of the train part whose labels were not read; a "
        "teacher fitted on the row's labels labelled them.": (results["n_unlabelled"] > 0).any(),
        "Support: one draw of the labelled images. Trial: one model, scored. Share below 0.9: of "
        "the test images, those with a lower Dice. p95: 95th percentile over images. Dice@256: at "
        "256x256 pixels.": True,
        "HD: Hausdorff distance, the largest between the outlines.": (
            results["hausdorff_mm_mean"].notna().any()
        ),
        "HC error: absolute difference of the head circumference (ADF).": (
            results["hc_abs_err_mm_mean"].notna().any()
        ),
        "not found: test images with an empty prediction, a mean over trials; they count with the "
        "worst score, never dropped.": results["n_not_found"].notna().any(),
        f"Cross-tested: the exams of a row are pooled over {folds} folds, each tested by a model "
        "that was trained without it.": folds > 1,
        "* A trimester has no test image; the other weights were scaled up.": (
            (is_short & results["dice_trimester_weighted_mean"].notna()).any()
        ),
        "The generator behind + synthetic may have seen more labelled images than the real-only "
        "row of the same amount: compare at equal total labels.": (
            (generator_alone(results[~axes.is_control(results)]) > 0).any()
        ),
        "unknown: how many labelled images the maker of the imported synthetic pairs used is not "
        "known, so neither is the row's total.": results["n_total_labels"].isna().any(),
        **{row.note: row.note and name in present for name, row in (CONTROLS | CONDITIONS).items()},
        **{row.note: bool(row.note) and name in chosen for name, row in CHOICES.items()},
        "Trials that failed or are not done stand as rows without numbers.": (
            (results["status"] != "done").any()
        ),
    }
    return [note for note, is_needed in notes.items() if is_needed]
