"""Which model `predict` uses: a run's, or the one of the package. Torch-free."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import InputError
from experiments.config.paths import MODELS

PACKAGED = MODELS / "hc18-unet"
"""The model of the package, a folder as `compact` writes it."""
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth")


def runs_and_images(places: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Tell runs from images: the first places, as far as they hold a manifest; else the package's.

    Raises:
        InputError: Runs without images, one run twice, or the package holds no model.
    """
    others = list(places)
    runs = []
    while others and _is_run(others[0], others=others[1:], is_first=not runs):
        runs.append(others.pop(0))
    if not runs:
        if not (PACKAGED / "manifest.json").is_file():
            raise InputError(f"{PACKAGED}: the model of the package is missing; install it again")
        return [PACKAGED], others
    if not others and all((run / "manifest.json").is_file() for run in runs):
        what = "a run" if len(runs) == 1 else f"{len(runs)} runs"
        raise InputError(f"{runs[0]}: {what} and no images; give images or folders after it")
    twice = next((run for run in runs if [r.resolve() for r in runs].count(run.resolve()) > 1), "")
    if twice:
        raise InputError(f"{twice}: given twice, and would count twice; leave one out")
    return runs, others


def _is_run(place: Path, *, others: Sequence[Path], is_first: bool) -> bool:
    """Whether a place is meant as a run; of damaged ones `read_manifest` says what is missing."""
    if (place / "manifest.json").is_file() or place.suffix in WEIGHTS:
        return True
    if place.is_dir() and place.parent.name in ("fit", "fit_unet"):
        return True
    return is_first and bool(others) and not place.exists()
