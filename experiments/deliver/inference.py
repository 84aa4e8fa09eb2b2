"""Inference: fitted segmenters on images that need no masks."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from rich.console import Console
from safetensors import SafetensorError

from datamodules.annotation import read_image
from datamodules.errors import InputError
from experiments.config.grid import Prompt
from experiments.deliver.confidence import Box
from experiments.stages.fit import WEIGHTS_NAME, fitted_segmenter
from experiments.stages.image_logits import image_logits
from experiments.store.fitted import settings_of_run
from experiments.store.runs import read_sound
from lightning_modules.metrics import dice_score
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.network import for_inference
from lightning_modules.segmenters.table import row_of

_PLAIN_EVERY_S = 15.0


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


def load_run(
    run_dir: Path, *, prompt: Prompt = "whole_image", takes_boxes: bool = False
) -> LightningModule:
    """Load a run's segmenter in eval mode, to be asked under a prompt; a SAM encodes fast.

    Raises:
        InputError: It takes no prompt and is asked for one; or see `settings_of_run`,
            `load_fitted`.
    """
    config = settings_of_run(run_dir, read_sound(run_dir))
    if (takes_boxes or prompt != "whole_image") and not row_of(config).takes_prompt:
        option = "--boxes" if takes_boxes else f"--prompt {prompt}"
        raise InputError(
            f"{option}: {run_dir} is a {row_of(config).label}, which takes no prompt; "
            "leave the option out"
        )
    module = load_fitted(run_dir, config)
    if isinstance(config, SegmenterConfig):
        module.sam.image_encoder = for_inference(module.sam.image_encoder)
    return module.eval()


def segment_together(
    modules: Sequence[LightningModule],
    paths: Mapping[str, Path],
    *,
    prompt: Prompt,
    boxes: Mapping[str, Box] | None = None,
    view_zooms: Sequence[float] = (1.0,),
) -> Iterator[tuple[str, list[np.ndarray], float]]:
    """Segment images one by one, at their own size, by the mean logits of several segmenters.

    Args:
        modules: From `load_run`, or any segmenters in eval mode, of any frames; they are moved to
            the GPU if there is one.
        paths: Image by name.
        prompt: See `image_logits`. Neither knows where the head is; a U-Net takes `whole_image`.
        boxes: The prompt of each image instead, by name.
        view_zooms: Of each view that is segmented, see `image_logits`.

    Yields:
        The name; the mask of each view, uint8 (H, W) in {0, 1}, all zero where nothing was found;
        and the smallest Dice of the first with one segmenter's own mask, 1 for a single one.

    Raises:
        InputError: An image cannot be read, or the logits are not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in modules:
        module.to(device)
    for name, path in paths.items():
        image = read_image(path)
        box = None if boxes is None else boxes[name]
        asked = {"name": name, "prompt": prompt, "box": box}
        try:
            views = [
                [image_logits(module, image, **asked, view_zoom=zoom) for module in modules]
                for zoom in view_zooms
            ]
        except FloatingPointError as error:
            raise InputError(str(error)) from error
        masks = [np.mean(each, axis=0) > 0 for each in views]
        agreement = min(dice_score(own > 0, masks[0]) for own in views[0])
        yield name, [mask.astype(np.uint8) for mask in masks], agreement


def segmented(
    runs: Sequence[Path],
    paths: Mapping[str, Path],
    *,
    prompt: Prompt,
    console: Console,
    boxes: Mapping[str, Box] | None = None,
    view_zooms: Sequence[float] = (1.0,),
) -> Iterator[tuple[str, list[np.ndarray], float]]:
    """`segment_together` by runs; shows how many, in place or by a line now and then in a log."""
    with console.status("loading the segmenter"):
        takes_boxes = boxes is not None
        modules = [load_run(run, prompt=prompt, takes_boxes=takes_boxes) for run in runs]
    asked = {"prompt": prompt, "boxes": boxes, "view_zooms": view_zooms}
    last = time.monotonic()
    with console.status("segmenting") as status:
        for done, found in enumerate(segment_together(modules, paths, **asked), start=1):
            status.update(f"segmenting images {done}/{len(paths)}")
            if not console.is_terminal and time.monotonic() - last >= _PLAIN_EVERY_S:
                last = time.monotonic()
                console.print(f"segmented {done} of {len(paths)} images")
            yield found
