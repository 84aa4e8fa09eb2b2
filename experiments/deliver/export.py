"""`sonosweep export`: a fitted model or a synthetic set in a format that other programs read.

Torch-free until a format's own function runs: a wrong word is refused before that.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from datamodules.allowed import one_of
from datamodules.errors import InputError
from datamodules.storage import new_folder
from experiments.deliver.dataset import export_dataset
from experiments.deliver.sidecar import about_sam, write_sidecar
from experiments.store.fitted import GENERATOR, settings_of_run
from experiments.store.runs import read_manifest, read_sound
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.table import row_of

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

CONV_IN = "conv_in.safetensors"
LORA_FILES = ("pytorch_lora_weights.safetensors", "generator.json")


def export_command(run_dir: Path, *, format_name: str, out: Path, console: Console) -> None:
    """Write a run in one of `FORMATS`, as a folder that is there whole or not at all."""
    one_of(format_name, list(FORMATS), option="--format")
    # A set of pairs is read whole, and named in its own words.
    read = read_manifest if format_name == "dataset" else read_sound
    with new_folder(out) as folder, console.status("exporting"):
        FORMATS[format_name](run_dir, read(run_dir), folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    console.print(f"{out}: {format_name}, {size / 2**20:.1f} MiB", markup=False, soft_wrap=True)


def _segment_anything(run_dir: Path, manifest: Mapping[str, Any], folder: Path) -> None:
    """A bare state dict, as `sam_model_registry` loads it."""
    config, sam = _fitted_sam(run_dir, manifest)
    from lightning_modules.segmenters.sam.export import save_segment_anything
    from lightning_modules.segmenters.sam.tuning import merged_state_dict

    weights = folder / "sam.pth"
    save_segment_anything(merged_state_dict(sam), weights)
    write_sidecar(folder, manifest, weights=weights, about=about_sam(config, sam))


def _transformers(run_dir: Path, manifest: Mapping[str, Any], folder: Path) -> None:
    """A folder for transformers' `SamModel.from_pretrained`."""
    config, sam = _fitted_sam(run_dir, manifest, refused=("lite", "tiny"))
    from lightning_modules.segmenters.sam.export import save_transformers
    from lightning_modules.segmenters.sam.tuning import merged_state_dict

    # Of pixels in [0, 1]; segment_anything has them for 0..255.
    mean, std = ((values.flatten() / 255).tolist() for values in (sam.pixel_mean, sam.pixel_std))
    save_transformers(sam, merged_state_dict(sam), folder, image_mean=mean, image_std=std)
    weights = folder / "model.safetensors"
    write_sidecar(folder, manifest, weights=weights, about=about_sam(config, sam))


def _lora(run_dir: Path, manifest: Mapping[str, Any], folder: Path) -> None:
    """LoRA weights for a diffusers pipeline's `load_lora_weights`."""
    generator, about = _stable_diffusion(run_dir, manifest)
    # The mask's channels are in a file of their own, where there are any.
    for name in (*LORA_FILES, *(path.name for path in generator.glob(CONV_IN))):
        shutil.copyfile(generator / name, folder / name)
    write_sidecar(folder, manifest, weights=folder / LORA_FILES[0], about=about)


def _pipeline(run_dir: Path, manifest: Mapping[str, Any], folder: Path) -> None:
    """A whole diffusers pipeline, for `from_pretrained`, LoRA merged by the recipe's scale."""
    generator, about = _stable_diffusion(run_dir, manifest)
    from lightning_modules.generators.stable_diffusion.base import load_base
    from lightning_modules.generators.stable_diffusion.module import load_stable_diffusion
    from lightning_modules.generators.stable_diffusion.pipeline import save_pipeline

    module = load_stable_diffusion(generator)
    base = load_base(module.config.base_model, revision=module.config.revision)
    save_pipeline(module, base, folder)
    write_sidecar(folder, manifest, weights=generator / LORA_FILES[0], about=about)


def _compact(run_dir: Path, manifest: Mapping[str, Any], folder: Path) -> None:
    """A small folder that `predict` or `draw` takes in the place of the run."""
    from experiments.deliver.compact import export_compact

    export_compact(run_dir, manifest, folder)


def _fitted_sam(
    run_dir: Path, manifest: Mapping[str, Any], *, refused: Sequence[str] = ()
) -> tuple[SegmenterConfig, "Sam"]:
    """A fitted SAM that other programs can hold, and its settings; no backbone that is refused."""
    if manifest["stage"] != "fit":
        raise InputError(
            f"{run_dir}: a run of stage {manifest['stage']}; give a fitted SAM, such as "
            "runs/store/fit/ID"
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
    if config.backbone in refused:
        raise InputError(
            f"{run_dir}: transformers' SamModel holds SAM's ViT, not the image encoder of backbone "
            f"{config.backbone}; export it with --format segment-anything"
        )
    from experiments.deliver.inference import load_fitted

    return config, load_fitted(run_dir, config).sam


def _stable_diffusion(run_dir: Path, manifest: Mapping[str, Any]) -> tuple[Path, Mapping[str, Any]]:
    """The folder of a generator's LoRA, and what its sidecar says of it."""
    if manifest["stage"] != "generator":
        raise InputError(
            f"{run_dir}: a run of stage {manifest['stage']}; give a Stable Diffusion generator, "
            "such as runs/store/generator/ID"
        )
    folder = run_dir / GENERATOR
    for name in LORA_FILES:
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: {name} is missing, so this generator is no finished Stable Diffusion; "
                "fit one with synthesis.generator=stable_diffusion"
            )
    # Of the run's own file: a sweep's block may say another one than the recipe's section.
    saved = json.loads((folder / LORA_FILES[1]).read_text())
    return folder, {"stable_diffusion": saved["config"]}


FORMATS: dict[str, Callable[[Path, Mapping[str, Any], Path], None]] = {
    "segment-anything": _segment_anything,
    "transformers": _transformers,
    "lora": _lora,
    "pipeline": _pipeline,
    "dataset": export_dataset,
    "compact": _compact,
}
"""Each fills a folder, from a run's directory and its manifest."""
