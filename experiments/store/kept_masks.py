"""Kept predictions: packed bits, compressed. Torch-free, because reports read them."""

from pathlib import Path

import numpy as np

NAME = "predictions.npz"


class KeptPredictions:
    """Collects masks by prompt and image, and writes them as one file."""

    def __init__(self) -> None:
        self._packed: dict[str, np.ndarray] = {}

    def add(self, prompt: str, sample_id: str, mask: np.ndarray) -> None:
        """Keep a mask, uint8 (H, W) in {0, 1}."""
        # Bits, not bytes: a test set of 335 images is then 18 MB before compression.
        self._packed[f"{prompt}/{sample_id}"] = np.packbits(mask, axis=1)

    def write(self, run_dir: Path) -> None:
        """Write everything that was kept."""
        np.savez_compressed(run_dir / NAME, **self._packed)


def read_prediction(
    run_dir: Path, *, prompt: str, sample_id: str, size_hw: tuple[int, int]
) -> np.ndarray:
    """A kept mask, uint8 (H, W) in {0, 1}; KeyError where none was kept."""
    with np.load(run_dir / NAME) as kept:
        return np.unpackbits(kept[f"{prompt}/{sample_id}"], axis=1)[:, : size_hw[1]]
