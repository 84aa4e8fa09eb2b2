"""The stages of a generator, whichever it is: fit it, and draw candidates with their labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, seed_everything

from datamodules.ellipse import Ellipse, rasterise
from datamodules.geometry import image_to_original, mask_to_frame, place
from datamodules.hc18 import HC18DataModule
from datamodules.prompts_text import trimester_prompt
from datamodules.settings import Cache, Frame, Mixture
from datamodules.synthetic import SyntheticPair, write_metadata, write_pair
from experiments.stages.context import StageContext, StageError
from experiments.stages.device import device_of, loading_of
from experiments.stages.labelled import labelled_images, pseudo_set
from experiments.stages.make_pairs import outlines_of
from experiments.stages.stage_logger import log_lineage, stage_logger
from experiments.stages.training import fit, last_loss, make_trainer
from lightning_modules.generators.table import imported, row_of
from lightning_modules.randomness import keyed_seed

FOLDER = "generator"
"""Where a run keeps the generator."""


def run_generator(context: StageContext) -> dict[str, Any]:
    """Fit the generator on its images, labelled or by a teacher, and keep its averaged weights."""
    config, seed = context.generator, context.node.content["seed"]
    row, ids = row_of(config), context.pick(context.node.content["images"])
    pseudo = pseudo_set(context)
    unlabelled = [] if pseudo is None else pseudo.samples
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
        # Each image as often as any other, whoever labelled it.
        mixture=Mixture(synthetic=unlabelled, pool=True),
        loading=loading_of(context),
    )
    seed_everything(keyed_seed("generator", seed) % 2**32, verbose=False)
    module = row.load_module().start(config, seed=seed)
    if row.prepare is not None:
        imported(row.prepare)(context, module, ids)
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
    module.cpu().save_generator(context.run_dir / FOLDER)
    log_lineage(context)
    weights = list(module.parameters())
    return {
        "n_labels": len(ids),
        "n_pseudo": len(unlabelled),
        "steps": trainer.global_step,
        "parameters": sum(p.numel() for p in weights),
        "trainable_parameters": sum(p.numel() for p in weights if p.requires_grad),
        "train_loss": last_loss(trainer),
    }


def run_synthesize(context: StageContext) -> dict[str, Any]:
    """Draw candidates: on new outlines, or with the outlines that the images bring."""
    config = context.generator
    row = row_of(config)
    module = row.load_module().load_generator(context.upstream_dir("generator") / FOLDER, config)
    module = module.to(device_of(context.config))
    ids = context.pick(context.upstream_content("generator")["images"])
    draw = draw_on_outlines if row.draw is None else imported(row.draw)
    pairs, refused = draw(context, module, ids)
    write_metadata(context.run_dir / "metadata.jsonl", pairs)
    if refused:
        write_metadata(context.run_dir / "rejected.jsonl", refused)
    if not pairs:
        raise StageError(
            f"synthesize: no outline could be read from any of {len(refused)} images (for example: "
            f"{refused[0].reasons[0]}); fit the generator for more steps, or loosen extractor.*"
        )
    return {
        "candidates": len(pairs),
        "without_outline": len(refused),
        "native_size_hw": list(config.size_hw),
    }


def draw_on_outlines(
    context: StageContext, module: LightningModule, ids: list[str]
) -> tuple[list[SyntheticPair], list[SyntheticPair]]:
    """Pairs on new outlines drawn from the labels of `ids`; labels are exact, none is refused."""
    synthesis = context.config.synthesis
    distribution = outlines_of(context, ids, balance_sizes=synthesis.balance_sizes)
    placement = place(synthesis.image_hw, frame_hw=context.generator.size_hw, mode="squash")
    seeds, trimesters = candidate_seeds(context), trimesters_of(context, ids)
    drawn = [
        distribution.sample_with_source(np.random.default_rng(s), size_hw=synthesis.image_hw)
        for s in seeds
    ]
    masks = [rasterise(ellipse, size_hw=synthesis.image_hw) for ellipse, _ in drawn]
    prompts = [trimester_prompt(trimesters[source]) for _, source in drawn]
    frames = np.stack([mask_to_frame(mask, placement) for mask in masks]).astype(np.float32)
    images = module.draw_on_masks(
        torch.from_numpy(frames)[:, None].to(module.device),
        seeds=seeds,
        prompts=prompts,
        **drawing_of(context),
    )
    reads_prompts, pairs = row_of(context.generator).reads_prompts, []
    for number, ((ellipse, _), mask) in enumerate(zip(drawn, masks, strict=True)):
        image = image_to_original(to_bytes(images[number, 0]), placement, interpolation="linear")
        prompt = prompts[number] if reads_prompts else None
        pair = candidate(context, number, seed=seeds[number], ellipse=ellipse, prompt=prompt)
        write_pair(context.run_dir, pair.sample_id, image=image, mask=mask)
        pairs.append(pair)
    return pairs, []


def trimesters_of(context: StageContext, ids: list[str]) -> list[int | None]:
    """Trimester of each image by its label, in the order of `outlines_of`; None where unknown."""
    return [each.trimester for each in labelled_images(context, ids)]


def candidate_seeds(context: StageContext) -> list[int]:
    """A seed a candidate."""
    seed = context.node.content["seed"]
    n = context.config.synthesis.n_candidates
    return [keyed_seed("candidate", seed, number) for number in range(n)]


def drawing_of(context: StageContext) -> dict[str, Any]:
    """How images are drawn, and where to say how far it is."""
    status, sampler = context.status(), context.config.sampler_of(context.generator)
    batch_size = max(1, sampler.batch_size // context.batch_parts)
    return {
        "sampler": replace(sampler, batch_size=batch_size),
        "progress": lambda done, total: status.update("solver steps", done=done, total=total),
    }


def candidate(
    context: StageContext,
    number: int,
    *,
    seed: int,
    ellipse: Ellipse | None,
    prompt: str | None = None,
) -> SyntheticPair:
    """What is known of a candidate before the gate."""
    generator_id = Path(context.node.upstream["generator"]).name
    return SyntheticPair(
        sample_id=f"{generator_id[:8]}-{number:05d}",
        ellipse=ellipse,
        seed=seed,
        generator_id=generator_id,
        native_size_hw=tuple(context.generator.size_hw),
        prompt=prompt,
    )


def to_bytes(channel: torch.Tensor) -> np.ndarray:
    """Intensities in [0, 1] to uint8 of the same shape."""
    return (channel.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8)
