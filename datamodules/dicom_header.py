"""What a DICOM header says of sizes: the side of a pixel, and how many pixels there are."""

import math
from collections.abc import MutableSequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

_CM = 3
"""The code of centimetres in a region's physical units."""
_PLANE = 1
"""The code of a two-dimensional image in a region's spatial format."""
_SAME = 0.01
"""Relative difference up to which two lengths of a pixel are one."""


def pixel_size_of(dataset: "Dataset") -> tuple[float | None, str]:
    """Return the side of a pixel in mm and "", or None and why there is none ("" if none is given).

    The calibration of the ultrasound regions counts where one is two-dimensional and in
    centimetres; else PixelSpacing, that of the shared functional groups, or ImagerPixelSpacing. It
    must be one length: regions that differ, from each other or from PixelSpacing, and pixels that
    are not square give None.
    """
    regions = _region_sizes(dataset)
    found = regions or _spacings(dataset)
    if not found:
        return None, _aspect(dataset)
    sizes = [size for pair in found for size in pair]
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return None, "its pixel size is no pair of positive numbers"
    for across, down in found:
        if abs(across - down) > _SAME * max(across, down):
            return None, f"its pixels are not square ({across:.4g} x {down:.4g} mm)"
    if max(sizes) - min(sizes) > _SAME * max(sizes):
        each = ", ".join(f"{across:.4g}" for across, _ in found)
        return None, f"its ultrasound regions differ in pixel size ({each} mm)"
    size = sum(sizes) / len(sizes)
    other = _spacings(dataset, with_imager=False) if regions else []
    # As of a picture that was made smaller with one of the two left as it was.
    if any(abs(length - size) > _SAME * size for pair in other for length in pair):
        across = other[0][0]
        return None, f"its ultrasound regions say {size:.4g} mm a pixel, PixelSpacing {across:.4g}"
    return size, ""


def _region_sizes(dataset: "Dataset") -> list[tuple[float, float]]:
    """Width and height of a pixel in mm of each region that is measured in lengths."""
    found = []
    for region in dataset.get("SequenceOfUltrasoundRegions") or ():
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        if units == (_CM, _CM) and region.get("RegionSpatialFormat", _PLANE) == _PLANE:
            deltas = (region.get("PhysicalDeltaX"), region.get("PhysicalDeltaY"))
            # The sign is a direction.
            found.append(tuple(10 * abs(float("nan" if d is None else d)) for d in deltas))
    return found


def _aspect(dataset: "Dataset") -> str:
    """What PixelAspectRatio says of pixels without lengths; "" where they are square."""
    ratio = dataset.get("PixelAspectRatio")
    if not isinstance(ratio, MutableSequence) or len(ratio) != 2:
        return ""
    down, across = (float(value) for value in ratio)
    if not (down > 0 and across > 0) or abs(across - down) <= _SAME * max(across, down):
        return ""
    return f"its pixels are not square (height to width {down:g}:{across:g})"


def _spacings(dataset: "Dataset", *, with_imager: bool = True) -> list[tuple[float, float]]:
    """Width and height of a pixel in mm by the image's spacing, which names the rows' first."""
    holders = [(dataset, "PixelSpacing")]
    for groups in dataset.get("SharedFunctionalGroupsSequence") or ():
        holders += [(m, "PixelSpacing") for m in groups.get("PixelMeasuresSequence") or ()]
    holders += [(dataset, "ImagerPixelSpacing")] if with_imager else []
    for holder, key in holders:
        spacing = holder.get(key)
        if spacing:
            is_pair = isinstance(spacing, MutableSequence) and len(spacing) == 2
            return [tuple(map(float, spacing))[::-1] if is_pair else (math.nan, math.nan)]
    return []


def holds_more_pixels(dataset: "Dataset") -> bool:
    """Whether a file holds at least a row, or a frame, beyond what its header speaks of.

    Told by the length of pixels that are not compressed, else by the table of the frames' places;
    without one it cannot be told. pydicom drops what is beyond, and only warns.
    """
    from pydicom.encaps import parse_basic_offsets
    from pydicom.pixels.utils import get_expected_length
    from pydicom.uid import AllTransferSyntaxes, UncompressedTransferSyntaxes

    n_frames = int(dataset.get("NumberOfFrames") or 1)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax not in AllTransferSyntaxes:
        return False
    if syntax not in UncompressedTransferSyntaxes:
        places = dataset.get("ExtendedOffsetTable")
        n_places = len(places) // 8 if places else len(parse_basic_offsets(dataset.PixelData))
        return n_places > n_frames
    expected = get_expected_length(dataset)
    return len(dataset.PixelData) - expected >= max(expected // (n_frames * dataset.Rows), 2)
