"""Write a fitted generator as a whole pipeline of diffusers."""

from pathlib import Path

from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from lightning_modules.generators.stable_diffusion.base import Base
from lightning_modules.generators.stable_diffusion.lora import merged_state_dict
from lightning_modules.generators.stable_diffusion.module import StableDiffusionModule


def save_pipeline(module: StableDiffusionModule, base: Base, path: str | Path) -> None:
    """Write a whole pipeline in diffusers' layout, LoRA merged into its UNet as it draws.

    `StableDiffusionPipeline.from_pretrained` loads it; a UNet of `sd_mask` takes 68 channels, which
    only `draw` gives it.

    Args:
        module: The fitted generator; its averaged weights and its sampler's `lora_scale` are taken.
        base: The base model, loaded anew, without LoRA.
        path: The folder.

    Raises:
        ValueError: `base` has LoRA on it, or is another base model.
    """
    if base.id != module.base_id:
        raise ValueError(f"base model {base.id}, but the generator was fitted on {module.base_id}")
    with module.averaged_weights():
        scale = module.config.sampler.lora_scale
        state = merged_state_dict(module.unet, base.unet, lora_scale=scale)
    unet = UNet2DConditionModel.from_config(
        {**base.unet.config, "in_channels": module.unet.conv_in.in_channels}
    )
    unet.load_state_dict(state)
    StableDiffusionPipeline(
        unet=unet,
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        scheduler=PNDMScheduler.from_config(base.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)
