"""Inference: a fitted segmenter on images that need no masks."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from safetensors import SafetensorError

from datamodules.annotation import read_image
from datamodules.errors import InputError
from datamodules.geometry import enlarge, image_to_frame, logits_to_original, place
from experiments.config.grid import Prompt
from experiments.stages.fit import WEIGHTS_NAME, fitted_segmenter
from experiments.store.fitted import settings_of_run
from experiments.store.runs import read_manifest
from lightning_modules.prompts import predicted_boxes, whole_image_boxes
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.network import for_inference
from lightning_modules.segmenters.table import row_of


def load_fitted(run_dir: Path, config: Any) -> LightningModule:
    """A fitted segmenter with its weights, in eval mode.

    Raises:
        InputError: They are missing or damaged.
        WeightsError: The backbone's weights are missing or others, or a U-Net's file is damaged.
    """
    path = run_dir / WEIGHTS_NAME
    if not path.is_file():
        raise InputError(f"{run_dir}: {WEIGHTS_NAME} is missing; give a fit that has finished")
    try:
        return fitted_segmenter(run_dir, config=config)
    except SafetensorError as error:
        raise InputError(
            f"{path}: damaged or cut short ({error}); copy it again, or fit the segmenter again"
        ) from error


def load_run(run_dir: Path, *, prompt: Prompt = "whole_image") -> LightningModule:
    """Load a run's segmenter in eval mode, to be asked under a prompt; a SAM encodes fast.

    Raises:
        InputError: See `read_manifest`, `settings_of_run` and `load_fitted`; or one that takes no
            prompt is to refine its own box.
    """
    config = settings_of_run(run_dir, read_manifest(run_dir))
    if prompt != "whole_image" and not row_of(config).takes_prompt:
        raise InputError(
            f"--prompt {prompt}: {run_dir} is a {row_of(config).label}, which takes no prompt; "
            "leave the option out"
        )
    module = load_fitted(run_dir, config)
    if isinstance(config, SegmenterConfig):
        module.sam.image_encoder = for_inference(module.sam.image_encoder)
    return module.eval()


def segment_images(
    module: LightningModule,
    paths: Mapping[str, Path],
    *,
    prompt: Prompt,
    view: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Segment images one by one, at their own size.

    Args:
        module: From `load_run`, or any segmenter in eval mode; it is moved to the GPU if there is
            one.
        paths: Image by name.
        prompt: `whole_image`, or `predicted_box`: the box of the largest part of the model's own
            whole-image mask, then one more pass. Neither knows where the head is. A U-Net takes
            `whole_image` and sees no prompt.
        view: What the segmenter sees instead of each image, of the same size; the mask is of it.

    Yields:
        The name and the mask, uint8 (H, W) in {0, 1}; all zero where nothing was found.

    Raises:
        InputError: An image cannot be read, or the logits are not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    for name, path in paths.items():
        image = read_image(path)
        seen = image if view is None else view(image)
        yield name, _segment(module, seen, name=name, prompt=prompt)


@torch.inference_mode()
def _segment(
    module: LightningModule, image: np.ndarray, *, name: str, prompt: Prompt
) -> np.ndarray:
    config = module.config
    placement = place(image.shape, frame_hw=config.frame_hw, mode=config.resize_mode)
    large = enlarge(placement, config.image_factor) if config.image_factor > 1 else placement
    frame = image_to_frame(image, large).astype(np.float32) / 255.0
    sizes = torch.tensor([placement.valid_hw], device=module.device)
    batch = {"image": torch.from_numpy(frame)[None, None].to(module.device), "valid_hw": sizes}
    logits = module.predict(batch, whole_image_boxes(sizes))
    if prompt == "predicted_box":
        logits = module.predict(batch, predicted_boxes(logits, valid_hw=sizes))
    if not torch.isfinite(logits).all():
        raise InputError(f"{name}: the logits are not finite; fit the segmenter again")
    return (logits_to_original(logits.cpu(), placement)[0, 0] > 0).numpy().astype(np.uint8)
