"""What the mask-guided generator and its sampler can be told. Torch-free.

The defaults fit 64x96 images: 6,400 of them in about two minutes on two CPU cores. For 256x384
on a GPU, not measured: patch 4, block_out_channels (128, 256, 384, 512), layers_per_block 2,
attention deepest, snr_shift 0.125, learning_rate 3e-4, warmup_steps 500, ema_decay 0.999,
batch_size 32, steps 20000 and precision bf16-mixed.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_range(name: str, value: float, *, low: float, high: float) -> None:
    _require(
        isfinite(value) and low <= value <= high, f"{name}={value}: use a value in [{low}, {high}]"
    )


@dataclass(kw_only=True)
class GeneratorConfig:
    """The pixel generator: its network, its diffusion and its training."""

    size_hw: tuple[int, int] = (64, 96)
    """Height and width of the images, pixels; each a multiple of patch * 2**(levels - 1)."""
    patch: int = 2
    """Side of the squares that become channels before the network (pixel_unshuffle), pixels."""
    block_out_channels: tuple[int, ...] = (32, 32, 64, 128)
    """Channels of each resolution level, finest first; each a multiple of 8."""
    layers_per_block: int = 1
    """Residual blocks in each level on the way down; one more on the way up."""
    attention: Literal["none", "middle", "deepest"] = "middle"
    """Self-attention: nowhere, in the middle block, or there and in the coarsest level."""
    steps: int = 400
    """Optimiser steps of the whole training; the learning rate falls to zero over them."""
    batch_size: int = 16
    """Images in one optimiser step."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 25
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    gradient_clip_norm: float = 1.0
    """Largest norm of the gradient of all weights together."""
    min_snr_gamma: float = 5.0
    """Cap of the signal-to-noise ratio in the loss weight."""
    snr_shift: float = 0.5
    """Factor on the cosine schedule's alpha/sigma; divide it by 4 for images 4 times as large."""
    mask_dropout: float = 0.1
    """Share of training items that see no mask, which guidance above 1 needs."""
    ema_decay: float = 0.995
    """Largest decay of the weights' moving average; at step n it is at most n / (9 + n)."""
    flip_probability: float = 0.5
    """Share of training items mirrored left to right, with their mask."""
    max_rotation_deg: float = 8.0
    """Largest rotation of a training item, degrees either way."""
    max_scale: float = 1.1
    """Largest enlargement of a training item; its inverse is the largest reduction."""
    max_shift: float = 0.05
    """Largest shift of a training item along each axis, as a share of that side."""
    intensity_gamma: float = 0.5
    """The network sees (intensity**gamma - mean) / std: below 1 spreads dark ultrasound out."""
    intensity_mean: float = 0.3
    """Mean of intensity**gamma, about that of HC18 (0.29)."""
    intensity_std: float = 0.23
    """Standard deviation of intensity**gamma, about that of HC18 (0.23)."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Lightning's precision; bf16 is slower on CPUs that emulate it."""

    def __post_init__(self) -> None:
        # JSON and checkpoints give lists.
        self.size_hw = tuple(self.size_hw)
        self.block_out_channels = tuple(self.block_out_channels)
        _require(len(self.size_hw) == 2, f"size_hw={self.size_hw}: give height and width")
        _require(self.patch >= 1, f"patch={self.patch}: use 1 or more")
        _require(
            len(self.block_out_channels) >= 1
            and all(c > 0 and c % 8 == 0 for c in self.block_out_channels),
            f"block_out_channels={self.block_out_channels}: use positive multiples of 8",
        )
        unit = self.patch * 2 ** (len(self.block_out_channels) - 1)
        _require(
            all(side > 0 and side % unit == 0 for side in self.size_hw),
            f"size_hw={self.size_hw}: each side must be a multiple of {unit}"
            " (patch * 2**(levels - 1))",
        )
        for name in ("layers_per_block", "steps", "batch_size"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: use 1 or more")
        _require(
            0 <= self.warmup_steps <= self.steps,
            f"warmup_steps={self.warmup_steps}: use 0 to steps={self.steps}",
        )
        rates = ("learning_rate", "gradient_clip_norm", "min_snr_gamma")
        for name in (*rates, "snr_shift", "intensity_std"):
            value = getattr(self, name)
            _require(isfinite(value) and value > 0, f"{name}={value}: use a number above 0")
        _require_range("weight_decay", self.weight_decay, low=0.0, high=1.0)
        for name in ("mask_dropout", "flip_probability"):
            _require_range(name, getattr(self, name), low=0.0, high=1.0)
        _require_range("ema_decay", self.ema_decay, low=0.0, high=0.99999)
        _require_range("max_rotation_deg", self.max_rotation_deg, low=0.0, high=180.0)
        _require_range("max_scale", self.max_scale, low=1.0, high=4.0)
        _require_range("max_shift", self.max_shift, low=0.0, high=0.5)
        _require_range("intensity_mean", self.intensity_mean, low=0.0, high=1.0)
        _require_range("intensity_gamma", self.intensity_gamma, low=0.1, high=2.0)
        for name, allowed in (
            ("attention", ("none", "middle", "deepest")),
            ("precision", ("32-true", "bf16-mixed")),
        ):
            value = getattr(self, name)
            _require(value in allowed, f"{name}={value}: use one of {', '.join(allowed)}")


@dataclass(kw_only=True)
class SamplerConfig:
    """How images are drawn from a trained generator."""

    num_inference_steps: int = 30
    """Steps of the solver (DPM-Solver++, second order); fewer give smoother texture."""
    guidance_scale: float = 2.0
    """Classifier-free guidance towards the mask; 1 is none and costs half."""
    guidance_rescale: float = 0.0
    """0 keeps guided outputs; 1 gives them the spread of unguided ones."""
    batch_size: int = 20
    """Images drawn at once; it does not change them."""

    def __post_init__(self) -> None:
        _require(
            1 <= self.num_inference_steps <= 1000,
            f"num_inference_steps={self.num_inference_steps}: use 1 to 1000",
        )
        _require_range("guidance_scale", self.guidance_scale, low=0.0, high=20.0)
        _require_range("guidance_rescale", self.guidance_rescale, low=0.0, high=1.0)
        _require(self.batch_size >= 1, f"batch_size={self.batch_size}: use 1 or more")
