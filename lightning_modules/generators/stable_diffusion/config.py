"""Settings of the Stable Diffusion generator and of its sampler. Torch-free.

The defaults are ours: 384x576, which is HC18's own aspect ratio, LoRA of rank 16, noise offset,
dropped captions, averaged weights. The recipe `paper_hc18` states the values of arXiv 2506.23664.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from datamodules.allowed import above, at_least, between, check_choices

Route = Literal["sd_in_channel", "sd_mask"]
Solver = Literal["unipc", "dpmsolver++"]
LearningRateSchedule = Literal["cosine", "constant"]
StableDiffusionPrecision = Literal["32-true", "bf16-mixed"]

SIZE_UNIT_PX = 64
"""The VAE shrinks by 8, the UNet by 8 more."""


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
        check_choices(self)
        # 1000 of 1000 would name one noise level twice, and divide by zero between the two.
        between(1, 999).check(self, "num_inference_steps")
        between(0, 20).check(self, "guidance_scale")
        between(0, 1).check(self, "guidance_rescale")
        between(0, 2).check(self, "lora_scale")
        at_least(1).check(self, "batch_size")


@dataclass(kw_only=True)
class StableDiffusionConfig:
    """A Stable Diffusion that is fine-tuned by LoRA: base model, route, training and sampler."""

    route: Route = "sd_mask"
    """`sd_in_channel`: the paper's; draws [image, image, outline] as RGB, from a prompt alone.
    `sd_mask`: the filled mask enters the UNet by further channels, so labels are exact."""
    base_model: str | None = None
    """Folder in diffusers' layout, a single .safetensors file, or a name on the hub; None is
    Stable Diffusion 1.5 on the hub, at one commit."""
    revision: str | None = None
    """Revision of a model on the hub; None is the main branch, or the default model's commit."""
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
        check_choices(self)
        if len(self.size_hw) != 2 or any(s < 1 or s % SIZE_UNIT_PX for s in self.size_hw):
            raise ValueError(
                f"size_hw={self.size_hw}: height and width must be multiples of {SIZE_UNIT_PX}"
            )
        at_least(1).check(self, "lora_rank", "lora_alpha", "steps", "batch_size")
        between(0, self.steps).check(self, "warmup_steps", hint="at most steps")
        above(0).check(self, "learning_rate", "gradient_clip_norm", "min_snr_gamma")
        shares = ("caption_dropout", "mask_dropout", "flip_probability")
        between(0, 1).check(self, "weight_decay", "noise_offset", *shares)
        between(0, 0.99999).check(self, "ema_decay")

    @property
    def draws_outlines(self) -> bool:
        """Whether an image brings its outline, to be read from it."""
        return self.route == "sd_in_channel"

    def hashed(self) -> dict[str, Any]:
        """What of the settings a fit depends on, as JSON types; the base model is named apart."""
        section = asdict(self)
        # The sampler is hashed where images are drawn.
        for key in ("base_model", "revision", "gradient_checkpointing", "sampler"):
            del section[key]
        return section
