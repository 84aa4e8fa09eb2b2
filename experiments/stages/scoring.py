"""The stages that score: a fitted model, the bare backbone, or a control, on one cohort and prompt.

Fitting and scoring are apart, so that another cohort or prompt trains nothing again.
"""

from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from datamodules.annotation import annotation_of
from datamodules.hc18 import HC18DataModule
from datamodules.samples import Sample
from datamodules.settings import Cache, Frame
from experiments.plan.box_passes import PASSES
from experiments.plan.stage_table import SCORE_BATCH
from experiments.stages.context import StageContext
from experiments.stages.evaluation import Protocol, Scorer, Segment, box_only_logits, evaluate
from experiments.stages.fit import frame_of, segmenter_of
from experiments.store.columns import OUTPUTS, PER_IMAGE
from experiments.store.kept_masks import pack, write_predictions

MEAN_MASK_HW = (270, 400)


def run_score(context: StageContext) -> dict[str, Any]:
    """Score every image of one cohort under one prompt, and keep the predicted masks."""
    segmenter = segmenter_of(context, "fit")
    return _score(context, segment=segmenter.predict, frame=frame_of(context))


@torch.inference_mode()
def _score(context: StageContext, *, segment: Segment, frame: Frame) -> dict[str, Any]:
    status, kept = context.status(), dict[str, np.ndarray]()
    protocol = Protocol(**context.node.content["evaluation"])
    rows = evaluate(
        segment,
        _loader(context, frame=frame),
        cohort=context.node.content["cohort"],
        protocol=protocol,
        scorer=Scorer(samples=context.samples, frame_hw=frame.size_hw, mode=frame.resize_mode),
        keep=lambda sample_id, mask: kept.update({sample_id: pack(mask)}),
        progress=lambda done, total: status.update("test images", done=done, total=total),
    )
    table = pd.DataFrame(rows, columns=list(PER_IMAGE))
    table.to_csv(context.run_dir / "per_image.csv", index=False)
    write_predictions(context.run_dir, kept, prompt=protocol.prompt)
    dice = {
        f"dice_{name}": float(table.loc[table["output"] == name, "dice"].mean()) for name in OUTPUTS
    }
    return {"images": int(table["sample_id"].nunique()), **dice}


def _loader(context: StageContext, *, frame: Frame) -> DataLoader:
    """The stage's test images as batches."""
    content, cached = context.node.content, "embeddings" in context.node.upstream
    datamodule = HC18DataModule(
        samples=context.samples,
        test_ids={content["cohort"]: context.pick(content["test"])},
        frame=frame,
        cache=Cache(
            folder=context.cache_dir,
            embeddings=[context.open_embeddings("embeddings")] if cached else None,
            content_hashes=context.content,
        ),
        batch_size=max(1, SCORE_BATCH // context.batch_parts),
    )
    datamodule.setup()
    return datamodule.test_dataloader()[0]


def run_control(context: StageContext) -> dict[str, Any]:
    """Score the ellipse in the prompt's box, or the mean mask: what needs no image."""
    content = context.node.content
    side = content["frame_side_px"]
    frame = Frame(size_hw=(side, side), resize_mode=content.get("geometry", "pad"))
    if content["kind"] == "box_only":
        segment = box_only_logits(Protocol(**content["evaluation"]))
    else:
        segment = constant_logits(mean_mask(context.picked(content["images"])))
    return _score(context, segment=segment, frame=frame)


@torch.inference_mode()
def run_box(context: StageContext) -> dict[str, Any]:
    """How much of a score the box gives away: a fitted model, the ellipse in the box and the mean
    mask under increasing jitter."""
    content, status, frame = context.node.content, context.status(), frame_of(context)
    loader = _loader(context, frame=frame)
    scorer = Scorer(samples=context.samples, frame_hw=frame.size_hw, mode=frame.resize_mode)
    model = segmenter_of(context, "fit").predict
    constant = constant_logits(mean_mask(context.picked(content["images"])))
    parts = []
    for done, (what, prompt, jitter_px) in enumerate(PASSES):
        protocol = Protocol(
            prompt=prompt, jitter_draws=content["jitter_draws"], jitter_max_px=jitter_px or 0
        )
        # The ellipse is pulled in by what its box is pushed out.
        ellipse = box_only_logits(protocol)
        segment = {"model": model, "mean_mask": constant, "ellipse": ellipse}[what]
        cohort = content["cohort"]
        rows = evaluate(segment, loader, cohort=cohort, protocol=protocol, scorer=scorer)
        table = pd.DataFrame(rows, columns=list(PER_IMAGE))
        parts.append(table.assign(what=what, jitter_px=jitter_px))
        status.update("passes", done=done + 1, total=len(PASSES))
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(context.run_dir / "per_image.csv", index=False)
    return {"images": int(table["sample_id"].nunique()), "passes": len(PASSES)}


def mean_mask(samples: list[Sample]) -> np.ndarray:
    """Where most of the masks lie, each stretched over the image's width and height.

    Returns:
        float32 `MEAN_MASK_HW`, mean of the masks less one half: above 0 is foreground.
    """
    total, size_wh = np.zeros(MEAN_MASK_HW, dtype=np.float64), MEAN_MASK_HW[::-1]
    for sample in samples:
        mask = annotation_of(sample).mask
        total += cv2.resize(mask.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA)
    return (total / len(samples) - 0.5).astype(np.float32)


def constant_logits(mean: np.ndarray) -> Segment:
    """The same mask for every image, stretched over its part of the frame."""

    def segment(batch: dict[str, Any], boxes: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        logits = torch.full(batch["mask"].shape, -1.0)
        for item, (height, width) in enumerate(batch["valid_hw"].tolist()):
            fitted = cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR)
            logits[item, 0, :height, :width] = torch.from_numpy(fitted)
        return logits

    return segment
