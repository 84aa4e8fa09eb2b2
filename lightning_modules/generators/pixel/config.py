"""Settings of the mask-guided pixel diffusion model and of its sampler. Torch-free.

The defaults fit 64x96 images: 6,400 of them in about two minutes on two CPU cores. Larger ones, at
patch 4, attention deepest, snr_shift 0.25 and precision bf16-mixed:

- 128x192 on a CPU with bf16: block_out_channels (64, 96, 128), learning_rate 1e-3, warmup_steps
  50, ema_decay 0.995, batch_size 16 (recipe `hc18_few`).
- 128x192 on a GPU: block_out_channels (96, 160, 224), layers_per_block 2, learning_rate 4e-4,
  warmup_steps 100, ema_decay 0.998, batch_size 32, steps 3000.
- 256x384 on a GPU, not measured: block_out_channels (128, 256, 384, 512), layers_per_block 2,
  snr_shift 0.125, learning_rate 3e-4, warmup_steps 500, ema_decay 0.999, batch_size 32,
  steps 20000.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from datamodules.allowed import above, at_least, between, check_choices


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
    """Factor on the cosine schedule's alpha/sigma; halve it where an image's sides are twice
    as long."""
    mask_dropout: float = 0.0
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
        check_choices(self)
        at_least(1).check(self, "patch", "layers_per_block", "steps", "batch_size")
        channels = self.block_out_channels
        if not channels or any(c < 1 or c % 8 for c in channels):
            raise ValueError(f"block_out_channels={channels}: must be positive multiples of 8")
        unit = self.patch * 2 ** (len(channels) - 1)
        if len(self.size_hw) != 2 or any(side < 1 or side % unit for side in self.size_hw):
            raise ValueError(
                f"size_hw={self.size_hw}: height and width must be multiples of {unit}"
                " (patch * 2**(levels - 1))"
            )
        between(0, self.steps).check(self, "warmup_steps", hint="at most steps")
        rates = ("learning_rate", "gradient_clip_norm", "min_snr_gamma", "snr_shift")
        above(0).check(self, *rates, "intensity_std")
        shares = ("weight_decay", "mask_dropout", "flip_probability", "intensity_mean")
        between(0, 1).check(self, *shares)
        between(0, 0.99999).check(self, "ema_decay")
        between(0, 180).check(self, "max_rotation_deg")
        between(1, 4).check(self, "max_scale")
        between(0, 0.5).check(self, "max_shift")
        between(0.1, 2).check(self, "intensity_gamma")

    def hashed(self) -> dict[str, Any]:
        """What of the settings a fit depends on, as JSON types."""
        return asdict(self)


@dataclass(kw_only=True)
class SamplerConfig:
    """How images are drawn from a trained generator."""

    num_inference_steps: int = 30
    """Steps of the solver (DPM-Solver++, second order); fewer give smoother texture."""
    guidance_scale: float = 1.0
    """Classifier-free guidance towards the mask. 1 is none and costs half; 2 makes of every skull
    a closed bright ring."""
    guidance_rescale: float = 0.0
    """0 keeps guided outputs; 1 gives them the spread of unguided ones."""
    batch_size: int = 20
    """Images drawn at once; it does not change them."""

    def __post_init__(self) -> None:
        # 1000 of 1000 would name one noise level twice, and divide by zero between the two.
        between(1, 999).check(self, "num_inference_steps")
        between(0, 20).check(self, "guidance_scale")
        between(0, 1).check(self, "guidance_rescale")
        at_least(1).check(self, "batch_size")
