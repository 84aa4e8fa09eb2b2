"""Drawing from Stable Diffusion: diffusers' pipeline one image at a time, and our batches."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.context import Bench
from experiments.bench.diffusers_parts import SCHEDULER_CONFIG, Parts, make_parts, pipeline_of
from experiments.bench.machine import share_of_peak
from experiments.bench.measure import Ratio, Result, Way
from lightning_modules.generators.stable_diffusion.config import StableDiffusionSamplerConfig
from lightning_modules.generators.stable_diffusion.sampling import decode_latents, draw_latents

STEPS, GUIDANCE = 30, 7.5


def bench_sampling(bench: Bench) -> Result:
    """Seconds an image of the pipeline at batch 1, and of ours at batch 1 and in a batch."""
    machine = bench.run("machine")
    steps = 2 if bench.quick else STEPS
    batch = {"cuda": 32, "cpu": 2 if bench.quick else 4}[bench.device]
    parts = make_parts(device=bench.device, quick=bench.quick)
    is_gpu = bench.device == "cuda"
    precision = "bf16" if is_gpu else "fp32"
    if is_gpu:
        for network in (parts.unet, parts.vae, parts.text_encoder):
            network.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 77, parts.text_dim)
    prompts = torch.randn(shape, generator=generator).to(bench.device, parts.unet.dtype)
    empty = torch.zeros_like(prompts[:1])
    pipeline = pipeline_of(parts)

    def plain(_: int) -> None:
        height, width = parts.size_hw
        pipeline(
            prompt_embeds=prompts[:1],
            negative_prompt_embeds=empty,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            output_type="pt",
        )

    ways = [
        Way(label="published: diffusers' pipeline, batch 1", unit="image", units=1, call=plain),
        *(
            Way(
                label=f"ours, batch {n}",
                unit="image",
                units=n,
                call=lambda _, n=n: _draw(
                    parts, prompts[:n], empty=empty, steps=steps, guidance=GUIDANCE
                ),
            )
            for n in (1, batch)
        ),
    ]
    if is_gpu:
        ways.append(
            Way(
                label=f"ours, batch {batch}, without guidance",
                unit="image",
                units=batch,
                call=lambda _: _draw(parts, prompts, empty=empty, steps=steps, guidance=1.0),
            )
        )
    timings = bench.measure(ways, repeats=3 if is_gpu else 2)
    operations = 2 * steps * unet_flops(parts, prompts=prompts[:1])
    share = share_of_peak(
        timings[2].label,
        operations=operations,
        seconds=timings[2].spread_s[0],
        machine=machine,
        precision=precision,
    )
    return Result(
        name="sampling",
        timings=timings,
        values=[share],
        ratios=[
            Ratio(
                label=f"drawing an image, {steps} steps with guidance, in batches of {batch}",
                published_s=timings[0].per_unit_s,
                ours_s=timings[2].per_unit_s,
                how="measured",
                at_least=4.0 if is_gpu else None,
            )
        ],
        settings={
            "steps": steps,
            "guidance": GUIDANCE,
            "size_hw": list(parts.size_hw),
            "unet_parameters": sum(p.numel() for p in parts.unet.parameters()),
            "precision": precision,
        },
        notes=[
            "Random weights; on a CPU a UNet much smaller than Stable Diffusion's, on a GPU one of "
            "its size. The share counts the UNet's passes alone, the VAE's time being in it."
        ],
    )


def unet_flops(parts: Parts, *, prompts: torch.Tensor) -> float:
    """Operations of one unguided pass of the UNet for one image, counted while computing it."""
    latents = torch.zeros(1, 4, *parts.latent_hw, device=prompts.device, dtype=parts.unet.dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        parts.unet(latents, 1, encoder_hidden_states=prompts)
    return float(counter.get_total_flops())


def _draw(
    parts: Parts, prompts: torch.Tensor, *, empty: torch.Tensor, steps: int, guidance: float
) -> None:
    sampler = StableDiffusionSamplerConfig(
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_rescale=0.0,
        batch_size=len(prompts),
    )
    latents = draw_latents(
        parts.unet,
        seeds=range(len(prompts)),
        prompt_embeddings=prompts,
        empty_embedding=empty,
        mask_channels=None,
        latent_hw=parts.latent_hw,
        sampler=sampler,
        scheduler_config=SCHEDULER_CONFIG,
    )
    decode_latents(parts.vae, latents, batch_size=len(prompts))
