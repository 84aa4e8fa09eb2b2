"""Stable Diffusion's parts with random weights: small ones on a CPU, SD 1.5's size on a GPU."""

from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPTextConfig, CLIPTextModel

SCHEDULER_CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
N_TOKENS = 77


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Networks in eval mode on the device, and the size that they draw."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    size_hw: tuple[int, int]

    @property
    def latent_hw(self) -> tuple[int, int]:
        """Rows and columns of a latent."""
        return self.size_hw[0] // 8, self.size_hw[1] // 8

    @property
    def text_dim(self) -> int:
        """Width of a prompt's embedding."""
        return self.unet.config.cross_attention_dim


def make_parts(*, device: str, quick: bool, in_channels: int = 4) -> Parts:
    """Build the parts; weights are random and the same on every call."""
    if device == "cuda":
        unet = {"cross_attention_dim": 768, "attention_head_dim": 8}
        vae, text, size_hw = (128, 256, 512, 512), {"hidden_size": 768}, (384, 576)
    elif quick:
        unet = {"block_out_channels": (8, 8, 16, 16), "cross_attention_dim": 16}
        unet |= {"layers_per_block": 1, "attention_head_dim": 2, "norm_num_groups": 4}
        vae, text, size_hw = (4, 4, 8, 8), {"hidden_size": 16, "num_hidden_layers": 1}, (64, 128)
    else:
        unet = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 128}
        unet |= {"layers_per_block": 1, "attention_head_dim": 4}
        vae, text, size_hw = (32, 32, 64, 64), {"hidden_size": 128}, (128, 192)
    text |= {"num_attention_heads": 2 if quick else 4, "intermediate_size": 2 * text["hidden_size"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Parts(
            unet=UNet2DConditionModel(in_channels=in_channels, **unet).eval().to(device),
            vae=AutoencoderKL(
                block_out_channels=vae,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2 if device == "cuda" else 1,
                latent_channels=4,
                norm_num_groups=32 if device == "cuda" else 4,
            )
            .eval()
            .to(device),
            text_encoder=CLIPTextModel(CLIPTextConfig(**text)).eval().to(device),
            size_hw=size_hw,
        )


def pipeline_of(parts: Parts) -> StableDiffusionPipeline:
    """diffusers' own pipeline over the same networks."""
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=None,
        unet=parts.unet,
        scheduler=UniPCMultistepScheduler.from_config(SCHEDULER_CONFIG),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
