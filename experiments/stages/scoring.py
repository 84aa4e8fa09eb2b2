"""The stages that score: a fitted model, the bare backbone, or a control, on one cohort and prompt.

Fitting and scoring are apart, so that another cohort or prompt trains nothing again.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from datamodules.annotation import read_annotation
from datamodules.embeddings import EmbeddingSet
from datamodules.hc18 import HC18DataModule
from datamodules.samples import Sample
from datamodules.settings import Cache, Frame
from experiments.stages.context import StageContext
from experiments.stages.device import device_of
from experiments.stages.evaluation import Protocol, Scorer, Segment, box_only_logits, evaluate
from experiments.stages.fit import WEIGHTS_NAME, config_of_fit, fitted_segmenter
from experiments.store.columns import PER_IMAGE
from experiments.store.kept_masks import KeptPredictions
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, image_factor
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.network import decode

NEEDED = ("embedding", "image", "valid_hw")
"""What of a batch an encoder or decoder reads."""
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
    node = context.node
    fit_stage = node.upstream.get("fit", "").split("/")[0]
    if fit_stage == "fit_unet":
        from lightning_modules.segmenters.unet.module import load_unet

        unet = load_unet(context.upstream_dir("fit") / WEIGHTS_NAME, config=context.config.unet)
        frame_hw, mode, factor = tuple(context.config.unet.size_hw), "squash", 1
        segment = segment_without_prompt(unet, device=device_of(context.config))
    else:
        module = _segmenter(context, is_fitted=fit_stage == "fit")
        config = module.config
        side = FRAME_SIDE_PX[config.backbone]
        frame_hw, mode = (side, side), config.geometry
        factor = 1 if "embeddings" in node.upstream else image_factor(config.backbone)
        segment = segment_with(module, device=device_of(context.config))

    embeddings = [context.open_embeddings("embeddings")] if "embeddings" in node.upstream else None
    with torch.inference_mode():
        rows = _score(
            context,
            segment=segment,
            frame_hw=frame_hw,
            mode=mode,
            embeddings=embeddings,
            factor=factor,
        )
    return _summary(rows)


def segment_with(module: SamModule, *, device: torch.device) -> Segment:
    """Let a segmenter decode batches; an image is encoded once, however many boxes follow."""
    module = module.to(device)

    def segment(batch: dict[str, Any], boxes: torch.Tensor) -> torch.Tensor:
        if "encoded" not in batch:
            given = {k: v.to(device) for k, v in batch.items() if k in NEEDED}
            batch["encoded"] = module.embed(given)
        return decode(module.sam, batch["encoded"], boxes.to(device))[0]

    return segment


def segment_without_prompt(module: torch.nn.Module, *, device: torch.device) -> Segment:
    """Let a U-Net segment batches; the boxes are not read."""
    module = module.to(device).eval()

    def segment(batch: dict[str, Any], boxes: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return module(batch["image"].to(device))

    return segment


def _segmenter(context: StageContext, *, is_fitted: bool) -> SamModule:
    config = context.config.segmenter
    if is_fitted:
        return fitted_segmenter(context.upstream_dir("fit"), config=config_of_fit(context))
    return SamModule(replace(config, tuning="decoder")).eval()


def _score(
    context: StageContext,
    *,
    segment: Segment,
    frame_hw: tuple[int, int],
    mode: str,
    embeddings: list[EmbeddingSet] | None,
    factor: int = 1,
) -> list[dict[str, Any]]:
    status, kept = context.status(), KeptPredictions()
    rows = evaluate(
        segment,
        loaders_of(
            context, frame_hw=frame_hw, mode=mode, embeddings=embeddings, image_factor=factor
        ),
        protocol=protocol_of(context.node.content),
        scorer=Scorer(samples=context.samples, frame_hw=frame_hw, mode=mode),
        keep=kept.add,
        progress=lambda done, total: status.update("test images", done=done, total=total),
    )
    frame = pd.DataFrame(rows, columns=list(PER_IMAGE))
    frame.to_csv(context.run_dir / "per_image.csv", index=False)
    kept.write(context.run_dir)
    return rows


def loaders_of(
    context: StageContext,
    *,
    frame_hw: tuple[int, int],
    mode: str,
    embeddings: list[EmbeddingSet] | None,
    image_factor: int = 1,
) -> dict[str, DataLoader]:
    """The stage's test images as batches, by cohort."""
    content = context.node.content
    datamodule = HC18DataModule(
        samples=context.samples,
        train_ids=[],
        val_ids=[],
        test_ids={content["cohort"]: context.pick(content["test"])},
        frame=Frame(size_hw=frame_hw, resize_mode=mode, image_factor=image_factor),
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
    side, mode = content["frame_side_px"], content.get("geometry", "pad")
    protocol = protocol_of(content)
    if content["kind"] == "box_only":
        segment = box_only_logits(
            jitter_max_px=protocol.jitter_max_px, prompt=content["evaluation"]["prompt"]
        )
    else:
        train = [context.samples[sample_id] for sample_id in context.pick(content["images"])]
        segment = constant_logits(mean_mask(train))
    rows = _score(context, segment=segment, frame_hw=(side, side), mode=mode, embeddings=None)
    return _summary(rows)


def mean_mask(samples: list[Sample]) -> np.ndarray:
    """Where most of the masks lie, each stretched over the image's width and height.

    Returns:
        float32 `MEAN_MASK_HW`, mean of the masks less one half: above 0 is foreground.
    """
    total = np.zeros(MEAN_MASK_HW, dtype=np.float64)
    for sample in samples:
        mask = read_annotation(sample.annotation_path, filled_bias_px=sample.filled_bias_px).mask
        small = cv2.resize(
            mask.astype(np.float32), MEAN_MASK_HW[::-1], interpolation=cv2.INTER_AREA
        )
        total += small
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


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    dice = [row["dice"] for row in rows]
    return {"images": len({row["sample_id"] for row in rows}), "dice": float(np.mean(dice))}
