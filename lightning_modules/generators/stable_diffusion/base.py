"""Load a base model of Stable Diffusion 1.5's layout, and embed prompts with it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, IncompleteSnapshotError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.hub import hub_refusal
from lightning_modules.generators.stable_diffusion.weights import (
    TEXT_KEY,
    THREE_WAYS,
    UNET_KEY,
    VAE_KEY,
    BaseFiles,
    base_id,
    find_base,
    is_hub_name,
    read_json,
    resolve_base,
    shorten,
)
from lightning_modules.weights_table import is_offline

UNET_SETTINGS: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
VAE_SETTINGS: dict[str, Any] = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
TEXT_SETTINGS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
SCHEDULER_SETTINGS: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
"""Stable Diffusion 1.5's, which a single file does not carry."""
HUB_FILES = ("model_index.json", "*/config.json", "scheduler/*.json", "tokenizer/*")
HUB_WEIGHTS = (
    ("*/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"),
    ("*/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"),
)
"""Of a hub's model, the first ones that it has."""
UNUSED_HUB_FILES = ("safety_checker/*", "feature_extractor/*")


@dataclass
class Base:
    """A base model on the CPU, in eval mode, frozen, float32."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    """Of the base model's own scheduler: betas and kind of prediction."""
    id: str
    """As `weights.base_id` names it."""


def load_base(base_model: str | None, *, revision: str | None = None) -> Base:
    """Load a base model; nothing pickled is read, and only a hub's name needs a network.

    Args:
        base_model: Folder in diffusers' layout, a single .safetensors file in the layout of the
            original Stable Diffusion 1.5 with a folder tokenizer/ beside it, or a hub's name,
            which is taken from the hub's cache where there is no network; None is the default.
        revision: Of a name on the hub.

    Raises:
        WeightsError: Missing, damaged, of another layout, or out of reach; one line that says how
            to get a base model.
    """
    base_model, revision = resolve_base(base_model, revision=revision)
    if is_hub_name(base_model):
        found = find_base(str(fetch_base(base_model, revision=revision)))
    else:
        found = find_base(base_model)
    try:
        networks = _from_folder(found) if found.path.is_dir() else _from_file(found.path)
        tokenizer = CLIPTokenizer.from_pretrained(found.tokenizer, local_files_only=True)
    except WeightsError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(
            f"{found.path}: not loadable as Stable Diffusion 1.5 ({shorten(error)}); {THREE_WAYS}"
        ) from error
    scheduler_config = dict(SCHEDULER_SETTINGS)
    if found.path.is_dir():
        scheduler_config = read_json(found.path / "scheduler" / "scheduler_config.json")
    unet, vae, text_encoder = (network.requires_grad_(False).eval() for network in networks)
    return Base(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler_config=scheduler_config,
        id=base_id(base_model, revision=revision),
    )


@torch.no_grad()
def encode_prompts(base: Base, prompts: Sequence[str]) -> torch.Tensor:
    """Embed prompts as Stable Diffusion reads them, padded to the tokenizer's length.

    Args:
        base: Its text encoder works where it lies.
        prompts: P texts; the empty text is one.

    Returns:
        (P, L, D) float32 on the CPU, L = 77 and D = 768 for Stable Diffusion 1.5; (0, L, D) for no
        prompts.

    Raises:
        WeightsError: A prompt of more tokens than the tokenizer takes, which would be cut.

    Source:
        diffusers' `StableDiffusionPipeline.encode_prompt`, equal to it.
    """
    settings = base.text_encoder.config
    length = min(base.tokenizer.model_max_length, settings.max_position_embeddings)
    embedded = [torch.empty(0, length, settings.hidden_size)]
    for prompt in prompts:
        number = len(base.tokenizer(prompt).input_ids)
        if number > length:
            raise WeightsError(
                f"the prompt {prompt[:40]!r}... has {number} tokens with start and end, but the "
                f"tokenizer takes {length}; use a shorter prompt"
            )
        tokens = base.tokenizer(
            prompt, padding="max_length", max_length=length, return_tensors="pt"
        ).input_ids
        found = base.text_encoder(tokens.to(base.text_encoder.device))[0]
        embedded.append(found.float().cpu())
    return torch.cat(embedded)


def fetch_base(base_model: str, *, revision: str | None = None) -> Path:
    """Take a base model from the hub's cache, or from the hub into it.

    Raises:
        WeightsError: It is in neither; one line that says how to get a base model.
    """
    try:
        folder = _snapshot(base_model, revision=revision)
    except (HFValidationError, HTTPError, OSError) as error:
        raise hub_refusal(base_model, revision=revision, error=error) from error
    return folder


def _snapshot(base_model: str, *, revision: str | None) -> Path:
    for weights in HUB_WEIGHTS:
        is_last = weights == HUB_WEIGHTS[-1]
        # A cache may hold the halves alone.
        with contextlib.nullcontext() if is_last else contextlib.suppress(IncompleteSnapshotError):
            folder = Path(
                snapshot_download(
                    base_model,
                    revision=revision,
                    allow_patterns=[*HUB_FILES, *weights],
                    ignore_patterns=list(UNUSED_HUB_FILES),
                    local_files_only=is_offline(),
                )
            )
            if is_last or any(folder.glob("unet/diffusion_pytorch_model.safetensors")):
                return folder
    raise AssertionError("the last weights return")


def _from_folder(found: BaseFiles) -> list[nn.Module]:
    # A bar for a second's work would break through the command line's own.
    disable_progress_bar()
    networks: list[nn.Module] = []
    classes = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel)
    for network_class, weights in zip(classes, found.weights, strict=True):
        options = {"torch_dtype": torch.float32}
        if network_class is CLIPTextModel:
            options = {"dtype": torch.float32}
        network, report = network_class.from_pretrained(
            weights.parent,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant="fp16" if weights.name.endswith(".fp16.safetensors") else None,
            **options,
        )
        wrong = [*report["missing_keys"], *report["mismatched_keys"]]
        if wrong:
            raise WeightsError(
                f"{weights}: {len(wrong)} weights are missing or of another shape than its "
                f"config.json says, such as {wrong[0]}; {THREE_WAYS}"
            )
        networks.append(network)
    return networks


def _from_file(path: Path) -> list[nn.Module]:
    # Built without weights, and filled a network at a time from the mapped file: the weights are in
    # memory once.
    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel(**UNET_SETTINGS)
        vae = AutoencoderKL(**VAE_SETTINGS)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_SETTINGS))
    _fill(unet, convert_ldm_unet_checkpoint(_part(path, UNET_KEY), unet.config))
    _fill(vae, convert_ldm_vae_checkpoint(_part(path, VAE_KEY), vae.config))
    text = convert_ldm_clip_checkpoint(_part(path, TEXT_KEY))
    if not hasattr(text_encoder, "text_model"):
        # transformers 5.6 took a level away.
        text = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    # A buffer that older transformers kept.
    text = {name: tensor for name, tensor in text.items() if not name.endswith("position_ids")}
    _fill(text_encoder, text)
    return [unet, vae, text_encoder]


def _part(path: Path, key: str) -> dict[str, torch.Tensor]:
    """Tensors of a single file below the first part of a key."""
    first = key.split(".", 1)[0] + "."
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(first)}  # noqa: SIM118


def _fill(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    network.load_state_dict({n: tensor.float() for n, tensor in state.items()}, assign=True)
