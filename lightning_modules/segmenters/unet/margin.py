"""A black border around images that are predicted, and its removal from the logits. Pure.

Strong augmentation turns and moves every training view, so that nearly all of them have black
corners; an image that fills its frame is one that training has hardly shown.
"""

import torch
import torch.nn.functional as F


def add_margin(image: torch.Tensor, *, margin: float) -> torch.Tensor:
    """Shrink images about the centre of their frame, black around them.

    Args:
        image: (B, 1, h, w) float.
        margin: Share of either side that becomes black, in [0, 1).

    Returns:
        (B, 1, h, w); the image itself where the margin is less than a pixel.
    """
    rows, columns = _inner(image.shape, margin=margin)
    if (len(rows), len(columns)) == tuple(image.shape[-2:]):
        return image
    small = F.interpolate(
        image, (len(rows), len(columns)), mode="bilinear", align_corners=False, antialias=True
    )
    framed = torch.zeros_like(image)
    framed[..., rows.start : rows.stop, columns.start : columns.stop] = small
    return framed


def remove_margin(logits: torch.Tensor, *, margin: float) -> torch.Tensor:
    """Cut the logits of `add_margin`'s image out and enlarge them to the frame: (B, 1, h, w)."""
    rows, columns = _inner(logits.shape, margin=margin)
    if (len(rows), len(columns)) == tuple(logits.shape[-2:]):
        return logits
    inner = logits[..., rows.start : rows.stop, columns.start : columns.stop]
    return F.interpolate(inner, logits.shape[-2:], mode="bilinear", align_corners=False)


def _inner(shape: torch.Size, *, margin: float) -> tuple[range, range]:
    """Rows and columns of the frame that hold the image."""
    spans = []
    for side in shape[-2:]:
        inner = max(1, round(side * (1 - margin)))
        first = (side - inner) // 2
        spans.append(range(first, first + inner))
    return spans[0], spans[1]
