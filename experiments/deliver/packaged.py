"""Which model `predict` uses: a run's, or the one of the package. Torch-free."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import InputError
from experiments.config.paths import MODELS

PACKAGED = MODELS / "hc18-unet"
"""The model of the package, a folder as `compact` writes it."""
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth")


def run_and_images(places: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Tell a run from images: the first place, where it holds a manifest; else the package's model.

    Raises:
        InputError: A run without images, or the package holds no model.
    """
    first, *others = places
    if (first / "manifest.json").is_file():
        if not others:
            raise InputError(f"{first}: a run and no images; give images or folders after it")
        return first, others
    is_damaged_run = first.is_dir() and first.parent.name in ("fit", "fit_unet")
    if first.suffix in WEIGHTS or is_damaged_run or (others and not first.exists()):
        # Neither images nor a run: `read_manifest` says what is missing.
        return first, others
    if not (PACKAGED / "manifest.json").is_file():
        raise InputError(f"{PACKAGED}: the model of the package is missing; install it again")
    return PACKAGED, list(places)
