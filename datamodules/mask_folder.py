"""Masks predicted elsewhere: a folder of PNG files named by sample id."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.annotation import decode_png, read_bytes
from datamodules.errors import InputError
from datamodules.samples import ANNOTATION_SUFFIX, Sample

SUFFIXES = ("", ANNOTATION_SUFFIX, "_mask")
_OTHER_FORMATS = (
    *(".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".npz", ".npy", ".dcm"),
    *(".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
)


def require_folder(folder: Path) -> None:
    """Raise InputError unless a folder of masks is there."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of PNG masks")


def find_masks(
    folder: Path, *, sample_ids: Sequence[str], known: Sequence[Sample]
) -> tuple[dict[str, Path], list[str]]:
    """Find the mask of each image.

    Args:
        folder: Folder of masks.
        sample_ids: Images to score, at least one.
        known: All images of the data.

    Returns:
        Files by sample id, and notes on files that were not read.

    Raises:
        InputError: No such folder, no PNG in it, none for any image, or two for one image.
    """
    require_folder(folder)
    paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    present: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() == ".png" and present.setdefault(path.stem, path) is not path:
            names = f"{present[path.stem].name} and {path.name}"
            raise InputError(f"{folder}: {names} have one name; leave the mask alone")
    others = [path.name for path in paths if path.name.lower().endswith(_OTHER_FORMATS)]
    if not present:
        found = f" ({others[0]} is of a format that is not read)" if others else ""
        raise InputError(
            f"{folder}: no PNG masks{found}; write one PNG an image, <id>.png with 0 and 1 or 255"
        )
    files: dict[str, Path] = {}
    for sample_id in sample_ids:
        candidates = [present[sample_id + s] for s in SUFFIXES if sample_id + s in present]
        if len(candidates) > 1:
            names = " and ".join(path.name for path in candidates)
            raise InputError(f"{folder}: {names} are both for {sample_id}; leave the mask alone")
        if candidates:
            files[sample_id] = candidates[0]
    if not files:
        raise InputError(
            f"{folder}: no mask has the name of an image ({sample_ids[0]}.png is "
            f"expected, {next(iter(present.values())).name} was found); rename the masks"
        )
    read = {path.stem for path in files.values()}
    ours = {sample.sample_id + suffix for sample in known for suffix in SUFFIXES}
    outside = [stem for stem in present if stem not in read and stem in ours]
    strange = [stem for stem in present if stem not in ours]
    notes = []
    if others:
        notes.append(f"{len(others)} files are no PNG and were not read ({some_names(others)})")
    if outside:
        notes.append(f"{len(outside)} masks of images outside the split's test part were not read")
    if strange:
        notes.append(
            f"{len(strange)} PNG files of no known image were not read ({some_names(strange)})"
        )
    return files, notes


def read_mask(path: Path, *, size_hw: tuple[int, int]) -> np.ndarray:
    """Read a mask with the labels 0 and 1, or 0 and 255.

    Args:
        path: PNG of 1, 8 or 16 bit, grey or in colour (then the largest channel counts).
        size_hw: Size of its image, px.

    Returns:
        uint8 (H, W) in {0, 1}; all zero for an empty prediction.

    Raises:
        InputError: No PNG, another size, other values, or drawn in the alpha channel.
    """
    pixels = decode_png(read_bytes(path), name=str(path))
    if pixels.ndim == 3:
        if pixels.shape[2] == 4 and np.ptp(pixels[..., :3]) == 0 and np.ptp(pixels[..., 3]) > 0:
            raise InputError(
                f"{path}: the mask is drawn in the alpha channel; write it in grey, 0 and 255"
            )
        pixels = pixels[..., :3].max(axis=2)
    if pixels.shape != size_hw:
        raise InputError(
            f"{path}: the mask has {pixels.shape[1]}x{pixels.shape[0]} px, its image "
            f"{size_hw[1]}x{size_hw[0]}; resize it to the image's size by nearest neighbour"
        )
    values = np.unique(pixels)
    labels = values[values > 0].tolist()
    if labels not in ([], [1], [255], [65535]):
        shown = ", ".join(map(str, labels[:4])) + (", ..." if len(labels) > 4 else "")
        raise InputError(
            f"{path}: the mask holds the values {shown}; write 0 for the background and 1 (or 255) "
            "for the head, after thresholding"
        )
    return (pixels > 0).astype(np.uint8)


def some_names(names: Sequence[str]) -> str:
    """The first ten names, and dots where there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
