"""Apply a fitted segmenter to images that need no masks."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from datamodules.annotation import read_image
from datamodules.errors import InputError
from datamodules.geometry import enlarge, image_to_frame, logits_to_original, place
from experiments.stages.fit import WEIGHTS_NAME, fitted_segmenter, settings_of
from lightning_modules.prompts import predicted_boxes, whole_image_boxes
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig, image_factor
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.network import decode, for_inference
from lightning_modules.segmenters.unet.config import UnetConfig

if TYPE_CHECKING:
    # Its library takes a second to import, which a SAM should not pay.
    from lightning_modules.segmenters.unet.module import UnetModule

Prompt = Literal["whole_image", "predicted_box"]


def load_run(run_dir: Path, *, prompt: Prompt = "whole_image") -> "SamModule | UnetModule":
    """Load the fitted segmenter of a run directory, in eval mode; a SAM is ready to encode fast.

    Args:
        run_dir: Directory with manifest.json and the fitted weights. A stage `fit_unet` holds a
            U-Net; any other a SAM, whatever it is called.
        prompt: What it will be asked under.

    Raises:
        InputError: It is no such directory, or of another version; or a U-Net, which takes no
            prompt, is to refine its own box.
        WeightsError: The backbone's weights are missing or others, or a U-Net's file is damaged.
    """
    manifest = _manifest(run_dir)
    is_unet = manifest.get("stage") == "fit_unet"
    if is_unet and prompt != "whole_image":
        raise InputError(
            f"--prompt {prompt}: {run_dir} is a U-Net, which takes no prompt; leave the option out"
        )
    try:
        if is_unet:
            config = UnetConfig(**manifest["config"]["unet"])
        else:
            config = settings_of(
                SegmenterConfig(**manifest["config"]["segmenter"]), manifest.get("content", {})
            )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run_dir}: its settings are not of this version ({error}); fit the segmenter again"
        ) from error
    if isinstance(config, UnetConfig):
        from lightning_modules.segmenters.unet.module import load_unet

        return load_unet(run_dir / WEIGHTS_NAME, config)
    module = fitted_segmenter(run_dir, config=config)
    module.sam.image_encoder = for_inference(module.sam.image_encoder)
    return module.eval()


def _manifest(run_dir: Path) -> dict:
    for name in ("manifest.json", WEIGHTS_NAME):
        if not (run_dir / name).is_file():
            raise InputError(
                f"{run_dir}: {name} is missing, so this is no fitted segmenter; give a directory "
                "such as runs/store/fit/ID"
            )
    try:
        return json.loads((run_dir / "manifest.json").read_text())
    except ValueError as error:
        raise InputError(f"{run_dir}: manifest.json cannot be read ({error})") from error


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
        InputError: An image cannot be read.
        FloatingPointError: The logits are not finite.
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
        raise FloatingPointError(f"{name}: the logits are not finite; the fitted weights are bad")
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
