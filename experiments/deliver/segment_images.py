"""Apply a fitted segmenter to images that need no masks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from datamodules.annotation import read_image
from datamodules.errors import InputError
from datamodules.geometry import enlarge, image_to_frame, logits_to_original, place
from experiments.config.schema import Prompt
from experiments.stages.fit import WEIGHTS_NAME, fitted_segmenter, settings_of
from experiments.store.runs import read_manifest
from lightning_modules.prompts import predicted_boxes, whole_image_boxes
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig, image_factor
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.network import decode, for_inference
from lightning_modules.segmenters.unet.config import UnetConfig

if TYPE_CHECKING:
    # Its library takes a second to import, which a SAM should not pay.
    from lightning_modules.segmenters.unet.module import UnetModule


def config_of_run(run_dir: Path, manifest: Mapping[str, Any]) -> SegmenterConfig | UnetConfig:
    """The settings of a fitted segmenter: a stage `fit_unet` holds a U-Net, any other a SAM.

    Raises:
        InputError: They are of another version.
    """
    try:
        if manifest["stage"] == "fit_unet":
            return UnetConfig(**manifest["config"]["unet"])
        config = SegmenterConfig(**manifest["config"]["segmenter"])
        return settings_of(config, manifest.get("content", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run_dir}: its settings are not of this version ({error}); fit the segmenter again"
        ) from error


def load_fitted(run_dir: Path, config: SegmenterConfig | UnetConfig) -> "SamModule | UnetModule":
    """A fitted segmenter with its weights, in eval mode.

    Raises:
        InputError: They are missing or damaged.
        WeightsError: The backbone's weights are missing or others, or a U-Net's file is damaged.
    """
    path = run_dir / WEIGHTS_NAME
    if not path.is_file():
        raise InputError(f"{run_dir}: {WEIGHTS_NAME} is missing; give a fit that has finished")
    if isinstance(config, UnetConfig):
        from lightning_modules.segmenters.unet.module import load_unet

        return load_unet(path, config)
    try:
        return fitted_segmenter(run_dir, config=config)
    except SafetensorError as error:
        raise InputError(
            f"{path}: damaged or cut short ({error}); copy it again, or fit the segmenter again"
        ) from error


def load_run(run_dir: Path, *, prompt: Prompt = "whole_image") -> "SamModule | UnetModule":
    """Load the segmenter of a run's directory, in eval mode; a SAM is ready to encode fast.

    Args:
        run_dir: Directory with manifest.json and the fitted weights.
        prompt: What it will be asked under.

    Raises:
        InputError: See `read_manifest`, `config_of_run` and `load_fitted`; or a U-Net, which takes
            no prompt, is to refine its own box.
        WeightsError: See `load_fitted`.
    """
    config = config_of_run(run_dir, read_manifest(run_dir))
    if isinstance(config, UnetConfig) and prompt != "whole_image":
        raise InputError(
            f"--prompt {prompt}: {run_dir} is a U-Net, which takes no prompt; leave the option out"
        )
    module = load_fitted(run_dir, config)
    if isinstance(module, SamModule):
        module.sam.image_encoder = for_inference(module.sam.image_encoder)
    return module.eval()


def segment_images(
    module: "SamModule | UnetModule", paths: Mapping[str, Path], *, prompt: Prompt
) -> Iterator[tuple[str, np.ndarray]]:
    """Segment images one by one, at their own size.

    Args:
        module: From `load_run`, or any segmenter in eval mode; it is moved to the GPU if there is
            one.
        paths: Image by name.
        prompt: `whole_image`, or `predicted_box`: the box of the largest part of the model's own
            whole-image mask, then one more pass. Neither knows where the head is. A U-Net takes
            `whole_image` and sees no prompt.

    Yields:
        The name and the mask, uint8 (H, W) in {0, 1}; all zero where nothing was found.

    Raises:
        InputError: An image cannot be read, or the logits are not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    for name, path in paths.items():
        yield name, _segment(module, read_image(path), name=name, prompt=prompt)


@torch.inference_mode()
def _segment(
    module: "SamModule | UnetModule", image: np.ndarray, *, name: str, prompt: Prompt
) -> np.ndarray:
    if isinstance(module, SamModule):
        side = FRAME_SIDE_PX[module.config.backbone]
        placement = place(image.shape, frame_hw=(side, side), mode=module.config.geometry)
        large = enlarge(placement, image_factor(module.config.backbone))
    else:
        placement = place(image.shape, frame_hw=module.config.size_hw, mode="squash")
        large = placement
    frame = image_to_frame(image, large).astype(np.float32) / 255.0
    images = torch.from_numpy(frame)[None, None].to(module.device)
    if isinstance(module, SamModule):
        logits = _prompted(module, images, valid_hw=placement.valid_hw, prompt=prompt)
    else:
        logits = module(images)
    if not torch.isfinite(logits).all():
        raise InputError(f"{name}: the logits are not finite; fit the segmenter again")
    return (logits_to_original(logits.cpu(), placement)[0, 0] > 0).numpy().astype(np.uint8)


def _prompted(
    module: SamModule, images: torch.Tensor, *, valid_hw: tuple[int, int], prompt: Prompt
) -> torch.Tensor:
    sizes = torch.tensor([valid_hw], device=module.device)
    embedding = module.embed({"image": images, "valid_hw": sizes})
    logits = decode(module.sam, embedding, whole_image_boxes(sizes))[0]
    if prompt == "predicted_box":
        logits = decode(module.sam, embedding, predicted_boxes(logits, valid_hw=sizes))[0]
    return logits
