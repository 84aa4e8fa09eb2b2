"""Closer looks at a head that a first look found: what lies around it is hidden. Pure.

First-trimester heads lie beside fluid and tissue that a segmenter of few labels takes for a part of
them. Cut out around the head, with black beyond, as training views under strong augmentation are
black beyond their image, most of that is gone.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from lightning_modules.losses import dice_from_logits
from lightning_modules.prompts import predicted_boxes
from lightning_modules.segmenters.unet.margin import add_margin, remove_margin

HEAD_SHARE = 0.8
"""Share that the box of the head fills of the part of the image that a closer look shows, along the
axis where it fills more."""
ZOOM = (0.8, 2.5)
"""Smallest and largest enlargement of an image for that."""
BORDER = 0.2
"""Share of the frame that is black around that part."""
MIN_DICE = 0.9
"""Looks whose masks agree as well as this are averaged."""


def look_closer(
    image: torch.Tensor,
    first: torch.Tensor,
    *,
    looks: int,
    look: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Look again and again at the head that the look before found.

    Args:
        image: (B, 1, h, w) float, the whole frame being image.
        first: (B, 1, h, w) logits of the first look; above 0 is foreground.
        looks: Closer looks, 0 or more.
        look: Gives the logits of frames (N, 1, h, w), in the same shape.

    Returns:
        (B, 1, h, w): the last look's logits, averaged with the first's where both masks agree. The
        first's for images in which it found nothing; where a look shows nothing, or does not
        reach, those of the look before stay.
    """
    found = _has_head(first)
    if looks == 0 or not found.any():
        return first
    image, before = image[found], first[found]
    valid_hw = torch.tensor([image.shape[-2:]], device=image.device).expand(len(image), 2)
    last = before
    for _ in range(looks):
        boxes = predicted_boxes(last, valid_hw=valid_hw)
        last = _look_at(boxes, image, last, look=look)
    agree = dice_from_logits(last, before > 0, valid_hw=valid_hw) >= MIN_DICE
    closer = first.clone()
    closer[found] = torch.where(agree.view(-1, 1, 1, 1), (before + last) / 2, last)
    return closer


def _look_at(
    boxes: torch.Tensor,
    image: torch.Tensor,
    before: torch.Tensor,
    *,
    look: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Logits (B, 1, h, w) of images cut out around boxes (B, 4), and those before beyond them."""
    height, width = image.shape[-2:]
    sides = torch.tensor([width, height], device=boxes.device)
    extent = (boxes[:, 2:] - boxes[:, :2] + 1) / sides
    # From -1 to 1 across the frame, as grid_sample counts.
    centre = (boxes[:, :2] + boxes[:, 2:] + 1) / sides - 1
    zoom = (HEAD_SHARE / extent.amax(dim=1)).clamp(*ZOOM)
    view = F.grid_sample(image, _grid(1 / zoom, centre, like=image), align_corners=False)
    seen = remove_margin(look(add_margin(view, margin=BORDER)), margin=BORDER)
    back = _grid(zoom, -centre * zoom[:, None], like=image)
    shown = (back.abs() <= 1).all(dim=3)[:, None] & _has_head(seen).view(-1, 1, 1, 1)
    in_place = F.grid_sample(seen, back, padding_mode="border", align_corners=False)
    return torch.where(shown, in_place, before)


def _has_head(logits: torch.Tensor) -> torch.Tensor:
    """Which images (B,) have foreground."""
    return (logits > 0).flatten(1).any(dim=1)


def _grid(scale: torch.Tensor, shift: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Where to sample: scale (B,) times a pixel's place plus shift (B, 2) x, y; (B, h, w, 2)."""
    theta = torch.zeros(len(scale), 2, 3, device=like.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    return F.affine_grid(theta, list(like.shape), align_corners=False)
