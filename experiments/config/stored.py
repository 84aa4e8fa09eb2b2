"""The recipe that a sweep keeps, `<store.root>/<name>/config.yaml`.

Its paths are relative to the folder that the sweep ran in; its first line is a hash of the others,
so that a cut file is not taken for a short recipe. Torch-free.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datamodules.config import called_folder
from datamodules.errors import InputError
from datamodules.storage import content_key

STORED_NAME = "config.yaml"
_PLACES = (("data", "root"), ("data", "test_cohorts"), ("split", "file"), ("synthesis", "folder"))
_ANYWHERE = ("weights_path", "base_model")
"""Keys of settings that stand in blocks of any name."""
_HUB = ("base_model",)
"""Those that may name something on a hub: paths only where they are one."""

_SEAL = "# As the sweep ran with it. Content: "


def with_seal(text: str) -> str:
    """A recipe as a sweep keeps it, with the line that tells whether it is whole."""
    return f"{_SEAL}{content_key(text)}\n{text}"


def check_seal(text: str, path: Path) -> None:
    """InputError for what a sweep kept and is now other than that; earlier ones have no such line.

    A copy under another name is a recipe of the user's own.
    """
    first, _, rest = text.partition("\n")
    if path.name != STORED_NAME or not first.startswith(_SEAL):
        return
    if first != f"{_SEAL}{content_key(rest)}":
        raise InputError(
            f"{path}: not what the sweep wrote; give the recipe, or, where you changed it "
            "yourself, remove its first line"
        )


def find_stored(sweep: str, *, root: Path) -> Path | None:
    """The recipe that a sweep keeps, given its folder or its name below `root`; None without it."""
    known = (folder / STORED_NAME for folder in (Path(sweep), root / sweep))
    return next((path for path in known if path.is_file()), None)


def own_folder(folder: Path) -> Path:
    """A sweep's folder by a path that ends in its name and has the store beside it, where there is
    one: `.` has no name, and a link from elsewhere no store.

    Links stay as they are otherwise: `runs` may be one.
    """

    def is_beside_store(path: Path) -> bool:
        return (path.parent / "store").is_dir()

    real = folder.resolve()
    full = Path(os.path.normpath(folder.absolute()))
    named = (folder, full) if folder.name not in ("", "..") else (full,)
    return next((path for path in (*named, real) if is_beside_store(path)), named[0])


def root_of(overrides: Sequence[str]) -> Path:
    """`store.root` as the last of some words sets it."""
    given = [word.partition("=")[2] for word in overrides if word.startswith("store.root=")]
    return Path(given[-1] if given else "runs")


def rebase(merged: dict[str, Any], path: Path) -> Path | None:
    """Let the paths of a recipe that a sweep keeps lead where they led when it ran, in place.

    `store.root` becomes the folder that the sweep's lies in. Any other recipe stays as it is.

    Returns:
        The folder that it ran in, where that is another than the working directory and known: a
        sweep whose `store.root` is absolute keeps absolute paths.
    """
    own = own_folder(path.parent)
    folder = Path(os.path.normpath(own.absolute()))
    if path.name != STORED_NAME or merged.get("name") != folder.name:
        return None
    # The plan is written beside it; a sweep that was copied elsewhere has another root.
    is_kept = (folder / "plan.json").is_file()
    store = merged.get("store", {})
    root = Path(str(store.get("root", "runs")))
    ran_in = None
    if not root.is_absolute() and ".." not in root.parts:
        above = [folder.parent, *folder.parent.parents][len(root.parts) :]
        ran_in = above[0] if above and above[0] / root == folder.parent else None
    if ran_in == Path.cwd() or (ran_in is None and not is_kept):
        return None
    merged["store"] = {**store, "root": str(own.parent)}
    if ran_in is None:
        return None
    _change_paths(merged, lambda given: str(ran_in / given), in_folder=ran_in)
    return ran_in


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a sweep keeps them, changed in place: with absolute paths where the folder that
    it runs in does not follow from the one that they are kept in.
    """
    root, here = Path(settings["store"]["root"]), Path.cwd()
    if root.is_absolute() or ".." in root.parts:
        settings["store"]["root"] = str(root.absolute())
        _change_paths(settings, lambda given: str(here / given), in_folder=here)
    return settings


def _change_paths(
    settings: dict[str, Any], change: Callable[[str], str], *, in_folder: Path
) -> None:
    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(item) for item in value]
        if not isinstance(value, str) or not value:
            return value
        name, folder = called_folder(value)
        return change(folder) if name is None else f"{name}={change(folder)}"

    for section, key in _PLACES:
        if key in settings.get(section, {}):
            settings[section][key] = changed(settings[section][key])
    blocks = [settings]
    while blocks:
        block = blocks.pop()
        blocks += [value for value in block.values() if isinstance(value, dict)]
        for key in _ANYWHERE:
            value = block.get(key)
            is_path = key not in _HUB or (isinstance(value, str) and (in_folder / value).exists())
            if value is not None and is_path:
                block[key] = changed(value)
