"""A smaller head in the same picture: the image is drawn together at the head and stretched around
it, so that no border comes in and no second head. Pure; on any device.
"""

import torch

_OUTER = 2.2
"""Distance from the centre, in half axes of the head, from which on nothing moves."""
_SMALLEST = 1e-3
"""Half axis, in halves of the image's side, under which there is no head to draw together."""


def drawn_together(points: torch.Tensor, mask: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Where each point of a view with a smaller head lies in the image.

    Distances count in half axes of the ellipse with the mask's second moments. Up to 1 / factor
    they grow to 1, the head's outline; from there to 2.2 linearly to 2.2; beyond that nothing
    moves.

    Args:
        points: (B, 2, H, W) x and y, -1 and 1 at the sides of the image that the mask is of.
        mask: (B, 1, h, w) in [0, 1], of the whole frame.
        factor: (B,) by which the head's axes are divided, at least 1.

    Returns:
        Points of the same shape. They stay where the mask is empty.
    """
    height, width = mask.shape[-2:]
    weight = mask[:, 0].float()
    y = (torch.arange(height, device=mask.device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=mask.device) + 0.5) / width * 2 - 1
    total = weight.sum(dim=(1, 2))
    share = weight / total.clamp(min=1e-6)[:, None, None]
    by_row, by_column = share.sum(dim=2), share.sum(dim=1)
    centre_x, centre_y = by_column @ x, by_row @ y
    off_x, off_y = x - centre_x[:, None], y - centre_y[:, None]
    xx, yy = (by_column * off_x**2).sum(dim=1), (by_row * off_y**2).sum(dim=1)
    xy = (share * off_y[:, :, None] * off_x[:, None, :]).sum(dim=(1, 2))
    determinant = xx * yy - xy**2
    found = (total > 0) & (determinant > _SMALLEST**4)
    determinant = torch.where(found, determinant, 1.0).view(-1, 1, 1)
    xx, yy, xy = (moment.view(-1, 1, 1) for moment in (xx, yy, xy))
    from_centre = points - torch.stack([centre_x, centre_y], dim=1)[:, :, None, None]
    dx, dy = from_centre.unbind(dim=1)
    # An ellipse's second moment along an axis is a quarter of the half axis squared.
    distance = ((yy * dx**2 - 2 * xy * dx * dy + xx * dy**2) / determinant).clamp(min=0).sqrt() / 2
    inner = (1 / factor).view(-1, 1, 1)
    between = 1 + (distance - inner) * (_OUTER - 1) / (_OUTER - inner)
    there = torch.where(distance <= inner, distance / inner, between)
    there = torch.where(distance >= _OUTER, distance, there)
    ratio = there / distance.clamp(min=1e-6)
    moves = (found & (factor > 1)).view(-1, 1, 1) & (distance > 1e-6)
    return points + from_centre * (torch.where(moves, ratio, 1.0) - 1)[:, None]
