"""How far a segmenter sees the head where a pair's label says that it is."""

from dataclasses import dataclass

import numpy as np
import torch
from lightning import LightningModule

from datamodules.prepared import prepare_images
from datamodules.samples import Sample, content_hash_of
from experiments.stages.context import StageContext
from experiments.stages.device import device_of
from lightning_modules.losses import cross_entropy
from lightning_modules.prompts import prompt_boxes


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A judge's prediction of an image beside its label, in the frame."""

    dice: float
    cross_entropy: float
    """Mean over the image's pixels, nats: how hard the judge finds the pair."""


def label_agreement(
    context: StageContext, samples: list[Sample], *, judge: LightningModule, role: str
) -> dict[str, Agreement]:
    """Compare each sample's label with the judge's prediction.

    Args:
        context: The stage; its segmenter is the judge's.
        samples: Images with their labels.
        judge: In eval mode.
        role: Input that holds the images' embeddings, where the judge reads embeddings.
    """
    settings = context.segmenter
    judge.to(device_of(context.config))
    hashes = [content_hash_of(s) for s in samples]
    place = {
        "content_hashes": hashes,
        "frame_hw": settings.frame_hw,
        "mode": settings.resize_mode,
        "cache_dir": context.cache_dir,
    }
    prepared = prepare_images(samples, **place)
    embeddings = context.open_embeddings(role) if settings.cache == "embedding" else None
    large = prepared
    if embeddings is None and settings.image_factor > 1:
        large = prepare_images(samples, **place, factor=settings.image_factor)
    found: dict[str, Agreement] = {}
    status = context.status()
    with torch.inference_mode():
        for row, sample_id in enumerate(prepared.sample_ids):
            mask = torch.from_numpy(prepared.masks[row].astype(np.float32))[None, None]
            valid_hw = torch.from_numpy(np.array(prepared.valid_hw[row]))[None]
            boxes = prompt_boxes(
                context.config.gate.prompt,
                mask=mask,
                valid_hw=valid_hw,
                offsets=torch.full((1, 4), getattr(settings, "jitter_max_px", 0) / 2),
            )
            batch = {"valid_hw": valid_hw}
            if embeddings is not None:
                batch["embedding"] = torch.from_numpy(np.array(embeddings[sample_id]))[None]
            else:
                image = large.images[row].astype(np.float32) / 255
                batch["image"] = torch.from_numpy(image)[None, None]
            logits = judge.predict(batch, boxes).cpu()
            predicted = logits > 0
            overlap = (predicted & (mask > 0.5)).sum().item()
            found[sample_id] = Agreement(
                dice=2 * overlap / (predicted.sum().item() + mask.sum().item()),
                cross_entropy=cross_entropy(logits, mask, valid_hw=valid_hw).item(),
            )
            status.update("images", done=row + 1, total=len(prepared.sample_ids))
    return found
