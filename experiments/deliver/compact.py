"""A fitted segmenter as a small folder that `predict` takes in the place of its run.

The model of the package is such a folder: `sonosweep predict IMAGES` without a run uses it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from datamodules.errors import InputError
from datamodules.storage import commit_folder, write_json
from experiments.deliver.sidecar import data_line
from experiments.stages.fit import WEIGHTS_NAME
from experiments.store.fitted import described, settings_of_run

KEPT = ("stage", "id", "label", "sweep", "git_sha", "versions", "started")


def export_compact(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """Write weights in float16 with what `predict` needs to know of them.

    Raises:
        InputError: The run holds no fitted segmenter.
    """
    weights = run_dir / WEIGHTS_NAME
    if manifest["stage"] != "fit" or not weights.is_file():
        raise InputError(
            f"{run_dir}: no fitted segmenter (stage {manifest['stage']}); give a finished "
            "runs/store/fit/ID"
        )
    settings = settings_of_run(run_dir, manifest)
    with safe_open(weights, framework="pt") as file:
        about = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    half = {k: v.half() if v.dtype == torch.float32 else v for k, v in state.items()}
    content = manifest.get("content", {})
    kept = {key: manifest[key] for key in KEPT if key in manifest}
    kept |= {"segmenter": described(settings)}
    kept |= {"content": {"n_images": len(content.get("images", []))}}
    kept |= {"data": data_line(manifest), "weights": "float16"}
    with commit_folder(out) as folder:
        save_file(half, folder / WEIGHTS_NAME, metadata=about)
        write_json(folder / "manifest.json", kept)
