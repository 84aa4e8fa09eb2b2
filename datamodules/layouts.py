"""The layouts of data folders, in one table: what a folder holds, and what reads it. Torch-free.

Another one is a row: `LAYOUTS["mine"] = Layout(...)` before a recipe is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamodules.allowed import one_of
from datamodules.cohort import read_cohort
from datamodules.samples import HC18_FOLDER, Sample, read_hc18


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How images and their annotations lie in a folder."""

    holds: str
    """What a folder must hold, in words."""
    folders: tuple[str, ...]
    """Folders by which it is recognised: one of them is there."""
    annotations: str
    """Glob pattern that finds something where there are annotations."""
    read: Callable[[Path], list[Sample]]
    """Gives the annotated samples of a folder, or says by InputError what is wrong with it."""
    read_unlabelled: Callable[[Path], list[Sample]] | None = None
    """Gives the samples without annotations that lie beside them, none where there are none."""

    def is_at(self, root: Path) -> bool:
        """Whether a folder looks like it."""
        return any((root / name).is_dir() for name in self.folders)

    def has_annotations(self, root: Path) -> bool:
        """Whether a folder that looks like it has annotations too."""
        return any(root.glob(self.annotations))

    def unlabelled(self, root: Path) -> list[Sample]:
        """Samples without annotations in a folder."""
        return self.read_unlabelled(root) if self.read_unlabelled is not None else []


def _hc18_test(root: Path) -> list[Sample]:
    # Many copies hold the training part alone.
    return read_hc18(root, part="test") if (root / HC18_FOLDER["test"]).is_dir() else []


LAYOUTS: dict[str, Layout] = {
    "hc18": Layout(
        holds="training_set/ and its CSV, as published",
        folders=tuple(HC18_FOLDER.values()),
        annotations=HC18_FOLDER["training"],
        read=read_hc18,
        read_unlabelled=_hc18_test,
    ),
    "cohort": Layout(
        holds="image/ and mask/",
        folders=("image",),
        annotations="mask/*.png",
        read=read_cohort,
    ),
}
DEFAULT_LAYOUT = "hc18"
AUTO = "auto"
"""On the command line: the first layout that a folder looks like."""


def layout_of(root: Path, *, name: str) -> str:
    """Name of a folder's layout.

    Args:
        root: The folder.
        name: A name of the table, or `AUTO`; a folder that looks like none is then taken for the
            default, whose reader says what is missing.

    Raises:
        InputError: If there is no layout of that name.
    """
    if one_of(name, (AUTO, *LAYOUTS), option="--layout") != AUTO:
        return name
    return next((key for key, row in LAYOUTS.items() if row.is_at(root)), DEFAULT_LAYOUT)


def layout_help() -> str:
    """The layouts in a line, for the help of an option."""
    rows = ", ".join(f"{name} ({row.holds})" for name, row in LAYOUTS.items())
    return f"{rows}, or {AUTO}."
