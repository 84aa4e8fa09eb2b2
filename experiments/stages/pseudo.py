"""The stage that labels unlabelled images by a teacher, and keeps what it is sure of.

It opens no annotation: images are read and resized by themselves.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning import LightningModule

from datamodules.annotation import image_of
from datamodules.ellipse import rasterise
from datamodules.head_ellipse import head_ellipse
from datamodules.samples import Sample, trimester
from datamodules.synthetic import SyntheticPair, write_metadata, write_pair
from experiments.stages.context import StageContext, StageError
from experiments.stages.device import device_of
from experiments.stages.fit import fitted_segmenter
from experiments.stages.image_logits import image_logits
from experiments.stages.stage_logger import log_pairs
from lightning_modules.metrics import dice_score
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.network import for_inference


def run_pseudo(context: StageContext) -> dict[str, Any]:
    """Keep an image where the teacher's mask agrees with its ellipse and with a second view.

    How good what is kept is, is reported where the data have labels, and chooses nothing.
    """
    content, status = context.node.content, context.status()
    settings, ids = content["self_training"], context.pick(content["images"])
    teacher = fitted_segmenter(context.upstream_dir("teacher"), config=context.segmenter)
    if isinstance(context.segmenter, SegmenterConfig):
        teacher.sam.image_encoder = for_inference(teacher.sam.image_encoder)
    teacher = teacher.to(device_of(context.config)).eval()
    known = context.samples | context.unlabelled
    kept: list[SyntheticPair] = []
    agreements: list[float] = []
    for done, sample_id in enumerate(ids, start=1):
        mask, second = two_views(teacher, known[sample_id], view_zoom=settings["view_zoom"])
        status.update("images", done=done, total=len(ids))
        ellipse = head_ellipse(mask)
        if ellipse is None:
            continue
        label = rasterise(ellipse, size_hw=mask.shape)
        found = {"ellipse": dice_score(mask, label), "view": dice_score(mask, second)}
        agreements.append(min(found.values()))
        if agreements[-1] < settings["min_agreement"]:
            continue
        name = f"{context.node.id[:8]}-{sample_id}"
        write_pair(context.run_dir, name, image=None, mask=label)
        gate = {"agreement": agreements[-1], **found}
        kept.append(SyntheticPair(sample_id=name, ellipse=ellipse, gate=gate, image_of=sample_id))
    _require_labels(len(ids), agreements=agreements, n_kept=len(kept), settings=settings)
    write_metadata(context.run_dir / "metadata.jsonl", kept)
    log_pairs(context)
    return {
        "pairs": len(kept),
        "n_unlabelled": len(ids),
        "n_without_ellipse": len(ids) - len(agreements),
        "n_kept": len(kept),
        "mean_agreement": float(np.mean(agreements)),
        **_reported(context, ids, kept=kept),
    }


def two_views(module: LightningModule, sample: Sample, *, view_zoom: float) -> list[np.ndarray]:
    """Masks uint8 (H, W) in {0, 1} of an image, and of the same made smaller about its centre by
    `view_zoom` and mapped back; FloatingPointError where the logits are not finite."""
    image, name = image_of(sample), str(sample.image_path)
    both = (image_logits(module, image, name=name, view_zoom=zoom) for zoom in (1.0, view_zoom))
    return [(logits > 0).astype(np.uint8) for logits in both]


def _require_labels(
    n: int, *, agreements: Sequence[float], n_kept: int, settings: dict[str, Any]
) -> None:
    if not agreements:
        raise StageError(
            f"pseudo: the teacher finds no ellipse in any of {n} unlabelled images; fit it for "
            "more steps, or on more labels"
        )
    if not n_kept:
        raise StageError(
            f"pseudo: none of {n} unlabelled images is kept, the best agreement is "
            f"{max(agreements):.3f} and {settings['min_agreement']} is needed; fit the teacher for "
            "more steps, or lower self_training.min_agreement"
        )


def _reported(
    context: StageContext, ids: Sequence[str], *, kept: Sequence[SyntheticPair]
) -> dict[str, Any]:
    """How good and of which trimester the kept labels are, as far as the index knows."""
    dice = []
    for pair in kept:
        row = context.rows[pair.image_of]
        if row.ellipse is not None:
            truth = rasterise(row.ellipse, size_hw=row.size_hw)
            dice.append(dice_score(rasterise(pair.ellipse, size_hw=row.size_hw), truth))

    def by_trimester(names: Sequence[str]) -> dict[str, int]:
        counts = Counter(trimester(context.rows[name].hc_mm) for name in names)
        return {str(number): counts[number] for number in (1, 2, 3)}

    return {
        "true_dice": float(np.mean(dice)) if dice else None,
        "kept_by_trimester": by_trimester([pair.image_of for pair in kept]),
        "images_by_trimester": by_trimester(ids),
    }
