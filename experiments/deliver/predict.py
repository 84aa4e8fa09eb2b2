"""`sonosweep predict`: a fitted segmenter applied to one's own images."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from rich.console import Console

from datamodules.allowed import one_of
from datamodules.any_image import find_images, read_any_image
from datamodules.ellipse import perimeter_px
from datamodules.errors import InputError
from datamodules.mask_folder import some_names
from datamodules.samples import read_pixel_sizes
from datamodules.storage import commit_folder, require_new, write_atomic, write_json
from experiments.deliver.submission import PROMPTS, ellipse_of_mask, segmented
from experiments.results.pictures import PREDICTION_RGB, encode_png, overlay_contours
from experiments.store.runs import read_manifest


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found in one image; the fields are the columns of predictions.csv.

    The ellipse and what follows from it are None where nothing was found; see `Ellipse`.
    """

    filename: str
    found: bool
    """Whether the predicted mask gives an ellipse."""
    center_x_px: float | None = None
    center_y_px: float | None = None
    semi_major_px: float | None = None
    semi_minor_px: float | None = None
    theta_rad: float | None = None
    hc_px: float | None = None
    """Circumference of the ellipse."""
    pixel_size_mm: float | None = None
    hc_mm: float | None = None
    """Head circumference; None without a pixel size too."""
    reason: str = ""
    """Why nothing was found."""


COLUMNS = tuple(field.name for field in fields(Prediction))


def prediction_of_mask(
    mask: np.ndarray, *, filename: str, pixel_size_mm: float | None
) -> Prediction:
    """Measure one predicted mask.

    Args:
        mask: (H, W), non-zero is foreground; its largest part counts, holes filled.
        filename: Of the image.
        pixel_size_mm: Side of a pixel, mm, > 0; None where it is unknown.

    Returns:
        The ellipse and its circumference; or, for a mask that is empty or full or whose outline
        gives no ellipse in the image, the reason.
    """
    known = {"filename": filename, "pixel_size_mm": pixel_size_mm}
    try:
        ellipse = ellipse_of_mask(mask)
    except ValueError as error:
        return Prediction(**known, found=False, reason=str(error))
    hc_px = perimeter_px(ellipse)
    hc_mm = None if pixel_size_mm is None else hc_px * pixel_size_mm
    return Prediction(**known, found=True, **asdict(ellipse), hc_px=hc_px, hc_mm=hc_mm)


def predictions_text(predictions: Sequence[Prediction]) -> str:
    """The text of predictions.csv: a header and one line an image, unknown numbers left empty."""
    table = pd.DataFrame(predictions, columns=COLUMNS)
    table["found"] = table["found"].map({True: "true", False: "false"})
    return table.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def pixel_sizes(
    paths: Mapping[str, Path], *, pixel_size_mm: float | None, table: Path | None
) -> dict[str, float | None]:
    """Pixel size of each image in mm by stem, of all or by a row of HC18's columns; or None.

    Raises:
        InputError: Both are given, one is no positive number, or an image has no row.
    """
    if pixel_size_mm is not None:
        if table is not None:
            raise InputError("--pixel-size and --pixel-sizes are both given; leave one out")
        if not 0 < pixel_size_mm < math.inf:
            raise InputError(f"--pixel-size {pixel_size_mm}: must be above 0, in mm")
    if table is None:
        return dict.fromkeys(paths, pixel_size_mm)
    sizes = read_pixel_sizes(table)
    missing = [path.name for path in paths.values() if path.name not in sizes]
    if missing:
        raise InputError(
            f"{table}: no row for {len(missing)} of {len(paths)} images ({some_names(missing)}); "
            "add their pixel sizes, or leave the images out"
        )
    return {stem: sizes[path.name] for stem, path in paths.items()}


def predict_command(
    run_dir: Path,
    places: Sequence[Path],
    *,
    out: Path,
    pixel_size_mm: float | None,
    pixel_size_table: Path | None,
    prompt: str,
    console: Console,
) -> dict[str, Any]:
    """Segment images into masks/, overlays/, predictions.csv and summary.json of a new folder.

    Returns:
        What summary.json holds.

    Raises:
        InputError: For a user's mistake; nothing is written then.
    """
    one_of(prompt, PROMPTS, option="--prompt")
    require_new(out)
    manifest = read_manifest(run_dir)
    paths, left = find_images(places)
    sizes = pixel_sizes(paths, pixel_size_mm=pixel_size_mm, table=pixel_size_table)
    with commit_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        with console.status("reading the images"):
            grey, scaled = _prepare(paths, Path(scratch))
        predictions = []
        for stem, mask in segmented(run_dir, grey, prompt=prompt, console=console):
            _write_pictures(folder, mask, image_path=grey[stem])
            name, size = paths[stem].name, sizes[stem]
            predictions.append(prediction_of_mask(mask, filename=name, pixel_size_mm=size))
        write_atomic(folder / "predictions.csv", predictions_text(predictions))
        summary = {
            "out": str(out),
            "run": str(run_dir),
            "run_id": manifest.get("id"),
            "prompt": prompt,
            "n_images": len(predictions),
            "n_found": sum(p.found for p in predictions),
            "not_found": {p.filename: p.reason for p in predictions if not p.found},
            "scaled_to_8_bit": scaled,
            "not_read": left,
            "predictions": [asdict(p) for p in predictions],
        }
        write_json(folder / "summary.json", summary)
    return summary


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Say what was written, what was found, and what the reader should know."""
    lines = [f"{name}: {reason}" for name, reason in summary["not_found"].items()]
    scaled, left = summary["scaled_to_8_bit"], summary["not_read"]
    if scaled:
        ranges = some_names([f"{name} {low}..{high}" for name, (low, high) in scaled.items()])
        what = "images of more than 8 bit were scaled from their own range to 0..255"
        lines.append(f"{len(scaled)} {what}: {ranges}")
    if left:
        lines.append(f"{len(left)} files are no images and were not read: {some_names(left)}")
    if all(p["pixel_size_mm"] is None for p in summary["predictions"]):
        lines.append("no pixel size is known, so hc_mm is empty; give --pixel-size MM")
    lines.append(
        f"{summary['out']}: {summary['n_images']} masks and overlays, predictions.csv; a head in "
        f"{summary['n_found']} of {summary['n_images']} images"
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _write_pictures(folder: Path, mask: np.ndarray, *, image_path: Path) -> None:
    """Write masks/NAME and overlays/NAME, of the name of the grey PNG at `image_path`."""
    image = cv2.imread(str(image_path), cv2.IMREAD_UNCHANGED)
    overlay = overlay_contours(image, [(mask, PREDICTION_RGB)])
    for kind, picture in (("masks", mask * 255), ("overlays", overlay)):
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / image_path.name).write_bytes(encode_png(picture))


def _prepare(
    paths: Mapping[str, Path], scratch: Path
) -> tuple[dict[str, Path], dict[str, tuple[int, int]]]:
    """Read every image before the first is segmented; as grey PNG, which the segmenter reads."""
    grey: dict[str, Path] = {}
    scaled: dict[str, tuple[int, int]] = {}
    for stem, path in paths.items():
        image = read_any_image(path)
        grey[stem] = scratch / f"{stem}.png"
        grey[stem].write_bytes(encode_png(image.grey))
        if image.scaled_from is not None:
            scaled[path.name] = image.scaled_from
    return grey, scaled
