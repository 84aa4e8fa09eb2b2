"""Weak and strong augmentation of an image together with its mask, by torchvision.transforms.v2.

Pure: a view is a function of the image, the mask, the strength and a seed. Positions, lengths and
the grain of the noise are relative to a frame of 256 px, so that one seed shows the same view at
every resolution. Boxes are for the caller to take from the view's mask, never from the original's.
"""

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from datamodules.keyed import text_seed

Strength = Literal["weak", "strong"]

# Part of every cache key: a change of anything below that moves a pixel counts it up.
AUGMENT_VERSION = 1

_FRAME_PX = 256
_MIN_KEPT_SHARE = 0.3
_MAX_ATTEMPTS = 8

_BLUR_SIGMA_PX = (0.5, 1.5)
_NOISE_STD = (0.01, 0.05)
# Elastic: independent shifts at knots 32 px apart, smooth between them, 3 px in the mean square.
_ELASTIC_KNOT_PX = 32
_ELASTIC_STD_PX = 3.0
_HOLES = 8
_HOLE_SIDE_PX = (8, 32)


def augment_view(
    image: np.ndarray, mask: np.ndarray, *, strength: Strength, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return one random view of an image and its mask.

    Weak: flips, rotation up to 15 degrees, brightness and contrast, Gaussian blur, Gaussian noise.
    Strong: rotation up to 45 degrees, elastic deformation, brightness, contrast and gamma (what
    hue, saturation and value are on a grey image), coarse dropout. Each operation has its own
    probability, see `_weak` and `_strong`. What turns into the picture is black, as outside of
    the sector; a reflection would show pieces of a second head without a label. Dropout covers
    the image only: the head is still there, so its mask stays.

    A view that keeps less than 30 % of the mask's area is drawn again, eight times at most; then
    the original is returned. The random draws go through torch's global CPU generator, which is
    put back afterwards: several processes may call this, several threads may not.

    Args:
        image: uint8 (H, W), the image without padding, H and W at least 2.
        mask: uint8 (H, W) in {0, 1}; an empty one stays empty and causes no second draw.
        strength: of the augmentation.
        seed: integer; the same on every machine, though floating point may move a grey level
            by one.

    Returns:
        Image and mask of the same shapes and dtypes, new arrays.

    Raises:
        ValueError: no such strength, shapes that differ, or dtypes other than uint8.

    Source:
        Operations and angles of arXiv 2506.23664; probabilities and strengths are ours, of the
        order of albumentations' defaults.
    """
    if strength not in get_args(Strength):
        raise ValueError(f"strength must be 'weak' or 'strong', got {strength!r}")
    if image.ndim != 2 or image.shape != mask.shape or min(image.shape) < 2:
        raise ValueError(
            f"image and mask must share one shape (H, W), got {image.shape} and {mask.shape}"
        )
    if image.dtype != np.uint8 or mask.dtype != np.uint8:
        raise ValueError(f"image and mask must be uint8, got {image.dtype} and {mask.dtype}")
    original = (
        tv_tensors.Image(torch.tensor(image[None], dtype=torch.float32) / 255),
        tv_tensors.Mask(torch.tensor(mask[None])),
    )
    geometry, appearance = (_weak if strength == "weak" else _strong)()
    kept_px = _MIN_KEPT_SHARE * int(mask.sum())
    with torch.random.fork_rng(devices=[]):
        for attempt in range(_MAX_ATTEMPTS):
            # torch.manual_seed would seed the accelerators as well, which nothing puts back.
            torch.default_generator.manual_seed(text_seed("augment", seed, attempt) >> 1)
            view, view_mask = geometry(*original)
            if int(view_mask.sum()) >= kept_px:
                grey = (appearance(view).clamp(0, 1) * 255).round().to(torch.uint8)
                return grey[0].numpy(), view_mask[0].numpy().copy()
    return image.copy(), mask.copy()


def _weak() -> tuple[v2.Transform, v2.Transform]:
    """Return what moves image and mask, and what changes the image alone."""
    geometry = v2.Compose(
        [v2.RandomHorizontalFlip(p=0.5), v2.RandomVerticalFlip(p=0.5), _rotation(15)]
    )
    # Factors, not offsets: the black outside of the sector stays dark.
    tone = v2.ColorJitter(brightness=0.2, contrast=0.2)
    appearance = v2.Compose(
        [
            v2.RandomApply([tone], p=0.5),
            v2.RandomApply([_Blur(_BLUR_SIGMA_PX)], p=0.3),
            v2.RandomApply([_GrainNoise(_NOISE_STD)], p=0.3),
        ]
    )
    return geometry, appearance


def _strong() -> tuple[v2.Transform, v2.Transform]:
    """Return what moves image and mask, and what changes the image alone."""
    geometry = v2.Compose([_rotation(45), v2.RandomApply([_Elastic(_ELASTIC_STD_PX)], p=0.5)])
    tone = [v2.ColorJitter(brightness=0.4, contrast=0.4), _Gamma((0.7, 1.4))]
    appearance = v2.Compose(
        [v2.RandomApply(tone, p=0.5), v2.RandomApply([_CoarseDropout(_HOLE_SIDE_PX)], p=0.5)]
    )
    return geometry, appearance


def _rotation(degrees: float) -> v2.Transform:
    # Masks are resampled by the nearest pixel whatever the interpolation: neither grown nor shrunk.
    rotation = v2.RandomRotation(degrees, interpolation=InterpolationMode.BILINEAR)
    return v2.RandomApply([rotation], p=0.5)


def _scale(size_hw: tuple[int, int]) -> float:
    """Pixels of the image per pixel of the reference frame."""
    return max(size_hw) / _FRAME_PX


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(1).uniform_(low, high))


class _Blur(v2.Transform):
    """Blurs by a Gaussian whose sigma is drawn in the reference frame's pixels.

    v2.GaussianBlur takes a fixed kernel and runs it in two dimensions at once, five times slower.
    """

    def __init__(self, sigma_px: tuple[float, float]) -> None:
        super().__init__()
        self.sigma_px = sigma_px

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw sigma in pixels of the image."""
        size_hw = functional.get_size(flat_inputs[0])
        sigma = _uniform(*self.sigma_px) * _scale(size_hw)
        # The reflected margin must be narrower than the image.
        return {"sigma": sigma, "radius": min(math.ceil(3 * sigma), min(size_hw) - 1)}

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Blur along the rows, then along the columns."""
        length, sigma = 2 * params["radius"] + 1, [params["sigma"]]
        inpt = functional.gaussian_blur(inpt, kernel_size=[length, 1], sigma=sigma)
        return functional.gaussian_blur(inpt, kernel_size=[1, length], sigma=sigma)


class _GrainNoise(v2.Transform):
    """Adds Gaussian noise of the reference frame's pixels, resized to the image."""

    def __init__(self, std: tuple[float, float]) -> None:
        super().__init__()
        self.std = std

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the noise in grey levels of [0, 1], (1, H, W)."""
        size_hw = functional.get_size(flat_inputs[0])
        grain = torch.randn(1, *(max(round(side / _scale(size_hw)), 1) for side in size_hw))
        return {"noise": functional.resize(grain, size_hw) * _uniform(*self.std)}

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Add it and stay in [0, 1]."""
        return tv_tensors.wrap((inpt + params["noise"]).clamp(0, 1), like=inpt)


class _Gamma(v2.Transform):
    """Raises the image to a power, drawn evenly on the logarithm."""

    def __init__(self, gamma: tuple[float, float]) -> None:
        super().__init__()
        self.gamma = gamma

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: ARG002
        """Draw the power."""
        return {"gamma": math.exp(_uniform(*map(math.log, self.gamma)))}

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Apply it."""
        return functional.adjust_gamma(inpt, gamma=params["gamma"])


class _Elastic(v2.Transform):
    """Shifts every pixel by a smooth random field.

    v2.ElasticTransform blurs white noise instead: its field depends on the resolution, and is
    stretched along the longer side.
    """

    def __init__(self, std_px: float) -> None:
        super().__init__()
        self.std_px = std_px

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the field in halves of the image's sides (1, H, W, 2), x first."""
        height, width = size_hw = functional.get_size(flat_inputs[0])
        scale = _scale(size_hw)
        knots = [max(round(side / scale / _ELASTIC_KNOT_PX), 1) + 1 for side in (height, width)]
        shift_px = torch.randn(1, 2, *knots) * self.std_px * scale
        field = torch.nn.functional.interpolate(
            shift_px, size=(height, width), mode="bicubic", align_corners=True
        )
        halves = torch.tensor([width / 2, height / 2])
        return {"displacement": field.permute(0, 2, 3, 1) / halves}

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Resample: bilinear for images, nearest for masks."""
        return functional.elastic(inpt, displacement=params["displacement"])


class _CoarseDropout(v2.Transform):
    """Blackens one to eight rectangles of the image."""

    def __init__(self, side_px: tuple[int, int]) -> None:
        super().__init__()
        self.side_px = side_px

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the rectangles: row, column, height, width in pixels."""
        size_hw = functional.get_size(flat_inputs[0])
        scale = _scale(size_hw)
        holes = []
        for _ in range(int(torch.randint(1, _HOLES + 1, ()))):
            hole_h, hole_w = (
                min(max(round(_uniform(*self.side_px) * scale), 1), side) for side in size_hw
            )
            top, left = _uniform(0, size_hw[0] - hole_h), _uniform(0, size_hw[1] - hole_w)
            holes.append((round(top), round(left), hole_h, hole_w))
        return {"holes": holes}

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Blacken them."""
        for top, left, height, width in params["holes"]:
            black = torch.zeros(1, height, width)
            inpt = functional.erase(inpt, top, left, height, width, black)
        return inpt
