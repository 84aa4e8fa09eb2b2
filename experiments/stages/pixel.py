"""The stages of the pixel generator: fit it, and draw an image for each new outline."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning import seed_everything

from datamodules.ellipse import rasterise
from datamodules.geometry import image_to_original, mask_to_frame, place
from datamodules.hc18 import HC18DataModule
from datamodules.settings import Cache, Frame
from datamodules.synthetic import SyntheticPair, write_metadata, write_pair
from experiments.stages.context import StageContext
from experiments.stages.device import device_of, loading_of
from experiments.stages.make_pairs import outlines_of
from experiments.stages.stage_logger import stage_logger
from experiments.stages.training import fit, last_loss, make_trainer
from experiments.stages.wandb_lineage import log_lineage
from lightning_modules.generators.pixel.module import DiffusionModule, load_generator
from lightning_modules.randomness import keyed_seed


def run_pixel_generator(context: StageContext) -> dict[str, Any]:
    """Fit the mask-guided generator on its labelled images and keep its averaged weights."""
    config, seed = context.config.generator, context.node.content["seed"]
    ids = context.pick(context.node.content["images"])
    datamodule = HC18DataModule(
        samples=context.samples,
        train_ids=ids,
        val_ids=[],
        test_ids={},
        frame=Frame(size_hw=config.size_hw, resize_mode="squash"),
        cache=Cache(folder=context.cache_dir, content_hashes=context.content),
        batch_size=config.batch_size,
        n_batches=config.steps,
        seed=seed,
        loading=loading_of(context),
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
        batch_parts=context.batch_parts,
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


def run_pixel_synthesize(context: StageContext) -> dict[str, Any]:
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
            synthesis.sampler, batch_size=synthesis.sampler.batch_size // context.batch_parts
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
