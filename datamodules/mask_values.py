"""From an annotation's pixel values to foreground: white, two values, labels or alpha. Pure."""

from collections.abc import Sequence

import cv2
import numpy as np

from datamodules.errors import InputError

_MIDDLE = 127
# Fewer values than this may be labels; more come from smoothing or compression.
_LABELS = 16
# A region this wide is no smoothed edge.
_REGION_PX = 7
_BY_LABEL = "data.label (for a test cohort data.cohort_labels.NAME)"


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


def require_one_colour(pixels: np.ndarray, *, name: str, label: int | None = None) -> None:
    """Raise InputError for regions of several colours, of which `one_channel` would make one.

    Args:
        pixels: (H, W), (H, W, 3 or 4) as they stand in the file.
        name: of the file, for the messages.
        label: the one value that counts; other colours may then be there.
    """
    if pixels.ndim == 2 or (pixels[..., :1] == pixels[..., 1:3]).all():
        return
    packed = pixels[..., :3].astype(np.int64) @ np.array([1 << 32, 1 << 16, 1])
    colours = np.unique(packed)
    if len(colours) > _LABELS:
        return
    largest = {c: max(c >> 32, c >> 16 & 0xFFFF, c & 0xFFFF) for c in colours.tolist()}
    darkest = min(largest, key=largest.get)
    drawn = [c for c in largest if (c != darkest if label is None else largest[c] == label)]
    if sum(_has_region(packed, of=[colour]) for colour in drawn) > 1:
        raise InputError(
            f"{name}: the annotation has regions of several colours; "
            "save the head alone, in white (255) on black (0)"
        )


def foreground_of(pixels: np.ndarray, *, name: str, label: int | None = None) -> np.ndarray:
    """Return the annotated pixels, uint8 (H, W) in {0, 1}.

    Two values: the larger one, whatever it is. More: those above the middle of 0 and 255, where the
    values between the smallest and the largest are edges, not regions; where there are so many that
    edges are smoothed, above half of the largest.

    Args:
        pixels: uint8 or uint16 (H, W) as they stand in the file.
        name: of the file, for the messages.
        label: the one value that counts, in a map of labels.

    Raises:
        InputError: no pixel has the label, or there are several dark values or regions of several
            values and no label is given.
    """
    # Faster than np.unique by far.
    bins = 1 << (8 * pixels.dtype.itemsize)
    values = np.flatnonzero(cv2.calcHist([pixels], [0], None, [bins], [0, bins]))
    if label is not None:
        if label not in values:
            raise InputError(
                f"{name}: no pixel has the label {label}, only {_shown(values)}; "
                f"give the head's label by {_BY_LABEL}"
            )
        return (pixels == label).astype(np.uint8)
    if len(values) == 2:
        return (pixels > values[0]).astype(np.uint8)
    scale = 257.0 if values[-1] > 255 else 1.0
    largest, middle = round(values[-1] / scale), _MIDDLE
    if len(values) > _LABELS:
        middle = largest // 2
    elif len(values) > 2 and (largest <= _MIDDLE or _has_region(pixels, of=values[1:-1])):
        raise InputError(
            f"{name}: the annotation holds the values {_shown(values)}; "
            f"say which of them is the head by {_BY_LABEL}"
        )
    pixels = pixels if scale == 1 else np.round(pixels / scale)
    return cv2.threshold(pixels.astype(np.uint8), middle, 1, cv2.THRESH_BINARY)[1]


def _has_region(pixels: np.ndarray, *, of: Sequence[int]) -> bool:
    """Whether one of the values fills more than an edge."""
    kernel = np.ones((_REGION_PX, _REGION_PX), np.uint8)
    # Beyond the border there is nothing of it.
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    return any(
        cv2.erode((pixels == value).astype(np.uint8), kernel, **outside).any() for value in of
    )


def _shown(values: np.ndarray) -> str:
    numbers = [str(int(value)) for value in values[:6]]
    return ", ".join(numbers) + (", ..." if len(values) > 6 else "")
