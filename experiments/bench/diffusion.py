"""Stable Diffusion with random weights: drawing in batches, and a LoRA step on cached latents."""

import warnings
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from experiments.bench.context import Bench, Way
from experiments.bench.machine import share_of_peak
from experiments.bench.results import Ratio, Result, Value
from lightning_modules.generators.stable_diffusion.base import SCHEDULER_SETTINGS, Base
from lightning_modules.generators.stable_diffusion.config import (
    StableDiffusionConfig,
    StableDiffusionSamplerConfig,
)
from lightning_modules.generators.stable_diffusion.latents import LatentBank
from lightning_modules.generators.stable_diffusion.module import StableDiffusionModule
from lightning_modules.generators.stable_diffusion.sampling import decode_latents, draw_latents

GUIDANCE, N_TOKENS, LORA_RANK = 7.5, 77, 16


@dataclass(frozen=True)
class Size:
    """Of the networks, and of what they draw."""

    size_hw: tuple[int, int]
    unet: tuple[int, ...]
    """Channels of its blocks."""
    unet_heads: int
    unet_groups: int
    vae: tuple[int, ...]
    vae_groups: int
    text_dim: int
    text_heads: int
    text_layers: int
    layers: int
    """Of a block of the UNet, and of the VAE."""

    @property
    def latent_hw(self) -> tuple[int, int]:
        """Rows and columns of a latent."""
        return self.size_hw[0] // 8, self.size_hw[1] // 8


QUICK = Size((64, 128), (8, 8, 16, 16), 2, 4, (4, 4, 8, 8), 4, 16, 2, 1, 1)
ON_CPU = Size((128, 192), (32, 64, 128, 128), 4, 32, (32, 32, 64, 64), 4, 128, 4, 12, 1)
ON_GPU = Size((384, 576), (320, 640, 1280, 1280), 8, 32, (128, 256, 512, 512), 32, 768, 4, 12, 2)
"""Of Stable Diffusion 1.5."""


def make_base(size: Size, *, device: str) -> Base:
    """Networks in eval mode on the device; weights are random and the same on every call."""
    text = CLIPTextConfig(
        hidden_size=size.text_dim,
        intermediate_size=2 * size.text_dim,
        num_attention_heads=size.text_heads,
        num_hidden_layers=size.text_layers,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=size.unet,
            cross_attention_dim=size.text_dim,
            attention_head_dim=size.unet_heads,
            norm_num_groups=size.unet_groups,
            layers_per_block=size.layers,
        )
        vae = AutoencoderKL(
            block_out_channels=size.vae,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=size.layers,
            latent_channels=4,
            norm_num_groups=size.vae_groups,
        )
        networks = unet.requires_grad_(False), vae, CLIPTextModel(text)
    networks = [network.eval().to(device) for network in networks]
    return Base(*networks, tokenizer=None, scheduler_config=SCHEDULER_SETTINGS, id="random")


def bench_sampling(bench: Bench, found: Result) -> None:
    """Seconds an image of the pipeline at batch 1, and of ours at batch 1 and in a batch."""
    size = bench.size(quick=QUICK, cpu=ON_CPU, gpu=ON_GPU)
    dtype = torch.bfloat16 if bench.is_gpu else torch.float32
    base = make_base(size, device=bench.device)
    if bench.is_gpu:
        for network in (base.unet, base.vae, base.text_encoder):
            network.to(dtype)
    steps, batch = bench.size(quick=(2, 2), cpu=(30, 4), gpu=(30, 32))
    prompts = torch.randn(batch, N_TOKENS, size.text_dim).to(bench.device, dtype)
    empty, solver = torch.zeros_like(prompts[:1]), UniPCMultistepScheduler
    pipeline = StableDiffusionPipeline(
        base.vae,
        base.text_encoder,
        base.tokenizer,
        base.unet,
        solver.from_config(base.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def plain(_: int) -> None:
        pipeline(
            height=size.size_hw[0],
            width=size.size_hw[1],
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
            latent_hw=size.latent_hw,
            sampler=sampler,
            scheduler_config=base.scheduler_config,
        )
        decode_latents(base.vae, latents, batch_size=n)

    ways = [
        Way("published: diffusers' pipeline, batch 1", plain),
        Way("ours, batch 1", lambda _: ours(1)),
        Way(f"ours, batch {batch}", lambda _: ours(batch), units=batch),
    ]
    if bench.is_gpu:
        label = f"ours, batch {batch}, without guidance"
        ways.append(Way(label, lambda _: ours(batch, guidance=1.0), units=batch))
    theirs, _one, many, *_ = bench.measure(found, ways, repeats=3 if bench.is_gpu else 2)
    precision, counter = "bf16" if bench.is_gpu else "fp32", FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        latents = torch.zeros(1, 4, *size.latent_hw, device=bench.device, dtype=dtype)
        base.unet(latents, 1, encoder_hidden_states=prompts[:1])
    share = share_of_peak(
        many,
        operations=2 * steps * counter.get_total_flops(),
        machine=bench.run("machine"),
        precision=precision,
    )
    found.values.append(share)
    label = f"drawing an image, {steps} steps with guidance, in batches of {batch}"
    seconds = theirs.per_unit_s, many.per_unit_s
    found.ratios.append(Ratio(label, *seconds, "measured", bench.target(found)))
    parameters = sum(p.numel() for p in base.unet.parameters())
    found.settings = {"steps": steps, "guidance": GUIDANCE, "size_hw": list(size.size_hw)}
    found.settings |= {"unet_parameters": parameters, "precision": precision}
    found.notes.append(
        "Random weights; on a CPU a UNet much smaller than Stable Diffusion's, on a GPU one of "
        "its size. The share counts the UNet's passes alone, the VAE's time being in it."
    )


def bench_generator(bench: Bench, found: Result) -> None:
    """Seconds an image of one optimiser step of LoRA, cached and not, and what caching costs."""
    size = bench.size(quick=QUICK, cpu=ON_CPU, gpu=ON_GPU)
    batch, is_mixed = bench.size(quick=2, cpu=4, gpu=8), bench.device == "cuda"
    base = make_base(size, device=bench.device)
    config = StableDiffusionConfig(
        route="sd_in_channel",
        size_hw=size.size_hw,
        batch_size=batch,
        lora_rank=LORA_RANK,
        precision="bf16-mixed" if is_mixed else "32-true",
        mask_dropout=0.0,
    )
    module = StableDiffusionModule(config, base=base).to(bench.device)
    module.set_bank(_bank(size, n=batch))
    optimizer = torch.optim.AdamW(module.trained_parameters(), lr=1e-4)
    images = torch.rand(batch, 3, *size.size_hw, device=bench.device)
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
        alpha = module.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        output = module.unet(noisy, timesteps, encoder_hidden_states=embeddings).sample
        update((output - noise).square().mean())

    def ours(number: int) -> None:
        index = torch.arange(batch)
        update(module.training_step({"index": index, "draw": index + batch * (number + 1)}))

    ways = [
        Way("published: VAE and text in the step", plain, units=batch),
        Way("ours: latents and prompts cached", ours, units=batch),
        Way("encoding image and prompt, once", lambda _: encode(), units=batch),
    ]
    half = torch.autocast(bench.device, dtype=torch.bfloat16, enabled=is_mixed)
    with half, warnings.catch_warnings():
        # Outside of a trainer the module's log goes nowhere, and says so.
        warnings.simplefilter("ignore")
        timings = bench.measure(found, ways, repeats=bench.size(quick=2, cpu=5, gpu=5))
    theirs_s, ours_s, encoding_s = (timing.per_unit_s for timing in timings)
    label, share = "share of the published step that encoding takes", 100 * encoding_s / theirs_s
    found.values.append(Value(label, share, "%", "composed", "encoding / a published step"))
    found.ratios.append(Ratio("a LoRA step of Stable Diffusion", theirs_s, ours_s, "measured"))
    found.settings = {"batch": batch, "size_hw": list(size.size_hw), "lora_rank": LORA_RANK}
    found.notes.append(
        "Same UNet, LoRA and batch both ways, random weights, networks of the size that "
        "`sampling` has. Mirror images are cached too: encoding is paid twice an image, once."
    )


def _bank(size: Size, *, n: int) -> LatentBank:
    latents = torch.randn(n, 2, 4, *size.latent_hw)
    return LatentBank(
        mean=latents,
        std=torch.ones_like(latents),
        masks=torch.zeros(n, 1, *size.size_hw, dtype=torch.uint8),
        prompt_rows=torch.ones(n, dtype=torch.int64),
        embeddings=torch.randn(2, N_TOKENS, size.text_dim),
        prompts=("", "a head"),
        rows={number: number for number in range(n)},
    )
