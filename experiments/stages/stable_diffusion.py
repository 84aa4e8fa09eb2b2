"""The stages of Stable Diffusion: fine-tune it by LoRA, and draw candidates with their labels."""

from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from lightning import seed_everything
from tqdm import tqdm

from datamodules.ellipse import Ellipse, rasterise
from datamodules.geometry import image_to_original, mask_to_frame, place
from datamodules.hc18 import HC18DataModule
from datamodules.outline import (
    draw_outline,
    extract_ellipse,
    outline_to_frame,
    outline_to_original,
)
from datamodules.prepared import prepare_images
from datamodules.prompts_text import trimester_prompt
from datamodules.samples import trimester
from datamodules.settings import Cache, Frame
from datamodules.synthetic import SyntheticPair, write_metadata, write_pair
from experiments.stages.context import StageContext, StageError
from experiments.stages.device import device_of, loading_of
from experiments.stages.make_pairs import outlines_of
from experiments.stages.stage_logger import stage_logger
from experiments.stages.training import fit, last_loss, make_trainer
from experiments.stages.wandb_lineage import log_lineage
from lightning_modules.generators.stable_diffusion.base import Base, load_base
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.module import (
    LatentBank,
    StableDiffusionModule,
    encode_bank,
    load_stable_diffusion,
)
from lightning_modules.randomness import keyed_seed

# Progress bars of the libraries lock by a semaphore of the system's otherwise, which a stage's
# process, ending without exit handlers, would leave behind.
tqdm.set_lock(RLock())
BANK_NAME = "latents.safetensors"
BANK_BATCH = 4
OUTLINE_THICKNESS_PX = 2.5
"""Of HC18's outlines at 800x540; drawn at the generator's size by the same share of the width."""
HC18_WIDTH_PX = 800


def run_stable_diffusion(context: StageContext) -> dict[str, Any]:
    """Fine-tune Stable Diffusion on the generator's labelled images and keep the LoRA weights."""
    config, seed = context.config.stable_diffusion, context.node.content["seed"]
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
    base = load_base(config.base_model, revision=config.revision)
    module = StableDiffusionModule(config, base=base, seed=seed)
    module.set_bank(_bank(context, base, ids=ids))
    # The text encoder and the VAE have done their work.
    del base
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
    (context.run_dir / BANK_NAME).unlink(missing_ok=True)
    log_lineage(context)
    trained = [p for p in module.parameters() if p.requires_grad]
    return {
        "n_labels": len(ids),
        "steps": trainer.global_step,
        "parameters": sum(p.numel() for p in module.parameters()),
        "trainable_parameters": sum(p.numel() for p in trained),
        "train_loss": last_loss(trainer),
    }


def _bank(context: StageContext, base: Base, *, ids: list[str]) -> LatentBank:
    """Latents and prompts of the images, encoded once and kept until the training is done."""
    path = context.run_dir / BANK_NAME
    order = sorted(context.samples)
    rows = {order.index(sample_id): row for row, sample_id in enumerate(ids)}
    if path.is_file():
        return LatentBank.load(path, rows=rows)
    config, samples = context.config.stable_diffusion, [context.samples[k] for k in ids]
    prepared = prepare_images(
        samples,
        content_hashes=[context.content[k] for k in ids],
        frame_hw=config.size_hw,
        mode="squash",
        cache_dir=context.cache_dir,
    )
    bank = encode_bank(
        base,
        images=torch.from_numpy(prepared.images.astype(np.float32) / 255)[:, None],
        masks=torch.from_numpy(prepared.masks.astype(np.float32))[:, None],
        outlines=_outlines(context, ids=ids),
        prompts=[trimester_prompt(trimester(sample.hc_mm)) for sample in samples],
        rows=rows,
        route=config.route,
        batch_size=BANK_BATCH,
        device=device_of(context.config),
    )
    bank.save(path)
    return bank


def _outlines(context: StageContext, *, ids: list[str]) -> torch.Tensor | None:
    """Thin outlines (N, 1, H, W) in [0, 1] at the generator's size; None where none is drawn."""
    config = context.config.stable_diffusion
    if config.route != "sd_in_channel":
        return None
    drawn = []
    for sample_id in ids:
        row = context.rows[sample_id]
        placement = place(row.size_hw, frame_hw=config.size_hw, mode="squash")
        ellipse = outline_to_frame(row.ellipse, placement)
        drawn.append(draw_outline(ellipse, size_hw=config.size_hw, thickness_px=_thickness(config)))
    return torch.from_numpy(np.stack(drawn))[:, None]


def _thickness(config: StableDiffusionConfig) -> float:
    return max(1.0, OUTLINE_THICKNESS_PX * config.size_hw[1] / HC18_WIDTH_PX)


def run_stable_synthesize(context: StageContext) -> dict[str, Any]:
    """Draw the candidates: on new outlines, or with the outline that the image brings."""
    config = context.config.stable_diffusion
    content = context.upstream_content("generator")
    module = load_stable_diffusion(
        context.upstream_dir("generator") / "generator",
        base_model=config.base_model,
        revision=config.revision,
    )
    module = module.to(device_of(context.config))
    ids = context.pick(content["images"])
    found = [trimester(context.samples[k].hc_mm) for k in ids]
    draw = _draw_in_channel if config.route == "sd_in_channel" else _draw_on_masks
    pairs, refused = draw(context, module, trimesters=found, ids=ids)
    write_metadata(context.run_dir / "metadata.jsonl", pairs)
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


def _draw_on_masks(
    context: StageContext,
    module: StableDiffusionModule,
    *,
    trimesters: list[int | None],
    ids: list[str],
) -> tuple[list[SyntheticPair], list[SyntheticPair]]:
    """An image on each new outline; the label is exact."""
    synthesis, distribution = context.config.synthesis, outlines_of(context, ids)
    placement = place(synthesis.image_hw, frame_hw=module.config.size_hw, mode="squash")
    seeds = _seeds(context)
    drawn = [
        distribution.sample_with_source(np.random.default_rng(s), size_hw=synthesis.image_hw)
        for s in seeds
    ]
    ellipses = [ellipse for ellipse, _ in drawn]
    prompts = [trimester_prompt(trimesters[source]) for _, source in drawn]
    masks = [rasterise(ellipse, size_hw=synthesis.image_hw) for ellipse in ellipses]
    frames = np.stack([mask_to_frame(mask, placement) for mask in masks]).astype(np.float32)
    pictures = _pictures(
        context, module, prompts=prompts, seeds=seeds, masks=torch.from_numpy(frames)[:, None]
    )
    # The image was taught on three equal channels.
    grey = pictures.float().mean(dim=1)
    pairs = []
    for number, (ellipse, mask) in enumerate(zip(ellipses, masks, strict=True)):
        pair = _pair(context, number, seed=seeds[number], prompt=prompts[number], ellipse=ellipse)
        image = image_to_original(_bytes(grey[number]), placement, interpolation="linear")
        write_pair(context.run_dir, pair.sample_id, image=image, mask=mask)
        pairs.append(pair)
    return pairs, []


def _draw_in_channel(
    context: StageContext,
    module: StableDiffusionModule,
    *,
    trimesters: list[int | None],
    ids: list[str],  # noqa: ARG001 - both ways of drawing are called alike
) -> tuple[list[SyntheticPair], list[SyntheticPair]]:
    """[image, image, outline] from a prompt: the outline is read from its channel, or refused."""
    synthesis = context.config.synthesis
    placement = place(synthesis.image_hw, frame_hw=module.config.size_hw, mode="squash")
    seeds, present = _seeds(context), sorted({t or 0 for t in trimesters})
    # Trimesters in turn, as the training images hold them alike.
    prompts = [trimester_prompt(present[n % len(present)] or None) for n in range(len(seeds))]
    pictures = _pictures(context, module, prompts=prompts, seeds=seeds, masks=None)
    pairs, refused = [], []
    for number, picture in enumerate(pictures):
        outline = extract_ellipse(_bytes(picture[2]), context.config.extractor)
        image = image_to_original(_bytes(picture[0]), placement, interpolation="linear")
        ellipse = None
        if outline.ellipse is not None:
            ellipse = outline_to_original(outline.ellipse, placement)
        pair = _pair(context, number, seed=seeds[number], prompt=prompts[number], ellipse=ellipse)
        if ellipse is None:
            refused.append(replace(pair, reasons=(outline.reason or "no outline",)))
            continue
        mask = rasterise(ellipse, size_hw=synthesis.image_hw)
        write_pair(context.run_dir, pair.sample_id, image=image, mask=mask)
        pairs.append(pair)
    return pairs, refused


def _seeds(context: StageContext) -> list[int]:
    seed = context.node.content["seed"]
    n = context.config.synthesis.n_candidates
    return [keyed_seed("candidate", seed, number) for number in range(n)]


def _pictures(
    context: StageContext,
    module: StableDiffusionModule,
    *,
    prompts: list[str],
    seeds: list[int],
    masks: torch.Tensor | None,
) -> torch.Tensor:
    """(N, 3, H, W) in [0, 1] at the generator's size, on the CPU."""
    status, sampler = context.status(), context.config.stable_diffusion.sampler
    batch_size = max(1, sampler.batch_size // context.batch_parts)
    return module.draw(
        prompts,
        seeds=seeds,
        masks=masks,
        sampler=replace(sampler, batch_size=batch_size),
        progress=lambda done, total: status.update("solver steps", done=done, total=total),
    ).cpu()


def _pair(
    context: StageContext, number: int, *, seed: int, prompt: str, ellipse: Ellipse | None
) -> SyntheticPair:
    generator_id = Path(context.node.upstream["generator"]).name
    return SyntheticPair(
        sample_id=f"{generator_id[:8]}-{number:05d}",
        ellipse=ellipse,
        seed=seed,
        generator_id=generator_id,
        native_size_hw=tuple(context.config.stable_diffusion.size_hw),
        prompt=prompt,
    )


def _bytes(channel: torch.Tensor) -> np.ndarray:
    return (channel.clamp(0, 1).numpy() * 255).round().astype(np.uint8)
