"""Score a segmenter, or a control, image by image at the original size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.annotation import annotation_of
from datamodules.ellipse import perimeter_px
from datamodules.geometry import logits_to_original, place
from datamodules.head_ellipse import filled_ellipse
from datamodules.samples import Sample, trimester
from lightning_modules.metrics import (
    dice_at_256,
    dice_score,
    hausdorff_distance_mm,
    head_circumference_mm,
)
from lightning_modules.prompts import (
    ellipse_in_box_mask,
    predicted_boxes,
    prompt_boxes,
    whole_image_boxes,
)
from lightning_modules.randomness import keyed_generator

# What segments a batch under boxes: (batch, boxes (B, 4)) -> frame logits (B, 1, h, w).
Segment = Callable[[dict[str, Any], torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The prompt of an evaluation."""

    prompt: str
    jitter_draws: int = 1
    """Draws of the jittered box; any other prompt has one."""
    jitter_max_px: int = 0

    @property
    def draws(self) -> range:
        """Numbers of the draws."""
        return range(self.jitter_draws if self.prompt == "jittered_box" else 1)

    def offsets(self, sample_ids: Sequence[str], *, draw: int) -> torch.Tensor:
        """Jitter (B, 4) of a fixed draw: the same for every model, so trials stay paired."""
        keyed = [keyed_generator("evaluation", draw, name) for name in sample_ids]
        most = self.jitter_max_px + 1
        return torch.stack([torch.randint(most, (4,), generator=each) for each in keyed]).float()


@dataclass(kw_only=True)
class Scorer:
    """References at the original size, read once, and the scores against them."""

    samples: Mapping[str, Sample]
    frame_hw: tuple[int, int]
    mode: str
    _masks: dict[str, np.ndarray] = field(default_factory=dict, init=False)

    def reference(self, sample_id: str) -> np.ndarray:
        """Reference mask uint8 (H, W) {0, 1} as annotated, never through the frame."""
        if sample_id not in self._masks:
            self._masks[sample_id] = annotation_of(self.samples[sample_id]).mask
        return self._masks[sample_id]

    def predicted_mask(self, logits: torch.Tensor, sample_id: str) -> np.ndarray:
        """Frame logits (1, h, w) -> uint8 (H, W) {0, 1} at the original size."""
        reference = self.reference(sample_id)
        placement = place(reference.shape, frame_hw=self.frame_hw, mode=self.mode)
        return (logits_to_original(logits, placement)[0] > 0).numpy().astype(np.uint8)

    def rows(self, sample_id: str, predicted: np.ndarray) -> list[dict[str, Any]]:
        """Scores of one image as the mask that it is, and as the ellipse fitted to it; of a mask
        that no ellipse fits, its own once more, with `fitted` false."""
        mask_row = self.row(sample_id, predicted)
        ellipse, filled = filled_ellipse(predicted)
        ellipse_row = mask_row
        if ellipse is not None:
            ellipse_row = self.row(sample_id, filled, hc_px=perimeter_px(ellipse))
        fitted = {"output": "ellipse", "fitted": ellipse is not None}
        return [mask_row | {"output": "mask"}, ellipse_row | fitted]

    def row(
        self, sample_id: str, predicted: np.ndarray, *, hc_px: float | None = None
    ) -> dict[str, Any]:
        """Scores of one mask; the mm columns are None without a pixel size.

        The circumference is `hc_px` pixels where given, else that of an ellipse fitted to the
        outline. A head that was not found is the worst case, not a gap that means leave out:
        its circumference is 0 mm and its Hausdorff distance the image's diagonal.
        """
        sample, reference = self.samples[sample_id], self.reference(sample_id)
        row: dict[str, Any] = {
            "sample_id": sample_id,
            "exam_id": sample.exam_id,
            "trimester": trimester(sample.hc_mm),
            "found": bool(predicted.any()),
            "dice": dice_score(predicted, reference),
            "dice_256": dice_at_256(predicted, reference),
        }
        pixel_size_mm = sample.pixel_size_mm
        if pixel_size_mm is None:
            return row
        if hc_px is None:
            fitted_mm = head_circumference_mm(predicted, pixel_size_mm=pixel_size_mm)
        else:
            fitted_mm = hc_px * pixel_size_mm
        hc_pred_mm = 0.0 if math.isnan(fitted_mm) else fitted_mm
        distance_mm = hausdorff_distance_mm(predicted, reference, pixel_size_mm=pixel_size_mm)
        if math.isinf(distance_mm):
            distance_mm = math.hypot(*reference.shape) * pixel_size_mm
        hc_ref_mm = sample.hc_mm
        if hc_ref_mm is None:
            # The published circumference is the reference; our own fit only where there is none.
            hc_ref_mm = head_circumference_mm(reference, pixel_size_mm=pixel_size_mm)
        return row | {
            "hausdorff_mm": distance_mm,
            "hc_pred_mm": hc_pred_mm,
            "hc_ref_mm": hc_ref_mm,
            "hc_err_mm": hc_pred_mm - hc_ref_mm,
            "hc_abs_err_mm": abs(hc_pred_mm - hc_ref_mm),
        }


def evaluate(
    segment: Segment,
    loader: DataLoader,
    *,
    cohort: str,
    protocol: Protocol,
    scorer: Scorer,
    keep: Callable[[str, np.ndarray], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Score every image of a cohort under a prompt, as a mask and as an ellipse.

    Args:
        segment: Gives frame logits for a batch and its boxes.
        loader: The cohort's test images.
        cohort: Its name, for the rows.
        protocol: The prompt.
        scorer: References and metrics.
        keep: Called with (sample_id, mask) for the first draw.
        progress: Called with (images scored, images in all), draws counted singly.

    Returns:
        Two rows an image and draw, with keys of `columns.PER_IMAGE`; one that is absent is not
        available.
    """
    rows: list[dict[str, Any]] = []
    n_scored, total = 0, len(protocol.draws) * len(loader.dataset)
    for batch in loader:
        for draw in protocol.draws:
            key = {"test_cohort": cohort, "prompt": protocol.prompt, "draw": draw}
            boxes = _boxes(batch, segment=segment, protocol=protocol, draw=draw)
            logits = _finite_logits(segment, batch, boxes)
            for item, sample_id in enumerate(batch["sample_id"]):
                predicted = scorer.predicted_mask(logits[item], sample_id)
                rows += [key | row for row in scorer.rows(sample_id, predicted)]
                if keep is not None and draw == 0:
                    keep(sample_id, predicted)
            n_scored += len(logits)
            if progress is not None:
                progress(n_scored, total)
    return rows


def _boxes(
    batch: dict[str, Any], *, segment: Segment, protocol: Protocol, draw: int
) -> torch.Tensor:
    """Boxes (B, 4) of a prompt; the predicted one is the model's own, and reads no reference."""
    prompt, valid_hw = protocol.prompt, batch["valid_hw"]
    if prompt != "predicted_box":
        offsets = protocol.offsets(batch["sample_id"], draw=draw)
        return prompt_boxes(prompt, offsets=offsets, mask=batch["mask"], valid_hw=valid_hw)
    predicted = _finite_logits(segment, batch, whole_image_boxes(valid_hw))
    return predicted_boxes(predicted, valid_hw=valid_hw)


def _finite_logits(segment: Segment, batch: dict[str, Any], boxes: torch.Tensor) -> torch.Tensor:
    logits = segment(batch, boxes).float().cpu()
    is_finite = torch.isfinite(logits).flatten(1).all(dim=1)
    if not is_finite.all():
        name = batch["sample_id"][int((~is_finite).int().argmax())]
        raise FloatingPointError(f"{name}: the logits are not finite; the fitted weights are bad")
    return logits


def box_only_logits(protocol: Protocol) -> Segment:
    """The control that reads no pixel: the ellipse in the box, pulled in by the mean jitter."""
    shrink_px = protocol.jitter_max_px / 2 if protocol.prompt == "jittered_box" else 0.0

    def segment(batch: dict[str, Any], boxes: torch.Tensor) -> torch.Tensor:
        mask = ellipse_in_box_mask(
            boxes,
            size_hw=tuple(batch["mask"].shape[-2:]),
            valid_hw=batch["valid_hw"],
            shrink_px=shrink_px,
        )
        return mask.float() * 2 - 1

    return segment
