"""The stages that score: a fitted model, the bare backbone, or a control, on one cohort and prompt.

Fitting and scoring are apart, so that another cohort or prompt trains nothing again.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from lightning import LightningModule
from torch.utils.data import DataLoader

from datamodules.annotation import annotation_of
from datamodules.embeddings import EmbeddingSet
from datamodules.hc18 import HC18DataModule
from datamodules.samples import Sample
from datamodules.settings import Cache, Frame
from experiments.plan.box_passes import PASSES
from experiments.stages.context import StageContext
from experiments.stages.device import device_of
from experiments.stages.evaluation import Protocol, Scorer, Segment, box_only_logits, evaluate
from experiments.stages.fit import fitted_segmenter, untrained_segmenter
from experiments.store.columns import OUTPUTS, PER_IMAGE
from experiments.store.kept_masks import KeptPredictions

MEAN_MASK_HW = (270, 400)


def protocol_of(content: Mapping[str, Any]) -> Protocol:
    """The prompts of a scoring stage."""
    evaluation = content["evaluation"]
    return Protocol(
        prompts=[evaluation["prompt"]],
        jitter_draws=evaluation.get("jitter_draws", 1),
        jitter_max_px=evaluation.get("jitter_max_px", 0),
    )


def run_score(context: StageContext) -> dict[str, Any]:
    """Score every image of one cohort under one prompt, and keep the predicted masks."""
    config, upstream = context.segmenter, context.node.upstream
    if "fit" in upstream:
        module = fitted_segmenter(context.upstream_dir("fit"), config=config)
    else:
        module = untrained_segmenter(config)
    embeddings = [context.open_embeddings("embeddings")] if "embeddings" in upstream else None
    segment = segment_with(module, device=device_of(context.config))
    frame = frame_of(config, cached=embeddings is not None)
    return _score(context, segment=segment, frame=frame, embeddings=embeddings)


def frame_of(config: Any, *, cached: bool) -> Frame:
    """The frame of a segmenter's batches; what is embedded already needs no larger image."""
    return Frame(
        size_hw=config.frame_hw,
        resize_mode=config.resize_mode,
        image_factor=1 if cached else config.image_factor,
    )


def segment_with(module: LightningModule, *, device: torch.device) -> Segment:
    """Let a segmenter predict batches on a device."""
    return module.to(device).eval().predict


@torch.inference_mode()
def _score(
    context: StageContext,
    *,
    segment: Segment,
    frame: Frame,
    embeddings: list[EmbeddingSet] | None = None,
) -> dict[str, Any]:
    status, kept = context.status(), KeptPredictions()
    rows = evaluate(
        segment,
        loaders_of(context, frame=frame, embeddings=embeddings),
        protocol=protocol_of(context.node.content),
        scorer=Scorer(samples=context.samples, frame_hw=frame.size_hw, mode=frame.resize_mode),
        keep=kept.add,
        progress=lambda done, total: status.update("test images", done=done, total=total),
    )
    table = pd.DataFrame(rows, columns=list(PER_IMAGE))
    table.to_csv(context.run_dir / "per_image.csv", index=False)
    kept.write(context.run_dir)
    dice = {
        f"dice_{name}": float(table.loc[table["output"] == name, "dice"].mean()) for name in OUTPUTS
    }
    return {"images": int(table["sample_id"].nunique()), **dice}


def loaders_of(
    context: StageContext, *, frame: Frame, embeddings: list[EmbeddingSet] | None
) -> dict[str, DataLoader]:
    """The stage's test images as batches, by cohort."""
    content = context.node.content
    datamodule = HC18DataModule(
        samples=context.samples,
        train_ids=[],
        val_ids=[],
        test_ids={content["cohort"]: context.pick(content["test"])},
        frame=frame,
        cache=Cache(
            folder=context.cache_dir, embeddings=embeddings, content_hashes=context.content
        ),
        batch_size=8,
        n_batches=0,
        seed=0,
    )
    datamodule.setup()
    return dict(zip(datamodule.test_ids, datamodule.test_dataloader(), strict=True))


def run_control(context: StageContext) -> dict[str, Any]:
    """Score the ellipse in the prompt's box, or the mean mask: what needs no image."""
    content = context.node.content
    side = content["frame_side_px"]
    frame = Frame(size_hw=(side, side), resize_mode=content.get("geometry", "pad"))
    protocol = protocol_of(content)
    if content["kind"] == "box_only":
        segment = box_only_logits(
            jitter_max_px=protocol.jitter_max_px, prompt=content["evaluation"]["prompt"]
        )
    else:
        train = [context.samples[sample_id] for sample_id in context.pick(content["images"])]
        segment = constant_logits(mean_mask(train))
    return _score(context, segment=segment, frame=frame)


def run_box(context: StageContext) -> dict[str, Any]:
    """How much of a score the box gives away: a fitted model, the ellipse in the box and the mean
    mask under increasing jitter."""
    content, status = context.node.content, context.status()
    config = context.segmenter
    module = fitted_segmenter(context.upstream_dir("fit"), config=config)
    cached = "embeddings" in context.node.upstream
    embeddings = [context.open_embeddings("embeddings")] if cached else None
    frame = frame_of(config, cached=cached)
    loaders = loaders_of(context, frame=frame, embeddings=embeddings)
    scorer = Scorer(samples=context.samples, frame_hw=frame.size_hw, mode=frame.resize_mode)
    train = [context.samples[k] for k in context.pick(content["images"])]
    model = segment_with(module, device=device_of(context.config))
    constant, parts = constant_logits(mean_mask(train)), []
    with torch.inference_mode():
        for done, (what, prompt, jitter_px) in enumerate(PASSES):
            # The ellipse is pulled in by what its box is pushed out.
            ellipse = box_only_logits(jitter_max_px=jitter_px or 0, prompt=prompt)
            protocol = Protocol(
                prompts=[prompt],
                jitter_draws=content["jitter_draws"],
                jitter_max_px=jitter_px or 0,
            )
            segment = {"model": model, "mean_mask": constant, "ellipse": ellipse}[what]
            rows = evaluate(segment, loaders, protocol=protocol, scorer=scorer)
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
