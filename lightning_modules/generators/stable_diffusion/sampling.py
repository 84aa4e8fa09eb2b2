"""Draw latents from a Stable Diffusion UNet and decode them.

A loop of our own instead of diffusers' pipeline, because the route `sd_mask` adds mask channels to
the UNet's input. Without them both give the same latents (tested to 1e-4).
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

from lightning_modules.captured import CapturedCall
from lightning_modules.compiled import compiled
from lightning_modules.generators.stable_diffusion.base import Base, encode_prompts
from lightning_modules.generators.stable_diffusion.config import (
    Solver,
    StableDiffusionConfig,
    StableDiffusionSamplerConfig,
)
from lightning_modules.noise import guide
from lightning_modules.randomness import keyed_randn

LATENT_CHANNELS = 4
LATENT_PATCH_PX = 8
"""Side of the square of pixels that one latent of Stable Diffusion's VAE stands for."""

COMPILING_PAYS_FROM = 325e6
"""Positions of latents that pass through the UNet on a GPU: images x steps x 2 with guidance x rows
x columns. Measured on an H200 at 512x512: compiling took 62 s and saved 25 of 81 ms in a guided
pass of 16 images, so it is paid back after 1,320 images of 30 steps."""

Progress = Callable[[int, int], None]


def mask_channels(mask: torch.Tensor) -> torch.Tensor:
    """Turn a filled mask into channels of the latents' size; no detail is lost.

    Args:
        mask: (B, 1, H, W) {0, 1}, H and W multiples of 8; B may be 0.

    Returns:
        (B, 64, H / 8, W / 8) float32: 1 inside, -1 outside; channel 8 i + j holds row i and column
        j of each 8x8 square. All zeros stand for a dropped mask: no mask gives them.

    Raises:
        ValueError: Another shape.

    Source:
        torch's pixel_unshuffle, equal to it.
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: give (B, 1, H, W)")
    if mask.shape[2] % LATENT_PATCH_PX or mask.shape[3] % LATENT_PATCH_PX:
        raise ValueError(
            f"mask has {mask.shape[2]}x{mask.shape[3]} pixels: "
            f"give multiples of {LATENT_PATCH_PX}, which one latent stands for"
        )
    number, _, height, width = mask.shape
    side = LATENT_PATCH_PX
    squares = (2 * mask.float() - 1).reshape(number, height // side, side, width // side, side)
    # pixel_unshuffle, which leaves an empty batch unchanged.
    return squares.permute(0, 2, 4, 1, 3).reshape(number, side**2, height // side, width // side)


def make_solver(
    solver: Solver, *, scheduler_config: dict
) -> UniPCMultistepScheduler | DPMSolverMultistepScheduler:
    """Make the solver for the base model's noise schedule; it holds state: one for each batch.

    Args:
        solver: `unipc` or `dpmsolver++`, second order both.
        scheduler_config: Of the base model's own scheduler, whichever its class is: betas, kind of
            prediction, spacing of the timesteps.
    """
    if solver == "unipc":
        return UniPCMultistepScheduler.from_config(scheduler_config)
    if solver == "dpmsolver++":
        return DPMSolverMultistepScheduler.from_config(
            scheduler_config, algorithm_type="dpmsolver++", solver_order=2
        )
    raise ValueError(f"no solver {solver!r}: use unipc or dpmsolver++")


@torch.no_grad()
def draw_latents(
    unet: UNet2DConditionModel,
    *,
    seeds: Sequence[int],
    prompt_embeddings: torch.Tensor,
    empty_embedding: torch.Tensor,
    mask_channels: torch.Tensor | None,
    latent_hw: tuple[int, int],
    sampler: StableDiffusionSamplerConfig,
    scheduler_config: dict,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Turn prompts, and masks where the UNet takes them, into latents.

    The guided passes compare prompt and mask with the empty prompt and the dropped mask together,
    so that guidance strengthens both; training must have dropped both from the same items.

    Args:
        unet: In eval mode. LoRA of peft may lie on it and is scaled by `sampler.lora_scale` during
            each pass; merged LoRA is not scaled.
        seeds: B integers; a latent's noise comes from its own seed alone, so a latent is the same
            in every batch but for float rounding (tested to 1e-4).
        prompt_embeddings: (B, L, D) of the text encoder; B may be 0.
        empty_embedding: (1, L, D) of the empty prompt.
        mask_channels: (B, 64, h, w) from `mask_channels`, or None for a UNet without them.
        latent_hw: Rows h and columns w of the latents.
        sampler: The solver's settings.
        scheduler_config: Of the base model's scheduler.
        progress: Called with (network passes done, all of them) after each.

    Returns:
        (B, 4, h, w) float32 on the UNet's device, scaled as the UNet works on them. On a GPU the
        UNet's passes are captured, and compiled from `COMPILING_PAYS_FROM` on.

    Raises:
        ValueError: Inputs that differ in number or size, or do not fit the UNet.

    Source:
        diffusers' StableDiffusionPipeline, equal to 1e-4 from the same noise.
    """
    _check(
        unet,
        number=len(seeds),
        embeddings=(prompt_embeddings, empty_embedding),
        channels=mask_channels,
        latent_hw=latent_hw,
    )
    device = unet.conv_in.weight.device

    def unet_pass(
        inputs: torch.Tensor, timestep: torch.Tensor, embeddings: torch.Tensor
    ) -> torch.Tensor:
        # diffusers scales peft's layers for this one pass.
        lora = {"scale": sampler.lora_scale}
        return unet(
            inputs,
            timestep,
            encoder_hidden_states=embeddings,
            cross_attention_kwargs=lora,
            return_dict=False,
        )[0]

    noise_shape = (LATENT_CHANNELS, *latent_hw)
    whole = rest = CapturedCall(unet_pass) if device.type == "cuda" else unet_pass
    if device.type == "cuda" and compiling_pays(len(seeds), latent_hw=latent_hw, sampler=sampler):
        whole = CapturedCall(compiled(unet_pass))
    starts = range(0, len(seeds), sampler.batch_size)
    done, total = 0, len(starts) * sampler.num_inference_steps
    drawn = [torch.empty((0, *noise_shape), device=device)]
    for start in starts:
        part = slice(start, start + sampler.batch_size)
        solver = make_solver(sampler.solver, scheduler_config=scheduler_config)
        solver.set_timesteps(sampler.num_inference_steps, device=device)
        latents = keyed_randn(
            noise_shape, seed=0, draws=seeds[part], stream="sd_sample", device=device
        )
        latents = latents * solver.init_noise_sigma
        embeddings, channels = _branches(
            prompt_embeddings[part].to(device),
            empty_embedding=empty_embedding.to(device),
            channels=None if mask_channels is None else mask_channels[part].to(device),
            is_guided=sampler.guidance_scale != 1,
        )
        # A last part that is smaller would be compiled anew.
        network = whole if len(latents) == sampler.batch_size else rest
        for timestep in solver.timesteps:
            output = _predict(
                network,
                latents,
                dtype=unet.dtype,
                timestep=timestep,
                embeddings=embeddings,
                channels=channels,
                sampler=sampler,
            )
            latents = solver.step(output, timestep, latents).prev_sample
            done += 1
            if progress is not None:
                progress(done, total)
        drawn.append(latents)
    return torch.cat(drawn)


def compiling_pays(
    n_images: int, *, latent_hw: tuple[int, int], sampler: StableDiffusionSamplerConfig
) -> bool:
    """Whether so many images save more of a GPU's time than compiling the UNet takes."""
    passes = sampler.num_inference_steps * (1 if sampler.guidance_scale == 1 else 2)
    return n_images * passes * latent_hw[0] * latent_hw[1] >= COMPILING_PAYS_FROM


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: torch.Tensor, *, batch_size: int) -> torch.Tensor:
    """Decode latents to RGB images.

    Args:
        vae: In eval mode; its decoder computes in its own dtype.
        latents: (B, 4, h, w) as `draw_latents` gives them; B may be 0.
        batch_size: Images decoded at once, >= 1; it does not change them but for float rounding.
            Half as many wherever a GPU's memory holds no more: to draw the latents again would
            take hours.

    Returns:
        (B, 3, 8 h, 8 w) float32 in [0, 1] on the CPU, whose memory holds thousands (8 is SD's VAE;
        a smaller one of a test may enlarge less).

    Source:
        diffusers' StableDiffusionPipeline with output_type "pt", equal to 1e-4.
    """
    if latents.ndim != 4 or latents.shape[1] != LATENT_CHANNELS:
        raise ValueError(f"latents have shape {tuple(latents.shape)}: give (B, 4, h, w)")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: use 1 or more")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = latents.shape[2] * factor, latents.shape[3] * factor
    decoded = [torch.empty((0, 3, height, width))]
    start = 0
    while start < len(latents):
        part = latents[start : start + batch_size]
        try:
            decoded.append(_decoded(vae, part))
            start += len(part)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            batch_size = len(part) // 2
    return torch.cat(decoded)


def _decoded(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    return (vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1).cpu()


def draw_images(
    unet: UNet2DConditionModel,
    *,
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    masks: torch.Tensor | None,
    config: StableDiffusionConfig,
    sampler: StableDiffusionSamplerConfig,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Draw an RGB image for each prompt, in the precision of a generator's settings.

    Args:
        unet: In eval mode; the VAE of the base is brought to its device.
        base: Embeds the prompts and decodes the latents; its schedule counts.
        prompts: B texts; B may be 0.
        seeds: B integers.
        masks: (B, 1, H, W) {0, 1} of `config.size_hw`, or None.
        config: Size and precision.
        sampler: The solver's settings.
        progress: As for `draw_latents`.

    Returns:
        (B, 3, H, W) float32 in [0, 1] on the CPU.
    """
    distinct = ["", *sorted(set(prompts) - {""})]
    embeddings = encode_prompts(base, distinct)
    is_mixed = config.precision == "bf16-mixed"
    with torch.autocast(unet.device.type, torch.bfloat16, enabled=is_mixed):
        latents = draw_latents(
            unet,
            seeds=seeds,
            prompt_embeddings=embeddings[[distinct.index(p) for p in prompts]],
            empty_embedding=embeddings[:1],
            mask_channels=None if masks is None else mask_channels(masks),
            latent_hw=(config.size_hw[0] // 8, config.size_hw[1] // 8),
            sampler=sampler,
            scheduler_config=base.scheduler_config,
            progress=progress,
        )
    base.vae.to(unet.device)
    return decode_latents(base.vae, latents, batch_size=sampler.batch_size)


def _branches(
    embeddings: torch.Tensor,
    *,
    empty_embedding: torch.Tensor,
    channels: torch.Tensor | None,
    is_guided: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Put the unconditional half, empty prompts and dropped masks, before the conditional one."""
    if not is_guided:
        return embeddings, channels
    embeddings = torch.cat([empty_embedding.expand_as(embeddings), embeddings])
    if channels is not None:
        channels = torch.cat([torch.zeros_like(channels), channels])
    return embeddings, channels


def _predict(
    network: Callable[..., torch.Tensor],
    latents: torch.Tensor,
    *,
    dtype: torch.dtype,
    timestep: torch.Tensor,
    embeddings: torch.Tensor,
    channels: torch.Tensor | None,
    sampler: StableDiffusionSamplerConfig,
) -> torch.Tensor:
    """Give the UNet's output, guided in one doubled batch; (B, 4, h, w) float32.

    Guidance is linear, so it serves noise and velocity alike.
    """
    inputs = latents.repeat(len(embeddings) // len(latents), 1, 1, 1)
    if channels is not None:
        inputs = torch.cat([inputs, channels], dim=1)
    # Autocast picks the dtype itself; float32 and bf16 weights may then lie side by side.
    if torch.is_autocast_enabled(latents.device.type):
        dtype = torch.float32
    output = network(inputs.to(dtype), timestep, embeddings.to(dtype)).float()
    if len(embeddings) == len(latents):
        return output
    unconditional, conditional = output.chunk(2)
    return guide(
        conditional,
        unconditional=unconditional,
        guidance_scale=sampler.guidance_scale,
        rescale=sampler.guidance_rescale,
    )


def _check(
    unet: UNet2DConditionModel,
    *,
    number: int,
    embeddings: tuple[torch.Tensor, torch.Tensor],
    channels: torch.Tensor | None,
    latent_hw: tuple[int, int],
) -> None:
    """Raise ValueError for inputs that do not fit each other or the UNet."""
    prompts, empty = embeddings
    if prompts.ndim != 3 or len(prompts) != number:
        raise ValueError(
            f"prompt_embeddings have shape {tuple(prompts.shape)}: give ({number}, L, D), "
            "one for each seed"
        )
    if empty.shape != (1, *prompts.shape[1:]):
        raise ValueError(
            f"empty_embedding has shape {tuple(empty.shape)}: give {(1, *prompts.shape[1:])}"
        )
    added = 0
    if channels is not None:
        size = (number, *latent_hw)
        if channels.ndim != 4 or (channels.shape[0], *channels.shape[2:]) != size:
            raise ValueError(
                f"mask_channels have shape {tuple(channels.shape)}: "
                f"give ({number}, C, {latent_hw[0]}, {latent_hw[1]}), one for each seed"
            )
        added = channels.shape[1]
    taken = unet.conv_in.in_channels
    if LATENT_CHANNELS + added != taken:
        raise ValueError(
            f"the UNet takes {taken} channels, but {LATENT_CHANNELS} of the latents and {added} "
            "of the mask are given; use a generator of the matching route"
        )
