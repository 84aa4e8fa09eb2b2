"""A fitted model as a small folder: `predict` takes a segmenter's, `draw` a generator's.

The models of the package are such folders; both commands use them where no run is given.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from datamodules.errors import InputError
from datamodules.storage import write_atomic, write_json
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


def export_compact(run_dir: Path, manifest: Mapping[str, Any], folder: Path) -> None:
    """Write weights in float16 with what `predict` or `draw` needs to know of them.

    Raises:
        InputError: The run holds no fitted segmenter and no fitted pixel generator.
    """
    about = {key: manifest[key] for key in KEPT if key in manifest}
    content = manifest.get("content", {})
    n_images = content.get("n_images", len(content.get("images", [])))
    about |= {"content": {"n_images": n_images}, "data": data_line(manifest), "weights": "float16"}
    if extensions := manifest.get("config", {}).get("extensions"):
        about["config"] = {"extensions": extensions}
    if manifest["stage"] == "generator":
        _write_generator(run_dir / GENERATOR, folder)
    else:
        weights = run_dir / WEIGHTS_NAME
        if manifest["stage"] != "fit" or not weights.is_file():
            raise InputError(
                f"{run_dir}: no fitted segmenter or generator (stage {manifest['stage']}); give a "
                "finished runs/store/fit/ID or runs/store/generator/ID"
            )
        about["segmenter"] = described(settings_of_run(run_dir, manifest))
        _save_half(weights, folder / WEIGHTS_NAME)
    write_json(folder / "manifest.json", about)


def _write_generator(source: Path, folder: Path) -> None:
    for name in (CONFIG_NAME, GENERATOR_WEIGHTS, GENERATOR_IMAGES):
        if not (source / name).is_file():
            raise InputError(
                f"{source}: {name} is missing; give a finished pixel generator of this version "
                "(Stable Diffusion has --format lora and pipeline)"
            )
    _save_half(source / GENERATOR_WEIGHTS, folder / GENERATOR_WEIGHTS)
    shutil.copyfile(source / CONFIG_NAME, folder / CONFIG_NAME)
    # A line an image: a table that compresses and compares well.
    rows = ",\n".join(map(json.dumps, json.loads((source / GENERATOR_IMAGES).read_text())))
    write_atomic(folder / GENERATOR_IMAGES, f"[\n{rows}\n]\n")


def _save_half(source: Path, target: Path) -> None:
    """The same tensors, those of float32 in float16."""
    try:
        with safe_open(source, framework="pt") as file:
            about = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{source}: damaged or cut short ({error}); fit it again") from error
    half = {k: v.half() if v.dtype == torch.float32 else v for k, v in state.items()}
    try:
        save_file(half, target, metadata=about)
    except SafetensorError as error:
        raise InputError(f"{target}: cannot be written ({error})") from error
