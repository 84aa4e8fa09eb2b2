"""Stable Diffusion with random weights: drawing in batches, and a LoRA step on cached latents."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPTextConfig, CLIPTextModel

from experiments.bench.child import quiet
from experiments.bench.encoder import flops_of
from experiments.bench.measure import Bench, Found, Way
from lightning_modules.generators.stable_diffusion.base import (
    SCHEDULER_SETTINGS,
    TEXT_SETTINGS,
    UNET_SETTINGS,
    VAE_SETTINGS,
    Base,
)
from lightning_modules.generators.stable_diffusion.config import (
    StableDiffusionConfig,
    StableDiffusionSamplerConfig,
)
from lightning_modules.generators.stable_diffusion.latents import LatentBank
from lightning_modules.generators.stable_diffusion.module import StableDiffusionModule
from lightning_modules.generators.stable_diffusion.sampling import decode_latents, draw_latents
from lightning_modules.noise import alphas_sigmas

GUIDANCE, N_TOKENS, LORA_RANK = 7.5, 77, 16
SMALL: tuple[dict[str, Any], ...] = (
    {
        "block_out_channels": (32, 64, 128, 128),
        "attention_head_dim": 4,
        "cross_attention_dim": 128,
        "layers_per_block": 1,
    },
    {"block_out_channels": (32, 32, 64, 64), "norm_num_groups": 4, "layers_per_block": 1},
    {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4},
)
"""Where there is no GPU to fill: what differs from Stable Diffusion 1.5 in UNet, VAE and text."""


def make_base(bench: Bench) -> tuple[Base, tuple[int, int]]:
    """Networks in eval mode, their random weights the same on every call; the size of an image."""
    unet, vae, text = ({}, {}, {}) if bench.is_gpu else SMALL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [
            UNet2DConditionModel(**UNET_SETTINGS | unet).requires_grad_(False),
            AutoencoderKL(**VAE_SETTINGS | vae),
            CLIPTextModel(CLIPTextConfig(**TEXT_SETTINGS | text)),
        ]
    networks = [network.eval().to(bench.device) for network in networks]
    base = Base(*networks, tokenizer=None, scheduler_config=SCHEDULER_SETTINGS, id="random")
    return base, bench.pick((64, 128), (128, 192), (384, 576))


def bench_sampling(bench: Bench, found: Found) -> None:
    """Seconds an image of the pipeline at batch 1, and of ours at batch 1 and in a batch."""
    base, (height, width) = make_base(bench)
    steps, batch, latent_hw = found.sizes["steps"], found.sizes["batch"], (height // 8, width // 8)
    dtype, precision = (torch.bfloat16, "bf16") if bench.is_gpu else (torch.float32, "fp32")
    for network in (base.unet, base.vae, base.text_encoder):
        network.to(dtype)
    dim = base.unet.config.cross_attention_dim
    prompts = torch.randn(batch, N_TOKENS, dim).to(bench.device, dtype)
    empty = torch.zeros_like(prompts[:1])
    pipeline = StableDiffusionPipeline(
        base.vae,
        base.text_encoder,
        base.tokenizer,
        base.unet,
        UniPCMultistepScheduler.from_config(base.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def plain(_: int) -> None:
        pipeline(
            height=height,
            width=width,
            prompt_embeds=prompts[:1],
            negative_prompt_embeds=empty,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            output_type="pt",
        )

    def ours(n: int, *, guidance: float = GUIDANCE) -> None:
        sampler = StableDiffusionSamplerConfig(
            num_inference_steps=steps, guidance_scale=guidance, guidance_rescale=0.0, batch_size=n
        )
        latents = draw_latents(
            base.unet,
            seeds=range(n),
            prompt_embeddings=prompts[:n],
            empty_embedding=empty,
            mask_channels=None,
            latent_hw=latent_hw,
            sampler=sampler,
            scheduler_config=base.scheduler_config,
        )
        decode_latents(base.vae, latents, batch_size=n)

    @torch.no_grad()
    def a_pass() -> None:
        latents = torch.zeros(1, 4, *latent_hw, device=bench.device, dtype=dtype)
        base.unet(latents, 1, encoder_hidden_states=prompts[:1])

    many = Way(
        f"ours, batch {batch}",
        lambda _: ours(batch),
        batch,
        ratio=f"drawing an image, {steps} steps with guidance, in batches of {batch}",
        target="batch",
        flops=2 * steps * flops_of(a_pass),
        precision=precision,
    )
    plainly = Way(f"{many.label}, without guidance", lambda _: ours(batch, guidance=1.0), batch)
    found.measure(
        Way("published: diffusers' pipeline, batch 1", plain),
        Way("ours, batch 1", lambda _: ours(1)),
        many,
        *([plainly] if bench.is_gpu else []),
    )


def bench_generator(bench: Bench, found: Found) -> None:
    """Seconds an image of one optimiser step of LoRA, cached and not, and what caching costs."""
    base, size_hw = make_base(bench)
    batch, is_mixed = found.sizes["batch"], bench.device == "cuda"
    config = StableDiffusionConfig(
        route="sd_in_channel",
        size_hw=size_hw,
        batch_size=batch,
        lora_rank=LORA_RANK,
        precision="bf16-mixed" if is_mixed else "32-true",
        mask_dropout=0.0,
    )
    module = StableDiffusionModule(config, base=base).to(bench.device)
    module.set_bank(_bank(size_hw, n=batch, text_dim=base.unet.config.cross_attention_dim))
    optimizer = torch.optim.AdamW(module.trained_parameters(), lr=1e-4)
    images = torch.rand(batch, 3, *size_hw, device=bench.device)
    tokens = torch.zeros(batch, N_TOKENS, dtype=torch.int64, device=bench.device)

    @torch.no_grad()
    def encode() -> tuple[torch.Tensor, torch.Tensor]:
        latents = base.vae.encode(2 * images - 1).latent_dist.sample()
        embeddings = base.text_encoder(tokens).last_hidden_state
        return latents * base.vae.config.scaling_factor, embeddings

    def update(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def plain(_: int) -> None:
        latents, embeddings = encode()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=bench.device)
        alpha, sigma = alphas_sigmas(module.alphas_cumprod, timesteps)
        noisy = alpha * latents + sigma * noise
        output = module.unet(noisy, timesteps, encoder_hidden_states=embeddings).sample
        update((output - noise).square().mean())

    def ours(number: int) -> None:
        index = torch.arange(batch)
        update(module.training_step({"index": index, "draw": index + batch * (number + 1)}))

    half = torch.autocast(bench.device, dtype=torch.bfloat16, enabled=is_mixed)
    # Outside of a trainer the module's log goes nowhere, and says so.
    with half, quiet():
        label = "a LoRA step of Stable Diffusion"
        theirs, _, encoding = found.measure(
            Way("published: VAE and text in the step", plain, batch),
            Way("ours: latents and prompts cached", ours, batch, ratio=label),
            Way("encoding image and prompt, once", lambda _: encode(), batch),
        )
    share = 100 * encoding.per_unit_s / theirs.per_unit_s
    label = "share of the published step that encoding takes"
    found.value(label, share, "%", how="composed", formula="encoding / a published step")


def _bank(size_hw: tuple[int, int], *, n: int, text_dim: int) -> LatentBank:
    latents = torch.randn(n, 2, 4, size_hw[0] // 8, size_hw[1] // 8)
    return LatentBank(
        mean=latents,
        std=torch.ones_like(latents),
        masks=torch.zeros(n, 1, *size_hw, dtype=torch.uint8),
        prompt_rows=torch.ones(n, dtype=torch.int64),
        embeddings=torch.randn(2, N_TOKENS, text_dim),
        prompts=("", "a head"),
        rows=dict(enumerate(range(n))),
    )
