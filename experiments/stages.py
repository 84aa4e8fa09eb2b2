"""The stages: each a function from its context to the result that its marker holds."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning import seed_everything

from datamodules.annotation import read_image
from datamodules.ellipse import rasterise
from datamodules.geometry import image_to_original, mask_to_frame, place
from datamodules.hc18 import HC18DataModule
from datamodules.synthetic import (
    SyntheticPair,
    link_pair,
    pair_paths,
    read_synthetic,
    write_metadata,
    write_pair,
)
from experiments.agreement import label_agreement
from experiments.box import run_box
from experiments.context import StageContext, StageError
from experiments.dashboards import stage_logger
from experiments.device import device_of
from experiments.embed import run_embed
from experiments.fidelity_stage import run_fidelity
from experiments.fit import fitted_segmenter, run_fit
from experiments.gate import (
    GateMeasurement,
    fingerprints,
    limits_from_real,
    nearest_real,
    reasons,
)
from experiments.make_pairs import outlines_of, run_phantom, run_resize, run_subset, run_warp
from experiments.scoring import run_control, run_score
from experiments.training import fit, last_loss, make_trainer
from experiments.wandb_lineage import log_lineage, log_pairs
from lightning_modules.diffusion import DiffusionModule, load_generator
from lightning_modules.randomness import keyed_seed


def run_generator(context: StageContext) -> dict[str, Any]:
    """Fit the mask-guided generator on its labelled images and keep its averaged weights."""
    config, seed = context.config.generator, context.node.content["seed"]
    ids = context.pick(context.node.content["images"])
    datamodule = HC18DataModule(
        samples=context.samples,
        train_ids=ids,
        val_ids=[],
        test_ids={},
        frame_hw=config.size_hw,
        resize_mode="squash",
        batch_size=config.batch_size,
        n_batches=config.steps,
        seed=seed,
        cache_dir=context.cache_dir,
        content_hashes=context.content,
        num_workers=context.config.trainer.num_workers,
        batch_parts=context.shrink,
    )
    seed_everything(keyed_seed("generator", seed) % 2**32, verbose=False)
    module = DiffusionModule(config, seed=seed)
    trainer = make_trainer(
        run_dir=context.run_dir,
        config=context.config.trainer,
        precision=config.precision,
        steps=config.steps,
        logger=stage_logger(context, job_type="generator"),
        status=context.status(),
        what="steps",
        accumulate=context.shrink,
    )
    fit(trainer, module, datamodule, run_dir=context.run_dir)
    module.cpu().save_generator(context.run_dir / "generator")
    log_lineage(context)
    return {
        "n_labels": len(ids),
        "steps": trainer.global_step,
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "train_loss": last_loss(trainer),
    }


def run_synthesize(context: StageContext) -> dict[str, Any]:
    """Draw outlines from the generator's own labels, and an image for each."""
    content = context.node.content
    synthesis, seed = context.config.synthesis, content["seed"]
    ids = context.pick(context.upstream_content("generator")["images"])
    generator_id = context.node.upstream["generator"].split("/")[1]
    module = load_generator(context.upstream_dir("generator") / "generator")
    module = module.to(device_of(context.config))
    distribution = outlines_of(context, ids)
    placement = place(synthesis.image_hw, frame_hw=module.config.size_hw, mode="squash")
    seeds = [keyed_seed("candidate", seed, number) for number in range(synthesis.n_candidates)]
    ellipses = [
        distribution.sample(np.random.default_rng(s), size_hw=synthesis.image_hw) for s in seeds
    ]
    masks = [rasterise(ellipse, size_hw=synthesis.image_hw) for ellipse in ellipses]
    frames = np.stack([mask_to_frame(mask, placement) for mask in masks]).astype(np.float32)
    status = context.status()
    images = module.sample(
        torch.from_numpy(frames)[:, None].to(module.device),
        seeds=seeds,
        sampler=replace(
            synthesis.sampler, batch_size=synthesis.sampler.batch_size // context.shrink
        ),
        progress=lambda done, total: status.update("solver steps", done=done, total=total),
    )
    pairs = []
    for number, (ellipse, mask) in enumerate(zip(ellipses, masks, strict=True)):
        sample_id = f"{generator_id[:8]}-{number:05d}"
        frame = (images[number, 0].cpu().numpy() * 255).round().astype(np.uint8)
        image = image_to_original(frame, placement, interpolation="linear")
        write_pair(context.run_dir, sample_id, image=image, mask=mask)
        pairs.append(
            SyntheticPair(
                sample_id=sample_id,
                ellipse=ellipse,
                seed=seeds[number],
                generator_id=generator_id,
                native_size_hw=tuple(module.config.size_hw),
            )
        )
    write_metadata(context.run_dir / "metadata.jsonl", pairs)
    return {"candidates": len(pairs), "native_size_hw": list(module.config.size_hw)}


def run_gate(context: StageContext) -> dict[str, Any]:
    """Measure every candidate, keep those within the limits, log why the others are refused."""
    config = context.config.gate
    source = context.upstream_dir("candidates")
    candidates = read_synthetic(source)
    ids = context.pick(context.node.content["images"])
    real = [read_image(context.samples[sample_id].image_path) for sample_id in ids]
    groups = [context.rows[sample_id].group_id for sample_id in ids]
    judge = fitted_segmenter(context.upstream_dir("segmenter"), config=context.config.segmenter)
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
    from experiments.fit_unet import run_fit_unet

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
