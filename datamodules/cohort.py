"""Cohort folders: image/ and mask/, with or without a CSV; structural checks only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.csv_table import plain, read_table
from datamodules.dicom import SUFFIXES as DICOM_SUFFIXES
from datamodules.dicom import DicomHeader, frame_name, is_dicom_file, read_header
from datamodules.errors import InputError
from datamodules.samples import (
    ANNOTATION_SUFFIX,
    COLUMNS,
    Sample,
    check_folder,
    check_match,
    png_names,
    read_csv,
    refuse_other_pictures,
    require_utf8,
)

_EXAM = "exam"
# As `plain` gives columns: without spaces, in small letters.
_MEANT_AS_EXAM = re.compile(r"(exam|patient|subject|case)s?[_-]?(id|no|nr|num|number|name)?")
_MEANT_AS_HC = re.compile(r"(head[_-]?circumference|hc)[^a-z]*(mm|cm|px|pixels?)?[^a-z]*")
_EXAM_END = re.compile(r"_(?:[Pp]lane|\d*HC)")


@dataclass(frozen=True, kw_only=True)
class _Image:
    """One image of a cohort before its row and its mask are looked up."""

    name: str
    """As the sample is called."""
    path: Path
    frame: int | None
    header: DicomHeader | None

    @property
    def annotation(self) -> str:
        return f"{self.name}{ANNOTATION_SUFFIX}.png"

    def row_name(self, rows: Mapping[str, object]) -> str:
        """What the CSV calls it: its file or, where it does not name that, its frame."""
        return self.name if self.frame and self.path.name not in rows else self.path.name

    def stated_mm(self) -> float | None:
        """The pixel size that its file states, mm; InputError where that is no single length."""
        if self.header is None:
            return None
        if self.header.no_size_because:
            raise InputError(
                f"{self.path}: {self.header.no_size_because}; give pixel sizes by a CSV beside "
                "the images"
            )
        return self.header.pixel_size_mm


def read_cohort(root: Path, *, name: str | None = None) -> list[Sample]:
    """Read an external cohort: image/<name>.png (or DICOM) and mask/<name>_Annotation.png.

    The exam is what the CSV's column `exam` says, where there is one, or the file's name up to the
    first `_Plane`, `_plane`, `_HC` or `_<n>HC`, else the whole name (`Patient00705_Plane3_2_of_3`
    and `Patient00705_Plane3_3_of_3` are one exam); frames count up in the order of the names.
    `pixel_sizes.csv`, or else the one other CSV in the folder, gives pixel size and optionally HC
    in HC18's columns; without a CSV both are None, but for the pixel sizes that DICOM files state.

    Of DICOM of several frames those that have a mask are read, each one sample of the same exam,
    called as by `frame_name`; the CSV names the file, or its frames.

    Args:
        root: the folder that holds image/ and mask/.
        name: of the cohort; the folder's own name by default.

    Raises:
        InputError: the folder is not the layout, or files and CSV do not match.
    """
    root = Path(root)
    images, masks = _cohort_images(root)
    csv_path = _cohort_csv(root)
    if csv_path is not None:
        _refuse_other_spellings(csv_path)
    rows = None if csv_path is None else read_csv(csv_path, required=COLUMNS[:2])
    exams = {} if csv_path is None else _exams_in(csv_path)
    if rows is not None:
        called = [(each, each.row_name(rows)) for each in images]
        # Frames without a mask need no row.
        needed = [
            row for each, row in called if each.annotation in masks or row in rows or not each.frame
        ]
        check_match(rows, images=needed, csv_path=csv_path, folder=root / "image")
    samples = []
    for each in images:
        if each.annotation not in masks and each.frame:
            continue
        if each.annotation not in masks:
            raise InputError(f"{each.path}: no annotation; add mask/{each.annotation}")
        masks.discard(each.annotation)
        row = None if rows is None else each.row_name(rows)
        stated = (each.stated_mm(), None) if row is None else rows[row]
        samples.append(
            Sample(
                sample_id=each.name,
                image_path=each.path,
                annotation_path=root / "mask" / each.annotation,
                exam_id=exams.get(row) or _exam_of(image_stem(each.path)),
                frame=1,
                pixel_size_mm=stated[0],
                hc_mm=stated[1],
                cohort=_folder_name(root) if name is None else name,
                image_frame=each.frame,
            )
        )
    if masks:
        raise InputError(
            f"{root / 'mask' / min(masks)}: annotation without its image; "
            f"expected image/<name>.png for each mask/<name>{ANNOTATION_SUFFIX}.png"
        )
    return _number_frames(samples)


def _cohort_images(root: Path) -> tuple[list[_Image], set[str]]:
    """Return the images, each frame of several one, and the names of the masks.

    A file of frames without any mask, or with a name that another image has, is refused.
    """
    check_folder(root)
    if not (root / "image").is_dir():
        raise InputError(
            f"{root}: not a cohort, image/ is missing; expected image/<name>.png and "
            f"mask/<name>{ANNOTATION_SUFFIX}.png"
        )
    if not (root / "mask").is_dir():
        raise InputError(
            f"{root}: mask/ is missing, and evaluation needs masks; "
            f"add mask/<name>{ANNOTATION_SUFFIX}.png for each image"
        )
    images, masks = image_names(root / "image"), set(png_names(root / "mask"))
    if not masks:
        raise InputError(
            f"{root / 'mask'}: no PNG masks, and evaluation needs masks; "
            f"add <name>{ANNOTATION_SUFFIX}.png for each of {len(images)} images"
        )
    found = [each for name in images for each in _images_of(root / "image" / name)]
    of_name: dict[str, Path] = {}
    for each in found:
        if of_name.setdefault(each.name, each.path) != each.path:
            raise InputError(
                f"{each.path}: {of_name[each.name].name} is called {each.name} too; rename one"
            )
    annotated = {each.path for each in found if each.annotation in masks}
    if bare := [each for each in found if each.frame and each.path not in annotated]:
        raise InputError(
            f"{bare[0].path}: holds {bare[0].header.n_frames} frames, "
            f"none with an annotation; add mask/{bare[0].annotation} for the frame that it is of"
        )
    return found, masks


def _images_of(path: Path) -> list[_Image]:
    """The images of a file: one, or a DICOM file's frames."""
    stem, header = image_stem(path), read_header(path) if _is_dicom(path) else None
    n_frames = 1 if header is None else header.n_frames
    if n_frames == 1:
        return [_Image(name=stem, path=path, frame=None, header=header)]
    return [
        _Image(name=frame_name(stem, k, n_frames=n_frames), path=path, frame=k, header=header)
        for k in range(1, n_frames + 1)
    ]


def image_names(folder: Path) -> list[str]:
    """Return the names of a cohort's images, PNG and DICOM, in order.

    Raises:
        InputError: There is none, a picture of another format lies there, a name is not UTF-8, or
            two would be one without their endings.
    """
    # A link to nothing is no image that may be passed over: reading it says so.
    files = [path for path in folder.iterdir() if path.is_file() or not path.exists()]
    named = [path for path in files if path.name[0] != "."]
    _refuse_folders(folder)
    images = sorted(path for path in named if path.suffix == ".png" or _is_dicom(path))
    refuse_other_pictures(sorted(set(named).difference(images)))
    if not images:
        raise InputError(f"{folder}: no PNG or DICOM images; put <name>.png files there")
    stems: dict[str, Path] = {}
    for path in images:
        require_utf8(path)
        other = stems.setdefault(image_stem(path), path)
        if other != path:
            raise InputError(f"{other} and {path.name} have one name; rename or remove one")
    return [path.name for path in images]


def _refuse_folders(folder: Path) -> None:
    """Refuse pictures in a folder below, which would be passed over."""
    for below in sorted(folder.iterdir()):
        if below.is_dir() and below.name[0] not in "._" and any(map(_is_picture, below.iterdir())):
            raise InputError(
                f"{below}: folders in {folder.name}/ are not looked into; move its images up, or "
                "take it out"
            )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".png" or (path.is_file() and _is_dicom(path))


def image_stem(path: Path) -> str:
    """The file's name without its ending; that of DICOM may be a number with dots."""
    return path.stem if path.suffix.lower() in (".png", *DICOM_SUFFIXES) else path.name


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in DICOM_SUFFIXES or is_dicom_file(path)


def _exam_of(stem: str) -> str:
    end = _EXAM_END.search(stem, 1)
    return stem[: end.start()] if end else stem


def _folder_name(root: Path) -> str:
    """As it is called; a link not as what it leads to."""
    return root.resolve().name if root.name in ("", "..") else root.name


def _refuse_other_spellings(csv_path: Path) -> None:
    """Refuse a column that is meant as one that may be left out, and would be passed over."""
    found = read_table(csv_path, required=COLUMNS[:1])
    columns = next(iter(found.values()), {}).keys()
    for wanted, meaning in ((_EXAM, _MEANT_AS_EXAM), (COLUMNS[2], _MEANT_AS_HC)):
        other = next(filter(meaning.fullmatch, columns), None)
        if other is not None and plain(wanted) not in columns:
            raise InputError(
                f"{csv_path}: the column {other!r} would not be read; call it {wanted!r} where "
                "that is what it holds, or leave it out"
            )


def _exams_in(csv_path: Path) -> dict[str, str]:
    """The exam of each row, where the CSV has a column for it."""
    cells = {
        name: row.get("exam") for name, row in read_table(csv_path, required=COLUMNS[:1]).items()
    }
    for row, (name, exam) in enumerate(cells.items(), start=2):
        if exam is not None and not exam.strip():
            raise InputError(f"{csv_path}: row {row} ({name}): exam is empty; name the exam")
    return {name: exam.strip() for name, exam in cells.items() if exam is not None}


def _number_frames(samples: list[Sample]) -> list[Sample]:
    seen: dict[str, int] = {}
    numbered = []
    for sample in samples:
        seen[sample.exam_id] = seen.get(sample.exam_id, 0) + 1
        numbered.append(replace(sample, frame=seen[sample.exam_id]))
    return numbered


def _cohort_csv(root: Path) -> Path | None:
    if (root / "pixel_sizes.csv").is_file():
        return root / "pixel_sizes.csv"
    named = [path for path in root.iterdir() if path.name[0] != "."]
    found = sorted(path for path in named if path.suffix.lower() == ".csv")
    if len(found) > 1:
        raise InputError(
            f"{root}: {len(found)} CSV files ({found[0].name}, {found[1].name}...); "
            "name the one with the pixel sizes pixel_sizes.csv"
        )
    return found[0] if found else None
