"""The passes of the box stage over its test images, as it makes them and as its plan counts them.

Torch-free.
"""

from typing import Literal, NamedTuple

JITTERS_PX = (0, 5, 10, 20, 40, 80)
"""Largest outward push of a side, in pixels of a 256x256 squashed frame."""


class BoxPass(NamedTuple):
    """One scoring of every test image; a jittered box is drawn several times within it."""

    what: Literal["model", "ellipse", "mean_mask"]
    prompt: Literal["whole_image", "predicted_box", "jittered_box"]
    jitter_px: int | None = None
    """Of JITTERS_PX; None for a prompt without jitter."""


PASSES: tuple[BoxPass, ...] = (
    BoxPass("model", "whole_image"),
    BoxPass("model", "predicted_box"),
    BoxPass("mean_mask", "whole_image"),
    *(
        BoxPass(what, "jittered_box", jitter_px)
        for jitter_px in JITTERS_PX
        for what in ("model", "ellipse")
    ),
)
"""In the order in which they are made."""
