"""The stage that measures a synthetic set against the images its generator saw."""

from typing import Any

import numpy as np
from lightning import LightningModule

from datamodules.annotation import annotation_of, image_of
from datamodules.samples import Sample
from datamodules.storage import write_json
from experiments.stages.agreement import label_agreement
from experiments.stages.context import StageContext
from experiments.stages.fidelity import FidelitySet, summarise_fidelity
from experiments.stages.fit import segmenter_of
from lightning_modules.fidelity import pooled

NAME = "fidelity.json"


def run_fidelity(context: StageContext) -> dict[str, Any]:
    """Compare the set and, as its control, the test images with the generator's own images.

    Test images are measured and choose nothing.
    """
    content = context.node.content
    found = context.open_pairs("pairs")
    native = next(iter(found.pairs.values())).native_size_hw or (64, 96)
    judge = segmenter_of(context, "segmenter")
    real, held_out = context.picked(content["images"]), context.picked(content["test"])
    summary = summarise_fidelity(
        synthetic=_set(context, found.samples, role="embeddings", judge=judge),
        train=_set(context, real, role="real_embeddings", judge=judge),
        held_out=_set(context, held_out, role="test_embeddings", judge=judge),
        seed=0,
        pixel_hw=native,
    )
    write_json(context.run_dir / NAME, summary)
    return {"images": len(found.samples)}


def _set(
    context: StageContext, samples: list[Sample], *, role: str, judge: LightningModule
) -> FidelitySet:
    """Images with their features; mirrored ones too, where their embeddings have such a view."""
    agreement = label_agreement(context, samples, judge=judge, role=role)
    embeddings, rows = context.open_embeddings(role), context.rows
    ids = [sample.sample_id for sample in samples]
    keys = [embeddings.keys[name] for name in ids]

    def features(view: int) -> np.ndarray:
        return np.stack([pooled(np.asarray(embeddings.store.read(key[view]))) for key in keys])

    return FidelitySet(
        sample_ids=ids,
        groups=[rows[name].group_id if name in rows else name for name in ids],
        images=[image_of(sample) for sample in samples],
        masks=[annotation_of(s).mask for s in samples],
        features=features(0),
        agreement=[agreement[name].dice for name in ids],
        cross_entropy=[agreement[name].cross_entropy for name in ids],
        features_flipped=features(1) if len(keys[0]) > 1 else None,
    )
