"""Decoded pixels of any depth, in colour or grey, as a grey image of 8 bit. Pure."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class AnyImage:
    """A decoded image.

    Attributes:
        grey: uint8 (H, W).
        scaled_from: Smallest and largest value of an image of more than 8 bit, which became 0 and
            255; None for 8 bit, whose values stay, and where a window was applied.
        window: Centre and width of the window that the file asks for, where it changed the image.
        pixel_size_mm: Side of a pixel that the file states, mm; None where it states none.
        no_size_because: Why the size that the file states is not used; "" where nothing is wrong.
    """

    grey: np.ndarray
    scaled_from: tuple[int, int] | None = None
    window: tuple[float, float] | None = None
    pixel_size_mm: float | None = None
    no_size_because: str = ""


def grey_of(pixels: np.ndarray, *, is_rgb: bool = False) -> AnyImage:
    """Convert to 8-bit grey.

    Args:
        pixels: (H, W) or (H, W, 3 or more), whole numbers; blue first unless `is_rgb`, anything
            beyond three channels is dropped. More than 8 bit are scaled linearly from the image's
            own range to 0..255, because few such files use all of their bits; a flat one becomes 0.
        is_rgb: Whether red comes first.
    """
    if pixels.ndim == 3:
        # Layouts are listed by commands that must answer at once.
        import cv2

        # Cut before the conversion: it cares for 3 channels alone. Grey with alpha comes as BGRA.
        order = cv2.COLOR_RGB2GRAY if is_rgb else cv2.COLOR_BGR2GRAY
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), order)
    if pixels.dtype == np.uint8:
        return AnyImage(grey=pixels)
    # As Python's numbers: a signed range may be wider than its own type holds.
    low, high = pixels.min().item(), pixels.max().item()
    scaled = (pixels.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    return AnyImage(grey=np.round(scaled).astype(np.uint8), scaled_from=(int(low), int(high)))
