"""What `predict` is given: runs, images of any kind, their pixel sizes and boxes. Torch-free."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.any_image import SUFFIXES, read_frames
from datamodules.csv_table import number, read_table
from datamodules.dicom import frame_name
from datamodules.errors import InputError
from datamodules.mask_folder import some_names
from datamodules.plausible import require_pixel_size
from datamodules.samples import read_pixel_sizes
from experiments.config.paths import MODELS
from experiments.deliver.confidence import Box
from experiments.results.pictures import encode_png

PACKAGED = MODELS / "hc18-unet"
"""The model of the package, a folder as `sonosweep export --format compact` writes it."""
PROMPTS = ("whole_image", "predicted_box")
"""Prompts that need no reference."""
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth")
_SAME = 0.01
_CORNERS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True, kw_only=True)
class GivenImage:
    """One image that is to be segmented; see `AnyImage` for what its file says."""

    path: Path
    """As grey PNG, which segmenters read."""
    filename: str
    """Of the file that it came from; of one frame of several, `NAME_frame3`."""
    file: str
    """Of the file that it came from, always."""
    size_hw: tuple[int, int]
    scaled_from: tuple[int, int] | None
    window: tuple[float, float] | None
    stated_mm: float | None
    no_size_because: str


def runs_and_images(places: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Tell runs from images: the first places, as far as they hold a manifest; else the package's.

    Raises:
        InputError: Runs without images, one run twice, a sweep's folder, or the package holds no
            model.
    """
    runs: list[Path] = []
    others = list(places)
    while others and _is_run(others[0], others=others[1:], is_first=not runs):
        runs.append(others.pop(0))
    if not runs:
        if not (PACKAGED / "manifest.json").is_file():
            raise InputError(f"{PACKAGED}: the model of the package is missing; install it again")
        return [PACKAGED], others
    if not others and all((run / "manifest.json").is_file() for run in runs):
        what = "a run" if len(runs) == 1 else f"{len(runs)} runs"
        raise InputError(f"{runs[0]}: {what} and no images; give images or folders after it")
    for first, second in itertools.combinations(runs, 2):
        if first.resolve() == second.resolve():
            raise InputError(f"{first}: given twice, and would count twice; leave one out")
    return runs, others


def _is_run(place: Path, *, others: Sequence[Path], is_first: bool) -> bool:
    """Whether a place is meant as a run; of damaged ones `read_manifest` says what is missing."""
    if (place / "plan.json").is_file():
        raise InputError(
            f"{place}: a sweep's folder, neither a run nor images; sonosweep report NAME --explain "
            "CELL names the runs of a row"
        )
    if (place / "manifest.json").is_file() or place.suffix in _WEIGHTS:
        return True
    if place.is_dir() and place.parent.name == "fit":
        return True
    is_named_image = place.suffix.lower() in SUFFIXES
    return is_first and bool(others) and not place.exists() and not is_named_image


def read_sizes(table: Path | None, *, of_all: float | None) -> Mapping[str, float] | None:
    """Read `--pixel-sizes`, mm by file name; None without it.

    Raises:
        InputError: `--pixel-size` is given too or no positive number, or the CSV cannot be read.
    """
    if of_all is not None and table is not None:
        raise InputError("--pixel-size and --pixel-sizes are both given; leave one out")
    if of_all is not None and not 0 < of_all < math.inf:
        raise InputError(f"--pixel-size {of_all}: must be above 0, in mm")
    return None if table is None else read_pixel_sizes(table)


def sizes_of(
    given: Mapping[str, GivenImage],
    table: Mapping[str, float] | None,
    *,
    of_all: float | None,
    label: str,
) -> dict[str, float | None]:
    """Give the pixel size of each image, mm, by name: as asked, else as its file states, or None.

    Raises:
        InputError: An image has no row and states no size, or its size cannot be right.
    """
    silent = [name for name, image in given.items() if image.stated_mm is None]
    rows = {}
    if table is not None:
        rows = _rows_of(given, table, needed=silent, label=label, what="pixel sizes")
    found: dict[str, float | None] = {}
    for name, image in given.items():
        size, of = image.stated_mm, f"{image.filename} (as its file states)"
        if of_all is not None:
            size, of = of_all, f"--pixel-size {of_all:g}: {image.filename}"
        elif name in rows:
            size, of = table[rows[name]], f"{label}: {rows[name]}"
        if size is not None:
            require_pixel_size(size, size_hw=image.size_hw, of=of)
        found[name] = size
    return found


def read_boxes(table: Path | None, *, prompt: str) -> dict[str, Box] | None:
    """Read `--boxes`: a CSV with the columns filename,x0,y0,x1,y1; None without one.

    Raises:
        InputError: The CSV cannot be read, a cell is no number, or another prompt is asked for.
    """
    if table is None:
        return None
    if prompt != "whole_image":
        raise InputError(f"--prompt {prompt} and --boxes are both given; leave one out")
    boxes = {}
    for name, row in read_table(table, required=("filename", *_CORNERS)).items():
        cells = [row[column].strip() for column in _CORNERS]
        boxes[name] = tuple(map(number, cells))
        if not all(map(math.isfinite, boxes[name])):
            shown = ",".join(cells)
            raise InputError(f"{table}: {name}: the box is {shown!r}; expected four numbers")
    return boxes


def boxes_of(
    given: Mapping[str, GivenImage], table: Mapping[str, Box] | None, *, label: str
) -> dict[str, Box] | None:
    """Give the box of each image, by name.

    Raises:
        InputError: An image has no row, or its box is no box in it.
    """
    if table is None:
        return None
    rows = _rows_of(given, table, needed=list(given), label=label, what="boxes")
    for name, row in rows.items():
        (x0, y0, x1, y1), (height, width) = table[row], given[name].size_hw
        if not (0 <= x0 < x1 <= width - 1 and 0 <= y0 < y1 <= height - 1):
            raise InputError(
                f"{label}: {row}: {x0:g},{y0:g},{x1:g},{y1:g} is no box in an image of "
                f"{width}x{height} px; expected 0 <= x0 < x1 <= {width - 1} and "
                f"0 <= y0 < y1 <= {height - 1}"
            )
    return {name: table[row] for name, row in rows.items()}


def _rows_of(
    given: Mapping[str, GivenImage],
    table: Mapping[str, Any],
    *,
    needed: Sequence[str],
    label: str,
    what: str,
) -> dict[str, str]:
    """The row of a table that is each image's, by name: its frame's, or else its file's."""
    found = {}
    for name, image in given.items():
        for row in (image.file, image.filename):
            if row in table:
                found[name] = row
    missing = [given[name].filename for name in needed if name not in found]
    if missing:
        raise InputError(
            f"{label}: no row for {len(missing)} of {len(given)} images "
            f"({some_names(missing)}); add their {what}, or leave the images out"
        )
    return found


def facts_of(
    given: Mapping[str, GivenImage],
    sizes: Mapping[str, float | None],
    *,
    table: Mapping[str, float] | None,
) -> dict[str, Any]:
    """What was done with the files' own values, by file name, for summary.json."""
    images = {image.filename: image for image in given.values()}
    stated = {name: image for name, image in given.items() if image.stated_mm is not None}
    return {
        "scaled_to_8_bit": {n: i.scaled_from for n, i in images.items() if i.scaled_from},
        "windows": {n: i.window for n, i in images.items() if i.window},
        "sizes_not_used": {n: i.no_size_because for n, i in images.items() if i.no_size_because},
        "sizes_not_in_table": [
            n for n, i in images.items() if table is not None and not {n, i.file} & table.keys()
        ],
        "other_sizes_stated_mm": {
            image.filename: image.stated_mm
            for name, image in stated.items()
            if abs(sizes[name] - image.stated_mm) > _SAME * image.stated_mm
        },
    }


def lines_on(facts: Mapping[str, Any]) -> list[str]:
    """What the reader should know of `facts_of`, a line each."""
    lines = []
    if scaled := facts["scaled_to_8_bit"]:
        ranges = some_names([f"{name} {low}..{high}" for name, (low, high) in scaled.items()])
        lines.append(
            f"{len(scaled)} images of more than 8 bit were scaled from their own range to 0..255: "
            f"{ranges}"
        )
    if windows := facts["windows"]:
        first, (centre, width) = next(iter(windows.items()))
        lines.append(
            f"{len(windows)} images were shown by the window of their file ({first}: centre "
            f"{centre:g}, width {width:g})"
        )
    if unused := facts["sizes_not_used"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(unused.items())[:3])
        dots = "; ..." if len(unused) > 3 else ""
        lines.append(
            f"{len(unused)} files state a pixel size that is not one length ({reasons}{dots}): "
            "without --pixel-size or --pixel-sizes they have no hc_mm, and with it one length "
            "counts in both directions"
        )
    if absent := facts["sizes_not_in_table"]:
        lines.append(
            f"{len(absent)} images have no row in the pixel sizes given; those that their files "
            f"state were used: {some_names(absent)}"
        )
    if others := facts["other_sizes_stated_mm"]:
        stated = some_names([f"{name} {size:.4g}" for name, size in others.items()])
        lines.append(
            f"{len(others)} files state another pixel size than the one given, which was used: "
            f"{stated} mm"
        )
    return lines


def read_images(paths: Mapping[str, Path], scratch: Path) -> dict[str, GivenImage]:
    """Read every image before the first is segmented.

    Args:
        paths: Files by stem.
        scratch: Folder for the grey PNGs, which lasts as long as they are needed.

    Returns:
        Images by the name of what is written for them: the stem, or `STEM_frame3` for a frame of
        several, with as many digits as the last frame's number has.

    Raises:
        InputError: A file cannot be read, or a frame has the name of another image.
    """
    given: dict[str, GivenImage] = {}
    for stem, path in paths.items():
        frames = list(read_frames(path))
        for frame, image in frames:
            name = stem if frame is None else frame_name(stem, frame, n_frames=len(frames))
            if name in given or (name != stem and name in paths):
                raise InputError(f"{path}: another image is called {name} too; rename one")
            png = scratch / f"{name}.png"
            png.write_bytes(encode_png(image.grey))
            given[name] = GivenImage(
                path=png,
                filename=path.name if frame is None else name,
                file=path.name,
                size_hw=image.grey.shape,
                scaled_from=image.scaled_from,
                window=image.window,
                stated_mm=image.pixel_size_mm,
                no_size_because=image.no_size_because,
            )
    return given
