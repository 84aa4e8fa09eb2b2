"""What tests of the pixel generator share: settings, ellipses of 32x48, a fit."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lightning_modules.generators.pixel.config import GeneratorConfig
from lightning_modules.generators.pixel.module import (
    DiffusionModule,
)
from lightning_modules.randomness import keyed_generator

STEPS = 4


def make_config(**changes: object) -> GeneratorConfig:
    small = {
        "size_hw": (32, 48),
        "patch": 2,
        "block_out_channels": (16, 32),
        "attention": "none",
        "steps": STEPS,
        "warmup_steps": 1,
        "batch_size": 4,
    }
    return GeneratorConfig(**{**small, **changes})


def make_pair(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright ellipse on dark: the mask determines the image up to a little noise."""
    generator = keyed_generator(index, "pair")
    x0, y0, a, b = (
        torch.rand(4, generator=generator) * torch.tensor([12.0, 8.0, 6.0, 3.0])
        + torch.tensor([18.0, 12.0, 8.0, 6.0])
    ).tolist()
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    mask = (((xs - x0) / a) ** 2 + ((ys - y0) / b) ** 2 < 1).float()[None]
    image = 0.05 + 0.4 * mask + 0.05 * torch.rand(1, 32, 48, generator=generator)
    return image, mask


class Stream(Dataset):
    def __init__(self, draws: range):
        self.draws = draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        draw = self.draws[position]
        image, mask = make_pair(draw % 8)
        return {"image": image, "mask": mask, "draw": torch.tensor(draw)}


class Data(L.LightningDataModule):
    """Numbers every item of the training stream, and after a resume continues where it stopped."""

    def __init__(self, *, batches: int, batch_size: int):
        super().__init__()
        self.items, self.batch_size = batches * batch_size, batch_size

    def train_dataloader(self) -> DataLoader:
        loop = self.trainer.fit_loop
        start = loop.epoch_progress.current.processed * self.items
        skip = loop.epoch_loop.batch_progress.current.processed if loop.restarting else 0
        if skip * self.batch_size >= self.items:
            skip = 0
        draws = range(start + skip * self.batch_size, start + self.items)
        return DataLoader(Stream(draws), batch_size=self.batch_size)


def fit(
    module: DiffusionModule,
    *,
    steps: int,
    batches: int = 8,
    batch_size: int = 4,
    accumulate: int = 1,
    precision: str | None = None,
    ckpt_path: Path | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        precision=precision or module.config.precision,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    data = Data(batches=batches, batch_size=batch_size)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def make_batch(count: int = 4, *, first_draw: int = 0) -> dict[str, torch.Tensor]:
    stream = Stream(range(first_draw, first_draw + count))
    return torch.utils.data.default_collate([stream[i] for i in range(count)])


def assert_same_state(first: DiffusionModule, second: DiffusionModule) -> None:
    for (name, mine), theirs in zip(
        first.network.state_dict().items(), second.network.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert first.ema.optimization_step == second.ema.optimization_step
    for mine, theirs in zip(first.ema.shadow_params, second.ema.shadow_params, strict=True):
        assert torch.equal(mine, theirs)
