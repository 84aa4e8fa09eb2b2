"""The stage that keeps the candidates that pass the gate."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from datamodules.annotation import image_of
from datamodules.synthetic import SyntheticPair, link_pair, write_metadata
from experiments.stages.agreement import label_agreement
from experiments.stages.context import StageContext, StageError
from experiments.stages.fit import segmenter_of
from experiments.stages.gate import fingerprints, limits_from_real, reasons, similarities
from experiments.stages.labelled import labelled_images
from experiments.stages.stage_logger import log_pairs
from lightning_modules.fidelity import per_image_intensity


def run_gate(context: StageContext) -> dict[str, Any]:
    """Measure every candidate, keep those within the limits, log why the others are refused."""
    config, source = context.config.gate, context.upstream_dir("candidates")
    candidates = context.open_pairs("candidates")
    ids = context.pick(context.node.content["images"])
    # All images of the generator, its unlabelled ones among them; labels are those of `ids` alone.
    behind = labelled_images(context, ids)
    # Of the pairs: an image without any annotation is among no samples.
    real = [image_of(each.sample) for each in behind]
    judge = segmenter_of(context, "segmenter")
    samples = context.picked(context.node.content["images"])
    on_real = label_agreement(context, samples, judge=judge, role="real_embeddings")
    on_made = label_agreement(context, candidates.samples, judge=judge, role="embeddings")
    limits = limits_from_real(
        real,
        groups=[context.rows[each.real_id].group_id for each in behind],
        agreement=[each.dice for each in on_real.values()],
        config=config,
    )
    images = [image_of(sample) for sample in candidates.samples]
    means, spreads = per_image_intensity(images)
    similarity = similarities(fingerprints(images), fingerprints(real))
    accepted: list[SyntheticPair] = []
    rejected: list[SyntheticPair] = []
    for number, sample in enumerate(candidates.samples):
        measured = {
            "agreement": on_made[sample.sample_id].dice,
            "mean": float(means[number]),
            "spread": float(spreads[number]),
            "similarity": float(similarity[number].max()),
            "nearest": behind[similarity[number].argmax()].real_id,
        }
        found = reasons(limits, **measured)
        known = candidates.pairs[sample.sample_id]
        pair = replace(known, gate=measured, reasons=tuple(found))
        (rejected if found and config.enabled else accepted).append(pair)
    for pair in accepted:
        link_pair(source, context.run_dir, sample_id=pair.sample_id)
    write_metadata(context.run_dir / "metadata.jsonl", accepted)
    write_metadata(context.run_dir / "rejected.jsonl", rejected)
    if not accepted:
        raise StageError(
            f"gate: none of {len(rejected)} candidates accepted (for example: "
            f"{rejected[0].reasons[0]}); fit the generator for more steps or lower "
            "gate.min_agreement"
        )
    log_pairs(context)
    return {
        "accepted": len(accepted),
        "rejected": len(rejected),
        "limits": asdict(limits),
        "mean_agreement": float(np.mean([each.dice for each in on_made.values()])),
    }
