"""The stages: each a function from its context to the result that its marker holds."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules.annotation import read_image
from datamodules.synthetic import (
    SyntheticPair,
    link_pair,
    pair_paths,
    read_synthetic,
    write_metadata,
)
from experiments.stages.agreement import label_agreement
from experiments.stages.box import run_box
from experiments.stages.context import StageContext, StageError
from experiments.stages.embed import run_embed
from experiments.stages.fidelity_stage import run_fidelity
from experiments.stages.fit import config_of_fit, fitted_segmenter, run_fit
from experiments.stages.gate import (
    GateMeasurement,
    fingerprints,
    limits_from_real,
    nearest_real,
    reasons,
)
from experiments.stages.make_pairs import run_phantom, run_resize, run_subset, run_warp
from experiments.stages.pixel import run_pixel_generator, run_pixel_synthesize
from experiments.stages.scoring import run_control, run_score
from experiments.stages.wandb_lineage import log_pairs


def run_generator(context: StageContext) -> dict[str, Any]:
    """Fit the recipe's generator on its labelled images."""
    if "stable_diffusion" in context.node.content:
        # Its libraries take seconds to import, which no other stage should pay.
        from experiments.stages.stable_diffusion import run_stable_diffusion

        return run_stable_diffusion(context)
    return run_pixel_generator(context)


def run_synthesize(context: StageContext) -> dict[str, Any]:
    """Draw the candidates of a generator."""
    if "stable_diffusion" in context.node.content:
        from experiments.stages.stable_diffusion import run_stable_synthesize

        return run_stable_synthesize(context)
    return run_pixel_synthesize(context)


def run_gate(context: StageContext) -> dict[str, Any]:
    """Measure every candidate, keep those within the limits, log why the others are refused."""
    config = context.config.gate
    source = context.upstream_dir("candidates")
    candidates = read_synthetic(source)
    ids = context.pick(context.node.content["images"])
    real = [read_image(context.samples[sample_id].image_path) for sample_id in ids]
    groups = [context.rows[sample_id].group_id for sample_id in ids]
    judge_config = config_of_fit(context, "segmenter")
    judge = fitted_segmenter(context.upstream_dir("segmenter"), config=judge_config)
    on_real = label_agreement(
        context, [context.samples[k] for k in ids], sam=judge.sam, role="real_embeddings"
    )
    agreement = label_agreement(context, candidates.samples, sam=judge.sam, role="embeddings")
    limits = limits_from_real(real, groups=groups, agreement=list(on_real.values()), config=config)
    images = [read_image(sample.image_path) for sample in candidates.samples]
    similarity, nearest = nearest_real(fingerprints(images), fingerprints(real))
    accepted: list[SyntheticPair] = []
    rejected: list[SyntheticPair] = []
    for number, sample in enumerate(candidates.samples):
        measured = GateMeasurement(
            agreement=agreement[sample.sample_id],
            mean=float(images[number].mean() / 255),
            spread=float(images[number].std() / 255),
            similarity=float(similarity[number]),
            nearest=ids[nearest[number]],
        )
        found = reasons(measured, limits)
        known = asdict(candidates.pairs[sample.sample_id])
        pair = SyntheticPair(
            **known
            | {
                "ellipse": candidates.pairs[sample.sample_id].ellipse,
                "gate": asdict(measured),
                "reasons": tuple(found),
            }
        )
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
        "mean_agreement": float(np.mean(list(agreement.values()))),
    }


def run_import_pairs(context: StageContext) -> dict[str, Any]:
    """Take somebody else's synthetic pairs into the store."""
    foreign = read_synthetic(Path(context.config.synthesis.folder))
    for sample in foreign.samples:
        image = read_image(sample.image_path)
        image_path, mask_path = pair_paths(context.run_dir, sample.sample_id)
        for path in (image_path, mask_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image_path), image)
        mask_path.write_bytes(sample.annotation_path.read_bytes())
    write_metadata(
        context.run_dir / "metadata.jsonl", [foreign.pairs[s.sample_id] for s in foreign.samples]
    )
    log_pairs(context)
    return {"pairs": len(foreign.samples)}


def _run_fit_unet(context: StageContext) -> dict[str, Any]:
    # Its library takes a second to import, which no other stage should pay.
    from experiments.stages.fit_unet import run_fit_unet

    return run_fit_unet(context)


STAGES: dict[str, Callable[[StageContext], dict[str, Any]]] = {
    "embed": run_embed,
    "generator": run_generator,
    "synthesize": run_synthesize,
    "gate": run_gate,
    "import_pairs": run_import_pairs,
    "warp": run_warp,
    "phantom": run_phantom,
    "resize": run_resize,
    "subset": run_subset,
    "fit": run_fit,
    "fit_unet": _run_fit_unet,
    "score": run_score,
    "control": run_control,
    "fidelity": run_fidelity,
    "box": run_box,
}
