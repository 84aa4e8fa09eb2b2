"""`sonosweep predict`: a fitted segmenter applied to one's own images."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from datamodules.allowed import one_of
from datamodules.annotation import read_image
from datamodules.any_image import find_images
from datamodules.ellipse import perimeter_px, rasterise
from datamodules.mask_folder import some_names
from datamodules.plausible import hc_doubt
from datamodules.storage import new_folder, require_new, write_atomic, write_json
from experiments.deliver.confidence import VIEW_ZOOM, judge
from experiments.deliver.inputs import (
    PACKAGED,
    PROMPTS,
    boxes_of,
    facts_of,
    lines_on,
    read_boxes,
    read_images,
    read_sizes,
    runs_and_images,
    sizes_of,
)
from experiments.deliver.submission import fitted_ellipse
from experiments.results.pictures import PREDICTION_RGB, encode_png, overlay_contours
from experiments.store.runs import read_manifest

_LENGTHS = ("center_x", "center_y", "semi_major", "semi_minor", "hc")
COLUMNS = (
    "filename",
    "found",
    *("center_x_px", "center_y_px", "semi_major_px", "semi_minor_px", "theta_rad", "hc_px"),
    "pixel_size_mm",
    *(f"{name}_mm" for name in _LENGTHS),
    *("confidence", "doubtful", "reason"),
)
"""Of predictions.csv, and the keys of a prediction. The ellipse (see `Ellipse`) and its
circumference, `hc`, are None where none fits; what is in mm is None without a pixel size too.
"""


def prediction_of_mask(
    mask: np.ndarray,
    *,
    second_mask: np.ndarray,
    image: np.ndarray,
    filename: str,
    pixel_size_mm: float | None,
    runs_dice: float = 1.0,
) -> tuple[dict[str, Any], np.ndarray]:
    """Measure one predicted mask, and judge how far the numbers can be believed.

    Args:
        mask: (H, W), non-zero is foreground; its largest part counts, see `head_ellipse`.
        second_mask, image, runs_dice: See `confidence.judge`.
        filename: Of the image.
        pixel_size_mm: Side of a pixel, mm, > 0; None where it is unknown.

    Returns:
        A value for each of `COLUMNS`; and the filled ellipse, or the mask where none fits.
    """
    ellipse, why = fitted_ellipse(mask)
    views = {"mask": mask, "second_mask": second_mask, "runs_dice": runs_dice}
    confidence, reason = judge(image, **views, ellipse=ellipse, why=why)
    found = dict.fromkeys(COLUMNS) | {
        "filename": filename,
        "found": ellipse is not None,
        "pixel_size_mm": pixel_size_mm,
        "confidence": confidence,
        "doubtful": reason != "",
        "reason": reason,
    }
    if ellipse is None:
        return found, mask
    found |= {**asdict(ellipse), "hc_px": perimeter_px(ellipse)}
    if pixel_size_mm is not None:
        found |= {f"{name}_mm": found[f"{name}_px"] * pixel_size_mm for name in _LENGTHS}
        if doubt := hc_doubt(found["hc_mm"]):
            found |= {"doubtful": True, "reason": "; ".join(filter(None, [reason, doubt]))}
    return found, rasterise(ellipse, size_hw=mask.shape)


def predictions_text(predictions: Sequence[Mapping[str, Any]]) -> str:
    """The text of predictions.csv: a header and one line an image, unknown numbers left empty."""
    table = pd.DataFrame(predictions, columns=COLUMNS)
    for name in ("found", "doubtful"):
        table[name] = table[name].map({True: "true", False: "false"})
    return table.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def predict_command(
    places: Sequence[Path],
    *,
    out: Path,
    pixel_size_mm: float | None,
    pixel_size_table: Path | None,
    prompt: str,
    box_table: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Segment images into masks/, network_masks/, overlays/, predictions.csv and summary.json of a
    new folder, by the runs that stand before them: by one, or by the mean logits of several.

    Returns:
        What summary.json holds.

    Raises:
        InputError: For a user's mistake; nothing is written then.
    """
    runs, images = runs_and_images(places)
    one_of(prompt, PROMPTS, option="--prompt")
    require_new(out)
    manifests = [read_manifest(run) for run in runs]
    paths, left = find_images(images)
    asked_sizes = read_sizes(pixel_size_table, of_all=pixel_size_mm)
    asked_boxes = read_boxes(box_table, prompt=prompt)
    with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        with console.status("reading the images"):
            given = read_images(paths, Path(scratch))
        sizes = sizes_of(given, asked_sizes, of_all=pixel_size_mm, label=str(pixel_size_table))
        boxes = boxes_of(given, asked_boxes, label=str(box_table))
        # Here, because it imports torch: a wrong path is refused before that.
        from experiments.deliver.inference import segmented

        predictions = []
        grey = {name: image.path for name, image in given.items()}
        asked = {"prompt": prompt, "boxes": boxes, "console": console}
        views = segmented(runs, grey, **asked, view_zooms=(1.0, VIEW_ZOOM))
        for name, (mask, second), runs_dice in views:
            image = read_image(grey[name])
            found, shape = prediction_of_mask(
                mask,
                second_mask=second,
                image=image,
                filename=given[name].filename,
                pixel_size_mm=sizes[name],
                runs_dice=runs_dice,
            )
            predictions.append(found)
            _write_pictures(folder, grey[name].name, image=image, shape=shape, mask=mask)
        write_atomic(folder / "predictions.csv", predictions_text(predictions))
        summary = {
            "out": str(out),
            "run": str(runs[0]) if len(runs) == 1 else None,
            "run_id": manifests[0].get("id") if len(runs) == 1 else None,
            "runs": [str(run) for run in runs],
            "is_packaged": runs == [PACKAGED],
            "run_ids": [manifest.get("id") for manifest in manifests],
            "prompt": prompt if boxes is None else "given_box",
            "n_images": len(predictions),
            "n_found": sum(p["found"] for p in predictions),
            "not_found": {p["filename"]: p["reason"] for p in predictions if not p["found"]},
            "doubtful": {p["filename"]: p["reason"] for p in predictions if p["doubtful"]},
            **facts_of(given, sizes, table=asked_sizes),
            "not_read": left,
            "predictions": predictions,
        }
        write_json(folder / "summary.json", summary)
    return summary


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Say what was written, what was found, what the reader should know; and what is doubtful."""
    lines = lines_on(summary)
    if left := summary["not_read"]:
        lines.append(f"{len(left)} files are no images and were not read: {some_names(left)}")
    unknown = [p["filename"] for p in summary["predictions"] if p["pixel_size_mm"] is None]
    if len(unknown) == summary["n_images"]:
        sizes = "--pixel-size MM, or --pixel-sizes CSV (HC18's test_set_pixel_size.csv is one)"
        lines.append(f"no pixel size is known, so hc_mm is empty; give {sizes}")
    elif unknown:
        lines.append(
            f"no pixel size is known of {len(unknown)} of {summary['n_images']} images, whose "
            f"hc_mm is empty; give --pixel-sizes CSV: {some_names(unknown)}"
        )
    model = "the model of the package" if summary["is_packaged"] else ", ".join(summary["runs"])
    lines.append(f"segmented by {model}")
    lines.append(
        f"{summary['out']}: {summary['n_images']} masks and overlays, predictions.csv; a head in "
        f"{summary['n_found']} of {summary['n_images']} images"
    )
    doubtful = summary["doubtful"]
    end = "; look at them before their numbers are used:" if doubtful else ""
    lines.append(f"doubtful: {len(doubtful)} of {summary['n_images']} images{end}")
    lines += [f"{name}: {reason}" for name, reason in doubtful.items()]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _write_pictures(
    folder: Path, name: str, *, image: np.ndarray, shape: np.ndarray, mask: np.ndarray
) -> None:
    """Write the shape that was measured, its outline on the image, and the network's own mask."""
    overlay = overlay_contours(image, [(shape, PREDICTION_RGB)])
    pictures = {"masks": shape * 255, "overlays": overlay, "network_masks": mask * 255}
    for kind, picture in pictures.items():
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / name).write_bytes(encode_png(picture))
