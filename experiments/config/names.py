"""Names in lists of a recipe: known ones, each once. Torch-free."""

from collections.abc import Iterable
from typing import Any

from datamodules.allowed import nearest


def check_known(names: Iterable[str], *, known: Iterable[str], key: str) -> None:
    """Refuse a name that is not known (ValueError), with the nearest one that is."""
    known = dict.fromkeys(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{key}={name}: unknown; {nearest(str(name), known)}")


def check_lists(config: Any, *names: str, section: str, may_be_empty: bool = False) -> None:
    """Refuse lists of a dataclass that are empty, or have a value twice (ValueError)."""
    for name in names:
        values = getattr(config, name)
        if not values and not may_be_empty:
            raise ValueError(f"{section}.{name}: give at least one value")
        if len(set(values)) != len(values):
            raise ValueError(f"{section}.{name}={values}: a value is listed twice")
