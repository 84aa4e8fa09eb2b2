"""Box prompts: from masks, jittered, or the whole image; and the control that reads no image.

A box is (x0, y0, x1, y1) in pixels of the frame, both corners inclusive: pixel centres are
integers, and SAM's prompt encoder adds the half pixel itself. Everything here is pure.
"""

from collections.abc import Sequence
from typing import get_args

import cv2
import numpy as np
import torch

from lightning_modules.losses import valid_pixels
from lightning_modules.prompt_protocol import PromptProtocol

JITTER_FRAME_PX = 256
"""The paper jitters in a 256x256 squashed frame: one jitter pixel is 1/256 of the image's side."""


def boxes_from_masks(mask: torch.Tensor, *, valid_hw: torch.Tensor) -> torch.Tensor:
    """Find the tight box of each mask.

    Args:
        mask: (B, 1, H, W), foreground > 0.5.
        valid_hw: (B, 2) int, rows and columns of the frame that are image, px.

    Returns:
        (B, 4) float32 x0, y0, x1, y1 in frame pixels, inclusive. An empty mask gives the whole
        image's rectangle: the one prompt that claims nothing about where the head is.

    Raises:
        ValueError: A mask that is not (B, 1, H, W).
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"masks are (B, 1, H, W), not {tuple(mask.shape)}")
    foreground = mask[:, 0] > 0.5
    sides = []
    for along in (foreground.any(dim=1), foreground.any(dim=2)):  # columns (B, W), rows (B, H)
        first = along.int().argmax(dim=1)  # argmax takes the first of equal values
        last = along.shape[1] - 1 - along.flip(1).int().argmax(dim=1)
        sides.append((first, last))
    (x0, x1), (y0, y1) = sides
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    is_empty = ~foreground.flatten(1).any(dim=1)
    return torch.where(is_empty[:, None], whole_image_boxes(valid_hw), boxes)


def largest_components(mask: torch.Tensor) -> torch.Tensor:
    """Keep the largest 8-connected part of each mask: specks far away must not widen its box.

    Args:
        mask: (B, 1, H, W) bool.

    Returns:
        (B, 1, H, W) float32 {0, 1}; empty where the mask is.
    """
    kept = torch.zeros(mask.shape, dtype=torch.float32)
    for item, each in enumerate(mask[:, 0].cpu().numpy().astype(np.uint8)):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(each)
        if count > 1:
            largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
            kept[item, 0] = torch.from_numpy(labels == largest)
    return kept.to(mask.device)


def predicted_boxes(logits: torch.Tensor, *, valid_hw: torch.Tensor) -> torch.Tensor:
    """Find the box of the largest part of a model's own prediction, for a second pass.

    Args:
        logits: (B, 1, H, W) of the frame, finite; above 0 is foreground.
        valid_hw: (B, 2) int, px; what was predicted in the padding, which no loss reads, is left
            out.

    Returns:
        (B, 4) float32 in frame pixels, inclusive; the whole image's rectangle where nothing was
        found.
    """
    inside = valid_pixels(valid_hw, size_hw=tuple(logits.shape[-2:]))
    return boxes_from_masks(largest_components((logits > 0) & inside), valid_hw=valid_hw)


def whole_image_boxes(valid_hw: torch.Tensor) -> torch.Tensor:
    """Give the rectangle of each unpadded image: the leak-free prompt.

    Args:
        valid_hw: (B, 2) int, px.

    Returns:
        (B, 4) float32 in frame pixels, inclusive: 0, 0, w - 1, h - 1.
    """
    height, width = valid_hw.float().unbind(dim=1)
    zero = torch.zeros_like(height)
    return torch.stack([zero, zero, width - 1, height - 1], dim=1)


def jitter_boxes(
    boxes_xyxy_px: torch.Tensor, *, offsets: torch.Tensor, valid_hw: torch.Tensor
) -> torch.Tensor:
    """Push each side of each box outward, and stop at the image's border.

    Args:
        boxes_xyxy_px: (B, 4) in frame pixels, inclusive.
        offsets: (B, 4) >= 0, outward distance of left, top, right, bottom in pixels of a 256x256
            squashed frame; the paper draws integers from 0 to 19.
        valid_hw: (B, 2) int, px; one offset pixel is valid_w / 256 across, valid_h / 256 down.

    Returns:
        (B, 4) float32 in frame pixels, inside the whole image's rectangle.
    """
    scale_y, scale_x = (valid_hw.float() / JITTER_FRAME_PX).unbind(dim=1)
    outward = torch.stack([-scale_x, -scale_y, scale_x, scale_y], dim=1) * offsets
    # Not by a list of columns: its copy to a GPU could not be captured in a graph.
    limits = whole_image_boxes(valid_hw)[:, 2:].repeat(1, 2)
    return torch.minimum((boxes_xyxy_px + outward).clamp(min=0), limits)


def prompt_boxes(
    protocol: PromptProtocol,
    *,
    mask: torch.Tensor,
    valid_hw: torch.Tensor,
    offsets: torch.Tensor,
) -> torch.Tensor:
    """Make the boxes of one protocol.

    Args:
        protocol: `tight_box`, the mask's own box; `jittered_box`, that box pushed outward;
            `whole_image`, which does not read the mask.
        mask: (B, 1, H, W), foreground > 0.5.
        valid_hw: (B, 2) int, px.
        offsets: (B, 4), read by `jittered_box` alone; see `jitter_boxes`.

    Returns:
        (B, 4) float32 in frame pixels, inclusive.

    Raises:
        ValueError: No such protocol.
    """
    if protocol == "whole_image":
        return whole_image_boxes(valid_hw)
    if protocol == "tight_box":
        return boxes_from_masks(mask, valid_hw=valid_hw)
    if protocol == "jittered_box":
        tight = boxes_from_masks(mask, valid_hw=valid_hw)
        return jitter_boxes(tight, offsets=offsets, valid_hw=valid_hw)
    raise ValueError(f"prompt must be one of {get_args(PromptProtocol)}, not {protocol!r}")


def drawn_boxes(
    protocols: Sequence[PromptProtocol],
    *,
    mask: torch.Tensor,
    valid_hw: torch.Tensor,
    offsets: torch.Tensor,
    choice: torch.Tensor,
) -> torch.Tensor:
    """Make each item's box by the protocol that was drawn for it.

    Args:
        protocols: P of them, see `prompt_boxes`.
        mask: (B, 1, H, W), foreground > 0.5.
        valid_hw: (B, 2) int, px.
        offsets: (B, 4), see `jitter_boxes`.
        choice: (B,) int64 in [0, P), on the mask's device.

    Returns:
        (B, 4) float32 in frame pixels, inclusive.
    """
    boxes = torch.stack(
        [prompt_boxes(p, mask=mask, valid_hw=valid_hw, offsets=offsets) for p in protocols]
    )
    return boxes[choice, torch.arange(len(choice), device=boxes.device)]


def ellipse_in_box_mask(
    boxes_xyxy_px: torch.Tensor,
    *,
    size_hw: tuple[int, int],
    valid_hw: torch.Tensor,
    shrink_px: float = 0.0,
) -> torch.Tensor:
    """Draw the axis-aligned ellipse inscribed in each box: the information in the prompt alone.

    Args:
        boxes_xyxy_px: (B, 4) in frame pixels, inclusive.
        size_hw: Height and width of the masks, px.
        valid_hw: (B, 2) int, px; scales `shrink_px` as in `jitter_boxes`.
        shrink_px: How far to pull each side inward first, in pixels of the 256x256 squashed frame;
            for a jittered box its mean jitter (9.5 for the paper's 0..19), for a tight one 0.

    Returns:
        (B, 1, H, W) bool. A box that shrinks away leaves at most one pixel.
    """
    scale_y, scale_x = (valid_hw.float() / JITTER_FRAME_PX).unbind(dim=1)
    x0, y0, x1, y1 = boxes_xyxy_px.float().unbind(dim=1)
    # + 1: inclusive corners are pixel centres, the box reaches half a pixel further on each side.
    semi_x = ((x1 - x0 + 1) / 2 - shrink_px * scale_x).clamp(min=0.5)[:, None, None]
    semi_y = ((y1 - y0 + 1) / 2 - shrink_px * scale_y).clamp(min=0.5)[:, None, None]
    device = boxes_xyxy_px.device
    x = torch.arange(size_hw[1], device=device)[None, None, :] - ((x0 + x1) / 2)[:, None, None]
    y = torch.arange(size_hw[0], device=device)[None, :, None] - ((y0 + y1) / 2)[:, None, None]
    return ((x / semi_x) ** 2 + (y / semi_y) ** 2 <= 1)[:, None]
