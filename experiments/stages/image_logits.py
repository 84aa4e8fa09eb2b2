"""One image through a fitted segmenter, as it is or in a second view, to its own size."""

import numpy as np
import torch
from lightning import LightningModule

from datamodules.geometry import (
    boxes_to_frame,
    enlarge,
    image_to_frame,
    logits_to_original,
    place,
    zoom_within,
)
from experiments.config.grid import Prompt
from lightning_modules.prompts import predicted_boxes, whole_image_boxes


@torch.inference_mode()
def image_logits(
    module: LightningModule,
    image: np.ndarray,
    *,
    name: str,
    prompt: Prompt = "whole_image",
    box: tuple[float, float, float, float] | None = None,
    view_zoom: float = 1.0,
) -> np.ndarray:
    """Logits of an image at its own size, float32 (H, W).

    Args:
        module: A segmenter in eval mode; one that takes no prompt sees none.
        image: uint8 (H, W).
        name: Of the image, for the error.
        prompt: `whole_image`, or `predicted_box`: the box of the largest part of the model's own
            whole-image mask, then one more pass.
        box: The prompt instead: x0, y0, x1, y1 in pixels of the image, both corners inclusive;
            pixel centres are integers.
        view_zoom: Size of the image and its box in the view that the segmenter gets, as a share of
            its own, in (0, 1]: it lies in the middle with black around it. The logits are mapped
            back; what the view did not show is taken from its border.

    Raises:
        FloatingPointError: The logits are not finite.
    """
    config = module.config
    placement = place(image.shape, frame_hw=config.frame_hw, mode=config.resize_mode)
    large = enlarge(placement, config.image_factor)
    frame = torch.from_numpy(image_to_frame(image, large).astype(np.float32) / 255)[None, None]
    frame = zoom_within(frame, view_zoom, valid_hw=large.valid_hw, beyond="zeros")
    sizes = torch.tensor([placement.valid_hw], device=module.device)
    asked = whole_image_boxes(sizes)
    if box is not None:
        # By its edges: then the box of a mask is that of the mask in the frame, as fits saw it.
        outward = np.array([-0.5, -0.5, 0.5, 0.5])
        edges = boxes_to_frame(np.array([box]) + outward, placement)
        middle = (np.array(placement.valid_hw[::-1] * 2) - 1) / 2
        in_view = middle + view_zoom * (edges - middle) - outward
        asked = torch.from_numpy(in_view).to(asked)
    batch = {"image": frame.to(module.device), "valid_hw": sizes}
    logits = module.predict(batch, asked)
    if prompt == "predicted_box":
        logits = module.predict(batch, predicted_boxes(logits, valid_hw=sizes))
    logits = logits.float().cpu()
    if not torch.isfinite(logits).all():
        raise FloatingPointError(f"{name}: the logits are not finite; fit the segmenter again")
    back = zoom_within(logits, 1 / view_zoom, valid_hw=placement.valid_hw, beyond="border")
    return logits_to_original(back, placement)[0, 0].numpy()
