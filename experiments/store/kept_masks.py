"""Kept predictions: packed bits, compressed. Torch-free, because reports read them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

NAME = "predictions.npz"


def pack(mask: np.ndarray) -> np.ndarray:
    """A mask, uint8 (H, W) in {0, 1}, as bits: 335 test images are 18 MB before compression."""
    return np.packbits(mask, axis=1)


def write_predictions(run_dir: Path, packed: Mapping[str, np.ndarray], *, prompt: str) -> None:
    """Write the masks of a prompt, packed, by image."""
    masks = {f"{prompt}/{sample_id}": mask for sample_id, mask in packed.items()}
    np.savez_compressed(run_dir / NAME, **masks)


def read_prediction(
    run_dir: Path, *, prompt: str, sample_id: str, size_hw: tuple[int, int]
) -> np.ndarray:
    """A kept mask, uint8 (H, W) in {0, 1}; KeyError where none was kept."""
    with np.load(run_dir / NAME) as kept:
        return np.unpackbits(kept[f"{prompt}/{sample_id}"], axis=1)[:, : size_hw[1]]
