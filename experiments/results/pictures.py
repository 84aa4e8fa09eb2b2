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
    image: NDArray[np.uint8], masks: Sequence[tuple[NDArray[np.uint8], RGB]]
) -> NDArray[np.uint8]:
    """Draw the outlines of masks over an image, later ones on top.

    Args:
        image: (H, W) grey or (H, W, 3) RGB, not changed.
        masks: (H, W) mask, non-zero inside, and its RGB colour; an empty mask draws nothing.

    Returns:
        (H, W, 3) RGB; a line is 1 px wide per 200 px of the longest side.

    Raises:
        ValueError: If a mask has another size than the image.
    """
    canvas = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    width = max(1, round(max(image.shape[:2]) / 200))
    for mask, color in masks:
        if mask.shape != image.shape[:2]:
            raise ValueError(f"mask {mask.shape} and image {image.shape[:2]} differ in size")
        inside = (mask != 0).astype(np.uint8)
        outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        canvas = cv2.drawContours(np.ascontiguousarray(canvas), outlines, -1, color, width)
    return canvas


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """Encode a (H, W) grey or (H, W, 3) RGB picture as PNG."""
    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", stored)
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be written as PNG")
    return data.tobytes()
