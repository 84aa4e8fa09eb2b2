"""How far a segmenter sees the head where a pair's label says that it is."""

from dataclasses import dataclass

import torch
from lightning import LightningModule

from datamodules.hc18 import HC18DataModule
from datamodules.samples import Sample
from datamodules.settings import Cache, Frame
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
    settings = context.segmenter
    is_cached = settings.cache == "embedding"
    datamodule = HC18DataModule(
        samples={sample.sample_id: sample for sample in samples},
        test_ids={role: [sample.sample_id for sample in samples]},
        frame=Frame(
            size_hw=settings.frame_hw,
            resize_mode=settings.resize_mode,
            image_factor=1 if is_cached else settings.image_factor,
        ),
        cache=Cache(
            folder=context.cache_dir,
            embeddings=[context.open_embeddings(role)] if is_cached else None,
        ),
        batch_size=1,
    )
    datamodule.setup()
    prompt, status = context.config.gate.prompt, context.status()
    offsets = torch.full((1, 4), getattr(settings, "jitter_max_px", 0) / 2)
    found: dict[str, Agreement] = {}
    for done, batch in enumerate(datamodule.test_dataloader()[0], start=1):
        mask, valid_hw = batch["mask"], batch["valid_hw"]
        boxes = prompt_boxes(prompt, mask=mask, valid_hw=valid_hw, offsets=offsets)
        logits = judge.predict(batch, boxes).cpu()
        found[batch["sample_id"][0]] = Agreement(
            dice=dice_score((logits > 0)[0, 0].numpy(), mask[0, 0].numpy() > 0),
            cross_entropy=cross_entropy(logits, mask, valid_hw=valid_hw).item(),
        )
        status.update("images", done=done, total=len(samples))
    return found
