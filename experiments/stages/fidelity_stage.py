"""The stage that measures a synthetic set against the images its generator saw."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from datamodules.annotation import read_annotation, read_image
from datamodules.embeddings import EmbeddingSet
from datamodules.samples import Sample
from datamodules.storage import write_json
from datamodules.synthetic import read_synthetic
from experiments.stages.agreement import label_agreement
from experiments.stages.context import StageContext
from experiments.stages.fidelity import FidelitySet, summarise_fidelity
from experiments.stages.fit import fitted_segmenter
from lightning_modules.fidelity import pooled

NAME = "fidelity.json"


def run_fidelity(context: StageContext) -> dict[str, Any]:
    """Compare the set and, as its control, the test images with the generator's own images.

    Test images are measured and choose nothing.
    """
    content = context.node.content
    pairs = read_synthetic(context.upstream_dir("pairs"))
    native = next(iter(pairs.pairs.values())).native_size_hw or (64, 96)
    judge = fitted_segmenter(context.upstream_dir("segmenter"), config=context.segmenter)
    train = [context.samples[k] for k in context.pick(content["images"])]
    test = [context.samples[k] for k in context.pick(content["test"])]
    held_out = label_agreement(context, test, judge=judge, role="test_embeddings")
    on_train = label_agreement(context, train, judge=judge, role="real_embeddings")
    summary = summarise_fidelity(
        synthetic=_set(
            context,
            pairs.samples,
            role="embeddings",
            agreement=[pairs.pairs[s.sample_id].gate["agreement"] for s in pairs.samples],
        ),
        train=_set(
            context, train, role="real_embeddings", agreement=list(on_train.values()), flipped=True
        ),
        held_out=_set(context, test, role="test_embeddings", agreement=list(held_out.values())),
        seed=0,
        pixel_hw=tuple(native),
    )
    write_json(context.run_dir / NAME, summary)
    return {"images": len(pairs.samples)}


def _set(
    context: StageContext,
    samples: Sequence[Sample],
    *,
    role: str,
    agreement: Sequence[float],
    flipped: bool = False,
) -> FidelitySet:
    embeddings = context.open_embeddings(role)
    ids = [sample.sample_id for sample in samples]
    rows = context.rows
    masks = [
        read_annotation(s.annotation_path, filled_bias_px=s.filled_bias_px).mask for s in samples
    ]
    return FidelitySet(
        sample_ids=ids,
        groups=[rows[name].group_id if name in rows else name for name in ids],
        images=[read_image(sample.image_path) for sample in samples],
        masks=masks,
        features=_features(embeddings, ids, view=0),
        agreement=np.asarray(agreement),
        features_flipped=_features(embeddings, ids, view=1) if flipped else None,
    )


def _features(embeddings: EmbeddingSet, ids: Sequence[str], *, view: int) -> np.ndarray:
    store, keys = embeddings.store, embeddings.keys
    return np.stack([pooled(np.asarray(store.read(keys[name][view]))) for name in ids])
