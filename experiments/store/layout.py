"""Which version wrote a store or a sweep: what is newer than this code is neither read nor written
over. Imports nothing else of the store.
"""

import json
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.integrity import read_object

STORE_LAYOUT = 1
PLAN_LAYOUT = 1
PLAN_NAME = "plan.json"
VERSION_NAME = "store/VERSION.json"


class NewerLayoutError(InputError):
    """A newer version wrote a file."""


def check_layout(content: Any, path: Path, *, known: int) -> None:
    """Refuse a file that a newer version wrote (NewerLayoutError), or that names no layout."""
    layout = content.get("layout") if isinstance(content, dict) else None
    if not isinstance(layout, int) or isinstance(layout, bool):
        raise InputError(f"{path}: names no layout; restore it, or remove it")
    if layout > known:
        raise NewerLayoutError(
            f"{path}: written by a newer sonosweep (layout {layout}, here {known}); update "
            "sonosweep, or choose another store.root"
        )


def check_version(root: Path) -> None:
    """Refuse (InputError) a store of a newer version; one without a version is of layout 1."""
    path = root / VERSION_NAME
    try:
        check_layout(json.loads(path.read_text()), path, known=STORE_LAYOUT)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged ({error}); restore it, or remove it") from error


def store_mark(root: Path) -> str:
    """What tells a store from others of the same content, four hexadecimal digits; empty where it
    has none, as earlier ones.
    """
    mark = (read_object(root / VERSION_NAME) or {}).get("mark")
    return mark if isinstance(mark, str) else ""


def check_sweep(folder: Path) -> None:
    """Refuse (InputError) results that lie beside the plan, or the store, of a newer version.

    A plan that cannot be read says nothing: the results need none.
    """
    plan = read_object(folder / PLAN_NAME)
    if plan is not None and "layout" in plan:
        check_layout(plan, folder / PLAN_NAME, known=PLAN_LAYOUT)
    check_version(folder.resolve().parent)
