"""Apply a fitted segmenter to images that need no masks."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from datamodules.annotation import read_image
from datamodules.errors import InputError
from datamodules.geometry import image_to_frame, logits_to_original, place
from experiments.fit import WEIGHTS_NAME, fitted_segmenter
from lightning_modules.config_sam import FRAME_SIDE_PX, SegmenterConfig
from lightning_modules.prompts import predicted_boxes, whole_image_boxes
from lightning_modules.sam import SamModule
from lightning_modules.sam_models import encode, for_inference

Prompt = Literal["whole_image", "predicted_box"]


def load_run(run_dir: Path) -> SamModule:
    """Load the fitted segmenter of a run directory, in eval mode and ready to encode fast.

    Args:
        run_dir: Directory with manifest.json and the fitted weights, whatever its stage is called.

    Raises:
        InputError: It is no such directory, or of another version.
        WeightsError: The backbone's weights are missing or others.
    """
    manifest = _manifest(run_dir)
    try:
        config = SegmenterConfig(**manifest["config"]["segmenter"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run_dir}: its settings are not of this version ({error}); fit the segmenter again"
        ) from error
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
        manifest = json.loads((run_dir / "manifest.json").read_text())
    except ValueError as error:
        raise InputError(f"{run_dir}: manifest.json cannot be read ({error})") from error
    if manifest.get("stage") == "fit_unet":
        raise InputError(
            f"{run_dir}: a U-Net, which takes no prompt; give the run of a SAM segmenter"
        )
    return manifest


def segment_images(
    module: SamModule, paths: Mapping[str, Path], *, prompt: Prompt
) -> Iterator[tuple[str, np.ndarray]]:
    """Segment images one by one, at their own size.

    Args:
        module: From `load_run`, or any segmenter in eval mode; it is moved to the GPU if there is
            one.
        paths: Image by name.
        prompt: `whole_image`, or `predicted_box`: the box of the largest part of the model's own
            whole-image mask, then one more pass. Neither knows where the head is.

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
def _segment(module: SamModule, image: np.ndarray, *, name: str, prompt: Prompt) -> np.ndarray:
    side = FRAME_SIDE_PX[module.config.backbone]
    placement = place(image.shape, frame_hw=(side, side), mode="pad")
    frame = torch.from_numpy(image_to_frame(image, placement).astype(np.float32) / 255.0)
    valid_hw = torch.tensor([placement.valid_hw], device=module.device)
    embedding = encode(
        module.sam,
        frame[None, None].to(module.device),
        valid_hw=valid_hw,
        precision=module.config.encoder_precision,
    )
    batch = {"embedding": embedding, "valid_hw": valid_hw}
    logits = module(batch, whole_image_boxes(valid_hw))[0]
    if prompt == "predicted_box":
        logits = module(batch, predicted_boxes(logits, valid_hw=valid_hw))[0]
    if not torch.isfinite(logits).all():
        raise FloatingPointError(f"{name}: the logits are not finite; the fitted weights are bad")
    return (logits_to_original(logits.cpu(), placement)[0, 0] > 0).numpy().astype(np.uint8)
