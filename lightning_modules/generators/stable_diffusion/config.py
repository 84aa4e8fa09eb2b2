"""What a Stable Diffusion generator and its sampler can be told. Torch-free.

The defaults are ours: 384x576, which is HC18's own aspect ratio, LoRA of rank 16, noise offset,
dropped captions, averaged weights. The recipe `paper_hc18` states the values of arXiv 2506.23664.
"""

from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, get_args

Route = Literal["sd_in_channel", "sd_mask"]
Solver = Literal["unipc", "dpmsolver++"]
LearningRateSchedule = Literal["cosine", "constant"]
StableDiffusionPrecision = Literal["32-true", "bf16-mixed"]

SIZE_UNIT_PX = 64
"""The VAE shrinks by 8, the UNet by 8 more."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_range(name: str, value: float, *, low: float, high: float) -> None:
    _require(
        isfinite(value) and low <= value <= high, f"{name}={value}: use a value in [{low}, {high}]"
    )


@dataclass(kw_only=True)
class StableDiffusionSamplerConfig:
    """How images are drawn from a fine-tuned Stable Diffusion."""

    solver: Solver = "unipc"
    """diffusers' UniPCMultistepScheduler or DPMSolverMultistepScheduler (second order)."""
    num_inference_steps: int = 30
    """Steps of the solver."""
    guidance_scale: float = 2.5
    """Classifier-free guidance; 1 is none and costs half. The paper's is the pipeline's 7.5."""
    guidance_rescale: float = 0.7
    """0 keeps guided outputs; 1 gives them the spread of unguided ones, so that dark images stay
    dark."""
    lora_scale: float = 1.0
    """Factor on LoRA's contribution; the paper uses 0.9."""
    batch_size: int = 8
    """Images drawn at once; it does not change them."""

    def __post_init__(self) -> None:
        _require(
            self.solver in get_args(Solver),
            f"solver={self.solver}: use one of {', '.join(get_args(Solver))}",
        )
        _require(
            1 <= self.num_inference_steps <= 1000,
            f"num_inference_steps={self.num_inference_steps}: use 1 to 1000",
        )
        _require_range("guidance_scale", self.guidance_scale, low=0.0, high=20.0)
        _require_range("guidance_rescale", self.guidance_rescale, low=0.0, high=1.0)
        _require_range("lora_scale", self.lora_scale, low=0.0, high=2.0)
        _require(self.batch_size >= 1, f"batch_size={self.batch_size}: use 1 or more")


@dataclass(kw_only=True)
class StableDiffusionConfig:
    """A Stable Diffusion that is fine-tuned by LoRA: base model, route, training and sampler."""

    route: Route = "sd_mask"
    """`sd_in_channel`: the paper's; draws [image, image, outline] as RGB, from a prompt alone.
    `sd_mask`: the filled mask enters the UNet by further channels, so labels are exact."""
    base_model: str | None = None
    """Folder in diffusers' layout, a single .safetensors file, or a name on the hub."""
    revision: str | None = None
    """Revision of a model on the hub."""
    size_hw: tuple[int, int] = (384, 576)
    """Height and width of the images, pixels; multiples of 64."""
    lora_rank: int = 16
    """Rank of LoRA on the UNet's attention; the paper's is 128."""
    lora_alpha: int | None = None
    """LoRA's scale times its rank; None takes the rank, so that the scale is 1."""
    steps: int = 1500
    """Optimiser steps of the whole training."""
    batch_size: int = 8
    """Images in one optimiser step."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    lr_schedule: LearningRateSchedule = "cosine"
    """`cosine` falls to zero at `steps`; `constant` stays, as the paper's does."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    gradient_clip_norm: float = 1.0
    """Largest norm of the gradient of all trained weights together."""
    noise_offset: float = 0.05
    """Spread of a constant added to each channel's noise, so that dark images can be learnt; 0 is
    the paper's."""
    min_snr_gamma: float | None = 5.0
    """Cap of the signal-to-noise ratio in the loss weight; None weighs all steps alike."""
    caption_dropout: float = 0.1
    """Share of training items with an empty prompt, which guidance needs; 0 is the paper's."""
    mask_dropout: float = 0.1
    """Share of training items that see no mask; `sd_mask` only."""
    flip_probability: float = 0.5
    """Share of training items mirrored left to right, by a second cached latent."""
    ema_decay: float = 0.999
    """Largest decay of the trained weights' moving average; 0 takes the last weights."""
    gradient_checkpointing: bool = False
    """Compute activations twice to save memory."""
    precision: StableDiffusionPrecision = "bf16-mixed"
    """bf16-mixed keeps the frozen weights in bf16; trained weights are float32 always."""
    sampler: StableDiffusionSamplerConfig = field(default_factory=StableDiffusionSamplerConfig)
    """How images are drawn."""

    def __post_init__(self) -> None:
        # JSON and checkpoints give lists and dicts.
        self.size_hw = tuple(self.size_hw)
        if isinstance(self.sampler, dict):
            self.sampler = StableDiffusionSamplerConfig(**self.sampler)
        _require(
            len(self.size_hw) == 2
            and all(side > 0 and side % SIZE_UNIT_PX == 0 for side in self.size_hw),
            f"size_hw={self.size_hw}: height and width, each a multiple of {SIZE_UNIT_PX}",
        )
        for name in ("lora_rank", "steps", "batch_size"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: use 1 or more")
        _require(
            self.lora_alpha is None or self.lora_alpha >= 1,
            f"lora_alpha={self.lora_alpha}: use 1 or more, or null for the rank",
        )
        _require(
            0 <= self.warmup_steps <= self.steps,
            f"warmup_steps={self.warmup_steps}: use 0 to steps={self.steps}",
        )
        for name in ("learning_rate", "gradient_clip_norm"):
            value = getattr(self, name)
            _require(isfinite(value) and value > 0, f"{name}={value}: use a number above 0")
        gamma = self.min_snr_gamma
        _require(
            gamma is None or (isfinite(gamma) and gamma > 0),
            f"min_snr_gamma={gamma}: use a number above 0, or null",
        )
        _require_range("weight_decay", self.weight_decay, low=0.0, high=1.0)
        _require_range("noise_offset", self.noise_offset, low=0.0, high=1.0)
        for name in ("caption_dropout", "mask_dropout", "flip_probability"):
            _require_range(name, getattr(self, name), low=0.0, high=1.0)
        _require_range("ema_decay", self.ema_decay, low=0.0, high=0.99999)
        for name, allowed in (
            ("route", get_args(Route)),
            ("lr_schedule", get_args(LearningRateSchedule)),
            ("precision", get_args(StableDiffusionPrecision)),
        ):
            value = getattr(self, name)
            _require(value in allowed, f"{name}={value}: use one of {', '.join(allowed)}")
