"""How far a segmenter sees the head where a pair's label says that it is."""

from dataclasses import dataclass

import numpy as np
import torch
from lightning import LightningModule

from datamodules.prepared import prepare_images
from datamodules.samples import Sample, content_hash_of
from experiments.stages.context import StageContext
from lightning_modules.losses import cross_entropy
from lightning_modules.metrics import dice_score
from lightning_modules.prompts import prompt_boxes


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A judge's prediction of an image beside its label, in the frame."""

    dice: float
    cross_entropy: float
    """Mean over the image's pixels, nats: how hard the judge finds the pair."""


@torch.inference_mode()
def label_agreement(
    context: StageContext, samples: list[Sample], *, judge: LightningModule, role: str
) -> dict[str, Agreement]:
    """Compare each sample's label with the judge's prediction.

    Args:
        context: The stage; its segmenter is the judge's.
        samples: Images with their labels.
        judge: On the stage's device, in eval mode.
        role: Input that holds the images' embeddings, where the judge reads embeddings.
    """
    settings, status = context.segmenter, context.status()
    place = {
        "content_hashes": [content_hash_of(sample) for sample in samples],
        "frame_hw": settings.frame_hw,
        "mode": settings.resize_mode,
        "cache_dir": context.cache_dir,
    }
    prepared, images, embeddings = prepare_images(samples, **place), None, None
    if settings.cache == "embedding":
        embeddings = context.open_embeddings(role)
    else:
        images = prepare_images(samples, **place, factor=settings.image_factor).images
    offsets = torch.full((1, 4), getattr(settings, "jitter_max_px", 0) / 2)
    found: dict[str, Agreement] = {}
    for row, sample_id in enumerate(prepared.sample_ids):
        mask = torch.from_numpy(prepared.masks[row].astype(np.float32))[None, None]
        valid_hw = torch.from_numpy(np.array(prepared.valid_hw[row]))[None]
        batch = {"valid_hw": valid_hw}
        if embeddings is not None:
            batch["embedding"] = torch.from_numpy(np.array(embeddings[sample_id]))[None]
        else:
            batch["image"] = torch.from_numpy(images[row].astype(np.float32) / 255)[None, None]
        boxes = prompt_boxes(
            context.config.gate.prompt, mask=mask, valid_hw=valid_hw, offsets=offsets
        )
        logits = judge.predict(batch, boxes).cpu()
        found[sample_id] = Agreement(
            dice=dice_score((logits > 0)[0, 0].numpy(), prepared.masks[row]),
            cross_entropy=cross_entropy(logits, mask, valid_hw=valid_hw).item(),
        )
        status.update("images", done=row + 1, total=len(samples))
    return found
