"""A tiny pipeline in the layout of Stable Diffusion 1.5, with random weights, written to disk."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lightning_modules.generators.stable_diffusion import base as sd_base
from lightning_modules.generators.stable_diffusion.base import Base, load_base
from lightning_modules.generators.stable_diffusion.config import Route, StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.module import (
    LatentBank,
    StableDiffusionModule,
    encode_bank,
)
from lightning_modules.generators.stable_diffusion.sampling import mask_channels
from lightning_modules.randomness import keyed_generator

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}
VAE: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (4, 4, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "vocab_size": 514,
    "hidden_size": 16,
    "intermediate_size": 16,
    "projection_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}

SIZE_HW = (64, 128)
ROUTES: tuple[Route, ...] = ("sd_mask", "sd_in_channel")
PROMPTS = ["first", "second", "first", ""]
ROWS = {11: 0, 12: 1, 17: 2, 14: 3}
"""Of the four images, whose numbers among all images are others."""


def tiny_pipeline(
    folder: Path, *, seed: int = 0, prediction_type: str = "epsilon", in_channels: int = 4
) -> Path:
    """Write a whole pipeline in diffusers' layout, as the hub's Stable Diffusion 1.5 lies there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            unet=UNet2DConditionModel(**UNET, in_channels=in_channels),
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
            tokenizer=CLIPTokenizer.from_pretrained(_tokenizer(folder / "tokenizer")),
            scheduler=PNDMScheduler.from_config(
                sd_base.SCHEDULER_SETTINGS | {"prediction_type": prediction_type}
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    # The hub's older files, instead of the one that today's transformers writes.
    (folder / "tokenizer" / "tokenizer.json").unlink()
    _tokenizer(folder / "tokenizer")
    return folder


def _tokenizer(folder: Path) -> Path:
    """CLIP's tokenizer with single bytes as its whole vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = "<|endoftext|>"
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def byte_symbols() -> list[str]:
    """What stands for each byte in CLIP's vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + n) for n in range(256 - len(plain))]


WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


def single_file(
    folder: Path,
    path: Path,
    *,
    layers: int = UNET["layers_per_block"],
    files: Sequence[str] = WEIGHTS,
) -> Path:
    """Write a pipeline's weights as one file in the layout of the original Stable Diffusion 1.5.

    The names were written down from the original's modules, not from diffusers' conversion.
    """
    state, (unet, vae, text) = {}, (load_file(folder / file) for file in files)
    for name, tensor in unet.items():
        state["model.diffusion_model." + _unet_name(name, layers=layers)] = tensor
    for name, tensor in vae.items():
        # The original's attention is made of 1x1 convolutions.
        is_linear = "attentions" in name and name.endswith("weight") and tensor.ndim == 2
        tensor = tensor[:, :, None, None] if is_linear else tensor
        state["first_stage_model." + _vae_name(name)] = tensor.contiguous()
    for name, tensor in text.items():
        name = "text_model." + name.removeprefix("text_model.")
        state["cond_stage_model.transformer." + name] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def _rename(name: str, rules: dict[str, str]) -> str:
    for old, new in rules.items():
        name = re.sub(old, new, name)
    return name


def _unet_name(name: str, *, layers: int) -> str:
    if match := re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name):
        way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if way == "down":
            number = (layers + 1) * block + 1 + (layers if kind == "downsamplers" else layer)
            place = f"input_blocks.{number}"
        else:
            place = f"output_blocks.{(layers + 1) * block + (0 if 'samplers' in kind else layer)}"
        if kind == "upsamplers":
            place = f"output_blocks.{(layers + 1) * block + layers}"
        part = {
            "resnets": "0.",
            "attentions": "1.",
            "downsamplers": "0.",
            "upsamplers": "1." if block == 0 else "2.",
        }[kind]
        rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
        name = f"{place}.{part}{rest}"
        if kind != "resnets":
            return name
    rules = {
        r"^time_embedding\.linear_1": "time_embed.0",
        r"^time_embedding\.linear_2": "time_embed.2",
        r"^conv_in": "input_blocks.0.0",
        r"^conv_norm_out": "out.0",
        r"^conv_out": "out.2",
        r"^mid_block\.attentions\.0": "middle_block.1",
        r"^mid_block\.resnets\.0": "middle_block.0",
        r"^mid_block\.resnets\.1": "middle_block.2",
        r"\.norm1\.(weight|bias)$": r".in_layers.0.\1",
        r"\.conv1\.": ".in_layers.2.",
        r"\.norm2\.(weight|bias)$": r".out_layers.0.\1",
        r"\.conv2\.": ".out_layers.3.",
        r"\.time_emb_proj\.": ".emb_layers.1.",
        r"\.conv_shortcut\.": ".skip_connection.",
    }
    if "transformer_blocks" in name:
        rules = {key: rule for key, rule in rules.items() if "mid_block" in key}
    return _rename(name, rules)


def _vae_name(name: str) -> str:
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{3 - int(match[1])}", name)
    return _rename(
        name,
        {
            r"down_blocks\.": "down.",
            r"mid_block\.attentions\.0": "mid.attn_1",
            r"mid_block\.resnets\.0": "mid.block_1",
            r"mid_block\.resnets\.1": "mid.block_2",
            r"resnets\.": "block.",
            r"downsamplers\.0": "downsample",
            r"upsamplers\.0": "upsample",
            r"conv_shortcut": "nin_shortcut",
            r"conv_norm_out": "norm_out",
            r"group_norm": "norm",
            r"to_out\.0": "proj_out",
            r"to_([qkv])\.": r"\1.",
        },
    )


def small_config(folder: Path | None = None, **changes: object) -> StableDiffusionConfig:
    small = {
        "base_model": None if folder is None else str(folder),
        "size_hw": SIZE_HW,
        "lora_rank": 3,
        "lora_alpha": 6,
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "precision": "32-true",
    }
    return StableDiffusionConfig(**(small | changes))


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Four images and masks that are not symmetric."""
    generator = keyed_generator("pictures")
    ys, xs = torch.meshgrid(torch.arange(64.0), torch.arange(128.0), indexing="ij")
    masks = torch.stack(
        [
            (((xs - 40 - 9 * n) / 30) ** 2 + ((ys - 30) / 18) ** 2 < 1).float()[None]
            for n in range(4)
        ]
    )
    return 0.2 + 0.5 * masks + 0.2 * torch.rand(4, 1, 64, 128, generator=generator), masks


def encoded_bank(base: Base, route: Route = "sd_mask", batch_size: int = 3) -> LatentBank:
    images, masks = pictures()
    return encode_bank(
        base,
        images=images,
        masks=masks,
        outlines=1 - masks if route == "sd_in_channel" else None,
        prompts=PROMPTS,
        rows=ROWS,
        route=route,
        batch_size=batch_size,
    )


def small_module(folder: Path, *, seed: int = 3, **changes: object) -> StableDiffusionModule:
    config, base = small_config(folder, **changes), load_base(str(folder))
    module = StableDiffusionModule(config, base=base, seed=seed)
    module.set_bank(encoded_bank(base, config.route))
    return module


def moved(module: StableDiffusionModule) -> StableDiffusionModule:
    """Stand for a training: other trained weights, and the same ones averaged."""
    generator = keyed_generator("moved")
    with torch.no_grad():
        for parameter in module.trained_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    module.ema = EMAModel(module.trained_parameters(), decay=0.9, foreach=True)
    return module


def unet_inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, timesteps and mask channels of three items."""
    generator = keyed_generator(seed, "inputs")
    latents = torch.randn(3, 4, 8, 16, generator=generator)
    return latents, torch.tensor([0, 400, 999]), mask_channels(pictures()[1][:3])
