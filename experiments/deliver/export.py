"""`sonosweep export`: a fitted model or a synthetic set in a format that other programs read.

Torch-free until a format's own function runs: a wrong word is refused before that.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from datamodules.allowed import one_of
from datamodules.errors import InputError
from datamodules.storage import commit_folder, require_new, write_json
from experiments.store.fitted import settings_of_run
from experiments.store.runs import read_manifest
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.table import row_of

SIDECAR = "sonosweep.json"
SAM_FILE = "sam.pth"
CONV_IN = "conv_in.safetensors"
LORA_FILES = ("pytorch_lora_weights.safetensors", "generator.json")


def export_command(run_dir: Path, *, format_name: str, out: Path, console: Console) -> None:
    """Write a run in a format, as a folder that is there whole or not at all.

    Args:
        run_dir: Directory of a finished run.
        format_name: One of `FORMATS`.
        out: Folder to write.
        console: Where progress and the result are shown.

    Raises:
        InputError: For a user's mistake, or a run that the format cannot hold.
        WeightsError: Pretrained weights that the run builds on are missing or others.
    """
    one_of(format_name, list(FORMATS), option="--format")
    require_new(out)
    manifest = read_manifest(run_dir)
    with console.status("exporting"):
        FORMATS[format_name](run_dir, manifest, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    console.print(f"{out}: {format_name}, {size / 2**20:.1f} MiB", markup=False, soft_wrap=True)


def _segment_anything(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """A bare state dict, as `sam_model_registry` loads it."""
    config = _settings(run_dir, manifest)
    from experiments.deliver.inference import load_fitted
    from experiments.deliver.sidecar import sam_sidecar
    from lightning_modules.segmenters.sam.export import save_segment_anything
    from lightning_modules.segmenters.sam.tuning import merged_state_dict

    sam = load_fitted(run_dir, config).sam
    with commit_folder(out) as folder:
        save_segment_anything(merged_state_dict(sam), folder / SAM_FILE)
        sidecar = sam_sidecar(config, manifest, sam=sam, weights=folder / SAM_FILE)
        write_json(folder / SIDECAR, sidecar)


def _transformers(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """A folder for transformers' `SamModel.from_pretrained`."""
    config = _settings(run_dir, manifest)
    if config.backbone in ("lite", "tiny"):
        raise InputError(
            f"{run_dir}: transformers' SamModel holds SAM's ViT, not the image encoder of backbone "
            f"{config.backbone}; export it with --format segment-anything"
        )
    from experiments.deliver.inference import load_fitted
    from experiments.deliver.sidecar import sam_sidecar
    from lightning_modules.segmenters.sam.export import save_transformers
    from lightning_modules.segmenters.sam.tuning import merged_state_dict

    sam = load_fitted(run_dir, config).sam
    # Of pixels in [0, 1]; segment_anything has them for 0..255.
    mean, std = ((values.flatten() / 255).tolist() for values in (sam.pixel_mean, sam.pixel_std))
    with commit_folder(out) as folder:
        state = merged_state_dict(sam)
        save_transformers(sam, state, folder, image_mean=mean, image_std=std)
        weights = folder / "model.safetensors"
        write_json(folder / SIDECAR, sam_sidecar(config, manifest, sam=sam, weights=weights))


def _lora(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """LoRA weights for a diffusers pipeline's `load_lora_weights`."""
    generator = _stable_diffusion_folder(run_dir, manifest)
    from experiments.deliver.sidecar import generator_sidecar

    with commit_folder(out) as folder:
        # The mask's channels are in a file of their own, where there are any.
        for name in (*LORA_FILES, *(path.name for path in generator.glob(CONV_IN))):
            shutil.copyfile(generator / name, folder / name)
        sidecar = generator_sidecar(manifest, weights=folder / LORA_FILES[0])
        write_json(folder / SIDECAR, sidecar)


def _pipeline(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """A whole diffusers pipeline, for `from_pretrained`."""
    generator = _stable_diffusion_folder(run_dir, manifest)
    from experiments.deliver.sidecar import generator_sidecar
    from lightning_modules.generators.stable_diffusion.base import load_base
    from lightning_modules.generators.stable_diffusion.module import load_stable_diffusion
    from lightning_modules.generators.stable_diffusion.pipeline import save_pipeline

    module = load_stable_diffusion(generator)
    base = load_base(module.config.base_model, revision=module.config.revision)
    with commit_folder(out) as folder:
        save_pipeline(module, base, folder)
        sidecar = generator_sidecar(manifest, weights=generator / LORA_FILES[0])
        write_json(folder / SIDECAR, sidecar)


def _dataset(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:  # noqa: ARG001
    """An image folder with metadata.jsonl, dataset card and Croissant."""
    from experiments.deliver.dataset import export_dataset

    export_dataset(run_dir, out)


def _settings(run_dir: Path, manifest: Mapping[str, Any]) -> SegmenterConfig:
    """The settings of a fitted SAM that other programs can hold.

    Raises:
        InputError: The run is of another stage or version, or tuned by modules of our own.
    """
    stage = manifest["stage"]
    if stage not in ("fit", "fit_unet"):
        raise InputError(
            f"{run_dir}: a run of stage {stage}; give a fitted SAM, such as runs/store/fit/ID"
        )
    config = settings_of_run(run_dir, manifest)
    if not isinstance(config, SegmenterConfig):
        raise InputError(
            f"{run_dir}: a {row_of(config).label}, which neither format holds; its "
            "segmenter.safetensors is plain weights"
        )
    if config.tuning == "adapter":
        raise InputError(
            f"{run_dir}: fitted with tuning=adapter, whose modules no stock SAM has; fit with "
            "decoder, lora, late_lora or full to export"
        )
    return config


def _stable_diffusion_folder(run_dir: Path, manifest: Mapping[str, Any]) -> Path:
    """The folder of a generator's LoRA."""
    if manifest["stage"] != "generator":
        raise InputError(
            f"{run_dir}: a run of stage {manifest['stage']}; give a Stable Diffusion generator, "
            "such as runs/store/generator/ID"
        )
    folder = run_dir / "generator"
    missing = [name for name in LORA_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {missing[0]} is missing, so this generator is no finished Stable "
            "Diffusion; fit one with synthesis.generator=stable_diffusion"
        )
    return folder


FORMATS: dict[str, Callable[[Path, Mapping[str, Any], Path], None]] = {
    "segment-anything": _segment_anything,
    "transformers": _transformers,
    "lora": _lora,
    "pipeline": _pipeline,
    "dataset": _dataset,
}
"""Each writes the new folder `out` whole, from a run's directory and its manifest."""
