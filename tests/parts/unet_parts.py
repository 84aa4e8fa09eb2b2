"""What tests of the U-Net share: settings, heads of 32x64."""

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_modules.segmenters.unet.config import UnetConfig

SIZE_HW = (32, 64)
FIRST_WEIGHT = "encoder.model.conv1.0.weight"


def make_config(**changes):
    values = {
        "encoder_name": "tu-resnet10t",
        "encoder_weights": None,
        "decoder_channels": (32, 16, 16, 8, 8),
        "size_hw": SIZE_HW,
        "steps": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 1,
    }
    return UnetConfig(**{**values, **changes})


def make_still_config(**changes):
    """No augmentation at all."""
    none = {"flip_probability": 0, "max_rotation_deg": 0, "max_scale": 1, "max_shift": 0}
    return make_config(**none, max_brightness_gamma=1, max_contrast=1, **changes)


class Heads(Dataset):
    """Sixteen bright ellipses on noise, 32x64; item k of the stream has draw k."""

    def __init__(self, first=0, items=16):
        self.first, self.items = first, items

    def __len__(self):
        return self.items

    def __getitem__(self, position):
        index = self.first + position
        rng = np.random.default_rng(index)
        y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
        center, axes = rng.uniform(0.4, 0.6, 2) * SIZE_HW, rng.uniform(0.2, 0.35, 2) * SIZE_HW
        mask = ((y - center[0]) / axes[0]) ** 2 + ((x - center[1]) / axes[1]) ** 2 <= 1
        image = (0.2 + 0.5 * mask + rng.normal(0, 0.05, SIZE_HW)).clip(0, 1)
        return {
            "image": torch.from_numpy(image.astype(np.float32))[None],
            "mask": torch.from_numpy(mask.astype(np.float32))[None],
            "valid_hw": torch.tensor(SIZE_HW),
            "draw": torch.tensor(index),
        }


def make_batch(items=4, first=0):
    return next(iter(DataLoader(Heads(first, items), batch_size=items)))


class Stream(L.LightningDataModule):
    """Two batches of four an epoch; the draws continue from epoch to epoch."""

    def train_dataloader(self):
        return DataLoader(Heads(8 * self.trainer.current_epoch, 8), batch_size=4)

    def val_dataloader(self):
        return DataLoader(Heads(100, 3), batch_size=2)


def weights(module):
    return {name: value.detach().clone() for name, value in module.network.state_dict().items()}


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
