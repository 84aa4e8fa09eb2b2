"""What of a view is shown: boxes that hide a part of it, or all but a part. Pure; on any device."""

import torch

_HOLES_SHOWN, _HOLE_SIDE = 0.3, 0.3


def sides(size_hw: tuple[int, int], *, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (B, H) and columns (B, W) in coordinates that are 0 and 1 at the image's sides."""
    rows, columns = (
        ((torch.arange(side, device=part.device) + 0.5) / side)[None] / part[:, axis, None]
        for axis, side in enumerate(size_hw)
    )
    return rows, columns


def around_head(
    mask: torch.Tensor, *, share: torch.Tensor, part: torch.Tensor, size_hw: tuple[int, int]
) -> torch.Tensor:
    """(B, 1, H, W) bool, true in the box of the image's shape around each mask that the mask's own
    box fills to a share (B,), and everywhere where a mask is empty."""
    lengths, centres = [], []
    for axis, place in enumerate(sides(tuple(mask.shape[-2:]), part=part)):
        has = (mask[:, 0] > 0.5).any(dim=2 - axis)
        first = torch.where(has, place, 2.0).amin(dim=1)
        last = torch.where(has, place, -1.0).amax(dim=1)
        lengths.append(last - first)
        centres.append((first + last) / 2)
    # Both sides are shares of the image, so that the box has its shape.
    half = torch.stack(lengths).amax(dim=0) / share / 2
    half = torch.where(half < 0, 2.0, half)
    rows, columns = (
        (place - centre[:, None]).abs() <= half[:, None]
        for place, centre in zip(sides(size_hw, part=part), centres, strict=True)
    )
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def outside_holes(
    holes: torch.Tensor, *, part: torch.Tensor, size_hw: tuple[int, int]
) -> torch.Tensor:
    """(B, 1, H, W) bool, false in the rectangles that are shown."""
    covered = []
    for axis, place in enumerate(sides(size_hw, part=part)):
        start, length = holes[:, :, 1 + axis, None], holes[:, :, 3 + axis, None] * _HOLE_SIDE
        covered.append((place[:, None] > start) & (place[:, None] < start + length))
    rows = covered[0] & (holes[:, :, 0] < _HOLES_SHOWN)[:, :, None]
    hidden = holes.new_zeros(len(holes), *size_hw, dtype=torch.bool)
    for number in range(holes.shape[1]):
        hidden |= rows[:, number, :, None] & covered[1][:, number, None, :]
    return ~hidden[:, None]
