"""The segmentation loss and the Dice that is logged while training. Everything here is pure."""

import torch
from torch.nn import functional

SMOOTH = 1e-5
"""Added to numerator and denominator of the soft Dice, as in MONAI."""


def valid_pixels(valid_hw: torch.Tensor, *, size_hw: tuple[int, int]) -> torch.Tensor:
    """Tell image from padding.

    Args:
        valid_hw: (B, 2) int, rows and columns of the frame that are image, px.
        size_hw: Height and width of the frame, px.

    Returns:
        (B, 1, H, W) bool, True inside the image (top left).
    """
    rows = torch.arange(size_hw[0], device=valid_hw.device)[None, :, None]
    columns = torch.arange(size_hw[1], device=valid_hw.device)[None, None, :]
    inside = (rows < valid_hw[:, 0, None, None]) & (columns < valid_hw[:, 1, None, None])
    return inside[:, None]


def dice_cross_entropy_loss(
    logits: torch.Tensor, target: torch.Tensor, *, valid_hw: torch.Tensor
) -> torch.Tensor:
    """Soft Dice loss plus binary cross-entropy, equally weighted, over the image's pixels.

    Per item, with p = sigmoid(logits) and t = target, sums and means over its valid pixels only:
        1 - (2 sum(p t) + s) / (sum(p^2) + sum(t^2) + s) + mean(BCE(p, t)),  s = 1e-5.
    The batch's loss is the mean over items, so that an image's weight does not depend on its
    aspect ratio, and two half batches average to the whole one.

    Args:
        logits: (B, 1, H, W) float, not probabilities; computed in float32 whatever comes.
        target: (B, 1, H, W) in [0, 1].
        valid_hw: (B, 2) int, rows and columns of the frame that are image, px, >= 1.

    Returns:
        A float32 scalar >= 0. An empty target has a Dice term of 1 unless the prediction is empty
        too, where it goes to 0.

    Raises:
        ValueError: The shapes differ, or the batch is empty.

    Source:
        MONAI's DiceCELoss(sigmoid=True, squared_pred=True), the paper's loss; equal to its formula
        where all of every frame is image.
    """
    if logits.shape != target.shape or logits.ndim != 4 or logits.shape[1] != 1:
        shapes = f"{tuple(logits.shape)} and {tuple(target.shape)}"
        raise ValueError(f"logits and target must both be (B, 1, H, W), not {shapes}")
    if logits.shape[0] == 0:
        raise ValueError("an empty batch has no loss")
    logits, target = logits.float(), target.float()
    valid = valid_pixels(valid_hw, size_hw=tuple(logits.shape[-2:])).float()
    probability = torch.sigmoid(logits) * valid
    target_inside = target * valid
    overlap = (probability * target_inside).sum(dim=(1, 2, 3))
    squares = (probability**2).sum(dim=(1, 2, 3)) + (target_inside**2).sum(dim=(1, 2, 3))
    dice_term = 1 - (2 * overlap + SMOOTH) / (squares + SMOOTH)
    return (dice_term + cross_entropy(logits, target, valid_hw=valid_hw)).mean()


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, *, valid_hw: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy per item, the mean over the image's pixels of the frame.

    Args:
        logits: (B, 1, H, W) float, not probabilities; computed in float32 whatever comes.
        target: (B, 1, H, W) in [0, 1].
        valid_hw: (B, 2) int, rows and columns of the frame that are image, px, >= 1.

    Returns:
        (B,) float32 >= 0, nats; ln 2 where every logit is 0.

    Source:
        torch's binary_cross_entropy_with_logits.
    """
    logits, target = logits.float(), target.float()
    valid = valid_pixels(valid_hw, size_hw=tuple(logits.shape[-2:])).float()
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (entropy * valid).sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3))


def dice_from_logits(
    logits: torch.Tensor, target: torch.Tensor, *, valid_hw: torch.Tensor
) -> torch.Tensor:
    """Dice of the mask `logits > 0`, per item, over the image's pixels of the frame.

    For watching a run; published numbers are scored at the original size by `metrics.dice_score`.

    Args:
        logits: (B, 1, H, W) float.
        target: (B, 1, H, W), foreground > 0.5.
        valid_hw: (B, 2) int, px.

    Returns:
        (B,) float32 in [0, 1]; 1 where both are empty, 0 where one is.
    """
    valid = valid_pixels(valid_hw, size_hw=tuple(logits.shape[-2:]))
    predicted = (logits > 0) & valid
    expected = (target > 0.5) & valid
    overlap = (predicted & expected).sum(dim=(1, 2, 3)).float()
    total = (predicted.sum(dim=(1, 2, 3)) + expected.sum(dim=(1, 2, 3))).float()
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total))
