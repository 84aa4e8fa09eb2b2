"""The stage that measures a synthetic set against the images its generator saw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datamodules.annotation import annotation_of, image_of
from datamodules.samples import Sample
from datamodules.storage import write_json
from experiments.stages.agreement import Agreement, label_agreement
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
    sets = {}
    for name, role, samples in (
        ("synthetic", "embeddings", found.samples),
        ("held_out", "test_embeddings", context.picked(content["test"])),
        ("train", "real_embeddings", context.picked(content["images"])),
    ):
        agreement = label_agreement(context, samples, judge=judge, role=role)
        sets[name] = _set(context, samples, role=role, agreement=agreement)
    write_json(context.run_dir / NAME, summarise_fidelity(**sets, seed=0, pixel_hw=tuple(native)))
    return {"images": len(found.samples)}


def _set(
    context: StageContext,
    samples: Sequence[Sample],
    *,
    role: str,
    agreement: Mapping[str, Agreement],
) -> FidelitySet:
    """Images with their features; mirrored ones too, where their embeddings have such a view."""
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
