"""The rows of results.csv and per_image.csv: their shared columns, and how files are read."""

import sys
from pathlib import Path

import pandas as pd

from datamodules.choices import DEFAULT as DEFAULT_CHOICE
from datamodules.errors import InputError
from datamodules.integrity import FILES, damaged_file, read_sealed
from experiments.config.conditions import CONDITIONS, CONTROLS
from experiments.config.words import counted
from experiments.results import checked
from experiments.store.columns import OUTPUTS
from experiments.store.layout import check_sweep
from experiments.store.runs import sweeps_with_results

AXIS_COLUMNS = ("segmenter", "generator", "pair_labels", "choice")
"""Blocks of settings of the segmenter and of the generator, "" where a row depends on none; whose
labels the generator's pairs come from (own, fixed, "" without a generator); and how the labelled
images were chosen ("" for a control)."""
KEYS = ["trial_id", "condition", *AXIS_COLUMNS, "real_fraction", "n_real", "n_generator_labels"]
KEYS += ["n_val_labels", "n_total_labels", "n_unlabelled"]
KEYS += ["support", "seed", "generator_seed", "fold", "test_cohort", "prompt", "output"]
"""Columns that per_image.csv and results.csv share: the axes of a trial and of its test. `output`
is what was scored, of `columns.OUTPUTS`, or "" where nothing was; `fold` is 0 without
cross-testing; with it, the folds of a support and seed test different exams."""
ZERO_COLUMNS = ("fold", "n_unlabelled")
"""Whole numbers that are 0 where nothing else is said."""
TESTED = "test_images"
"""Column of results.csv: hash of the images that a row was scored on, with all that they are scored
against; None for masks made elsewhere."""
SOURCE = "source"
"""Column of combined files: the path that a row was read from."""
_TEXT_COLUMNS = ["trial_id", "sample_id", "exam_id", "condition", *AXIS_COLUMNS, "test_cohort"]
_TEXT_COLUMNS += ["prompt", "output", "status", "reason", "trimesters_missing", TESTED]
_TOLD_FROM = {"condition", "n_generator_labels"}
"""What segmenter and generator of an older file are told from."""
_noted: set[Path] = set()
"""Files whose note was printed."""


def read_csv(path: Path) -> pd.DataFrame:
    """Read a whole CSV of ours; ids stay text (an id such as 12e4 is no number)."""
    return checked.parse(path, dtypes=dict.fromkeys(_TEXT_COLUMNS, "str"))


def read_rows(path: Path) -> pd.DataFrame:
    """Read per_image.csv or results.csv with all columns of `KEYS`.

    Files from before segmenters and generators were columns get what their conditions stood for;
    one line on stderr says so, once a file.

    Raises:
        InputError: For a file of a newer version, cut short, or that lacks or holds what no file of
            ours does.
    """
    check_sweep(path.parent)
    rows = _with_axes(read_csv(path), path)
    checked.check_columns(rows, path)
    rows = _with_places(rows)
    checked.check_rows(rows, path)
    if "dice_mean" in rows and TESTED not in rows:
        rows = rows.assign(**{TESTED: None})
    return with_defaults(rows)


def read_output(path: Path, output: str) -> pd.DataFrame:
    """`read_rows`, and of these one output's; see `choose_output`."""
    return choose_output(read_rows(path), output)


def read_sweep(folder: Path, *, output: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read results.csv and per_image.csv of a sweep, of each the rows of one output.

    Raises:
        InputError: They are not there, or not what the sweep wrote; or as `read_rows` does.
    """
    names = ("results.csv", "per_image.csv")
    if not (folder / names[0]).is_file():
        known = ", ".join(sweeps_with_results(folder.parent)) or "none"
        raise InputError(
            f"{folder / names[0]}: no results yet; run `sonosweep sweep` with this recipe first, "
            f"or name another sweep; those with results: {known}"
        )
    if not (folder / names[1]).is_file():
        raise InputError(f"{folder / names[1]}: not there; `sonosweep report` writes it")
    written = (read_sealed(folder / "outputs.json") or {}).get(FILES, {})
    found = damaged_file(folder, {name: written[name] for name in names if name in written})
    if found is not None:
        raise InputError(f"{folder / found}; `sonosweep report`, with the data, writes it again")
    return tuple(read_output(folder / name, output) for name in names)


def choose_output(rows: pd.DataFrame, output: str) -> pd.DataFrame:
    """Keep the rows of results.csv or per_image.csv that score one output, `mask` or `ellipse`.

    Rows that name none stay: those of trials that are not done. Rows of results.csv get the mean
    Dice of the other output, as `mask_dice_mean`.
    """
    named = rows["output"].fillna("")
    if "dice_mean" in rows:
        where = [n for n in ("trial_id", "test_cohort", "prompt", TESTED) if n in rows]
        other = next(name for name in OUTPUTS if name != output)
        dice = rows.loc[named == other, [*where, "dice_mean"]].drop_duplicates(where)
        dice = dice.rename(columns={"dice_mean": f"{other}_dice_mean"})
        rows = rows.merge(dice, on=where, how="left")
    return rows[named.isin([output, ""])].reset_index(drop=True)


def _with_axes(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Columns of a file that was written when a U-Net was a condition, and the rest SAM's."""
    if {"segmenter", "generator", "pair_labels"} & {*rows} or not {*rows} >= _TOLD_FROM:
        return rows
    if path.resolve() not in _noted:
        _noted.add(path.resolve())
        print(
            f"{path}: older file; segmenter and generator are derived from condition",
            file=sys.stderr,
        )
    labels = {name: row.factors.pair_labels for name, row in CONDITIONS.items()}
    pair_labels = {name: whose for name, whose in labels.items() if whose}
    without = [name for name, row in CONTROLS.items() if not row.has_segmenter]
    condition, is_unet = rows["condition"], rows["condition"] == "unet"
    # What is no number is refused later.
    n_labels = pd.to_numeric(rows["n_generator_labels"], errors="coerce")
    is_made = condition.isin(pair_labels) & (n_labels > 0)
    return rows.assign(
        condition=condition.mask(is_unet, "real"),
        segmenter=is_unet.map({True: "unet", False: "sam"}).mask(condition.isin(without), ""),
        generator=is_made.map({True: "pixel", False: ""}),
        pair_labels=condition.map(pair_labels),
    )


def _with_places(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each place of the file in place of one of a whole trial, which older files have of
    what is not done."""
    where = ["test_cohort", "prompt"]
    is_whole = rows[where].isna().all(axis="columns") & (rows.get("status") != "done")
    places = rows.loc[~is_whole, where].drop_duplicates()
    if "dice_mean" not in rows or not is_whole.any() or places.empty:
        return rows
    spread = rows[is_whole].drop(columns=where).merge(places, how="cross")
    return pd.concat([rows[~is_whole], spread], ignore_index=True)[rows.columns]


def with_defaults(rows: pd.DataFrame) -> pd.DataFrame:
    """Copy rows with whole numbers in `ZERO_COLUMNS`, and text in `output` and in each axis, or "".

    Before there was a choice of images, they were drawn at random.
    """
    axes = rows.reindex(columns=[*AXIS_COLUMNS, "output"]).astype(object)
    if "condition" in rows:
        is_trained = ~rows["condition"].isin(CONTROLS)
        axes["choice"] = axes["choice"].mask(axes["choice"].isna() & is_trained, DEFAULT_CHOICE)
    axes = axes.fillna("")
    numbers = rows.reindex(columns=list(ZERO_COLUMNS)).apply(pd.to_numeric).fillna(0).astype(int)
    return rows.assign(**numbers, **axes)


def with_amounts(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `with_defaults`, and as `amount` how people name their amount of real data: "10 %" of
    a fraction, else "40 images".
    """
    rows = with_defaults(rows)
    per_cent = (rows["real_fraction"] * 100).map(lambda share: f"{share:.4g} %")
    count = rows["n_real"].map(lambda n: counted(n, "image"))
    return rows.assign(amount=per_cent.where(rows["real_fraction"].notna(), count))


def generator_alone(rows: pd.DataFrame) -> pd.Series:
    """How many labelled images only the generator of each row saw."""
    return rows["n_total_labels"] - rows["n_real"] - rows["n_val_labels"]
