"""Settings of the U-Net baseline, `UnetModule`, and of its training. Torch-free.

The defaults are for the condition `strong`; docs/results.md holds measured scores and times.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from datamodules.allowed import above, at_least, between, check_choices

Encoder = Literal[
    "mobilenet_v2", "resnet18", "resnet34", "resnet50", "tu-resnet10t", "tu-tf_efficientnet_lite0"
]
EncoderWeights = Literal["imagenet"]
TrainerPrecision = Literal["32-true", "bf16-mixed"]

SIDE_UNIT_PX = 32
"""The encoder halves a frame five times, so both of its sides are multiples of this."""
PREDICTION_SETTINGS = {"margin": 0.0, "closer_looks": 0}
"""Settings that only predictions depend on, and what turns them off: a fit is the same under all
of their values."""
LIGHT_AUGMENTATION = (
    "flip_probability",
    "max_rotation_deg",
    "max_scale",
    "max_shift",
    "max_brightness_gamma",
    "max_contrast",
)
"""Settings that are read with `light_augmentation` alone."""


@dataclass(kw_only=True)
class UnetConfig:
    """A prompt-free U-Net: the baseline for segmenters with prompts."""

    encoder_name: Encoder = "tu-tf_efficientnet_lite0"
    """Encoder, by its name in segmentation-models-pytorch. The default's ImageNet weights come with
    a package, and its steps take no longer than those of `tu-resnet10t`."""
    encoder_weights: EncoderWeights | None = "imagenet"
    """`imagenet` starts the encoder from weights pretrained there, which for every encoder but the
    default are downloaded once; null starts from random ones."""
    decoder_channels: tuple[int, ...] = (128, 64, 32, 16)
    """Channels of the decoder's levels, coarsest first. Five reach the frame's resolution; four
    end at half of it, and the logits are enlarged, which is faster."""
    size_hw: tuple[int, int] = (128, 192)
    """Height and width that every image is squashed to, pixels; multiples of 32."""
    steps: int = 1500
    """Optimiser steps, the same for every condition and amount."""
    epochs: int | None = None
    """Passes over whatever a trial has, in place of `steps` and of `synthetic_share`."""
    synthetic_share: float = 0.5
    """Share of each batch that comes from added pairs, where a condition has some."""
    early_stopping_patience: int | None = None
    """Validations without a better val/dice before stopping; None takes the last weights."""
    batch_size: int = 16
    """Images a step. Batch normalisation takes its statistics from them, or from each part of them
    where the batch is computed in `trainer.batch_parts`."""
    learning_rate: float = 1e-3
    """AdamW's peak learning rate."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    warmup_steps: int = 20
    """Steps of linear warm-up, after which the rate falls to zero along a cosine."""
    precision: TrainerPrecision = "32-true"
    """Lightning's precision."""
    mirror: bool = True
    """Average the logits of an image and of its mirror image when predicting."""
    margin: float = 0.1
    """Share of the frame that is black around an image that is predicted by a fit under strong
    augmentation, which turns and moves nearly every view so that it has such borders; 0 fills the
    frame. The fit itself does not depend on it."""
    closer_looks: int = 2
    """How often an image that a fit under strong augmentation predicts is looked at again, cut out
    around the head that the look before found, black beyond; 0 looks once. The fit itself does not
    depend on it."""
    light_augmentation: bool = False
    """Move every training item a little and change its intensities, by the settings below, under
    every condition. Off, `real`, `weak` and `strong` mean what they mean for any segmenter."""
    flip_probability: float = 0.5
    """Share of training items mirrored left to right, with their mask."""
    max_rotation_deg: float = 15.0
    """Largest rotation of a training item, degrees either way."""
    max_scale: float = 1.2
    """Largest enlargement of a training item; its inverse is the largest reduction."""
    max_shift: float = 0.1
    """Largest shift of a training item along each axis, as a share of that side."""
    max_brightness_gamma: float = 1.5
    """Largest exponent on a training image's intensity; its inverse is the smallest."""
    max_contrast: float = 1.3
    """Largest gain about the image's mean, cut to [0, 1]; its inverse is the smallest."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, naming the key."""
        # JSON and checkpoints give lists.
        self.size_hw, self.decoder_channels = tuple(self.size_hw), tuple(self.decoder_channels)
        check_choices(self)
        if len(self.size_hw) != 2 or any(s < 1 or s % SIDE_UNIT_PX for s in self.size_hw):
            raise ValueError(
                f"size_hw={list(self.size_hw)}: height and width must be multiples of "
                f"{SIDE_UNIT_PX}"
            )
        if len(self.decoder_channels) not in (4, 5):
            found = list(self.decoder_channels)
            raise ValueError(f"decoder_channels={found}: must be four or five counts")
        at_least(1).check(self, "decoder_channels", "steps", "epochs", "batch_size")
        at_least(1).check(self, "early_stopping_patience")
        at_least(0).check(self, "warmup_steps", "weight_decay")
        above(0).check(self, "learning_rate")
        between(0, 1).check(self, "flip_probability", "synthetic_share")
        between(0, 180).check(self, "max_rotation_deg")
        between(1, 4).check(self, "max_scale", "max_brightness_gamma", "max_contrast")
        between(0, 0.5).check(self, "max_shift", "margin")
        between(0, 5).check(self, "closer_looks")

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Height and width of the frame, px."""
        return self.size_hw

    @property
    def resize_mode(self) -> Literal["squash"]:
        """How an image lies in the frame."""
        return "squash"

    @property
    def image_factor(self) -> int:
        """Image pixels per frame pixel."""
        return 1

    @property
    def cache(self) -> None:
        """Nothing of it is frozen."""
        return None

    def hashed(self) -> dict[str, Any]:
        """What of the settings a fit depends on, as JSON types."""
        section = {"kind": "unet", **asdict(self)}
        for key in PREDICTION_SETTINGS:
            del section[key]
        if not self.mirror:
            del section["mirror"]
        if not self.light_augmentation:
            for key in LIGHT_AUGMENTATION:
                del section[key]
        if self.epochs is not None:
            del section["steps"], section["synthetic_share"]
        return section
