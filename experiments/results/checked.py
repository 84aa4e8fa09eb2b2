"""Faults of a results.csv or per_image.csv: each is refused in one line that names the file.

A file that was cut, edited by hand or saved by another program would otherwise give a table of
wrong numbers without a word.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.errors import InputError

AGAIN = "write it again with `sonosweep report RECIPE`"
_STATUSES = ("done", "failed", "pending")
_PLACE = ["trial_id", "test_cohort", "prompt", "output"]
_NEEDED = ("trial_id", "status", "condition", "real_fraction", "n_real", "n_generator_labels")
_NEEDED += ("support", "seed", "generator_seed", "test_cohort", "prompt", "n_exams", "dice_mean")
"""Columns that a table of files cannot do without; older files lack others."""
_NUMBERS = {"real_fraction", "support", "seed", "generator_seed", "fold", "draw", "steps"}
_NUMBERS |= {"seconds", "peak_memory_mib", "dice"}
_NUMBER_STARTS = ("n_", "dice_", "hausdorff_mm", "hc_")
_COMPARED = ("dice_mean", "hausdorff_mm_mean", "hc_err_mm_mean", "hc_abs_err_mm_mean")
"""Numbers that are the same whenever one model is scored on the same images."""
_SCORE = "score_id"
"""Names the stage that scored a row, so its settings too; absent in older files."""
_ROUNDING = 1e-9


def parse(path: Path, *, dtypes: Mapping[str, str], n_rows: int | None = None) -> pd.DataFrame:
    """Read a CSV, or its first rows; refuse (InputError) an empty one, no UTF-8 or no CSV."""
    try:
        rows = pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=[""], nrows=n_rows)
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: an empty file; {AGAIN}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8, or {AGAIN}") from None
    except pd.errors.ParserError as error:
        raise InputError(f"{path}: not readable as CSV ({_line(error)}); {AGAIN}") from None
    if not isinstance(rows.index, pd.RangeIndex):
        # pandas takes the first columns for row names.
        raise InputError(f"{path}: its rows have more fields than its header; {AGAIN}")
    return rows


def check_header(path: Path) -> None:
    """Refuse (InputError) a file that is no results.csv, or lacks columns of one."""
    names = parse(path, dtypes={}, n_rows=0).columns
    unlike = [name for name in ("trial_id", "dice_mean") if name not in names]
    if unlike:
        raise InputError(
            f"{path}: not a results.csv (no {' and '.join(unlike)}); give that of a finished sweep"
        )
    absent = [name for name in _NEEDED if name not in names]
    if absent:
        raise InputError(f"{path}: no column {', '.join(absent)}; {AGAIN}")


def check_whole(path: Path) -> None:
    """Refuse (InputError) a file that does not end with a whole line."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 1, 0))
        last = file.read()
    # An empty file has a line of its own.
    if last not in (b"", b"\n", b"\r"):
        raise InputError(f"{path}: cut short (no newline at its end); {AGAIN}")


def check_rows(rows: pd.DataFrame, path: Path) -> None:
    """Refuse (InputError) values that no file of ours holds, of the columns that are there."""
    is_results = "dice_mean" in rows
    if is_results:
        _check_fields(path)
    if "trial_id" in rows:
        is_blank = rows["trial_id"].fillna("").str.strip() == ""
        if is_blank.any():
            raise InputError(f"{path}: row {is_blank.argmax() + 1} has no trial_id; {AGAIN}")
    for name in rows:
        if name in _NUMBERS or name.startswith(_NUMBER_STARTS):
            _check_numbers(rows, name, path, is_share=is_results and name.startswith("dice_"))
    if not is_results:
        return
    if "status" in rows:
        known = f"not one of {', '.join(_STATUSES)}"
        _refuse(~rows["status"].isin(_STATUSES), rows, "status", path, why=known)
        # `sonosweep score` knows no condition or amount.
        for name in {"test_cohort", "prompt"} & set(rows):
            is_bare = (rows["status"] == "done") & rows[name].isna()
            _refuse(is_bare, rows, name, path, why="though it is done")
    place = [name for name in _PLACE if name in rows]
    is_twice = rows.duplicated(place)
    if "trial_id" in rows and is_twice.any():
        raise InputError(f"{path}: {_who(rows, is_twice.argmax())} stands twice; {AGAIN}")


def check_agree(first: pd.DataFrame, other: pd.DataFrame, *, keys: list[str], source: str) -> None:
    """Refuse (InputError) two files that score one model on the same images differently.

    Rows that do not name their images are not compared. A trial's id names its fit alone: where two
    rows name two scores, one fit was scored under two settings, and both files are right.

    Args:
        first: Rows of the files before, with their paths as `source`.
        other: Rows of one further file.
        keys: What a row is of; the last names its images.
        source: Name of the column of paths.
    """
    compared = [name for name in _COMPARED if name in first and name in other]
    columns, text = [*keys, source, _SCORE, *compared], dict.fromkeys([*keys, _SCORE], "")
    parts = [
        p[p[keys[-1]].notna() & (p["status"] == "done")].reindex(columns=columns).fillna(text)
        for p in (first, other)
    ]
    both = parts[0].merge(parts[1], on=keys, suffixes=("", "_other"))
    for name in compared:
        one, two = (both[n].astype(float) for n in (name, f"{name}_other"))
        is_odd = ~np.isclose(two, one, rtol=_ROUNDING, atol=1e-12, equal_nan=True)
        if is_odd.any():
            row = is_odd.argmax()
            at = both.iloc[row]
            what = f"{at[f'{source}_other']}: {_who(both, row)}"
            cohort, score, other_score = map(_line, at[["test_cohort", _SCORE, f"{_SCORE}_other"]])
            if score and other_score and score != other_score:
                raise InputError(
                    f"{what} was scored on {cohort} under other settings than in {at[source]} "
                    f"({other_score}, not {score}); table these sweeps apart"
                )
            raise InputError(
                f"{what} has {name} {two[row]:.10g} on {cohort}, and {one[row]:.10g} in "
                f"{at[source]} on the same images; write both again with `sonosweep report "
                "RECIPE`, or leave one out"
            )


def _check_fields(path: Path) -> None:
    """Every line has as many fields as the header: pandas would fill a short one with blanks."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise InputError(f"{path}: column {_line(twice[0])} stands twice; {AGAIN}")
        for row, fields in enumerate((fields for fields in lines if fields), start=1):
            if len(fields) != len(header):
                count = f"{len(fields)} fields instead of {len(header)}"
                raise InputError(f"{path}: row {row} has {count}; {AGAIN}")


def _check_numbers(rows: pd.DataFrame, name: str, path: Path, *, is_share: bool) -> None:
    values = rows[name]
    if values.dtype == bool:
        values = values.astype(str)
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    _refuse(numbers.isna() & values.notna(), rows, name, path, why="no number")
    _refuse(np.isinf(numbers), rows, name, path, why="not finite")
    if is_share:
        is_outside = (numbers < -_ROUNDING) | (numbers > 1 + _ROUNDING)
        _refuse(is_outside, rows, name, path, why="not in 0 to 1")


def _refuse(is_bad: pd.Series, rows: pd.DataFrame, name: str, path: Path, *, why: str) -> None:
    if is_bad.any():
        row = int(is_bad.to_numpy().argmax())
        value = rows[name].iloc[row]
        shown = "blank" if pd.isna(value) else _line(value)
        raise InputError(f"{path}: {name} of {_who(rows, row)} is {shown}, {why}; {AGAIN}")


def _who(rows: pd.DataFrame, row: int) -> str:
    return f"trial {_line(rows['trial_id'].iloc[row])}" if "trial_id" in rows else f"row {row + 1}"


def _line(value: object) -> str:
    """Anything as part of one line."""
    return " ".join(str(value).split())
