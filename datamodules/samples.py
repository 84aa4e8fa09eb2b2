"""From a folder to a list of samples; structural checks only, no image is decoded."""

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.csv_table import number, plain, read_table
from datamodules.errors import InputError
from datamodules.storage import content_key, file_sha256

HC18_CSV = {"training": "training_set_pixel_size_and_HC.csv", "test": "test_set_pixel_size.csv"}
HC18_FOLDER = {"training": "training_set", "test": "test_set"}
# Procedural sets carry this file, so that no table ever calls them HC18.
PHANTOM_MARKER = "PHANTOM.json"
ANNOTATION_SUFFIX = "_Annotation"

# Redistributed HC18 has filled masks. These reach the outer edge of the official outline and
# a little further: over the 300 unclipped ones of a redistribution the perimeter fitted to the
# mask's edge exceeds HC / pixel size by 2 pi times 1.40 px (standard deviation 0.06 px). Half the
# official line's thickness is 1.27 px. `reading.settle_bias` looks whether it is so.
FILLED_BIAS_PX = 1.40

# HC18 publishes no head circumference for its trimesters. These two give its published counts
# (165, 693, 141 of 999) within 2 %: about 14 and 28 weeks.
SECOND_TRIMESTER_FROM_HC_MM = 98.0
THIRD_TRIMESTER_FROM_HC_MM = 260.0

_PICTURES = (
    *(".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
    *(".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"),
)
_HC18_NAME = re.compile(r"(?P<exam>.+)_(?P<frame>\d*)HC")
COLUMNS = ("filename", "pixel size(mm)", "head circumference (mm)")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image, and what is known about it before it is decoded.

    Attributes:
        sample_id: file name without its ending, unique in its cohort; of a frame `frame_name`.
        image_path: the image.
        annotation_path: the annotation, or None (HC18's test part).
        exam_id: frames of one exam (or patient) share it.
        frame: 1 for the first frame of the exam, and so on.
        pixel_size_mm: side of a pixel, or None where it is unknown.
        hc_mm: reference head circumference, or None.
        cohort: name of the data set.
        filled_bias_px: by how much a filled annotation reaches beyond the head, in pixels;
            negative where it does not reach the head's edge.
        label: the value of the head's pixels in the annotation; None finds it.
        image_frame: the frame that is meant in a file of several, from 1; None for one image.
    """

    sample_id: str
    image_path: Path
    annotation_path: Path | None
    exam_id: str
    frame: int
    pixel_size_mm: float | None
    hc_mm: float | None
    cohort: str
    filled_bias_px: float = 0.0
    label: int | None = None
    image_frame: int | None = None


def content_hash_of(sample: Sample, *, sha256_of: Callable[[Path], str] = file_sha256) -> str:
    """Hash over the bytes of a sample's image and of its annotation, where it has one.

    `sha256_of` gives a file's own hash; one that remembers it spares files of many frames.
    """
    paths = (sample.image_path, sample.annotation_path)
    files = content_key([sha256_of(path) for path in paths if path is not None])
    # The frames of one file are other images.
    return files if sample.image_frame is None else content_key([files, sample.image_frame])


def hash_as_read(files: str, sample: Sample) -> str:
    """`content_hash_of` files, with how they are read where that is not what is expected."""
    return content_key([files, sample.filled_bias_px, sample.label])


def trimester(hc_mm: float | None) -> Literal[1, 2, 3] | None:
    """Return the trimester by head circumference; None without one.

    The cut-offs (below 98 mm: first; from 260 mm: third) are derived: HC18 publishes none.
    """
    if hc_mm is None:
        return None
    if hc_mm < SECOND_TRIMESTER_FROM_HC_MM:
        return 1
    return 2 if hc_mm < THIRD_TRIMESTER_FROM_HC_MM else 3


def read_hc18(root: Path, *, part: Literal["training", "test"] = "training") -> list[Sample]:
    """Read HC18 in its official layout.

    Args:
        root: the folder that holds training_set/, test_set/ and the two CSV files.
        part: "training" (with annotations and HC) or "test" (without either).

    Returns:
        Samples in the order of their names, cohort "hc18", or "phantom" for a procedural set.

    Raises:
        InputError: the folder is not the layout, or the CSV and the files do not match.
    """
    if part not in HC18_FOLDER:
        raise ValueError(f"part must be 'training' or 'test', got {part!r}")
    root = Path(root)
    folder, csv_path = root / HC18_FOLDER[part], root / HC18_CSV[part]
    if not folder.is_dir():
        raise _not_hc18(root, part=part)
    if not csv_path.is_file():
        raise InputError(f"{root}: {csv_path.name} is missing; copy it beside {folder.name}/")
    columns = COLUMNS if part == "training" else COLUMNS[:2]
    rows = read_csv(csv_path, required=columns)
    names = png_names(folder)
    images = [name for name in names if not name.endswith(f"{ANNOTATION_SUFFIX}.png")]
    annotations = set(names) - set(images)
    check_match(rows, images=images, csv_path=csv_path, folder=folder)
    cohort = "phantom" if (root / PHANTOM_MARKER).is_file() else "hc18"
    samples = []
    for name in images:
        sample = _hc18_sample(folder / name, part=part, row=rows[name], cohort=cohort)
        if sample.annotation_path is not None:
            if sample.annotation_path.name not in annotations:
                raise InputError(
                    f"{folder / name}: no annotation; put {sample.annotation_path.name} beside it"
                )
            annotations.remove(sample.annotation_path.name)
        samples.append(sample)
    if annotations:
        orphan = min(annotations)
        raise InputError(
            f"{folder / orphan}: annotation without its image; "
            f"add {orphan.replace(ANNOTATION_SUFFIX, '')} or remove the annotation"
        )
    return samples


def read_hc18_test(root: Path) -> list[Sample]:
    """Read HC18's test part in the order of its CSV, which is the order of a submission."""
    samples = {sample.image_path.name: sample for sample in read_hc18(root, part="test")}
    rows = read_csv(Path(root) / HC18_CSV["test"], required=COLUMNS[:2])
    return [samples[name] for name in rows]


def read_pixel_sizes(path: Path) -> dict[str, float]:
    """Return pixel sizes in mm by file name, from a CSV with HC18's columns (an HC is not needed).

    Raises:
        InputError: no CSV, a column is missing, a name is there twice, or no positive number.
    """
    return {name: size for name, (size, _) in read_csv(Path(path), required=COLUMNS[:2]).items()}


def _hc18_sample(path: Path, *, part: str, row: tuple[float, float | None], cohort: str) -> Sample:
    match = _HC18_NAME.fullmatch(path.stem)
    if match is None:
        raise InputError(
            f"{path}: the name is not <exam>_HC.png or <exam>_<n>HC.png; "
            "rename it, or read the folder as a cohort"
        )
    annotation_path = path.with_name(f"{path.stem}{ANNOTATION_SUFFIX}.png")
    return Sample(
        sample_id=path.stem,
        image_path=path,
        annotation_path=annotation_path if part == "training" else None,
        exam_id=match["exam"],
        frame=int(match["frame"]) if match["frame"] else 1,
        pixel_size_mm=row[0],
        hc_mm=row[1],
        cohort=cohort,
        filled_bias_px=FILLED_BIAS_PX,
    )


def check_folder(root: Path) -> None:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check the path to the data")
    if not any(root.iterdir()):
        raise InputError(f"{root}: the folder is empty; check the path to the data")


def _not_hc18(root: Path, *, part: str) -> InputError:
    """Say what is wrong with a root that does not hold the part's folder."""
    folder = HC18_FOLDER[part]
    try:
        check_folder(root)
    except InputError as error:
        return error
    layout = root.resolve()
    if layout.name in HC18_FOLDER.values() or any(root.glob("*_HC.png")):
        return InputError(f"{root}: this is the folder of images; give its parent {layout.parent}")
    nested = sorted(root.glob(f"*/{folder}")) or sorted(root.glob(f"*/*/{folder}"))
    if nested:
        return InputError(f"{root}: HC18 lies further down; give {nested[0].parent}")
    return InputError(
        f"{root}: not HC18, {folder}/ is missing; expected {folder}/ and {HC18_CSV[part]} in it"
        + ("; a cohort has image/ and mask/" if part == "training" else "")
    )


def png_names(folder: Path) -> list[str]:
    """Return the PNG files' names in order; hidden files (`._001_HC.png` of macOS) are left out.

    Raises:
        InputError: See `refuse_other_pictures`.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    refuse_other_pictures(paths)
    return [path.name for path in paths if path.suffix == ".png"]


def refuse_other_pictures(paths: Iterable[Path]) -> None:
    """Raise InputError for a picture that would be passed over: no PNG, or called `.PNG`."""
    for path in paths:
        if path.suffix != ".png" and path.name.lower().endswith((".png", *_PICTURES)):
            raise InputError(
                f"{path}: data are read from files that end in .png alone; save it as one, or "
                "take it out of the folder"
            )


def text_of(name: str) -> str:
    """A file's name as text that can be printed and written; bytes that are no UTF-8 as \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")


def require_utf8(path: Path) -> None:
    """Raise InputError for a name that no table could hold."""
    if text_of(path.name) != path.name:
        raise InputError(f"{text_of(str(path))}: its name is not UTF-8; rename it")


def check_match(rows: Iterable[str], *, images: list[str], csv_path: Path, folder: Path) -> None:
    """Raise InputError for a row without its image or an image without its row."""
    rows, present = set(rows), set(images)
    if rows - present:
        first = min(rows - present)
        raise InputError(
            f"{csv_path}: row {first} has no image ({len(rows - present)} such rows); "
            f"add {folder / first} or remove the row"
        )
    if present - rows:
        first = min(present - rows)
        raise InputError(
            f"{folder / first}: no row in {csv_path.name} ({len(present - rows)} such images); "
            "add the row or remove the image"
        )
    if not rows:
        raise InputError(f"{folder}: no images, and no rows in {csv_path.name}; copy the data")


def read_csv(path: Path, *, required: tuple[str, ...]) -> dict[str, tuple[float, float | None]]:
    """Return pixel size and HC (None without that column) in mm by file name."""
    rows: dict[str, tuple[float, float | None]] = {}
    # The header is row 1.
    for row, (name, cells) in enumerate(read_table(path, required=required).items(), start=2):
        values = [
            _positive(cells[plain(column)], where=f"{path}: row {row} ({name})", of=column)
            for column in COLUMNS[1:]
            if plain(column) in cells
        ]
        rows[name] = (values[0], values[1] if len(values) > 1 else None)
    return rows


def _positive(text: str, *, where: str, of: str) -> float:
    value = number(text)
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{where}: {of} is {text.strip()!r}; expected a positive number")
    return value
