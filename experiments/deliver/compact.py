"""A fitted model as a small folder: `predict` takes a segmenter's, `draw` a generator's.

The models of the package are such folders; both commands use them where no run is given.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from datamodules.errors import InputError
from datamodules.storage import new_folder, write_atomic, write_json
from experiments.deliver.sidecar import data_line
from experiments.store.fitted import (
    GENERATOR,
    GENERATOR_IMAGES,
    WEIGHTS_NAME,
    described,
    settings_of_run,
)
from lightning_modules.generators.pixel.module import CONFIG_NAME
from lightning_modules.generators.pixel.module import WEIGHTS_NAME as GENERATOR_WEIGHTS

KEPT = ("stage", "id", "label", "sweep", "git_sha", "versions", "started")


def export_compact(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """Write weights in float16 with what `predict` or `draw` needs to know of them.

    Raises:
        InputError: The run holds no fitted segmenter and no fitted pixel generator.
    """
    if manifest["stage"] == "generator":
        _export_generator(run_dir, manifest, out)
        return
    weights = run_dir / WEIGHTS_NAME
    if manifest["stage"] != "fit" or not weights.is_file():
        raise InputError(
            f"{run_dir}: no fitted segmenter or generator (stage {manifest['stage']}); give a "
            "finished runs/store/fit/ID or runs/store/generator/ID"
        )
    settings = settings_of_run(run_dir, manifest)
    with new_folder(out) as folder:
        _save_half(weights, folder / WEIGHTS_NAME)
        kept = _kept(manifest) | {"segmenter": described(settings)}
        write_json(folder / "manifest.json", kept)


def _export_generator(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    source = run_dir / GENERATOR
    missing = [
        name
        for name in (CONFIG_NAME, GENERATOR_WEIGHTS, GENERATOR_IMAGES)
        if not (source / name).is_file()
    ]
    if missing:
        raise InputError(
            f"{source}: {missing[0]} is missing; give a finished pixel generator of this version "
            "(Stable Diffusion has --format lora and pipeline)"
        )
    images = json.loads((source / GENERATOR_IMAGES).read_text())
    with new_folder(out) as folder:
        _save_half(source / GENERATOR_WEIGHTS, folder / GENERATOR_WEIGHTS)
        write_atomic(folder / CONFIG_NAME, (source / CONFIG_NAME).read_text())
        # A line an image: a table that compresses and compares well.
        rows = ",\n".join(json.dumps(row) for row in images)
        write_atomic(folder / GENERATOR_IMAGES, f"[\n{rows}\n]\n")
        write_json(folder / "manifest.json", _kept(manifest))


def _save_half(source: Path, target: Path) -> None:
    """The same tensors, those of float32 in float16."""
    with safe_open(source, framework="pt") as file:
        about = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    half = {k: v.half() if v.dtype == torch.float32 else v for k, v in state.items()}
    save_file(half, target, metadata=about)


def _kept(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's manifest goes with its model."""
    n_images = len(manifest.get("content", {}).get("images", []))
    kept = {key: manifest[key] for key in KEPT if key in manifest}
    kept |= {"content": {"n_images": n_images}, "data": data_line(manifest), "weights": "float16"}
    return kept
