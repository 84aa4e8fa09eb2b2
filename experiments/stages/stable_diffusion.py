"""What Stable Diffusion adds to the stages of a generator: latents, and outlines in a channel."""

from collections.abc import Iterator
from threading import RLock

import numpy as np
import torch
from tqdm import tqdm

from datamodules.geometry import image_to_original, place
from datamodules.outline import (
    draw_outline,
    extract_ellipse,
    outline_to_frame,
    outline_to_original,
)
from datamodules.prepared import prepare_images
from datamodules.prompts_text import trimester_prompt
from experiments.stages.context import StageContext
from experiments.stages.device import device_of
from experiments.stages.generator import (
    Drawn,
    candidate_seeds,
    draw_on_outlines,
    drawing_of,
    to_bytes,
)
from experiments.stages.labelled import LabelledImage, labelled_images
from experiments.stages.training import checkpoint_dir
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
    """Give the module its training images' latents and prompts, encoded once and kept until the
    training is done; see `LatentBank`."""
    # Beside the checkpoints, which go when the run is done.
    path = checkpoint_dir(context.run_dir) / BANK_NAME
    order, known = sorted(context.samples), labelled_images(context, ids)
    # What a teacher labelled follows all real images in a batch's `index`.
    unlabelled = range(len(order), len(order) + len(known) - len(ids))
    indices = [*map(order.index, ids), *unlabelled]
    rows = {index: row for row, index in enumerate(indices)}
    base, config = module.release_base(), context.generator
    if path.is_file():
        module.set_bank(LatentBank.load(path, rows=rows))
        return
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
        outlines=_outlines(known, config) if config.route == "sd_in_channel" else None,
        prompts=[trimester_prompt(each.trimester) for each in known],
        rows=rows,
        route=config.route,
        batch_size=BANK_BATCH,
        device=device_of(context.config),
    )
    path.parent.mkdir(exist_ok=True)
    bank.save(path)
    module.set_bank(bank)


def _outlines(known: list[LabelledImage], config: StableDiffusionConfig) -> torch.Tensor:
    """Thin outlines (N, 1, H, W) in [0, 1] at the generator's size."""
    thickness_px = max(1.0, OUTLINE_THICKNESS_PX * config.size_hw[1] / HC18_WIDTH_PX)
    drawn = []
    for each in known:
        placement = place(each.size_hw, frame_hw=config.size_hw, mode="squash")
        ellipse = outline_to_frame(each.ellipse, placement)
        drawn.append(draw_outline(ellipse, size_hw=config.size_hw, thickness_px=thickness_px))
    return torch.from_numpy(np.stack(drawn))[:, None]


def draw_candidates(
    context: StageContext, module: StableDiffusionModule, ids: list[str]
) -> Iterator[Drawn]:
    """Candidates by the route of the settings."""
    draw = _draw_in_channel if context.generator.draws_outlines else draw_on_outlines
    return draw(context, module, ids)


def _draw_in_channel(
    context: StageContext, module: StableDiffusionModule, ids: list[str]
) -> Iterator[Drawn]:
    """[image, image, outline] from a prompt: the outline is read from its channel, or refused."""
    image_hw, seeds = context.config.synthesis.image_hw, candidate_seeds(context)
    placement = place(image_hw, frame_hw=module.config.size_hw, mode="squash")
    present = sorted({each.trimester or 0 for each in labelled_images(context, ids)})
    # Trimesters in turn, as the training images hold them alike.
    prompts = [trimester_prompt(present[n % len(present)] or None) for n in range(len(seeds))]
    pictures = module.draw(prompts, seeds=seeds, masks=None, **drawing_of(context))
    for picture, prompt in zip(pictures, prompts, strict=True):
        outline = extract_ellipse(to_bytes(picture[2]), context.config.extractor)
        image = image_to_original(to_bytes(picture[0]), placement, interpolation="linear")
        ellipse = outline.ellipse and outline_to_original(outline.ellipse, placement)
        yield Drawn(image, ellipse, prompt, outline.reason)
