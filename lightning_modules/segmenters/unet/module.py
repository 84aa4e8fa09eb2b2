"""The U-Net baseline: a prompt-free U-Net of segmentation-models-pytorch.

Evaluation uses the running statistics of batch normalisation, so that a prediction does not depend
on the batch that it is made in.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torchmetrics import MeanMetric

from lightning_modules.errors import WeightsError
from lightning_modules.loss_watch import LossWatch
from lightning_modules.losses import dice_cross_entropy_loss, dice_from_logits
from lightning_modules.optimizers import with_schedule
from lightning_modules.pair_jitter import jitter_pairs
from lightning_modules.randomness import keyed_rand, keyed_seed
from lightning_modules.segmenters.unet.closer_look import look_closer
from lightning_modules.segmenters.unet.config import (
    SIDE_UNIT_PX,
    UnetConfig,
)
from lightning_modules.segmenters.unet.depthwise import keep_depthwise_in_float32
from lightning_modules.segmenters.unet.margin import add_margin, remove_margin
from lightning_modules.segmenters.unet.pretrained import fill_encoder, is_carried

Stage = Literal["train", "val", "test"]

MIN_STD = 1e-3
"""Smallest spread that an image is divided by, so that a flat one becomes zeros."""


class UnetModule(L.LightningModule):
    """A U-Net that learns head masks from images alone.

    Batches carry `image` float32 (B, 1, h, w) in [0, 1], `mask` float32 (B, 1, h, w) {0, 1},
    `valid_hw` int64 (B, 2) and `draw` int64 (B,); the frame is `config.size_hw`, squashed. Under
    `light_augmentation` a training item is moved and its intensities are changed by amounts from
    (seed, draw) alone.
    Batch normalisation takes a training batch's statistics over the items of one process, and of
    one part where gradients are accumulated.

    Args:
        config: The U-Net's settings, or a plain dict of them as checkpoints hold it.
        seed: Keys the initial weights and every item's augmentation.

    Raises:
        WeightsError: Pretrained weights are asked for and cannot be loaded.
    """

    def __init__(self, config: UnetConfig | dict[str, Any], *, seed: int = 0):
        super().__init__()
        if isinstance(config, dict):
            config = UnetConfig(**config)
        self.config = config
        self.seed = seed
        # Plain types: a dataclass here makes Lightning refuse to resume from its checkpoints.
        self.save_hyperparameters({"config": asdict(config), "seed": seed})
        self.network = build_unet(config, seed=seed)
        # A Dice of 0/1 masks is finite; to look for NaN would wait for the GPU.
        self.train_dice, self.val_dice = (MeanMetric(nan_strategy="disable") for _ in range(2))

    @classmethod
    def start(
        cls,
        config: UnetConfig,
        *,
        seed: int,
        cached: bool,  # noqa: ARG003 - nothing of it is frozen
        captures: bool,  # noqa: ARG003 - of a step on cached features
    ) -> "UnetModule":
        """The module as training begins; see `segmenters.table`."""
        return cls(config, seed=seed)

    @classmethod
    def load(cls, path: Path, config: UnetConfig) -> "UnetModule":
        """Load what `save` wrote, in eval mode and on the CPU; nothing is downloaded.

        Args:
            path: The file.
            config: The settings that it must have been fitted with.

        Raises:
            WeightsError: A missing or damaged file, or one of other settings.
        """
        damaged = f"{path}: damaged U-Net, delete it and fit again"
        try:
            with safe_open(path, framework="pt") as file:
                settings = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            fitted, seed = UnetConfig(**json.loads(settings["config"])), int(settings["seed"])
        except FileNotFoundError as error:
            raise WeightsError(f"{path}: no U-Net here; fit it again") from error
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise WeightsError(f"{damaged}: {_short(error)}") from error
        ours, theirs = config.hashed(), fitted.hashed()
        if ours != theirs:
            key = next(key for key in ours | theirs if ours.get(key) != theirs.get(key))
            raise WeightsError(
                f"{path}: fitted with {key}={theirs.get(key)}, not {ours.get(key)}; fit it again, "
                "or ask for the settings that it was fitted with"
            )
        # Its own weights follow: those of the pretrained encoder are not needed.
        module = cls(replace(config, encoder_weights=None), seed=seed)
        module.config = config
        try:
            module.network.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise WeightsError(f"{damaged}: {_short(error)}") from error
        return module.eval()

    def save(self, path: Path) -> None:
        """Write weights, settings and seed to one safetensors file, whose folder exists."""
        state = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        settings = {"config": json.dumps(asdict(self.config)), "seed": str(self.seed)}
        save_file(state, path, metadata=settings)

    def parts(self) -> dict[str, torch.nn.Module]:
        """Its parts, whose weights are counted."""
        return dict(self.network.named_children())

    def predict(
        self,
        batch: dict[str, Any],
        boxes_xyxy_px: torch.Tensor | None = None,  # noqa: ARG002 - it takes no prompt
    ) -> torch.Tensor:
        """Logits (B, 1, h, w) of the frame, from the image alone."""
        config, image = self.config, batch["image"].to(self.device)
        logits = self._look(add_margin(image, margin=config.margin))
        first = remove_margin(logits, margin=config.margin)
        return look_closer(image, first, looks=config.closer_looks, look=self._look)

    def _look(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, h, w) of frames, averaged over their mirror images where asked."""
        logits = self(image)
        if self.config.mirror:
            logits = (logits + self(image.flip(3)).flip(3)) / 2
        return logits

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Predict logits of the head.

        Args:
            image: (B, 1, h, w) float in [0, 1]; h and w multiples of 32.

        Returns:
            (B, 1, h, w), not probabilities; (0, 1, h, w) for no images.

        Raises:
            ValueError: A frame of other sides.
        """
        if image.ndim != 4 or image.shape[1] != 1 or any(s % SIDE_UNIT_PX for s in image.shape[2:]):
            raise ValueError(
                f"image must be (B, 1, h, w) with sides that are multiples of {SIDE_UNIT_PX}, "
                f"not {tuple(image.shape)}"
            )
        if len(image) == 0:
            return torch.zeros_like(image)
        return self.network(standardise(image))

    def augment(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the batch's images and masks as training sees them; of (seed, draw) alone."""
        config = self.config
        image, mask = jitter_pairs(
            batch["image"],
            batch["mask"],
            seed=self.seed,
            draws=batch["draw"],
            flip_probability=config.flip_probability,
            max_rotation_deg=config.max_rotation_deg,
            max_scale=config.max_scale,
            max_shift=config.max_shift,
        )
        uniform = keyed_rand(
            (2,), seed=self.seed, draws=batch["draw"], stream="intensity", device=image.device
        )
        signed = 2 * uniform - 1
        image = change_intensity(
            image,
            gamma=torch.exp(signed[:, 0] * math.log(config.max_brightness_gamma)),
            contrast=torch.exp(signed[:, 1] * math.log(config.max_contrast)),
        )
        return image, mask

    def _step(self, batch: dict[str, Any], stage: Stage) -> torch.Tensor:
        is_train = stage == "train"
        moves = is_train and self.config.light_augmentation
        image, mask = self.augment(batch) if moves else (batch["image"], batch["mask"])
        valid_hw, size = batch["valid_hw"], len(mask)
        logits = self(image)
        loss = dice_cross_entropy_loss(logits, mask, valid_hw=valid_hw)
        dice = dice_from_logits(logits.detach(), mask, valid_hw=valid_hw)
        if not is_train:
            self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=True)
        if stage == "test":
            # One metric of several loaders would mix their cohorts.
            self.log("test/dice", dice.mean(), batch_size=size, sync_dist=True)
            return loss
        metric = self.train_dice if is_train else self.val_dice
        metric.update(dice)
        self.log(f"{stage}/dice", metric, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the loss of the augmented batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Log loss and Dice of the images as they are."""
        self._step(batch, "val")

    def test_step(
        self,
        batch: dict[str, Any],
        batch_idx: int = 0,  # noqa: ARG002 - Lightning's signature
        dataloader_idx: int = 0,  # noqa: ARG002 - it names the cohort's keys by itself
    ) -> None:
        """Log loss and Dice of the images as they are, a cohort at a time."""
        self._step(batch, "test")

    def predict_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Logits (B, 1, H, W) of `predict`."""
        return self.predict(batch)

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse losses and weights that are not finite."""
        return [LossWatch(setting="unet.learning_rate")]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW; linear warm-up, then a cosine to zero at `steps`."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return with_schedule(optimizer, warmup_steps=config.warmup_steps, steps=config.steps)


def build_unet(config: UnetConfig, *, seed: int) -> torch.nn.Module:
    """Build the network; global random state stays as it was.

    Args:
        config: The U-Net's settings.
        seed: Seed of all weights, or of the decoder's where the encoder is pretrained.

    Raises:
        WeightsError: The pretrained weights cannot be loaded.
    """
    carried = is_carried(config)
    weights: str | bool | None = None if carried else config.encoder_weights
    if weights is not None and config.encoder_name.startswith("tu-"):
        # timm's encoders know one set each, which is ImageNet's for those that the config allows.
        weights = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "unet"))
        try:
            network = smp.Unet(
                encoder_name=config.encoder_name,
                encoder_weights=weights,
                decoder_channels=_five(config.decoder_channels),
                in_channels=1,
                classes=1,
            )
            if carried:
                fill_encoder(network.encoder.model)
            if len(config.decoder_channels) < len(network.decoder.blocks):
                end_at_half(network, channels=config.decoder_channels[-1])
        # Hub and network errors of several packages; all of them are one of these.
        except (OSError, RuntimeError) as error:
            if config.encoder_weights is None:
                raise
            raise WeightsError(
                f"encoder_weights={config.encoder_weights} of {config.encoder_name} cannot be "
                f"loaded: {_short(error)}; set encoder_weights to null for random ones"
            ) from error
    keep_depthwise_in_float32(network)
    # A fifth less CPU time a step than the usual order of the axes.
    return network.to(memory_format=torch.channels_last)


def _five(channels: tuple[int, ...]) -> tuple[int, ...]:
    """The library builds a level for each of the encoder's; the last one is taken off again."""
    return channels if len(channels) == 5 else (*channels, channels[-1])


def end_at_half(network: torch.nn.Module, *, channels: int) -> None:
    """Take the decoder's last level off: logits at half of the frame's resolution, enlarged."""
    network.decoder.blocks = network.decoder.blocks[:-1]
    network.segmentation_head = smp.base.SegmentationHead(
        in_channels=channels, out_channels=1, kernel_size=3, upsampling=2
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def standardise(image: torch.Tensor) -> torch.Tensor:
    """Give each image mean 0 and standard deviation 1 over its frame.

    Args:
        image: (B, 1, H, W) float.

    Returns:
        (B, 1, H, W) float32; zeros for a flat image, NaN where the image holds one.
    """
    image = image.float()
    centred = image - image.mean(dim=(1, 2, 3), keepdim=True)
    std = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return centred / std.clamp(min=MIN_STD)


def change_intensity(
    image: torch.Tensor, *, gamma: torch.Tensor, contrast: torch.Tensor
) -> torch.Tensor:
    """Brighten or darken by a power and stretch about the mean: clip(m + c (x^gamma - m), 0, 1).

    Standardisation undoes any change of scale, so that what acts is the power and the clipping.

    Args:
        image: (B, 1, H, W) in [0, 1].
        gamma: (B,) exponents, above 0; below 1 brightens.
        contrast: (B,) gains c about the mean m of x^gamma, at least 0.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    image = image.clamp(0, 1) ** gamma.view(-1, 1, 1, 1)
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + contrast.view(-1, 1, 1, 1) * (image - mean)).clamp(0, 1)
