"""What a setting may be: within bounds, or one of some names. A refusal is one line that names the
key, the value and what is allowed. Imports nothing of ours but the error; torch-free.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from datamodules.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """An interval of finite numbers."""

    low: float
    high: float = math.inf
    is_low_open: bool = False
    """Whether `low` itself is refused."""
    is_high_open: bool = False
    """Whether `high` itself is refused."""

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.is_low_open else self.low <= value
        below = value < self.high if self.is_high_open else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if not self.is_low_open and not self.is_high_open and math.isfinite(self.high):
            return f"in [{self.low:g}, {self.high:g}]"
        text = f"{'above' if self.is_low_open else 'at least'} {self.low:g}"
        if math.isfinite(self.high):
            text += f" and {'below' if self.is_high_open else 'at most'} {self.high:g}"
        return text

    def check(self, config: Any, *names: str, section: str = "", hint: str = "") -> None:
        """Refuse fields of a dataclass that are out of bounds.

        Args:
            config: The dataclass. None passes, as its type says whether None is a value; of a
                list, tuple or dict each item is looked at.
            names: Its fields.
            section: What stands before a field's name, as "sweep".
            hint: What the user may want to know besides.

        Raises:
            ValueError: With the first one.
        """
        types = {field.name: field.type for field in fields(config)}
        for name in names:
            for key, value in _items(name, getattr(config, name)):
                if value is None or value in self:
                    continue
                words = str(self) if math.isfinite(value) else f"finite and {self}"
                words += ", or null" if NoneType in get_args(types[name]) else ""
                words += f" ({hint})" if hint else ""
                raise ValueError(f"{_key(key, section)}={value}: must be {words}")


def at_least(low: float) -> Bounds:
    """Finite numbers from `low` on."""
    return Bounds(low=low)


def above(low: float, *, at_most: float = math.inf) -> Bounds:
    """Finite numbers greater than `low`, up to `at_most`."""
    return Bounds(low=low, high=at_most, is_low_open=True)


def between(low: float, high: float) -> Bounds:
    """Numbers from `low` to `high`, both included."""
    return Bounds(low=low, high=high)


def inside(low: float, high: float) -> Bounds:
    """Numbers between `low` and `high`, neither included."""
    return Bounds(low=low, high=high, is_low_open=True, is_high_open=True)


def check_choices(config: Any, *, section: str = "") -> None:
    """Refuse fields of a dataclass whose type is a Literal, or a list of one, that are not of it.

    Raises:
        ValueError: With the first one, and the nearest allowed value.
    """
    for field in fields(config):
        known, found = _choices(field.type), getattr(config, field.name)
        for value in found if isinstance(found, list | tuple) else (found,):
            if known and value is not None and value not in known:
                key = _key(field.name, section)
                raise ValueError(f"{key}={value}: unknown; {nearest(str(value), known)}")


def one_of(value: str, known: Iterable[str], *, option: str) -> str:
    """Give a word back if it is known.

    Raises:
        InputError: If it is not, with the nearest one that is.
    """
    if value in known:
        return value
    raise InputError(f"{option} {value}: unknown; {nearest(value, known)}")


def nearest(value: str, known: Iterable[str]) -> str:
    """The hint for a word that is not known."""
    names = list(dict.fromkeys(known))
    # Numbers that are written alike need not be near.
    close = [] if value.isdigit() else difflib.get_close_matches(value, names, n=1)
    return f"did you mean {close[0]}?" if close else f"use one of {', '.join(names)}"


def _items(name: str, found: Any) -> list[tuple[str, Any]]:
    """What a field holds, each with its key."""
    if isinstance(found, dict):
        return [(f"{name}.{key}", value) for key, value in found.items()]
    return [(name, value) for value in (found if isinstance(found, list | tuple) else (found,))]


def _key(name: str, section: str) -> str:
    return f"{section}.{name}" if section else name


def _choices(kind: Any) -> tuple[str, ...]:
    """What a Literal within a type allows; nothing where there is none."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return arguments
    return next(filter(None, map(_choices, arguments)), ())
