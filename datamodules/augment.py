"""Random augmentation of a batch of images together with their masks, on any device.

Pure: a view is a function of the image, the mask, the strength and a seed. Lengths are shares of
the image and the noise has a grain of its own, so that one seed shows the same view at every
resolution. Boxes are for the caller to take from the view's mask, never from the original's.

`config.AUGMENT_VERSION` is part of every key of what is made from views: a change that moves a
pixel counts it up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from datamodules.keyed import text_seed
from datamodules.shown import around_head, outside_holes, sides
from datamodules.small_heads import drawn_together

Strength = Literal["weak", "moderate", "strong"]

_GRAIN_PER_SIDE = 96
"""Cells of the speckle along the longer side."""
_ELASTIC_KNOTS, _FIELD_KNOTS = (4, 6), (3, 4)
_BLUR_SHARE = 1 / 38
"""Width of the blur's window as a share of the longer side."""
_N_UNIFORM = 16


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """Largest amounts of every operation, and how often those happen that do not always."""

    rotation_deg: float
    rotates: float
    mirrors: float
    flips: float
    zoom: float = 1.0
    """Largest enlargement and, by its inverse, reduction."""
    aspect: float = 1.0
    """Largest stretch of the width against the height, and its inverse."""
    shift: float = 0.0
    """Share of the side."""
    elastic: float = 0.0
    """Largest shift of a knot, in halves of the side."""
    gamma: float = 1.0
    gain: float = 1.0
    field: float = 1.0
    """Largest factor of the smooth field of brightness."""
    speckle: float = 0.0
    """Largest standard deviation of the factor that each grain has."""
    speckles: float = 1.0
    blurs: float = 0.3
    holes: int = 0
    """Black rectangles, each of which is there in three views of ten."""
    zooms_out: float = 0.0
    shrinks: float = 0.0
    cuts: float = 0.0
    """How often a view is zoomed out once more, how often the head alone is made smaller, and how
    often a view is black but for a box around the head."""
    fills: bool = False
    """Whether the edge is carried on where something turns into the picture, instead of black."""


_RECIPES: dict[Strength, _Recipe] = {
    "weak": _Recipe(
        rotation_deg=15, rotates=0.5, mirrors=0.5, flips=0.5, gain=1.2, speckle=0.1, speckles=0.3
    ),
    "moderate": _Recipe(
        rotation_deg=30,
        rotates=1.0,
        mirrors=0.5,
        flips=0.0,
        zoom=1.25,
        aspect=1.1,
        shift=0.1,
        gamma=1.5,
        gain=1.5,
        field=1.5,
        speckle=0.2,
        holes=1,
    ),
    "strong": _Recipe(
        rotation_deg=45,
        rotates=1.0,
        mirrors=0.5,
        flips=0.0,
        zoom=1.6,
        aspect=1.2,
        shift=0.2,
        elastic=0.08,
        gamma=2.0,
        gain=1.5,
        field=2.2,
        speckle=0.35,
        holes=4,
    ),
}
_OFF: dict[str, dict[str, float]] = {
    "rotation": {"rotation_deg": 0},
    "mirror": {"mirrors": 0, "flips": 0},
    "zoom": {"zoom": 1},
    "stretch": {"aspect": 1},
    "shift": {"shift": 0},
    "elastic": {"elastic": 0},
    "gamma": {"gamma": 1},
    "brightness": {"gain": 1},
    "field": {"field": 1},
    "speckle": {"speckle": 0},
    "blur": {"blurs": 0},
    "holes": {"holes": 0},
}
"""What leaves each of `AUGMENT_PARTS` out."""
_ON: dict[str, dict[str, float]] = {
    "zoom_out": {"zooms_out": 0.2},
    "edge_fill": {"fills": True},
    "small_head": {"shrinks": 0.3},
    "cut_out": {"cuts": 0.3},
}
_ZOOM_OUT, _SHRINK = 1.6, 2.0
_HEAD_SHARE = (0.6, 1.0)
"""Share of the box that is left which the head fills, along the axis where it fills more."""


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Random numbers of a batch, the same for every resolution and device."""

    uniform: torch.Tensor
    """(B, 16) in [0, 1)."""
    holes: torch.Tensor
    """(B, holes, 5) in [0, 1)."""
    elastic: torch.Tensor
    """(B, 2, 4, 6) in [-1, 1)."""
    field: torch.Tensor
    """(B, 1, 3, 4) in [-1, 1)."""
    grain: torch.Tensor
    """(B, 1, h, w) standard normal."""
    extra: torch.Tensor
    """(B, 6) in [0, 1)."""

    def signed(self, number: int) -> torch.Tensor:
        """(B,) in [-1, 1)."""
        return 2 * self.uniform[:, number] - 1


def augment_batch(
    image: torch.Tensor,
    mask: torch.Tensor,
    *,
    valid_hw: torch.Tensor,
    strength: Strength,
    seeds: Sequence[int],
    without: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one random view of each image and its mask.

    Weak: mirror images, rotation to 15 degrees, brightness, speckle, blur. Strong: mirror image,
    rotation to 45 degrees, zoom to 1.6 either way, stretch to 1.2, shift to a fifth, elastic
    deformation; gamma to 2 either way, brightness, a smooth field of it, speckle, blur, up to four
    black rectangles. Moderate: about half of each, and no elastic deformation. What turns into the
    picture is black, as outside of the sector; a reflection would show pieces of a second head
    without a label. Rectangles cover the image only: the head is still there, so its mask stays.

    Args:
        image: (B, 1, f H, f W) float in [0, 1], zero in the padding.
        mask: (B, 1, H, W) float in [0, 1].
        valid_hw: (B, 2) int, rows and columns of the frame (H, W) that are image, at its top left.
        strength: of the augmentation.
        seeds: B integers; each alone determines its item's view. They are read on the CPU.
        without: of `AUGMENT_PARTS`, left out.
        extra: of `AUGMENT_EXTRAS`, added. zoom_out: one view in five is zoomed out once more, by
            up to 1.6. small_head: in three views of ten the head alone is made smaller, by up to 2.
            edge_fill: the image's edge is carried on instead of black; its mask is not. cut_out:
            three views of ten are black but for a box around the head.

    Returns:
        Image in [0, 1] and mask in [0, 1] with soft edges, of the same shapes, float32. An image
        that a view makes brighter than 1 is scaled down as a whole: nothing saturates.

    Raises:
        ValueError: no such strength or part, or shapes that do not match.

    Source:
        Weak: operations and angles of arXiv 2506.23664. Moderate and strong: ours; docs/results.md
        has scores of students fitted under them.
    """
    if strength not in get_args(Strength):
        raise ValueError(f"strength must be one of {get_args(Strength)}, got {strength!r}")
    if image.ndim != 4 or len(image) != len(mask) or len(seeds) != len(image):
        raise ValueError(
            f"one mask and seed an image (B, 1, H, W), got {tuple(image.shape)}, "
            f"{tuple(mask.shape)} and {len(seeds)} seeds"
        )
    if len(image) == 0:
        return image, mask
    recipe = _RECIPES[strength]
    drawn = _draw(seeds, recipe=recipe, size_hw=tuple(mask.shape[-2:]), device=image.device)
    for name in without:
        if name not in _OFF:
            raise ValueError(f"no part {name!r} of the augmentation; there are {', '.join(_OFF)}")
        # After the draw, so that what is left is drawn as ever.
        recipe = replace(recipe, **_OFF[name])
    for name in extra:
        if name not in _ON:
            raise ValueError(f"nothing called {name!r} to add; there are {', '.join(_ON)}")
        recipe = replace(recipe, **_ON[name])
    size_hw = torch.tensor(mask.shape[-2:], device=image.device)
    part = valid_hw.to(image.device) / size_hw
    matrices = _matrices(drawn, recipe=recipe, valid_hw=valid_hw.to(image.device))
    move = partial(_moved, matrices=matrices, mask=mask, drawn=drawn, recipe=recipe, part=part)
    moved, moved_mask = move(image, fills=recipe.fills), move(mask, fills=False)
    changed = _changed(moved, drawn=drawn, recipe=recipe, part=part)
    if recipe.cuts:
        is_cut = drawn.extra[:, 4] < recipe.cuts
        share = _HEAD_SHARE[0] + drawn.extra[:, 5] * (_HEAD_SHARE[1] - _HEAD_SHARE[0])
        box = around_head(moved_mask, share=share, part=part, size_hw=tuple(image.shape[-2:]))
        changed = changed * (box | ~is_cut.view(-1, 1, 1, 1))
    return changed, moved_mask


def augment_view(
    image: np.ndarray, mask: np.ndarray, *, strength: Strength, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return one random view of one image without padding; see `augment_batch`.

    Args:
        image: uint8 (H, W).
        mask: uint8 (H, W) in {0, 1}.
        strength: of the augmentation.
        seed: integer.

    Returns:
        Image uint8 and mask uint8 {0, 1}, new arrays.

    Raises:
        ValueError: no such strength, shapes that differ, or dtypes other than uint8.
    """
    if image.ndim != 2 or image.shape != mask.shape:
        raise ValueError(
            f"image and mask must share one shape (H, W), got {image.shape} and {mask.shape}"
        )
    if image.dtype != np.uint8 or mask.dtype != np.uint8:
        raise ValueError(f"image and mask must be uint8, got {image.dtype} and {mask.dtype}")
    grey, label = augment_batch(
        torch.from_numpy(image[None, None].astype(np.float32) / 255),
        torch.from_numpy(mask[None, None].astype(np.float32)),
        valid_hw=torch.tensor([image.shape]),
        strength=strength,
        seeds=[seed],
    )
    return (
        (grey[0, 0] * 255).round().to(torch.uint8).numpy(),
        (label[0, 0] >= 0.5).to(torch.uint8).numpy(),
    )


def _draw(
    seeds: Sequence[int], *, recipe: _Recipe, size_hw: tuple[int, int], device: torch.device
) -> _Drawn:
    """On the CPU, so that they do not depend on the device."""
    cells = [max(round(_GRAIN_PER_SIDE * side / max(size_hw)), 1) for side in size_hw]
    found: list[list[torch.Tensor]] = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(text_seed("augment", seed) >> 1)
        found.append(
            [
                torch.rand(_N_UNIFORM, generator=generator),
                torch.rand(recipe.holes, 5, generator=generator),
                torch.rand(2, *_ELASTIC_KNOTS, generator=generator) * 2 - 1,
                torch.rand(1, *_FIELD_KNOTS, generator=generator) * 2 - 1,
                torch.randn(1, *cells, generator=generator),
                torch.rand(6, generator=generator),
            ]
        )
    uniform, holes, elastic, field, grain, extra = (
        torch.stack(rows).to(device, non_blocking=True) for rows in zip(*found, strict=True)
    )
    return _Drawn(
        uniform=uniform, holes=holes, elastic=elastic, field=field, grain=grain, extra=extra
    )


def _matrices(drawn: _Drawn, *, recipe: _Recipe, valid_hw: torch.Tensor) -> torch.Tensor:
    """(B, 2, 3): from the view to the image, in coordinates that are -1 and 1 at its sides."""
    turns = drawn.uniform[:, 0] < recipe.rotates
    angle = drawn.signed(1) * math.radians(recipe.rotation_deg) * turns
    zoom = torch.exp(drawn.signed(2) * math.log(recipe.zoom))
    zoom = zoom / _at_times(drawn.extra[:, :2], how_often=recipe.zooms_out, largest=_ZOOM_OUT)
    stretch = torch.exp(drawn.signed(3) * math.log(recipe.aspect) / 2)
    mirror = torch.where(drawn.uniform[:, 4] < recipe.mirrors, -1.0, 1.0)
    flip = torch.where(drawn.uniform[:, 5] < recipe.flips, -1.0, 1.0)
    shift_x, shift_y = (2 * recipe.shift * drawn.signed(number) for number in (6, 7))
    # Pixels stay square: a turn carries the aspect ratio of the image.
    ratio = valid_hw[:, 1] / valid_hw[:, 0]
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    row_x = torch.stack([mirror * cos * stretch, -mirror * sin / stretch / ratio, shift_x], dim=1)
    row_y = torch.stack([flip * sin * stretch * ratio, flip * cos / stretch, shift_y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _moved(
    frames: torch.Tensor,
    *,
    fills: bool,
    matrices: torch.Tensor,
    mask: torch.Tensor,
    drawn: _Drawn,
    recipe: _Recipe,
    part: torch.Tensor,
) -> torch.Tensor:
    """Resample bilinearly; `part` (B, 2) is the share of the frame that is image."""
    height, width = frames.shape[-2:]
    rows, columns = sides((height, width), part=part)
    y, x = rows * 2 - 1, columns * 2 - 1
    linear = matrices.view(-1, 6, 1, 1)
    grid = torch.stack(
        [
            linear[:, row] * x[:, None, :] + linear[:, row + 1] * y[:, :, None] + linear[:, row + 2]
            for row in (0, 3)
        ],
        dim=1,
    )
    if recipe.elastic:
        grid += F.interpolate(drawn.elastic, (height, width), mode="bicubic") * recipe.elastic
    # From coordinates of the image to those of the frame that it lies in.
    to_frame = part.flip(1)[:, :, None, None]
    in_frame = (grid + 1) * to_frame - 1
    if recipe.shrinks:
        factor = _at_times(drawn.extra[:, 2:4], how_often=recipe.shrinks, largest=_SHRINK)
        in_frame = drawn_together(in_frame, mask, factor)
    if fills:
        # Half a pixel off the sides, or the black around them would be mixed in.
        half = (1 / to_frame.new_tensor([width, height])).view(1, 2, 1, 1)
        in_frame = torch.maximum(torch.minimum(in_frame, 2 * to_frame - 1 - half), half - 1)
    moved = F.grid_sample(
        frames.float(), in_frame.permute(0, 2, 3, 1), mode="bilinear", align_corners=False
    )
    return moved * _inside((height, width), part=part)


def _at_times(uniform: torch.Tensor, *, how_often: float, largest: float) -> torch.Tensor:
    """(B,) factors: 1, or at the given share of views up to `largest`; uniform is (B, 2)."""
    return torch.exp(uniform[:, 1] * math.log(largest) * (uniform[:, 0] < how_often))


def _inside(size_hw: tuple[int, int], *, part: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) bool, false in the padding."""
    rows, columns = sides(size_hw, part=part)
    return ((rows <= 1)[:, :, None] & (columns <= 1)[:, None, :])[:, None]


def _changed(
    image: torch.Tensor, *, drawn: _Drawn, recipe: _Recipe, part: torch.Tensor
) -> torch.Tensor:
    """Change intensities; black stays black."""
    size_hw = tuple(image.shape[-2:])

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.view(-1, 1, 1, 1)

    if recipe.gamma > 1:
        power = torch.exp(drawn.signed(8) * math.log(recipe.gamma))
        image = image.clamp(min=1e-6) ** column(power)
    factor = drawn.signed(9) * math.log(recipe.gain)
    log_factor = column(factor)
    if recipe.field > 1:
        smooth = F.interpolate(drawn.field, size_hw, mode="bicubic", align_corners=False)
        log_factor = log_factor + smooth * math.log(recipe.field)
    image = image * torch.exp(log_factor)
    amount = drawn.uniform[:, 10] * recipe.speckle * (drawn.uniform[:, 11] < recipe.speckles)
    grain = F.interpolate(drawn.grain, size_hw, mode="bilinear", align_corners=False)
    image = (image * (1 + grain * column(amount))).clamp(min=0)
    window = 2 * round(max(size_hw) * _BLUR_SHARE / 2) + 1
    blur = F.avg_pool2d(image, window, stride=1, padding=window // 2, count_include_pad=False)
    share = column(drawn.uniform[:, 12] * (drawn.uniform[:, 13] < recipe.blurs))
    image = image + share * (blur - image)
    if recipe.holes:
        image = image * outside_holes(drawn.holes, part=part, size_hw=size_hw)
    # Blur leaks into the padding.
    image = image * _inside(size_hw, part=part)
    return image / image.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)
