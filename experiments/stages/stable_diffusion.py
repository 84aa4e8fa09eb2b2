"""What Stable Diffusion adds to the stages of a generator: latents, and outlines in a channel."""

from dataclasses import replace
from threading import RLock

import numpy as np
import torch
from tqdm import tqdm

from datamodules.ellipse import rasterise
from datamodules.geometry import image_to_original, place
from datamodules.outline import (
    draw_outline,
    extract_ellipse,
    outline_to_frame,
    outline_to_original,
)
from datamodules.prepared import prepare_images
from datamodules.prompts_text import trimester_prompt
from datamodules.synthetic import SyntheticPair, write_pair
from experiments.stages.context import StageContext
from experiments.stages.device import device_of
from experiments.stages.generator import (
    candidate,
    candidate_seeds,
    draw_on_outlines,
    drawing_of,
    to_bytes,
    trimesters_of,
)
from experiments.stages.labelled import LabelledImage, labelled_images
from experiments.stages.training import checkpoint_dir
from lightning_modules.generators.stable_diffusion.base import Base
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.module import (
    LatentBank,
    StableDiffusionModule,
    encode_bank,
)

# Progress bars of the libraries lock by a semaphore of the system's otherwise, which a stage's
# process, ending without exit handlers, would leave behind.
tqdm.set_lock(RLock())
BANK_NAME = "latents.safetensors"
BANK_BATCH = 1
"""With its mirror image, in float32: more at once would take more memory than the training."""
OUTLINE_THICKNESS_PX = 2.5
"""Of HC18's outlines at 800x540; drawn at the generator's size by the same share of the width."""
HC18_WIDTH_PX = 800


def attach_latents(context: StageContext, module: StableDiffusionModule, ids: list[str]) -> None:
    """Give the module its training images' latents and prompts, encoded once; see `LatentBank`."""
    module.set_bank(_bank(context, module.release_base(), ids=ids))


def _bank(context: StageContext, base: Base, *, ids: list[str]) -> LatentBank:
    """Latents and prompts of the images, encoded once and kept until the training is done."""
    # Beside the checkpoints, which go when the run is done.
    path = checkpoint_dir(context.run_dir) / BANK_NAME
    order, known = sorted(context.samples), labelled_images(context, ids)
    # What a teacher labelled follows all real images in a batch's `index`.
    unlabelled = range(len(order), len(order) + len(known) - len(ids))
    indices = [*map(order.index, ids), *unlabelled]
    rows = {index: row for row, index in enumerate(indices)}
    if path.is_file():
        return LatentBank.load(path, rows=rows)
    config = context.generator
    prepared = prepare_images(
        [each.sample for each in known],
        content_hashes=[each.content_hash for each in known],
        frame_hw=config.size_hw,
        mode="squash",
        cache_dir=context.cache_dir,
    )
    bank = encode_bank(
        base,
        images=torch.from_numpy(prepared.images.astype(np.float32) / 255)[:, None],
        masks=torch.from_numpy(prepared.masks.astype(np.float32))[:, None],
        outlines=_outlines(context, known),
        prompts=[trimester_prompt(each.trimester) for each in known],
        rows=rows,
        route=config.route,
        batch_size=BANK_BATCH,
        device=device_of(context.config),
    )
    path.parent.mkdir(exist_ok=True)
    bank.save(path)
    return bank


def _outlines(context: StageContext, known: list[LabelledImage]) -> torch.Tensor | None:
    """Thin outlines (N, 1, H, W) in [0, 1] at the generator's size; None where none is drawn."""
    config = context.generator
    if config.route != "sd_in_channel":
        return None
    drawn = []
    for each in known:
        placement = place(each.size_hw, frame_hw=config.size_hw, mode="squash")
        ellipse = outline_to_frame(each.ellipse, placement)
        drawn.append(draw_outline(ellipse, size_hw=config.size_hw, thickness_px=_thickness(config)))
    return torch.from_numpy(np.stack(drawn))[:, None]


def _thickness(config: StableDiffusionConfig) -> float:
    return max(1.0, OUTLINE_THICKNESS_PX * config.size_hw[1] / HC18_WIDTH_PX)


def draw_candidates(
    context: StageContext, module: StableDiffusionModule, ids: list[str]
) -> tuple[list[SyntheticPair], list[SyntheticPair]]:
    """Candidates by the route of the settings, and those whose outline could not be read."""
    if context.generator.draws_outlines:
        return _draw_in_channel(context, module, ids)
    return draw_on_outlines(context, module, ids)


def _draw_in_channel(
    context: StageContext, module: StableDiffusionModule, ids: list[str]
) -> tuple[list[SyntheticPair], list[SyntheticPair]]:
    """[image, image, outline] from a prompt: the outline is read from its channel, or refused."""
    synthesis = context.config.synthesis
    placement = place(synthesis.image_hw, frame_hw=module.config.size_hw, mode="squash")
    seeds, present = candidate_seeds(context), sorted({t or 0 for t in trimesters_of(context, ids)})
    # Trimesters in turn, as the training images hold them alike.
    prompts = [trimester_prompt(present[n % len(present)] or None) for n in range(len(seeds))]
    pictures = module.draw(prompts, seeds=seeds, masks=None, **drawing_of(context)).cpu()
    pairs, refused = [], []
    for number, picture in enumerate(pictures):
        outline = extract_ellipse(to_bytes(picture[2]), context.config.extractor)
        image = image_to_original(to_bytes(picture[0]), placement, interpolation="linear")
        ellipse = None
        if outline.ellipse is not None:
            ellipse = outline_to_original(outline.ellipse, placement)
        pair = candidate(
            context, number, seed=seeds[number], ellipse=ellipse, prompt=prompts[number]
        )
        if ellipse is None:
            refused.append(replace(pair, reasons=(outline.reason or "no outline",)))
            continue
        mask = rasterise(ellipse, size_hw=synthesis.image_hw)
        write_pair(context.run_dir, pair.sample_id, image=image, mask=mask)
        pairs.append(pair)
    return pairs, refused
