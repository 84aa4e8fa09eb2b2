"""A closer look at a head that a first look found: the image enlarged about it. Pure.

Small heads, those of the first trimester above all, have more pixels then, and the size that most
heads of the training have; each look finds the place of the next one better.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from lightning_modules.prompts import predicted_boxes

ZOOM = (0.8, 2.5)
"""Smallest and largest enlargement of an image for a closer look."""


def look_closer(
    image: torch.Tensor,
    logits: torch.Tensor,
    *,
    share: float,
    look: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Replace logits by those of a view that the head which they show fills to a common share.

    Args:
        image: (B, 1, h, w) float, the whole frame being image.
        logits: (B, 1, h, w) of the look before; above 0 is foreground.
        share: Of the frame's side that the box of the largest part fills in the view, along the
            axis where it fills more; the enlargement stays within `ZOOM`.
        look: Gives the logits of views (N, 1, h, w), in the same shape.

    Returns:
        (B, 1, h, w): the view's logits where it shows the image, and those before elsewhere, and
        where there was no head or the view shows none.
    """
    has_head = _has_head(logits)
    if not has_head.any():
        return logits
    image, before = image[has_head], logits[has_head]
    height, width = image.shape[-2:]
    valid_hw = torch.tensor([[height, width]], device=image.device).expand(len(image), 2)
    boxes = predicted_boxes(before, valid_hw=valid_hw)
    sides = torch.tensor([width, height], device=boxes.device)
    extent = (boxes[:, 2:] - boxes[:, :2] + 1) / sides
    # From -1 to 1 across the frame, as grid_sample counts.
    centre = (boxes[:, :2] + boxes[:, 2:] + 1) / sides - 1
    zoom = (share / extent.amax(dim=1)).clamp(*ZOOM)
    view = F.grid_sample(image, _grid(1 / zoom, centre, like=image), align_corners=False)
    seen = look(view)
    back = _grid(zoom, -centre * zoom[:, None], like=image)
    inside = (back.abs() <= 1).all(dim=3)[:, None] & _has_head(seen).view(-1, 1, 1, 1)
    closer = logits.clone()
    closer[has_head] = torch.where(
        inside, F.grid_sample(seen, back, padding_mode="border", align_corners=False), before
    )
    return closer


def _has_head(logits: torch.Tensor) -> torch.Tensor:
    """Which images (B,) have foreground."""
    return (logits > 0).flatten(1).any(dim=1)


def _grid(scale: torch.Tensor, shift: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Where to sample: scale (B,) times a pixel's place plus shift (B, 2) x, y; (B, h, w, 2)."""
    theta = torch.zeros(len(scale), 2, 3, device=like.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    return F.affine_grid(theta, list(like.shape), align_corners=False)
