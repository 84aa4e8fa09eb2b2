"""Training the U-Net: a plain loop of segmentation-models-pytorch and Lightning against ours."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.annotation import annotation_of, image_of
from datamodules.geometry import image_to_frame, mask_to_frame, place
from datamodules.hc18 import HC18DataModule
from datamodules.samples import Sample, read_hc18
from datamodules.settings import Cache, Frame, Loading, Mixture
from experiments.bench.child import quiet
from experiments.bench.encoder import flops_of
from experiments.bench.measure import Bench, Found, Way
from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.segmenters.unet.module import UnetModule

ENCODERS = (UnetConfig().encoder_name, "tu-resnet10t")
"""The default, whose depthwise convolutions are light in arithmetic, and one of whole ones."""


def bench_unet(bench: Bench, found: Found) -> None:
    """Seconds an image of training with strong augmentation, from the first step to the last."""
    for encoder in ENCODERS:
        _bench_encoder(bench, found, encoder)


def _bench_encoder(bench: Bench, found: Found, encoder: str) -> None:
    steps, batch, size_hw = (found.sizes[name] for name in ("steps", "batch", "size_hw"))
    samples = sorted(read_hc18(bench.root()), key=lambda s: s.sample_id)[: found.sizes["images"]]
    config = UnetConfig(
        encoder_name=encoder,
        encoder_weights=None,
        size_hw=size_hw,
        steps=steps,
        batch_size=batch,
        precision="bf16-mixed" if bench.is_gpu else "32-true",
    )
    plain_items = PlainItems(samples, size_hw=size_hw, n=steps * batch)

    def plain(number: int) -> None:
        L.seed_everything(number + 1, verbose=False)
        loader = DataLoader(plain_items, batch_size=batch)
        fit(bench, PlainUnet(encoder), config=config, train_dataloaders=loader)

    def ours(number: int) -> None:
        datamodule = HC18DataModule(
            samples={sample.sample_id: sample for sample in samples},
            train_ids=[sample.sample_id for sample in samples],
            frame=Frame(size_hw=size_hw, resize_mode="squash"),
            cache=Cache(folder=bench.work / "unet"),
            batch_size=batch,
            n_batches=steps,
            seed=number + 1,
            mixture=Mixture(augment="strong"),
            loading=Loading(resident_bytes=2**30 if bench.is_gpu else 0),
        )
        module = UnetModule(config, seed=number + 1)
        fit(bench, module, config=config, datamodule=datamodule)

    def step() -> None:
        images = torch.rand(batch, 1, *size_hw)
        UnetModule(config)(images).sum().backward()

    convolutions = [m for m in UnetModule(config).modules() if isinstance(m, torch.nn.Conv2d)]
    # torch counts the backward pass of a grouped convolution as that of a whole one.
    is_counted = all(each.groups == 1 for each in convolutions)
    units = steps * batch
    found.measure(
        Way(f"a plain loop, {encoder}", plain, units),
        Way(
            f"the stage's module and data, {encoder}",
            ours,
            units,
            ratio=f"an image of training, {encoder}",
            target="image",
            flops=flops_of(step) / batch if is_counted else 0.0,
            precision="bf16" if bench.is_gpu else "fp32",
        ),
    )


def fit(bench: Bench, module: L.LightningModule, *, config: UnetConfig, **given: Any) -> None:
    """One epoch by Lightning, without files or screens."""
    with quiet():
        L.Trainer(
            max_epochs=1,
            accelerator="gpu" if bench.is_gpu else "cpu",
            devices=1,
            precision=config.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=bench.work,
        ).fit(module, **given)


class PlainItems(Dataset):
    """PNG files decoded, resized and augmented one by one, as scripts do."""

    def __init__(self, samples: Sequence[Sample], *, size_hw: tuple[int, int], n: int) -> None:
        self.samples, self.size_hw, self.n = list(samples), size_hw, n
        self.augment = v2.Compose(
            [
                v2.RandomAffine(45, translate=(0.2, 0.2), scale=(0.6, 1.6)),
                v2.RandomHorizontalFlip(),
                v2.ElasticTransform(),
                v2.ColorJitter(brightness=0.4, contrast=0.4),
                v2.GaussianBlur(5),
            ]
        )

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and mask, float32 (1, h, w)."""
        sample = self.samples[number % len(self.samples)]
        image, mask = image_of(sample), annotation_of(sample).mask
        frame = place(image.shape, frame_hw=self.size_hw, mode="squash")
        image, mask = self.augment(
            tv_tensors.Image(torch.from_numpy(image_to_frame(image, frame))[None]),
            tv_tensors.Mask(torch.from_numpy(mask_to_frame(mask, frame))[None]),
        )
        return image.float() / 255, mask.float()


class PlainUnet(L.LightningModule):
    """The library's U-Net with its defaults, loss and optimiser as its examples have them."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.network = smp.Unet(encoder, encoder_weights=None, in_channels=1, classes=1)
        self.dice = smp.losses.DiceLoss("binary")

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Dice and cross-entropy of a batch."""
        image, mask = batch
        logits = self.network(image)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, mask)
        return self.dice(logits, mask) + entropy

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
