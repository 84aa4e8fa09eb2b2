"""CSV files with a row for each image, as people and spreadsheets write them."""

import csv
import math
from pathlib import Path

from datamodules.errors import InputError


def read_table(path: Path, *, required: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return the cells of each row by file name, then by column as `plain` gives it.

    Commas, semicolons or tabs separate the columns; a byte order mark and both line endings are
    read; spaces and capitals in the header do not count.

    Args:
        path: CSV with a column `filename`.
        required: Columns that must be there, `filename` among them.

    Raises:
        InputError: No CSV, a column is missing or there twice, a row is short or has cells beyond
            the header, or a file is there twice.
    """
    try:
        # utf-8-sig drops a byte order mark; the csv module takes both line endings.
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter, lines = _delimited(file.read().splitlines(keepends=True))
        cells = csv.reader(lines, delimiter=delimiter)
        table = [row for row in cells if any(cell.strip() for cell in row)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8") from error
    n_columns = _width(table[0]) if table else 0
    header: dict[str, int] = {}
    for index, column in enumerate(map(plain, table[0][:n_columns] if table else ())):
        if column and column in header:
            raise InputError(f"{path}: column {table[0][index].strip()!r} is there twice; keep one")
        header[column] = index
    for column in required:
        if plain(column) not in header:
            raise InputError(
                f"{path}: column {column!r} is missing; expected the header {','.join(required)}"
            )
    rows: dict[str, dict[str, str]] = {}
    for number, row in enumerate(table[1:], start=2):
        if len(row) < n_columns:
            raise InputError(
                f"{path}: row {number} has {len(row)} of {n_columns} cells; complete it"
            )
        if _width(row) > n_columns:
            raise InputError(
                f"{path}: row {number} ({row[0].strip()}) has {_width(row)} of {n_columns} cells; "
                "quote decimal commas"
            )
        name = row[header["filename"]].strip()
        if name in rows:
            raise InputError(f"{path}: row {number} repeats {name}; keep one row per file")
        rows[name] = {column: row[index] for column, index in header.items()}
    return rows


def _width(row: list[str]) -> int:
    """Cells up to the last that holds anything; spreadsheets write empty ones after it."""
    return max((index for index, cell in enumerate(row, start=1) if cell.strip()), default=0)


def _delimited(lines: list[str]) -> tuple[str, list[str]]:
    """Return what separates the columns, told by the header, and the lines from the header on.

    Spreadsheets write semicolons where the comma stands in numbers, and some a first line `sep=;`.
    """
    if lines and lines[0].strip().lower().startswith("sep="):
        lines = lines[1:]
    header = next((line for line in lines if line.strip()), "")
    return max(",;\t", key=header.count), lines


def plain(column: str) -> str:
    """HC18 itself writes `pixel size(mm)` and `head circumference (mm)`: spaces do not count."""
    return "".join(column.split()).lower()


def number(text: str) -> float:
    """The number in a cell; NaN where it holds none."""
    if "_" in text:
        return math.nan  # Python's own spelling of numbers alone.
    try:
        # A decimal comma; thousands are not separated in numbers of this size.
        return float(text.replace(",", ".") if text.count(",") == 1 else text)
    except ValueError:
        return math.nan
