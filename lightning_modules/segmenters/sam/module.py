"""Fine-tune SAM on boxes: its mask decoder, and of its image encoder what the config says."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from torchmetrics import MeanMetric

from lightning_modules.captured import CapturedStep
from lightning_modules.errors import WeightsError
from lightning_modules.loss_watch import LossWatch
from lightning_modules.losses import dice_cross_entropy_loss, dice_from_logits
from lightning_modules.optimizers import with_schedule
from lightning_modules.prompt_protocol import PromptProtocol
from lightning_modules.prompts import drawn_boxes, whole_image_boxes
from lightning_modules.randomness import keyed_randint
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.network import (
    BackboneSam,
    build_sam,
    decode,
    encode,
    encoder_input,
)
from lightning_modules.segmenters.sam.tuning import (
    apply_tuning,
    encode_prefix,
    encode_suffix,
    run_encoder,
)

Stage = Literal["train", "val", "test"]
NEEDED = ("embedding", "image", "valid_hw")
"""What of a batch an encoder or decoder reads."""


class SamModule(L.LightningModule):
    """A SAM that learns from one box an image.

    Batches carry `mask` float32 (B, 1, H, W) {0, 1}, `valid_hw` int64 (B, 2), `draw` int64 (B,)
    while training, and `embedding` float16 or else `image` float32 (B, 1, S, S) in [0, 1]; the
    frame H, W is the backbone's (`FRAME_SIDE_PX`), as is S (`IMAGE_SIDE_PX`). `embedding` is
    (B, 256, H / 4, W / 4), or what `encode_prefix` gives under `late_lora`; a batch without it is
    encoded, with gradients where the encoder is trained. An item's prompt and jitter come from
    (seed, draw). Validation and test use the whole-image prompt, which leaks
    nothing; scores under all prompts are the evaluation's business.

    Checkpoints hold the trainable weights only: the frozen ones are rebuilt from the config.

    Args:
        config: The segmenter's settings, or a plain dict of them as checkpoints hold it.
        seed: Keys prompts and jitter, and the first weights of LoRA and adapters.
        captures: On a GPU, replay the training step of a batch with embeddings as a CUDA graph:
            for decoder tuning in one process, without accumulated gradients.
        has_encoder: Whether the image encoder is built and loaded; decoder tuning on embeddings
            needs none.

    Raises:
        WeightsError: The pretrained weights are missing or others.
    """

    def __init__(
        self,
        config: SegmenterConfig | dict[str, Any],
        *,
        seed: int = 0,
        captures: bool = False,
        has_encoder: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(config, dict):
            config = SegmenterConfig(**config)
        self.config = config
        self.seed = seed
        # Plain types: a dataclass here makes Lightning refuse to resume from its checkpoints.
        self.save_hyperparameters({"config": asdict(config), "seed": seed})
        self.sam = build_sam(config, has_encoder=has_encoder)
        apply_tuning(self.sam, config, seed=seed)
        # A Dice of 0/1 masks is finite; to look for NaN would wait for the GPU.
        self.train_dice, self.val_dice = (MeanMetric(nan_strategy="disable") for _ in range(2))
        self.captures = captures and config.tuning == "decoder"
        self._captured = CapturedStep(self._training_loss)
        self._is_captured = False

    @classmethod
    def start(
        cls, config: SegmenterConfig, *, seed: int, cached: bool, captures: bool
    ) -> "SamModule":
        """The module as training begins; see `segmenters.table`."""
        return cls(
            config,
            seed=seed,
            captures=captures,
            has_encoder=config.tuning != "decoder" or not cached,
        )

    @classmethod
    def untrained(cls, config: SegmenterConfig) -> "SamModule":
        """The backbone as it is before any training, in eval mode."""
        return cls(replace(config, tuning="decoder")).eval()

    @classmethod
    def load(cls, path: Path, config: SegmenterConfig) -> "SamModule":
        """The module with the trained weights that `save` wrote, in eval mode.

        Raises:
            WeightsError: They are of other settings.
        """
        module = cls(config)
        module.load_state_dict(load_file(path))
        return module.eval()

    def save(self, path: Path) -> None:
        """Write the trained weights; the frozen ones are rebuilt from the settings."""
        trainable, state = self._trainable_names(), self.state_dict()
        save_file({name: t.contiguous() for name, t in state.items() if name in trainable}, path)

    def parts(self) -> dict[str, nn.Module]:
        """Its parts, whose weights are counted."""
        return dict(self.sam.named_children())

    def predict(self, batch: dict[str, Any], boxes_xyxy_px: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, H, W) of the frame for one box (B, 4) an image.

        An image is encoded once, however many boxes follow: the batch keeps `encoded`.
        """
        if "encoded" not in batch:
            given = {key: batch[key].to(self.device) for key in NEEDED if key in batch}
            batch["encoded"] = self.embed(given)
        return decode(self.sam, batch["encoded"], boxes_xyxy_px.to(self.device))

    def forward(self, batch: dict[str, Any], boxes_xyxy_px: torch.Tensor) -> torch.Tensor:
        """Predict logits (B, 1, H, W) of the frame for one box (B, 4) an image."""
        return decode(self.sam, self.embed(batch), boxes_xyxy_px)

    def embed(self, batch: dict[str, Any]) -> torch.Tensor:
        """The batch's embedding (B, 256, H / 4, W / 4), with this module's own encoder."""
        config, cached = self.config, batch.get("embedding")
        if config.tuning == "decoder":
            return cached if cached is not None else self._encode_frozen(batch)
        encoder, device_type = self.sam.image_encoder, batch["valid_hw"].device.type
        use_bf16 = torch.is_autocast_enabled(device_type) or config.encoder_precision == "bf16"
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=use_bf16):
            if config.tuning == "late_lora":
                if cached is None:
                    cached = encode_prefix(encoder, self._encoder_input(batch))
                checkpointing = config.encoder_checkpointing
                # Features are kept as float16; what follows is as it would be without a cache.
                tokens = cached.float()
                return encode_suffix(encoder, tokens, checkpointing=checkpointing).float()
            prepared = self._encoder_input(batch)
            return run_encoder(
                encoder, prepared, checkpointing=config.encoder_checkpointing
            ).float()

    def _encoder_input(self, batch: dict[str, Any]) -> torch.Tensor:
        return encoder_input(self.sam, batch["image"], valid_hw=batch["valid_hw"])

    def _encode_frozen(self, batch: dict[str, Any]) -> torch.Tensor:
        return encode(
            self.sam,
            batch["image"],
            valid_hw=batch["valid_hw"],
            precision=self.config.encoder_precision,
        )

    def train(self, mode: bool = True) -> "SamModule":
        """Switch the decoder only: encoders stay in eval mode, so no statistic moves."""
        super().train(mode)
        self.sam.image_encoder.eval()
        self.sam.prompt_encoder.eval()
        return self

    def _drawn(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Each item's jitter (B, 4) and number of its prompt (B,); of (seed, draw) alone."""
        config, key = self.config, {"seed": self.seed, "draws": batch["draw"]}
        key["device"] = batch["mask"].device
        offsets = keyed_randint(0, config.jitter_max_px + 1, (4,), stream="jitter", **key)
        choice = keyed_randint(0, len(config.train_prompts), (), stream="prompt", **key)
        return offsets, choice

    def _step(self, batch: dict[str, Any], stage: Stage) -> torch.Tensor:
        mask, valid_hw = batch["mask"], batch["valid_hw"]
        if stage == "train":
            self._is_captured = self.captures and mask.is_cuda and "embedding" in batch
            loss_of = self._captured if self._is_captured else self._training_loss()
            offsets, choice = self._drawn(batch)
        else:
            loss_of = BoxLoss(self.sam, prompts=("whole_image",))
            offsets, choice = valid_hw.new_zeros(len(mask), 4), valid_hw.new_zeros(len(mask))
        loss, dice = loss_of(self.embed(batch), mask, valid_hw, offsets, choice)
        size = len(mask)
        if stage == "train":
            self.train_dice.update(dice)
            return loss
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=True)
        if stage == "test":
            # One metric of several loaders would mix their cohorts.
            self.log("test/dice", dice.mean(), batch_size=size, sync_dist=True)
            return loss
        self.val_dice.update(dice)
        self.log("val/dice", self.val_dice, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def _training_loss(self) -> "BoxLoss":
        return BoxLoss(self.sam, prompts=self.config.train_prompts)

    def backward(self, loss: torch.Tensor, *args: Any, **named: Any) -> None:
        """Hand out the gradients that a captured step has computed with its loss, or compute."""
        if self._is_captured:
            self._captured.give_gradients()
        else:
            super().backward(loss, *args, **named)

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse losses and weights that are not finite."""
        return [LossWatch(setting="segmenter.learning_rate")]

    def on_train_epoch_end(self) -> None:
        """Log what need not be logged at every step."""
        # A resumed run may have had no step left to take.
        if self.train_dice.update_called:
            self.log("train/dice", self.train_dice)

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the batch's loss under the drawn prompts."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Log loss and Dice under the whole-image prompt."""
        self._step(batch, "val")

    def test_step(
        self,
        batch: dict[str, Any],
        batch_idx: int = 0,  # noqa: ARG002 - Lightning's signature
        dataloader_idx: int = 0,  # noqa: ARG002 - it names the cohort's keys by itself
    ) -> None:
        """Log loss and Dice under the whole-image prompt, a cohort at a time."""
        self._step(batch, "test")

    def predict_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Logits (B, 1, H, W) of `predict`, under the whole-image prompt."""
        return self.predict(batch, whole_image_boxes(batch["valid_hw"]))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW on the trainable weights; linear warm-up, then as `lr_schedule` says."""
        config = self.config
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        encoder = [p for name, p in named if name.startswith("sam.image_encoder.")]
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in named if not name.startswith("sam.image_encoder.")]}
        ]
        if encoder:
            own = config.encoder_learning_rate
            groups.append({"params": encoder, "lr": config.learning_rate if own is None else own})
        optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # One kernel for all weights instead of a dozen.
            fused=self.device.type == "cuda",
        )
        return with_schedule(
            optimizer,
            warmup_steps=config.warmup_steps,
            steps=config.steps,
            schedule=config.lr_schedule,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out."""
        trainable = self._trainable_names()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in trainable}

    def load_state_dict(
        self,
        state_dict: dict[str, Any],
        strict: bool = True,  # noqa: ARG002
        assign: bool = False,
    ) -> _IncompatibleKeys:
        """Load weights of which only frozen ones may be missing, whatever `strict` says.

        Raises:
            WeightsError: A trainable weight is missing, or one is unknown or of another shape.
        """
        trainable, own = self._trainable_names(), self.state_dict()
        missing = sorted(trainable - state_dict.keys())
        unknown = sorted(state_dict.keys() - own.keys())
        if missing or unknown:
            raise WeightsError(
                f"the checkpoint is not of this segmenter (backbone {self.config.backbone}): "
                f"{len(missing)} trainable weights missing, {len(unknown)} unknown, such as "
                f"{(missing + unknown)[0]}"
            )
        for name, tensor in state_dict.items():
            if tensor.shape != own[name].shape:
                shapes = f"{tuple(tensor.shape)}, not {tuple(own[name].shape)}"
                raise WeightsError(
                    f"the checkpoint is not of this segmenter (backbone {self.config.backbone}, "
                    f"tuning {self.config.tuning}): {name} is {shapes}"
                )
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        # TinyViT in eval mode computes with a copy of its biases, made when the mode was set.
        self.sam.image_encoder.eval()
        return result

    def _trainable_names(self) -> set[str]:
        return {name for name, p in self.named_parameters() if p.requires_grad}


class BoxLoss(nn.Module):
    """Loss (scalar) and Dice (B,) of a batch whose embeddings are at hand.

    Args:
        sam: Its prompt encoder and mask decoder are used, not copied.
        prompts: The protocols that an item's box may be drawn by.
    """

    def __init__(self, sam: BackboneSam, *, prompts: Sequence[PromptProtocol]) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder
        self.prompts = tuple(prompts)

    def forward(
        self,
        embedding: torch.Tensor,
        mask: torch.Tensor,
        valid_hw: torch.Tensor,
        offsets: torch.Tensor,
        choice: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode each embedding (B, C, h, w) under its drawn box; see `drawn_boxes`."""
        boxes = drawn_boxes(
            self.prompts, mask=mask, valid_hw=valid_hw, offsets=offsets, choice=choice
        )
        # No loss or Dice reads the padding below. A GPU would wait to tell how much there is.
        n_rows = None if mask.is_cuda else int(valid_hw[:, 0].max())
        logits = decode(self, embedding, boxes, n_rows=n_rows)
        loss = dice_cross_entropy_loss(logits, mask, valid_hw=valid_hw)
        return loss, dice_from_logits(logits.detach(), mask, valid_hw=valid_hw)
