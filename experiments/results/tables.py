"""The ablation table: rows of results.csv to table.md, table.tex and the report.

A table is a list of blocks, one per test cohort and prompt; a block's cells are text that is ready
to read, so that Markdown, LaTeX and HTML show the same digits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from datamodules.choices import CHOICES
from experiments.config.conditions import CONDITIONS, CONTROLS, condition_label
from experiments.config.words import counted
from experiments.results import axes
from experiments.results.cells import cells
from experiments.results.measures import MEASURES
from experiments.results.rows import amounts, with_defaults
from experiments.results.text import Block

LABELS = ["condition", *axes.AXES]
"""Headings that are text."""


@dataclass(frozen=True)
class Column:
    """A column: its heading, and a row of `cells` to its text; "" where there is nothing to say."""

    heading: str
    text: Callable[[Mapping], str]
    latex: str = ""
    """Heading of the LaTeX table, whose page is narrow; "" for the same."""
    is_optional: bool = False
    """Whether it goes where every row is empty."""
    is_trained: bool = False
    """Whether it says nothing of a control."""


def _number(value: float, digits: int = 0) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _span(row: Mapping, stem: str) -> str:
    low, high = row[f"{stem}_min"], row[f"{stem}_max"]
    return _number(low) if pd.isna(low) or low == high else f"{low:.0f}–{high:.0f}"


def _real_images(row: Mapping) -> str:
    low, high = row["n_real_min"], row["n_real_max"]
    return ("" if low == high else f"{low:.0f} to ") + counted(high, "real image")


def _total(row: Mapping) -> str:
    if row["condition"] in CONTROLS:
        # The mean mask is made of training labels, which makes it no row of an amount.
        return _span(row, "n_total") if row["n_total_max"] > 0 else ""
    return _span(row, "n_total") or "unknown"


def _measure(column: str, latex: str = "", *, is_optional: bool = False) -> Column:
    one = MEASURES[column]

    def text(row: Mapping) -> str:
        return _number(row[column] * one.factor, one.digits)

    return Column(one.heading, text, latex, is_optional)


def _axis(name: str, row: Mapping) -> str:
    return axes.axis_label(name, row[name])


def _count(column: str, latex: str) -> Column:
    def text(row: Mapping) -> str:
        return _number(row[column], 1).removesuffix(".0")

    return Column(MEASURES[column].heading, text, latex, is_optional=True)


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
    *(Column(name, partial(_axis, name), is_optional=True) for name in axes.AXES),
    Column("real", lambda row: row["amount"] if pd.notna(row["real_fraction"]) else "",
           is_trained=True),
    Column("n real", lambda row: _span(row, "n_real"), "n", is_trained=True),
    Column("generator labels", lambda row: _number(row["n_generator_labels"]), "gen.",
           is_trained=True),
    Column("validation labels", lambda row: _number(row["n_val_labels"]), "val.", is_trained=True),
    Column("total labels", _total, "labels"),
    Column("unlabelled", lambda row: _number(row["n_unlabelled"] or float("nan")), "unlab.",
           is_optional=True, is_trained=True),
    Column("weighted Dice %", _starred, "weighted %", is_optional=True),
    Column("weighted 95 % CI", _interval("dice_trimester_weighted"), "weighted CI",
           is_optional=True),
    _measure("dice_mean"),
    Column("95 % CI", _interval("dice")),
    Column("SD of trials", lambda row: _number(100 * row["dice_sd"], 1), is_optional=True),
    _measure("mask_dice_mean", "mask %", is_optional=True),
    _measure("ellipse_dice_mean", "ellipse %", is_optional=True),
    _measure("dice_median"),
    _measure("dice_share_below_090", "share"),
    _measure("hc_abs_err_mm_mean", "ADF mm", is_optional=True),
    _measure("hc_abs_err_mm_p95", "p95 mm", is_optional=True),
    _measure("hausdorff_mm_mean", is_optional=True),
    _measure("dice_256_mean", "@256 %"),
    _count("n_not_found", "none"),
    _count("n_not_fitted", "no ell."),
    Column("exams", lambda row: _number(row["n_exams"])),
    Column("supports", lambda row: _number(row["n_supports"]), is_trained=True),
    Column("trials", lambda row: _number(row["n_trials"])),
]
# fmt: on
_SOURCES = ["n_exams", "n_trials", "n_supports", "trimesters_missing", "dice_low", "dice_high"]
_SOURCES += ["dice_trimester_weighted_low", "dice_trimester_weighted_high"]
_SOURCES += [name for one in MEASURES.values() for name in (one.column, one.spread_column)]
"""What a trial that is not done lacks of a row of `cells`."""
COLUMNS = {column.heading: column for column in _COLUMNS}
"""In the order of the table, the headline first."""


def blocks(results: pd.DataFrame, *, per_image: pd.DataFrame | None = None) -> list[Block]:
    """Lay the results out as tables: per cohort the whole image first, then the jittered box.

    Rows go by amount, segmenter and condition; the controls close their block. A trial that failed
    or waits is a row of every block it would have been in, or of all blocks where it names no
    cohort. Segmenter, generator and choice of images have a column where the results
    hold several.
    """
    results = with_defaults(results)
    summary = cells(results, per_image=per_image)
    waiting = _waiting(results[results["status"] != "done"])
    common = {"shown": axes.shown_axes(results), "order": axes.orders(results)}
    if summary.empty:
        return [_block(waiting, where=("", ""), **common)]
    made = []
    for cohort, prompt, scored in axes.each_place(summary):
        here = waiting[
            (waiting["test_cohort"].isna() | (waiting["test_cohort"] == cohort))
            & (waiting["prompt"].isna() | (waiting["prompt"] == prompt))
        ]
        parts = [part for part in (scored.assign(note=""), here) if len(part)]
        rows = pd.concat(parts, ignore_index=True)
        made.append(_block(rows, where=(cohort, prompt), **common))
    # Where nothing is scored, the rows that wait or failed are a block all the same.
    scored_in = {(block.test_cohort, block.prompt) for block in made}
    for where, rows in waiting.groupby(["test_cohort", "prompt"], sort=False):
        if where not in scored_in:
            made.append(_block(rows, where=where, **common))
    return made


def _waiting(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as of `cells` for trials without numbers, with a note of why."""
    reason = rows.get("reason", pd.Series("", index=rows.index)).fillna("").astype(str)
    note = rows["status"].astype(str) + (": " + reason).where(reason != "", "")
    labels = {f"n_real_{end}": rows["n_real"] for end in ("min", "max")}
    labels |= {f"n_total_{end}": rows["n_total_labels"] for end in ("min", "max")}
    kept = ["test_cohort", "prompt", *LABELS, "real_fraction", "n_generator_labels", "n_val_labels"]
    kept += ["n_unlabelled"]
    return rows[kept].assign(note=note, amount=amounts(rows), **labels)


def _block(
    rows: pd.DataFrame,
    *,
    where: tuple[str, str],
    shown: Sequence[str],
    order: Mapping[str, Sequence[str]],
) -> Block:
    known = rows.reindex(columns=rows.columns.union(_SOURCES, sort=False))
    records = known.to_dict("records")
    records.sort(key=lambda row: (row["condition"] in CONTROLS, row["n_real_min"],
                                  *axes.series_key(row, order=order)))  # fmt: skip
    controls = tuple(row["condition"] in CONTROLS for row in records)
    text = {}
    for name, column in COLUMNS.items():
        found = [
            "" if column.is_trained and control else column.text(row)
            for row, control in zip(records, controls, strict=True)
        ]
        unused = {"", "1"} if name == "supports" else {""} if column.is_optional else set()
        if (name in shown or name not in axes.AXES) and not set(found) <= unused:
            text[name] = found
    kept, numbers = pd.DataFrame(text, dtype=object), pd.DataFrame(records, columns=known.columns)
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
    stem = "dice_trimester_weighted" if "weighted 95 % CI" in kept else "dice"
    ends = {end: 100 * numbers[f"{stem}_{end}"].astype(float) for end in ("mean", "low", "high")}
    return Block(
        test_cohort=where[0],
        prompt=where[1],
        title=_title(where, shown=shown, has_controls_only=bool(records) and all(controls)),
        rows=kept,
        heads=[name for name in LABELS if name in kept],
        notes=tuple(row["note"] for row in records),
        amounts=tuple("" if row["condition"] in CONTROLS else _real_images(row) for row in records),
        controls=controls,
        spreads=spreads,
        best=best,
        headline="Dice %" if stem == "dice" else "weighted Dice %",
        points=pd.DataFrame(ends),
    )


def _title(where: tuple[str, str], *, shown: Sequence[str], has_controls_only: bool) -> str:
    cohort, prompt = where
    title = f"{cohort}, {axes.prompt_label(prompt, shown=shown)}"
    title += ", controls only" if has_controls_only else ""
    return title if cohort else "no trial has finished"


def _best(values: pd.Series, *, groups: pd.Series, is_better_high: bool) -> pd.Series:
    """Whether a printed value is the best of its group, where there is more than one."""
    grouped = values.groupby(groups)
    wanted = grouped.transform("max" if is_better_high else "min")
    return values.eq(wanted) & (grouped.transform("count") > 1)


def footnotes(results: pd.DataFrame) -> list[str]:
    """Say what the columns mean, as far as these results need it."""
    results = with_defaults(results)
    needed = ["trimesters_missing", "dice_trimester_weighted_mean", "n_not_found", "n_not_fitted"]
    results = results.reindex(columns=results.columns.union(needed, sort=False))
    more = results["n_total_labels"] - results["n_real"] - results["n_val_labels"]
    present, chosen = set(results["condition"]), set(results["choice"])
    folds, is_short = results["fold"].nunique(), results["trimesters_missing"].fillna("") != ""
    notes = {
        "Scores are those of the ellipse fitted to each predicted mask; mask Dice beside them is "
        "of the mask as it is.": (results["output"] == "ellipse").any(),
        "no ellipse: test images whose prediction gives no ellipse, a mean over trials; the mask's "
        "own scores count.": (results["n_not_fitted"] > 0).any(),
        "Weighted Dice, the headline: mean of trimester means with the shares of the HC18 training "
        "set (165, 693 and 141 of 999 images); trimesters are derived from the head "
        "circumference.": True,
        "Dice and its median and share are over images, prompt draws averaged per image. [95 % CI] "
        "is a percentile bootstrap that resamples exams; in a row of several supports it resamples "
        "supports too and is widened for their small number (t quantiles). With one support it "
        "speaks of other exams for these trained models, not of other training runs.": True,
        "total labels: distinct labelled images behind a row, its own, those that its generator "
        "and the gate of its synthetic set saw, and those of validation where they chose "
        "anything.": True,
        "unlabelled: images of the train part whose labels were not read; a teacher fitted on the "
        "row's labels labelled them.": (results["n_unlabelled"] > 0).any(),
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
            (more[~axes.is_control(results)] > 0).any()
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
