"""Pictures for people: outlines over an image, contact sheets, PNG bytes. Pure, on uint8 arrays."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

RGB = tuple[int, int, int]
REFERENCE_RGB: RGB = (86, 180, 233)
"""Blue: the reference outline."""
PREDICTION_RGB: RGB = (240, 160, 20)
"""Orange: a prediction; the pair stays apart for colour-blind readers."""


def overlay_contours(
    image: NDArray[np.uint8],
    masks: Sequence[tuple[NDArray[np.uint8], RGB]],
    *,
    thickness_px: int | None = None,
) -> NDArray[np.uint8]:
    """Draw the outlines of masks over an image, later ones on top.

    Args:
        image: (H, W) grey or (H, W, 3) RGB.
        masks: Pairs of a (H, W) mask, non-zero inside, and an RGB colour; an empty mask draws
            nothing.
        thickness_px: Line width; by default 1 px per 200 px of the longest side, at least 1.

    Returns:
        (H, W, 3) RGB; the input is not changed.

    Raises:
        ValueError: If a mask has another size than the image.
    """
    canvas = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    width = max(1, round(max(image.shape[:2]) / 200)) if thickness_px is None else thickness_px
    for mask, color in masks:
        if mask.shape != image.shape[:2]:
            raise ValueError(f"mask {mask.shape} and image {image.shape[:2]} differ in size")
        inside = (mask != 0).astype(np.uint8)
        outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        canvas = cv2.drawContours(np.ascontiguousarray(canvas), outlines, -1, color, width)
    return canvas


def fit_into(picture: NDArray[np.uint8], *, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale a picture to fit, aspect kept, centred on black.

    Args:
        picture: (H, W) grey or (H, W, 3) RGB.
        size_hw: Size of the result in px.

    Returns:
        (size_hw, 3) RGB.
    """
    rgb = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture
    scale = min(size_hw[0] / rgb.shape[0], size_hw[1] / rgb.shape[1])
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(rgb, (width, height), interpolation=method)
    canvas = np.zeros((*size_hw, 3), dtype=np.uint8)
    top, left = (size_hw[0] - height) // 2, (size_hw[1] - width) // 2
    canvas[top : top + height, left : left + width] = small
    return canvas


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]],
    *,
    columns: int,
    cell_hw: tuple[int, int],
    gap_px: int = 4,
) -> NDArray[np.uint8]:
    """Put pictures into a grid, row by row, on white.

    Args:
        pictures: (H, W) grey or (H, W, 3) RGB, any sizes; at least one.
        columns: Pictures in a row.
        cell_hw: Size of a cell in px.
        gap_px: Space between cells.

    Returns:
        RGB of rows * cell + (rows - 1) * gap pixels high, and so on wide; unused cells are white.

    Raises:
        ValueError: Without a picture.
    """
    if not pictures:
        raise ValueError("contact_sheet: no pictures")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height = rows * cell_hw[0] + (rows - 1) * gap_px
    width = columns * cell_hw[1] + (columns - 1) * gap_px
    sheet = np.full((height, width, 3), 255, dtype=np.uint8)
    for k, picture in enumerate(pictures):
        top = (k // columns) * (cell_hw[0] + gap_px)
        left = (k % columns) * (cell_hw[1] + gap_px)
        cell = fit_into(picture, size_hw=cell_hw)
        sheet[top : top + cell_hw[0], left : left + cell_hw[1]] = cell
    return sheet


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """Encode a (H, W) grey or (H, W, 3) RGB picture as PNG."""
    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", stored)
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be written as PNG")
    return data.tobytes()
