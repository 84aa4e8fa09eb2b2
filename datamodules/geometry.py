"""Where an image lies in a network's frame, and the way back, for images, masks, boxes and logits.

Coordinates: pixel centres are integers, so a resize by the factor `s` moves the coordinate `x` to
`(x + 0.5) * s - 0.5` (the half-pixel rule of cv2.resize and of torch's `align_corners=False`).
Everything here is pure.
"""

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from torch.nn import functional

Mode = Literal["pad", "squash"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where an image lies in a frame: always at the top left, the rest is zero padding."""

    original_hw: tuple[int, int]
    """Height and width of the image as read, px."""
    frame_hw: tuple[int, int]
    """Height and width of the network's input, px."""
    valid_hw: tuple[int, int]
    """Rows and columns of the frame that the image covers, px."""
    mode: Mode
    """`pad` keeps the aspect ratio and pads bottom and right; `squash` fills the whole frame."""

    @property
    def scale_y(self) -> float:
        """Frame pixels per original pixel, downwards."""
        return self.valid_hw[0] / self.original_hw[0]

    @property
    def scale_x(self) -> float:
        """Frame pixels per original pixel, to the right."""
        return self.valid_hw[1] / self.original_hw[1]


def place(original_hw: tuple[int, int], *, frame_hw: tuple[int, int], mode: Mode) -> Placement:
    """Place an image in a frame.

    Args:
        original_hw: Height and width of the image, px, >= 1.
        frame_hw: Height and width of the frame, px, >= 1.
        mode: `pad`: the largest size of the image's aspect ratio that fits, rounded by
            `int(x * scale + 0.5)`, padded at the bottom and at the right. `squash`: the frame's
            size, the aspect ratio is lost.

    Returns:
        The placement.

    Raises:
        ValueError: A size below 1, or a mode that does not exist.

    Source:
        segment_anything.utils.transforms.ResizeLongestSide.get_preprocess_shape, equal to it for
        square frames.
    """
    original_hw = (int(original_hw[0]), int(original_hw[1]))
    frame_hw = (int(frame_hw[0]), int(frame_hw[1]))
    if min(*original_hw, *frame_hw) < 1:
        raise ValueError(f"sizes must be at least 1 px: image {original_hw}, frame {frame_hw}")
    if mode == "squash":
        valid_hw = frame_hw
    elif mode == "pad":
        # One multiplication with the scale, as there: `h * frame / w` rounds ties differently.
        scale = min(frame_hw[0] / original_hw[0], frame_hw[1] / original_hw[1])
        valid_hw = (
            min(frame_hw[0], max(1, int(original_hw[0] * scale + 0.5))),
            min(frame_hw[1], max(1, int(original_hw[1] * scale + 0.5))),
        )
    else:
        raise ValueError(f"mode must be 'pad' or 'squash', not {mode!r}")
    return Placement(original_hw=original_hw, frame_hw=frame_hw, valid_hw=valid_hw, mode=mode)


def enlarge(placement: Placement, factor: int) -> Placement:
    """The same placement in a frame `factor` times as large: pixels of both lie over each other.

    Args:
        placement: From `place`.
        factor: Pixels of the larger frame per pixel of the frame, >= 1.
    """
    height, width = placement.frame_hw
    valid_height, valid_width = placement.valid_hw
    return replace(
        placement,
        frame_hw=(height * factor, width * factor),
        valid_hw=(valid_height * factor, valid_width * factor),
    )


def image_to_frame(image: np.ndarray, placement: Placement) -> np.ndarray:
    """Resize a grey image into its frame; area average where it shrinks, bilinear where it grows.

    Args:
        image: (H, W), uint8 or float32/float64, any range; H, W = `placement.original_hw`.
        placement: From `place`.

    Returns:
        (h, w) = `placement.frame_hw`, same dtype and range, zero in the padding.

    Raises:
        ValueError: The image is not of the placement's size.

    Source:
        cv2.resize with INTER_AREA; the same bytes where both axes shrink.
    """
    _require_size(image, placement.original_hw, what="image")
    valid_h, valid_w = placement.valid_hw
    frame = np.zeros(placement.frame_hw, dtype=image.dtype)
    frame[:valid_h, :valid_w] = _resize(image, (valid_h, valid_w))
    return frame


def mask_to_frame(mask: np.ndarray, placement: Placement) -> np.ndarray:
    """Resize a mask into its frame without shrinking or growing it.

    A frame pixel is foreground when at least half of its area is (nearest sampling would be as
    unbiased but noisier, and truncation after a smooth resize loses 2 % of a head).

    Args:
        mask: (H, W) uint8 in {0, 1} of size `placement.original_hw`.
        placement: From `place`.

    Returns:
        (h, w) uint8 in {0, 1} of size `placement.frame_hw`, 0 in the padding; empty stays empty.

    Raises:
        ValueError: The mask is not of the placement's size.
    """
    return (image_to_frame(mask.astype(np.float32), placement) >= 0.5).astype(np.uint8)


def shrink_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """Bring a mask of an enlarged frame back to the frame: foreground from half of its area on.

    Args:
        mask: (f h, f w) uint8 in {0, 1}.
        factor: f >= 1.

    Returns:
        (h, w) uint8 in {0, 1}.
    """
    if factor == 1:
        return mask
    height, width = mask.shape[0] // factor, mask.shape[1] // factor
    shares = mask.reshape(height, factor, width, factor).mean(axis=(1, 3))
    return (shares >= 0.5).astype(np.uint8)


def boxes_to_frame(boxes_xyxy_px: np.ndarray, placement: Placement) -> np.ndarray:
    """Move boxes from the original image into the frame.

    Args:
        boxes_xyxy_px: (..., 4) x0, y0, x1, y1 in original pixels, pixel centres being integers.
        placement: From `place`.

    Returns:
        (..., 4) float64 in frame pixels; no boxes give no boxes. Nothing is clipped.
    """
    scales = np.array([placement.scale_x, placement.scale_y] * 2)
    return (np.asarray(boxes_xyxy_px, dtype=np.float64) + 0.5) * scales - 0.5


def logits_to_original(logits: torch.Tensor, placement: Placement) -> torch.Tensor:
    """Bring logits of the frame to the original image's size; threshold them at 0 afterwards.

    Args:
        logits: (..., h, w) float, of the frame's own size or of any other resolution of the whole
            frame (then resized to the frame's size first, as SAM does).
        placement: From `place`.

    Returns:
        (..., H, W) float32 at `placement.original_hw`: the valid part, bilinear.

    Raises:
        ValueError: Fewer than two dimensions.

    Source:
        segment_anything.modeling.Sam.postprocess_masks, equal to it for square frames.
    """
    if logits.ndim < 2:
        raise ValueError(f"logits need rows and columns, their shape is {tuple(logits.shape)}")
    lead = logits.shape[:-2]
    # bilinear in half precision would lose the position of the boundary.
    flat = logits.float().reshape(1, -1, *logits.shape[-2:])
    if tuple(flat.shape[-2:]) != placement.frame_hw:
        flat = functional.interpolate(
            flat, size=placement.frame_hw, mode="bilinear", align_corners=False
        )
    valid = flat[..., : placement.valid_hw[0], : placement.valid_hw[1]]
    original = functional.interpolate(
        valid, size=placement.original_hw, mode="bilinear", align_corners=False
    )
    return original.reshape(*lead, *placement.original_hw)


def zoom(
    pictures: torch.Tensor, factor: float, *, beyond: Literal["zeros", "border"]
) -> torch.Tensor:
    """Enlarge pictures about their centre within their own size, bilinear.

    Args:
        pictures: (B, C, h, w) float.
        factor: New size / old size, > 0; 1 gives them as they are.
        beyond: What stands where a smaller picture leaves the frame empty: zeros, or what lies at
            its border.

    Returns:
        (B, C, h, w), same dtype. `zoom(zoom(x, f), 1 / f)` is x, blurred, where x was in the frame.

    Source:
        torch's `grid_sample` with pixel areas (`align_corners=False`).
    """
    if factor == 1:
        return pictures
    scale = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], dtype=pictures.dtype)
    theta = scale.to(pictures.device).expand(len(pictures), 2, 3)
    grid = functional.affine_grid(theta, pictures.shape, align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode=beyond, align_corners=False)


def zoom_within(
    pictures: torch.Tensor,
    factor: float,
    *,
    valid_hw: tuple[int, int],
    beyond: Literal["zeros", "border"],
) -> torch.Tensor:
    """`zoom` the part of a frame that is image, `valid_hw`, about its own centre; padding stays."""
    height, width = valid_hw
    moved = pictures.clone()
    moved[..., :height, :width] = zoom(pictures[..., :height, :width], factor, beyond=beyond)
    return moved


def image_to_original(
    image: np.ndarray, placement: Placement, *, interpolation: Literal["nearest", "linear"]
) -> np.ndarray:
    """Cut the valid part out of a frame and resize it to the original image's size.

    Args:
        image: (h, w) uint8 or float of size `placement.frame_hw`.
        placement: From `place`.
        interpolation: `nearest` for label images; `linear` for grey images (area average where the
            original is smaller than the frame).

    Returns:
        (H, W) = `placement.original_hw`, same dtype.

    Raises:
        ValueError: The image is not of the frame's size, or no such interpolation.
    """
    _require_size(image, placement.frame_hw, what="frame")
    valid = image[: placement.valid_hw[0], : placement.valid_hw[1]]
    if interpolation == "linear":
        return _resize(valid, placement.original_hw)
    if interpolation == "nearest":
        height, width = placement.original_hw
        # INTER_NEAREST drops the half pixel and shifts the picture; INTER_NEAREST_EXACT does not.
        return cv2.resize(valid, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    raise ValueError(f"interpolation must be 'nearest' or 'linear', not {interpolation!r}")


def _resize(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize to (h, w): area average along axes that shrink, bilinear along those that grow."""
    shrunk_hw = (min(size_hw[0], image.shape[0]), min(size_hw[1], image.shape[1]))
    # Two calls, because cv2's INTER_AREA averages only where neither axis grows.
    if shrunk_hw != image.shape:
        image = cv2.resize(image, shrunk_hw[::-1], interpolation=cv2.INTER_AREA)
    if shrunk_hw != size_hw:
        image = cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return image


def _require_size(image: np.ndarray, size_hw: tuple[int, int], *, what: str) -> None:
    if image.shape != size_hw:
        raise ValueError(f"{what} has shape {image.shape}, its placement says {size_hw}")
