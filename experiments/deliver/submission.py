"""HC18's submission file: one ellipse in mm for each test image, written and validated."""

import contextlib
import csv
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from datamodules.allowed import one_of
from datamodules.annotation import image_of
from datamodules.cohort import image_names, image_stem
from datamodules.ellipse import Ellipse, perimeter_px, rasterise
from datamodules.errors import InputError
from datamodules.head_ellipse import head_ellipse
from datamodules.mask_folder import some_names
from datamodules.plausible import HC_RANGE_MM, require_pixel_size
from datamodules.samples import HC18_CSV, Sample, read_hc18_test
from datamodules.storage import new_folder, require_new, told_of, write_atomic
from datamodules.synthetic import write_png
from experiments.deliver.inputs import PROMPTS, read_images

N_CHALLENGE = 335
"""Images of the challenge's test set."""


@dataclass(frozen=True)
class SubmissionRow:
    """One line of the file; the fields are its columns, in its order.

    Attributes:
        filename: Of the test image, with its ending.
        center_x_mm: Column of the centre; 0 is the centre of the first pixel.
        center_y_mm: Row of the centre, likewise; y points down.
        semi_axes_a_mm: Longer semi-axis.
        semi_axes_b_mm: Shorter semi-axis, above 0.
        angle_rad: Of the longer axis, from +x towards +y (down), in [0, pi).
    """

    filename: str
    center_x_mm: float
    center_y_mm: float
    semi_axes_a_mm: float
    semi_axes_b_mm: float
    angle_rad: float


COLUMNS = tuple(field.name for field in fields(SubmissionRow))


def fitted_ellipse(mask: np.ndarray) -> tuple[Ellipse | None, str]:
    """Fit the ellipse of one predicted mask.

    Args:
        mask: (H, W), non-zero is foreground; its largest part counts, see `head_ellipse`.

    Returns:
        The ellipse and ""; or None and the reason: the mask is empty or full, or no ellipse in the
        image fits its contour.
    """
    if not mask.any():
        return None, "the predicted mask is empty"
    if mask.all():
        return None, "the predicted mask fills the image"
    ellipse = head_ellipse(mask)
    if ellipse is None:
        return None, "no ellipse fits the outline of the predicted mask"
    (height, width), x, y = mask.shape, ellipse.center_x_px, ellipse.center_y_px
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
        return None, f"the fitted ellipse has its centre outside the image ({x:.1f}, {y:.1f})"
    if ellipse.semi_major_px > math.hypot(height, width):
        return None, "the fitted ellipse is larger than the image"
    return ellipse, ""


def row_of_ellipse(ellipse: Ellipse, *, filename: str, pixel_size_mm: float) -> SubmissionRow:
    """Give an image's ellipse in mm, where a pixel's side is `pixel_size_mm` > 0."""
    *lengths_px, angle_rad = astuple(ellipse)
    return SubmissionRow(filename, *(length * pixel_size_mm for length in lengths_px), angle_rad)


def _fault(row: SubmissionRow, *, size_hw: tuple[int, int], pixel_size_mm: float) -> str | None:
    """What no head in this image can have, or None; pixels or degrees are mostly caught too."""
    height_mm, width_mm = (side * pixel_size_mm for side in size_hw)
    half_mm, image = pixel_size_mm / 2, f"the image of {width_mm:.2f}x{height_mm:.2f} mm"
    x, y, a, b, angle = values = astuple(row)[1:]
    checks = (
        (all(map(math.isfinite, values)), "a value is not finite"),
        (-half_mm <= x <= width_mm - half_mm, f"center_x_mm={x:.2f} lies outside {image}"),
        (-half_mm <= y <= height_mm - half_mm, f"center_y_mm={y:.2f} lies outside {image}"),
        (0 < b <= a, f"semi_axes_a_mm={a:.2f} and semi_axes_b_mm={b:.2f} are not a >= b > 0"),
        (a <= math.hypot(height_mm, width_mm), f"semi_axes_a_mm={a:.2f} exceeds {image}"),
        (0 <= angle < math.pi, f"angle_rad={angle:.4f} is not in [0, pi), in radians"),
    )
    return next((message for is_fine, message in checks if not is_fine), None)


def submission_text(rows: Sequence[SubmissionRow]) -> str:
    """The file's text: the header and one line an image."""
    # Eight digits never round an angle below pi up to pi.
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.to_csv(index=False, float_format="%.8f", na_rep="nan", lineterminator="\n")


def validate_submission(path: Path, test_root: Path) -> list[SubmissionRow]:
    """Check a submission against HC18's test part; its rows.

    Columns and their order, one row for each test image in the order of the pixel-size CSV,
    centres inside the image (mm), a >= b > 0, angles in [0, pi).

    Raises:
        InputError: The first fault, with its row.
    """
    samples = read_hc18_test(test_root)
    rows = _read_rows(path)
    expected = [sample.image_path.name for sample in samples]
    if wrong := _names_fault([row.filename for row in rows], expected=expected):
        raise InputError(f"{path}: {wrong}")
    for row, sample in zip(rows, samples, strict=True):
        size_hw = image_of(sample).shape
        if wrong := _fault(row, size_hw=size_hw, pixel_size_mm=sample.pixel_size_mm):
            raise InputError(f"{path}: {row.filename}: {wrong}; correct the row")
    return rows


def doubt_of(rows: Sequence[SubmissionRow]) -> str:
    """Say it where the median circumference of a submission is no fetal head's; "" otherwise.

    Each row for itself may be as bad as its segmenter.
    """
    keys = [field.name for field in fields(Ellipse)]
    # In mm in place of px, so that the perimeter is too.
    ellipses = [Ellipse(**dict(zip(keys, astuple(row)[1:], strict=True))) for row in rows]
    median_mm = float(np.median([perimeter_px(ellipse) for ellipse in ellipses]))
    low, high = HC_RANGE_MM
    if low <= median_mm <= high:
        return ""
    return (
        f"its median HC is {median_mm:.1f} mm, outside {low:g} to {high:g} mm; are these the "
        "semi-axes in mm?"
    )


def _read_rows(path: Path) -> list[SubmissionRow]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8") from error
    header, *lines = table or [[]]
    if tuple(header) != COLUMNS:
        raise InputError(f"{path}: the header is {','.join(header)!r}, not {','.join(COLUMNS)!r}")
    rows = []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(COLUMNS):
            raise InputError(f"{path}: row {number} has {len(cells)} cells, not {len(COLUMNS)}")
        try:
            rows.append(SubmissionRow(cells[0], *map(_number, cells[1:])))
        except ValueError as error:
            raise InputError(f"{path}: row {number} ({cells[0]}): {error}") from error
    return rows


def _number(cell: str) -> float:
    """A number as other programs read it too: Python alone takes 1_0 and digits of any script."""
    if "_" in cell or not cell.isascii():
        raise ValueError(f"{cell!r} is not a number; write it as 10.5")
    return float(cell)


def _names_fault(names: Sequence[str], *, expected: Sequence[str]) -> str | None:
    """Why a file's names are not the test images in the order of the pixel-size CSV, or None."""
    missing = [name for name in expected if name not in set(names)]
    unknown = [name for name in names if name not in set(expected)]
    if missing or unknown:
        what = f"no row for {some_names(missing)}" if missing else f"{some_names(unknown)} unknown"
        count = f"{len(names)} rows for {len(expected)} test images"
        return f"{count}, {what}; write one row an image"
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        return f"{twice} has two rows; write one row an image"
    for number, (name, wanted) in enumerate(zip(names, expected, strict=True), start=2):
        if name != wanted:
            return f"row {number} is {name}, not {wanted}; keep the order of the pixel-size CSV"
    return None


def submit_command(
    run_dir: Path,
    *,
    test_root: Path,
    out: Path | None,
    masks: Path | None,
    prompt: str,
    skip_degenerate: bool,
    console: Console,
) -> None:
    """Segment the images of HC18's folder, or a cohort's; write the submission, the masks, or both.

    Raises:
        InputError: For a user's mistake; or an ellipse is missing and is not to be skipped.
    """
    one_of(prompt, PROMPTS, option="--prompt")
    if out is None and masks is None:
        raise InputError("nothing to write; give --out FILE.csv, --masks DIR, or both")
    if out is not None:
        require_new(out, kind="file")
        if not out.parent.is_dir():
            raise InputError(f"{out.parent}: no such folder; make it, or choose another file")
        # Before an hour is spent on what cannot be written.
        with told_of(out):
            tempfile.TemporaryFile(dir=out.parent).close()
    if masks is not None:
        require_new(masks)
        if out in (masks, *masks.parents):
            raise InputError(f"{masks}: --out has this name too; choose another folder")
    rows: list[SubmissionRow] = []
    degenerate: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        folder = None if masks is None else stack.enter_context(new_folder(masks))
        # In the folder, so that nothing lies elsewhere should the command be killed.
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        if out is None and (test_root / "image").is_dir():
            samples, paths = {}, _cohort_images(test_root / "image", scratch=scratch)
        else:
            samples = {sample.sample_id: sample for sample in read_hc18_test(test_root)}
            paths = {name: sample.image_path for name, sample in samples.items()}
        if out is not None:
            _require_sizes(samples.values(), test_root / HC18_CSV["test"])
        # Here, because it imports torch: a wrong path is refused before that.
        from experiments.deliver.inference import segmented

        for name, (mask,), _ in segmented([run_dir], paths, prompt=prompt, console=console):
            ellipse, reason = fitted_ellipse(mask)
            if folder is not None:
                filled = mask if ellipse is None else rasterise(ellipse, size_hw=mask.shape)
                write_png(folder / f"{name}.png", filled * 255)
            if out is None:
                continue
            file, size = samples[name].image_path.name, samples[name].pixel_size_mm
            if ellipse is None:
                degenerate[file] = reason
            else:
                rows.append(row_of_ellipse(ellipse, filename=file, pixel_size_mm=size))
        for name, reason in degenerate.items():
            console.print(f"{name}: {reason}", markup=False, soft_wrap=True)
        if out is not None:
            # Before the folder of masks is there: both are written or none.
            write_submission(out, rows, degenerate=list(degenerate), skip=skip_degenerate)
    if masks is not None:
        console.print(f"{masks}: {len(paths)} masks", markup=False, soft_wrap=True)
    if out is not None:
        print_verdict(out, n_rows=len(rows), n_left_out=len(degenerate), console=console)


def write_submission(
    path: Path, rows: Sequence[SubmissionRow], *, degenerate: Sequence[str], skip: bool
) -> None:
    """Write the file, unless an ellipse is missing that is not to be skipped.

    Raises:
        InputError: `degenerate` names images and `skip` is false; nothing is written.
    """
    if degenerate and not skip:
        raise InputError(
            f"{path}: not written, for {len(degenerate)} of {len(degenerate) + len(rows)} images "
            f"the prediction gives no ellipse ({some_names(degenerate)}); try a better segmenter, "
            "or leave the rows out by --skip-degenerate"
        )
    write_atomic(path, submission_text(rows))


def print_verdict(path: Path, *, n_rows: int, n_left_out: int = 0, console: Console) -> None:
    """Say whether a file whose rows are right is a submission to the challenge."""
    if n_left_out:
        verdict = f"{n_rows} rows, {n_left_out} left out; this is not a valid submission"
    elif n_rows == N_CHALLENGE:
        verdict = f"a valid submission of {n_rows} rows"
    else:
        own = f"the challenge's own test set has {N_CHALLENGE}"
        verdict = f"{n_rows} rows, valid for these test images; {own}"
    console.print(f"{path}: {verdict}", markup=False, soft_wrap=True)


def _cohort_images(folder: Path, *, scratch: Path) -> dict[str, Path]:
    """Images by name; frames of DICOM become PNG files of their own in `scratch`."""
    paths = {image_stem(folder / name): folder / name for name in image_names(folder)}
    return {name: image.path for name, image in read_images(paths, scratch).items()}


def _require_sizes(samples: Iterable[Sample], table: Path) -> None:
    """Raise InputError for a pixel size of HC18's table that cannot be right."""
    for sample in samples:
        of = f"{table}: {sample.image_path.name}"
        require_pixel_size(sample.pixel_size_mm, size_hw=image_of(sample).shape, of=of)
