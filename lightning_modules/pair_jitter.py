"""Small random motions of an image and its mask together, keyed per item. Pure."""

import math

import torch
import torch.nn.functional as F

from lightning_modules.randomness import keyed_rand


def jitter_matrices(
    size_hw: tuple[int, int],
    *,
    rotation_rad: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    flip: torch.Tensor,
) -> torch.Tensor:
    """Give the matrices that `affine_grid` wants for a motion about the image's centre.

    `affine_grid` maps output to input in coordinates that are -1 and 1 at the sides, so the
    matrix is the motion's inverse and the rotation carries the aspect ratio: pixels stay square.

    Args:
        size_hw: Height and width in pixels.
        rotation_rad: (B,) angle from +x towards +y (image coordinates).
        scale: (B,) enlargement, above 0.
        shift: (B, 2) along x and y, as a share of that side.
        flip: (B,) bool, mirror left to right before the rest.

    Returns:
        (B, 2, 3).
    """
    height, width = size_hw
    cos, sin = torch.cos(rotation_rad) / scale, torch.sin(rotation_rad) / scale
    along_x = torch.stack([cos, sin * height / width], dim=-1)
    along_y = torch.stack([-sin * width / height, cos], dim=-1)
    matrices = torch.stack([along_x, along_y], dim=-2)
    # output = R(input) + 2 * shift, hence input = R^-1 (output - 2 * shift).
    offset = -(matrices @ (2 * shift).unsqueeze(-1))
    matrices = torch.cat([matrices, offset], dim=-1)
    mirror = torch.where(flip, -1.0, 1.0).view(-1, 1)
    return torch.cat([matrices[:, :1] * mirror.unsqueeze(-1), matrices[:, 1:]], dim=1)


def jitter_pairs(
    image: torch.Tensor,
    mask: torch.Tensor,
    *,
    seed: int,
    draws: torch.Tensor,
    flip_probability: float,
    max_rotation_deg: float,
    max_scale: float,
    max_shift: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror, turn, scale and shift each pair by its own keyed amounts.

    Args:
        image: (B, 1, H, W) float in [0, 1].
        mask: (B, 1, H, W) float {0, 1}.
        seed: The run's seed.
        draws: (B,) int64 positions in the training stream.
        flip_probability: Share of pairs mirrored left to right (the beam comes from above).
        max_rotation_deg: Largest angle, either way.
        max_scale: Largest enlargement, 1 or more; log-uniform down to its inverse.
        max_shift: Largest shift along each axis, as a share of that side.

    Returns:
        The moved image (bilinear, black outside) and mask (bilinear, cut at one half), shaped and
        ranged as given; the input itself where all the limits are zero (max_scale one).
    """
    if flip_probability == 0 and max_rotation_deg == 0 and max_scale == 1 and max_shift == 0:
        return image, mask
    uniform = keyed_rand((5,), seed=seed, draws=draws, stream="pair_jitter", device=image.device)
    signed = 2 * uniform - 1
    # Under autocast the grid would be bf16, whose steps are wider than a pixel's quarter.
    with torch.autocast(image.device.type, enabled=False):
        matrices = jitter_matrices(
            (image.shape[-2], image.shape[-1]),
            rotation_rad=signed[:, 0] * math.radians(max_rotation_deg),
            scale=torch.exp(signed[:, 1] * math.log(max_scale)),
            shift=signed[:, 2:4] * max_shift,
            flip=uniform[:, 4] < flip_probability,
        )
        pair = torch.cat([image, mask], dim=1).to(matrices.dtype)
        grid = F.affine_grid(matrices, list(pair.shape), align_corners=False)
        moved = F.grid_sample(
            pair, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
    return moved[:, :1], (moved[:, 1:] >= 0.5).to(mask.dtype)
