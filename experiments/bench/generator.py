"""A step of the generator: VAE and text encoder in it, or latents and prompts encoded once."""

import warnings

import torch

from experiments.bench.context import Bench
from experiments.bench.diffusers_parts import N_TOKENS, SCHEDULER_CONFIG, Parts, make_parts
from experiments.bench.measure import Ratio, Result, Value, Way
from lightning_modules.generators.stable_diffusion.base import Base
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.latents import LatentBank
from lightning_modules.generators.stable_diffusion.module import StableDiffusionModule


def bench_generator(bench: Bench) -> Result:
    """Seconds an image of one optimiser step of LoRA, cached and not, and what caching costs."""
    batch = 2 if bench.quick else (8 if bench.is_gpu else 4)
    parts = make_parts(device=bench.device, quick=bench.quick)
    config = StableDiffusionConfig(
        route="sd_in_channel",
        size_hw=parts.size_hw,
        batch_size=batch,
        lora_rank=16,
        precision="bf16-mixed" if bench.device == "cuda" else "32-true",
        mask_dropout=0.0,
    )
    module = StableDiffusionModule(config, base=_base(parts))
    module.to(bench.device)
    parts.vae.to(bench.device)
    parts.text_encoder.to(bench.device)
    module.set_bank(_bank(parts, n=batch))
    optimizer = torch.optim.AdamW(module.trained_parameters(), lr=1e-4)
    index = torch.arange(batch)
    images = torch.rand(batch, 3, *parts.size_hw, device=bench.device)
    tokens = torch.zeros(batch, N_TOKENS, dtype=torch.int64, device=bench.device)
    scaling = parts.vae.config.scaling_factor

    def encode() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            latents = parts.vae.encode(2 * images - 1).latent_dist.sample() * scaling
            return latents, parts.text_encoder(tokens).last_hidden_state

    def plain(_: int) -> None:
        latents, embeddings = encode()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=bench.device)
        alpha = module.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        output = module.unet(noisy, timesteps, encoder_hidden_states=embeddings, return_dict=False)[
            0
        ]
        _update(optimizer, (output - noise).square().mean())

    def ours(number: int) -> None:
        draws = torch.arange(batch) + batch * (number + 1)
        _update(optimizer, module.training_step({"index": index, "draw": draws}))

    ways = [
        Way(label="published: VAE and text in the step", unit="image", units=batch, call=plain),
        Way(label="ours: latents and prompts cached", unit="image", units=batch, call=ours),
        Way(
            label="encoding image and prompt, once",
            unit="image",
            units=batch,
            call=lambda _: _ignore(encode()),
        ),
    ]
    is_mixed = config.precision == "bf16-mixed"
    with (
        torch.autocast(bench.device, dtype=torch.bfloat16, enabled=is_mixed),
        warnings.catch_warnings(),
    ):
        # Outside of a trainer the module's log goes nowhere, and says so.
        warnings.simplefilter("ignore")
        timings = bench.measure(ways, repeats=2 if bench.quick else 5)
    return Result(
        name="generator",
        timings=timings,
        values=[
            Value(
                label="share of the published step that encoding takes",
                value=100 * timings[2].per_unit_s / timings[0].per_unit_s,
                unit="%",
                how="composed",
                formula="encoding / a published step",
            )
        ],
        ratios=[
            Ratio(
                label="a LoRA step of Stable Diffusion",
                published_s=timings[0].per_unit_s,
                ours_s=timings[1].per_unit_s,
                how="measured",
            )
        ],
        settings={"batch": batch, "size_hw": list(parts.size_hw), "lora_rank": 16},
        notes=[
            "Same UNet, LoRA and batch both ways, random weights, networks of the size that "
            "`sampling` has. Mirror images are cached too: encoding is paid twice an image, once."
        ],
    )


def _update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _ignore(_: object) -> None:
    """A way gives back seconds or nothing."""


def _base(parts: Parts) -> Base:
    return Base(
        unet=parts.unet.requires_grad_(False),
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=None,
        scheduler_config=SCHEDULER_CONFIG,
        id="random",
    )


def _bank(parts: Parts, *, n: int) -> LatentBank:
    height, width = parts.size_hw
    return LatentBank(
        mean=torch.randn(n, 2, 4, *parts.latent_hw),
        std=torch.ones(n, 2, 4, *parts.latent_hw),
        masks=torch.zeros(n, 1, height, width, dtype=torch.uint8),
        prompt_rows=torch.ones(n, dtype=torch.int64),
        embeddings=torch.randn(2, N_TOKENS, parts.text_dim),
        prompts=("", "a head"),
        rows={number: number for number in range(n)},
    )
