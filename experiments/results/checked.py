"""Faults of a results.csv or per_image.csv: each is refused in one line that names the file.

A file that was cut, edited by hand or saved by another program would otherwise give a table of
wrong numbers without a word.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.errors import InputError

AGAIN = "write it again with `sonosweep report RECIPE`"
_STATUSES = ("done", "failed", "pending")
_PLACE = ["trial_id", "test_cohort", "prompt", "output"]
_NEEDED = ("trial_id", "condition", "segmenter", "generator", "pair_labels", "real_fraction")
_NEEDED += ("n_real", "n_generator_labels", "support", "seed", "test_cohort", "prompt")
_NEEDED_OF_RESULTS = ("status", "generator_seed", "n_exams")
"""Columns that nothing can be told without."""
_NUMBERS = {"real_fraction", "support", "seed", "generator_seed", "fold", "draw", "steps"}
_NUMBERS |= {"seconds", "peak_memory_mib", "dice"}
_NUMBER_STARTS = ("n_", "dice_", "hausdorff_mm", "hc_")
_COMPARED = ("dice_mean", "hausdorff_mm_mean", "hc_err_mm_mean", "hc_abs_err_mm_mean")
"""Numbers that are the same whenever one model is scored on the same images."""
_SCORE = "score_id"
"""Names the stage that scored a row, so its settings too; masks made elsewhere have none."""
_ROUNDING = 1e-9


def parse(path: Path, *, dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Read a CSV whose every row has as many fields as its header: pandas would fill a short one.

    Raises:
        InputError: The file is empty or cut short, no UTF-8 or no CSV, a column stands twice, or a
            row has another number of fields.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8, or {AGAIN}") from None
    if text and not text.endswith("\n"):
        raise InputError(f"{path}: cut short (no newline at its end); {AGAIN}")
    try:
        # Strict, as pandas is, about a quote that does not end.
        read = csv.reader(io.StringIO(text), strict=True)
        header, *lines = [fields for fields in read if fields] or [[]]
    except csv.Error as error:
        raise InputError(f"{path}: not readable as CSV ({_line(error)}); {AGAIN}") from None
    if not header:
        raise InputError(f"{path}: an empty file; {AGAIN}")
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(f"{path}: column {_line(twice[0])} stands twice; {AGAIN}")
    for row, fields in enumerate(lines, start=1):
        if len(fields) != len(header):
            count = f"{len(fields)} fields instead of {len(header)}"
            raise InputError(f"{path}: row {row} has {count}; {AGAIN}")
    return pd.read_csv(io.StringIO(text), dtype=dtypes, keep_default_na=False, na_values=[""])


def check_columns(rows: pd.DataFrame, path: Path) -> None:
    """Refuse (InputError) what is no results.csv or per_image.csv, or lacks columns of one."""
    if "dice_mean" not in rows and "dice" not in rows:
        raise InputError(f"{path}: not a results.csv (no dice_mean); give that of a finished sweep")
    needed = (*_NEEDED, *(_NEEDED_OF_RESULTS if "dice_mean" in rows else ()))
    absent = [name for name in needed if name not in rows]
    if absent:
        raise InputError(f"{path}: no column {', '.join(absent)}; {AGAIN}")


def check_rows(rows: pd.DataFrame, path: Path) -> None:
    """Refuse (InputError) values that no file of ours holds; `rows` has passed `check_columns`."""
    is_results = "dice_mean" in rows
    is_blank = rows["trial_id"].fillna("").str.strip() == ""
    if is_blank.any():
        raise InputError(f"{path}: row {is_blank.argmax() + 1} has no trial_id; {AGAIN}")
    for name in rows:
        if name in _NUMBERS or name.startswith(_NUMBER_STARTS):
            _check_numbers(rows, name, path, is_share=is_results and name.startswith("dice_"))
    if not is_results:
        return
    known = f"not one of {', '.join(_STATUSES)}"
    _refuse(~rows["status"].isin(_STATUSES), rows, "status", path, why=known)
    for name in ("test_cohort", "prompt"):
        _refuse(rows[name].isna(), rows, name, path, why="which every row has")
    is_twice = rows.duplicated([name for name in _PLACE if name in rows])
    if is_twice.any():
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
    return f"trial {_line(rows['trial_id'].iloc[row])}"


def _line(value: object) -> str:
    """Anything as part of one line."""
    return " ".join(str(value).split())
