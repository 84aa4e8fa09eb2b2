"""The stages of a generator, whichever it is: fit it, and draw candidates with their labels."""

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningModule, seed_everything

from datamodules.annotation import image_of
from datamodules.ellipse import Ellipse, EllipseDistribution, rasterise
from datamodules.geometry import image_to_original, mask_to_frame, place
from datamodules.hc18 import HC18DataModule
from datamodules.prompts_text import trimester_prompt
from datamodules.settings import Cache, Frame, Mixture
from datamodules.storage import write_json
from datamodules.synthetic import SyntheticPair, pixels_sha256, write_metadata, write_pair
from experiments.stages.context import StageContext, StageError
from experiments.stages.device import device_of, loading_of
from experiments.stages.labelled import labelled_images
from experiments.stages.make_pairs import outlines_of
from experiments.stages.stage_logger import log_lineage, stage_logger
from experiments.stages.training import fit, last_loss, make_trainer
from experiments.store.fitted import GENERATOR, GENERATOR_IMAGES
from lightning_modules.generators.table import row_of
from lightning_modules.randomness import keyed_seed


def run_generator(context: StageContext) -> dict[str, Any]:
    """Fit the generator on its images, labelled or by a teacher, and keep its averaged weights."""
    config, seed = context.generator, context.node.content["seed"]
    row, ids = row_of(config), context.pick(context.node.content["images"])
    unlabelled = [each.sample for each in labelled_images(context, ids)[len(ids) :]]
    datamodule = HC18DataModule(
        samples=context.samples,
        train_ids=ids,
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
        pkgutil.resolve_name(row.prepare)(context, module, ids)
    trainer = make_trainer(
        run_dir=context.run_dir,
        config=context.config.trainer,
        precision=config.precision,
        steps=config.steps,
        logger=stage_logger(context),
        batch_parts=context.batch_parts,
    )
    fit(trainer, module, datamodule, run_dir=context.run_dir)
    module.cpu().save_generator(context.run_dir / GENERATOR)
    write_json(context.run_dir / GENERATOR / GENERATOR_IMAGES, images_behind(context, ids))
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


def images_behind(context: StageContext, ids: list[str]) -> list[dict[str, Any]]:
    """What a generator is fitted on: with ellipses and sizes it draws where the images are not, and
    by their hashes a set drawn from it tells whose test images it must not meet."""
    return [
        {
            "pixels_sha256": pixels_sha256(image_of(each.sample)),
            "size_hw": list(each.size_hw),
            "ellipse": asdict(each.ellipse),
            "is_labelled": number < len(ids),
        }
        for number, each in enumerate(labelled_images(context, ids))
    ]


def run_synthesize(context: StageContext) -> dict[str, Any]:
    """Draw candidates: on new outlines, or with the outlines that the images bring."""
    config, size_hw = context.generator, context.config.synthesis.image_hw
    row = row_of(config)
    module = row.load_module().load_generator(context.upstream_dir("generator") / GENERATOR, config)
    module = module.to(device_of(context.config))
    ids = context.pick(context.upstream_content("generator")["images"])
    draw = draw_on_outlines if row.draw is None else pkgutil.resolve_name(row.draw)
    generator_id = Path(context.node.upstream["generator"]).name
    seeds, pairs, refused = candidate_seeds(context), [], []
    for number, drawn in enumerate(draw(context, module, ids)):
        pair = SyntheticPair(
            sample_id=f"{generator_id[:8]}-{number:05d}",
            ellipse=drawn.ellipse,
            seed=seeds[number],
            generator_id=generator_id,
            native_size_hw=tuple(config.size_hw),
            prompt=drawn.prompt,
        )
        if drawn.ellipse is None:
            refused.append(replace(pair, reasons=(drawn.refusal,)))
            continue
        mask = rasterise(drawn.ellipse, size_hw=size_hw)
        write_pair(context.run_dir, pair.sample_id, image=drawn.image, mask=mask)
        pairs.append(pair)
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


class Drawn(NamedTuple):
    """A candidate as it was drawn."""

    image: np.ndarray
    """uint8 (H, W)."""
    ellipse: Ellipse | None
    """The head's outline in its pixels; None where none could be read."""
    prompt: str | None
    """The sentence that the generator was given; None where it reads none."""
    refusal: str | None = None
    """Why no outline could be read."""


def draw_on_outlines(
    context: StageContext, module: LightningModule, ids: list[str]
) -> Iterator[Drawn]:
    """Draw on new outlines that follow the labels of `ids`: labels are exact."""
    synthesis = context.config.synthesis
    return draw_pairs(
        module,
        distribution=outlines_of(context, ids, balance_sizes=synthesis.balance_sizes),
        trimesters=[each.trimester for each in labelled_images(context, ids)],
        seeds=candidate_seeds(context),
        image_hw=synthesis.image_hw,
        **drawing_of(context),
    )


def draw_pairs(
    module: LightningModule,
    *,
    distribution: EllipseDistribution,
    trimesters: Sequence[int | None],
    seeds: Sequence[int],
    image_hw: tuple[int, int],
    **drawing: Any,
) -> Iterator[Drawn]:
    """Draw one image a seed on an outline that the seed draws too.

    Args:
        module: A generator that draws on masks, in eval mode.
        distribution: Of the outlines.
        trimesters: Of each ellipse that the distribution was fitted on.
        seeds: A seed a pair.
        image_hw: Rows and columns of the images.
        drawing: The sampler and others of `draw_on_masks`.
    """
    placement = place(image_hw, frame_hw=module.config.size_hw, mode="squash")
    drawn = [
        distribution.sample_with_source(np.random.default_rng(seed), size_hw=image_hw)
        for seed in seeds
    ]
    prompts = [trimester_prompt(trimesters[source]) for _, source in drawn]
    masks = [mask_to_frame(rasterise(ellipse, size_hw=image_hw), placement) for ellipse, _ in drawn]
    images = module.draw_on_masks(
        torch.from_numpy(np.stack(masks).astype(np.float32))[:, None].to(module.device),
        seeds=seeds,
        prompts=prompts,
        **drawing,
    )
    reads_prompts = row_of(module.config).reads_prompts
    for channel, (ellipse, _), prompt in zip(images[:, 0], drawn, prompts, strict=True):
        image = image_to_original(to_bytes(channel), placement, interpolation="linear")
        yield Drawn(image, ellipse, prompt if reads_prompts else None)


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


def to_bytes(channel: torch.Tensor) -> np.ndarray:
    """Intensities in [0, 1] to uint8 of the same shape."""
    return (channel.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8)
