"""How far a segmenter sees the head where a pair's label says that it is."""

import numpy as np
import torch
from segment_anything.modeling import Sam

from datamodules.prepared import prepare_images
from datamodules.samples import Sample
from datamodules.storage import files_sha256
from experiments.stages.context import StageContext
from lightning_modules.prompts import prompt_boxes
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX
from lightning_modules.segmenters.sam.network import decode


def label_agreement(
    context: StageContext, samples: list[Sample], *, sam: Sam, role: str
) -> dict[str, float]:
    """Dice in the frame between each sample's label and the gate's segmenter."""
    segmenter = context.config.segmenter
    side = FRAME_SIDE_PX[segmenter.backbone]
    prepared = prepare_images(
        samples,
        content_hashes=[files_sha256(s.image_path, s.annotation_path) for s in samples],
        frame_hw=(side, side),
        mode=segmenter.geometry,
        cache_dir=context.cache_dir,
    )
    embeddings = context.open_embeddings(role)
    found: dict[str, float] = {}
    status = context.status()
    with torch.inference_mode():
        for row, sample_id in enumerate(prepared.sample_ids):
            mask = torch.from_numpy(prepared.masks[row].astype(np.float32))[None, None]
            boxes = prompt_boxes(
                context.config.gate.prompt,
                mask=mask,
                valid_hw=torch.from_numpy(np.array(prepared.valid_hw[row]))[None],
                offsets=torch.full((1, 4), segmenter.jitter_max_px / 2),
            )
            embedding = torch.from_numpy(np.array(embeddings[sample_id]))[None]
            predicted = decode(sam, embedding, boxes)[0] > 0
            overlap = (predicted & (mask > 0.5)).sum().item()
            found[sample_id] = 2 * overlap / (predicted.sum().item() + mask.sum().item())
            status.update("images", done=row + 1, total=len(prepared.sample_ids))
    return found
