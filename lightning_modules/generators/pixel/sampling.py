"""Draw images from a trained generator with DPM-Solver++."""

from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import DPMSolverMultistepScheduler

from lightning_modules.generators.pixel.config import GeneratorConfig, SamplerConfig
from lightning_modules.generators.pixel.network import MaskGuidedUNet, mask_condition
from lightning_modules.noise import (
    NUM_TRAIN_TIMESTEPS,
    alphas_sigmas,
    cosine_betas,
    guide,
    image_from_velocity,
)
from lightning_modules.randomness import keyed_randn

Progress = Callable[[int, int], None]


def make_solver(*, snr_shift: float) -> DPMSolverMultistepScheduler:
    """Make the solver for the training's schedule; it holds state, so make one for each batch."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        trained_betas=cosine_betas(snr_shift=snr_shift),
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


@torch.no_grad()
def draw_samples(
    network: MaskGuidedUNet,
    masks: torch.Tensor,
    *,
    seeds: Sequence[int],
    config: GeneratorConfig,
    sampler: SamplerConfig,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Turn masks into images in the network's range.

    Args:
        network: In eval mode, on the device of `masks`.
        masks: (B, 1, H, W) {0, 1}; B may be 0.
        seeds: B integers; a sample's noise comes from its own seed alone, so a sample is the
            same in every batch but for float rounding (tested to 1e-4).
        config: The generator's settings.
        sampler: The solver's settings.
        progress: Called with (network passes done, all of them) after each.

    Returns:
        (B, 1, H, W) float32.

    Raises:
        ValueError: Seeds and masks differ in number.
    """
    if len(seeds) != len(masks):
        raise ValueError(f"{len(seeds)} seeds for {len(masks)} masks: give one for each")
    lowest = (0.0 - config.intensity_mean) / config.intensity_std
    highest = (1.0 - config.intensity_mean) / config.intensity_std
    half = config.precision == "bf16-mixed"
    batches = list(_slices(len(masks), sampler.batch_size))
    done, total = 0, len(batches) * sampler.num_inference_steps
    samples = [torch.empty_like(masks[:0], dtype=torch.float32)]
    for part in batches:
        solver = make_solver(snr_shift=config.snr_shift)
        solver.set_timesteps(sampler.num_inference_steps, device=masks.device)
        condition = mask_condition(masks[part])
        sample = keyed_randn(
            condition.shape[1:], seed=0, draws=seeds[part], stream="sample", device=masks.device
        )
        for timestep in solver.timesteps:
            with torch.autocast(masks.device.type, torch.bfloat16, enabled=half):
                velocity = guided_velocity(
                    network, sample, timestep=timestep, condition=condition, sampler=sampler
                )
            alpha, sigma = alphas_sigmas(solver.alphas_cumprod, timestep.cpu().view(1))
            image = image_from_velocity(
                sample, velocity=velocity, alpha=alpha.item(), sigma=sigma.item()
            )
            # Guidance pushes pixels out of the range that training images have.
            image = image.clamp(lowest, highest)
            sample = solver.step(image, timestep, sample).prev_sample
            done += 1
            if progress is not None:
                progress(done, total)
        samples.append(sample)
    return torch.cat(samples)


def guided_velocity(
    network: MaskGuidedUNet,
    sample: torch.Tensor,
    *,
    timestep: torch.Tensor,
    condition: torch.Tensor,
    sampler: SamplerConfig,
) -> torch.Tensor:
    """Predict v (B, 1, H, W) float32 for one timestep, guided in one doubled batch."""
    if sampler.guidance_scale == 1:
        return network(sample, timesteps=timestep.expand(len(sample)), condition=condition).float()
    # An all-zero condition is the dropped mask.
    both = network(
        torch.cat([sample, sample]),
        timesteps=timestep.expand(2 * len(sample)),
        condition=torch.cat([condition, torch.zeros_like(condition)]),
    ).float()
    conditional, unconditional = both.chunk(2)
    return guide(
        conditional,
        unconditional=unconditional,
        guidance_scale=sampler.guidance_scale,
        rescale=sampler.guidance_rescale,
    )


def _slices(length: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, length, batch_size):
        yield slice(start, min(start + batch_size, length))
