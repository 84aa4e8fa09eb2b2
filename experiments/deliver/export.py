"""`sonosweep export`: a fitted model or a synthetic set in a format that other programs read.

Torch-free until a format's own function runs: a wrong word is refused before that.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from datamodules.errors import InputError
from datamodules.storage import commit_folder, write_json
from experiments.store.runs import read_manifest
from lightning_modules.segmenters.sam.config import SegmenterConfig

if TYPE_CHECKING:
    import torch

    from lightning_modules.segmenters.sam.module import SamModule

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
    if format_name not in FORMATS:
        raise InputError(f"--format {format_name}: unknown; choose one of {', '.join(FORMATS)}")
    if out.exists():
        raise InputError(f"{out}: exists; choose another folder, or remove it")
    manifest = read_manifest(run_dir)
    with console.status("exporting"):
        FORMATS[format_name](run_dir, manifest, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    console.print(f"{out}: {format_name}, {size / 2**20:.1f} MiB", markup=False, soft_wrap=True)


def _segment_anything(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """A bare state dict, as `sam_model_registry` loads it."""
    module, state = _segmenter(run_dir, manifest)
    from experiments.deliver.sidecar import sam_sidecar
    from lightning_modules.segmenters.sam.export import save_segment_anything

    with commit_folder(out) as folder:
        save_segment_anything(state, folder / SAM_FILE)
        sidecar = sam_sidecar(module.config, manifest, sam=module.sam, weights=folder / SAM_FILE)
        write_json(folder / SIDECAR, sidecar)


def _transformers(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """A folder for transformers' `SamModel.from_pretrained`."""
    backbone = _settings(run_dir, manifest).backbone
    if backbone in ("lite", "tiny"):
        raise InputError(
            f"{run_dir}: transformers' SamModel holds SAM's ViT, not the image encoder of backbone "
            f"{backbone}; export it with --format segment-anything"
        )
    module, state = _segmenter(run_dir, manifest)
    from experiments.deliver.sidecar import sam_sidecar, unit_mean_std
    from lightning_modules.segmenters.sam.export import save_transformers

    mean, std = unit_mean_std(module.sam)
    with commit_folder(out) as folder:
        save_transformers(module.sam, state, folder, image_mean=mean, image_std=std)
        weights = folder / "model.safetensors"
        sidecar = sam_sidecar(module.config, manifest, sam=module.sam, weights=weights)
        write_json(folder / SIDECAR, sidecar)


def _lora(run_dir: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """LoRA weights for a diffusers pipeline's `load_lora_weights`."""
    generator = _stable_diffusion_folder(run_dir, manifest)
    from experiments.deliver.sidecar import generator_sidecar

    with commit_folder(out) as folder:
        for name in LORA_FILES:
            shutil.copyfile(generator / name, folder / name)
        if (generator / CONV_IN).is_file():
            # The mask's channels, which LoRA does not hold.
            shutil.copyfile(generator / CONV_IN, folder / CONV_IN)
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
    """The settings of a fitted SAM.

    Raises:
        InputError: The run is of another stage, or of another version.
    """
    stage = manifest["stage"]
    if stage == "fit_unet":
        raise InputError(
            f"{run_dir}: a U-Net, which neither format holds; its segmenter.safetensors is plain "
            "weights of segmentation_models_pytorch"
        )
    if stage != "fit":
        raise InputError(
            f"{run_dir}: a run of stage {stage}; give a fitted SAM, such as runs/store/fit/ID"
        )
    # Torch, for a run that there is.
    from experiments.stages.fit import settings_of

    try:
        config = SegmenterConfig(**manifest["config"]["segmenter"])
        return settings_of(config, manifest.get("content", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run_dir}: its settings are not of this version ({error}); fit the segmenter again"
        ) from error


def _segmenter(
    run_dir: Path, manifest: Mapping[str, Any]
) -> tuple["SamModule", dict[str, "torch.Tensor"]]:
    """A fitted SAM and its weights under segment_anything's names."""
    config = _settings(run_dir, manifest)
    if config.tuning == "adapter":
        raise InputError(
            f"{run_dir}: fitted with tuning=adapter, whose modules no stock SAM has; fit with "
            "decoder, lora, late_lora or full to export"
        )
    from safetensors import SafetensorError

    from experiments.stages.fit import WEIGHTS_NAME, fitted_segmenter
    from lightning_modules.segmenters.sam.tuning import merged_state_dict

    if not (run_dir / WEIGHTS_NAME).is_file():
        raise InputError(f"{run_dir}: {WEIGHTS_NAME} is missing; let the fit finish, then export")
    try:
        module = fitted_segmenter(run_dir, config=config)
    except SafetensorError as error:
        raise InputError(
            f"{run_dir / WEIGHTS_NAME}: damaged or cut short ({error}); copy it again, or fit the "
            "segmenter again"
        ) from error
    return module, merged_state_dict(module.sam)


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
