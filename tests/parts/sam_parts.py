"""What tests of SamModule share: settings of the tiny backbone, and heads."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.geometry import image_to_frame, mask_to_frame, place
from lightning_modules.segmenters.sam.config import SegmenterConfig


def make_config(**changes):
    values = {"backbone": "tiny", "steps": 8, "learning_rate": 1e-3, "warmup_steps": 2}
    return SegmenterConfig(**{**values, **changes})


class Heads(Dataset):
    """Bright ellipses on noise, 54x80 and 80x54, in the tiny backbone's frame."""

    def __init__(self, items=8):
        self.items = [self.make(index) for index in range(items)]

    @staticmethod
    def make(index):
        rng = np.random.default_rng(index)
        size_hw = (54, 80) if index % 2 == 0 else (80, 54)
        y, x = np.mgrid[: size_hw[0], : size_hw[1]]
        center, axes = rng.uniform(0.4, 0.6, 2) * size_hw, rng.uniform(0.2, 0.35, 2) * size_hw
        radius = ((y - center[0]) / axes[0]) ** 2 + ((x - center[1]) / axes[1]) ** 2
        mask = (radius <= 1).astype(np.uint8)
        image = (0.2 + 0.5 * mask + rng.normal(0, 0.05, size_hw)).clip(0, 1).astype(np.float32)
        placement = place(size_hw, frame_hw=(64, 64), mode="pad")
        return {
            "image": torch.from_numpy(image_to_frame(image, placement))[None],
            "mask": torch.from_numpy(mask_to_frame(mask, placement))[None].float(),
            "valid_hw": torch.tensor(placement.valid_hw),
        }

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return {**self.items[index], "draw": torch.tensor(index)}


def make_batch(items=4):
    return next(iter(DataLoader(Heads(items), batch_size=items)))


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def trainable_names(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}
