"""Words of a fixed set that a user gives."""

import difflib
from collections.abc import Sequence

from datamodules.errors import InputError


def one_of(value: str, known: Sequence[str], *, option: str) -> str:
    """Give a word back if it is known.

    Raises:
        InputError: If it is not, with the nearest one that is.
    """
    if value in known:
        return value
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
    raise InputError(f"{option} {value}: unknown; {hint}")
