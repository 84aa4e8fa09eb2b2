"""From an annotation's pixel values to foreground: white, two values, labels or alpha. Pure."""

import cv2
import numpy as np

from datamodules.errors import InputError

_MIDDLE = 127
# Fewer values than this are labels; more come from smoothing or compression.
_LABELS = 16


def one_channel(pixels: np.ndarray) -> np.ndarray:
    """Return the channel that holds the drawing, (H, W), of pixels (H, W), (H, W, 3 or 4).

    The largest of the colours: a coloured outline is as good as a white one. Alpha where the
    colours are the same all over and alpha is not.
    """
    if pixels.ndim == 2:
        return pixels
    blue, green, red = cv2.split(pixels[..., :3])
    colour = cv2.max(cv2.max(blue, green), red)
    if pixels.shape[2] == 4 and colour.min() == colour.max():
        alpha = np.ascontiguousarray(pixels[..., 3])
        return colour if alpha.min() == alpha.max() else alpha
    return colour


def foreground_of(pixels: np.ndarray, *, name: str, label: int | None = None) -> np.ndarray:
    """Return the annotated pixels, uint8 (H, W) in {0, 1}.

    Two values: the larger one, whatever it is. More: those above the middle of 0 and 255; where
    there are so many that edges are smoothed, above half of the largest.

    Args:
        pixels: uint8 or uint16 (H, W) as they stand in the file.
        name: of the file, for the messages.
        label: the one value that counts, in a map of labels.

    Raises:
        InputError: no pixel has the label, or there are several dark values and no label is given.
    """
    # Faster than np.unique by far.
    bins = 1 << (8 * pixels.dtype.itemsize)
    values = np.flatnonzero(cv2.calcHist([pixels], [0], None, [bins], [0, bins]))
    if label is not None:
        if label not in values:
            raise InputError(
                f"{name}: no pixel has the label {label}, only {_shown(values)}; "
                "give the head's label by data.label"
            )
        return (pixels == label).astype(np.uint8)
    if len(values) == 2:
        return (pixels > values[0]).astype(np.uint8)
    scale = 257.0 if values[-1] > 255 else 1.0
    largest, middle = round(values[-1] / scale), _MIDDLE
    if len(values) > _LABELS:
        middle = largest // 2
    elif len(values) > 2 and largest <= _MIDDLE:
        raise InputError(
            f"{name}: the annotation holds the values {_shown(values)}; "
            "say which of them is the head by data.label"
        )
    pixels = pixels if scale == 1 else np.round(pixels / scale)
    return cv2.threshold(pixels.astype(np.uint8), middle, 1, cv2.THRESH_BINARY)[1]


def _shown(values: np.ndarray) -> str:
    numbers = [str(int(value)) for value in values[:6]]
    return ", ".join(numbers) + (", ..." if len(values) > 6 else "")
