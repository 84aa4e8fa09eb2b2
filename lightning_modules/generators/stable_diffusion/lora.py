"""LoRA on a Stable Diffusion UNet, and the mask's channels at its input."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.weights import shorten
from lightning_modules.randomness import keyed_seed

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
ADAPTER = "default"
MASK_CHANNELS = 64
LORA_NAME = "pytorch_lora_weights.safetensors"
CONV_IN_NAME = "conv_in.safetensors"


def prepare_unet(
    unet: UNet2DConditionModel, *, config: StableDiffusionConfig, seed: int
) -> UNet2DConditionModel:
    """Freeze a UNet but for what the route trains, which is float32.

    Args:
        unet: The base model's, float32; changed in place. Before training it computes what it did,
            whatever the mask's channels hold.
        config: Route, precision, LoRA's rank and alpha, gradient checkpointing.
        seed: Keys LoRA's initial weights.
    """
    unet.requires_grad_(False)
    if config.route == "sd_mask":
        widen_conv_in(unet)
    if config.precision == "bf16-mixed":
        for parameter in unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    add_lora(
        unet,
        rank=config.lora_rank,
        alpha=config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        seed=seed,
    )
    if config.route == "sd_mask":
        # peft froze what is not its own.
        unet.conv_in.requires_grad_(True)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def add_lora(unet: UNet2DConditionModel, *, rank: int, alpha: int, seed: int) -> None:
    """Lay LoRA on all attention of a UNet, trained and float32 whatever the UNet is.

    Args:
        unet: Changed in place; its other weights are frozen and keep their dtype.
        rank: Of LoRA.
        alpha: LoRA's contribution is multiplied by alpha / rank.
        seed: Keys the first matrices, normal with spread 1 / rank; the second ones are zero, so
            that the UNet computes what it did.

    Source:
        diffusers' examples/text_to_image/train_text_to_image_lora.py.
    """
    settings = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(TARGETS)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "lora"))
        unet.add_adapter(settings, adapter_name=ADAPTER)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def widen_conv_in(unet: UNet2DConditionModel, *, added: int = MASK_CHANNELS) -> None:
    """Let a UNet read further channels after its own, by weights of zero.

    Args:
        unet: Changed in place; its first convolution becomes float32 and trained.
        added: Channels that come after the latents.
    """
    old = unet.conv_in
    new = nn.Conv2d(
        old.in_channels + added,
        old.out_channels,
        kernel_size=old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        device=old.weight.device,
        dtype=torch.float32,
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)


def lora_state_dict(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """LoRA's tensors under the names that diffusers' files have; they share the UNet's memory."""
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=ADAPTER))


def save_trained(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write LoRA as `load_lora_weights` takes it, and the input convolution if it was widened.

    LoRA's alpha stands in the file's metadata, which diffusers reads.
    """
    state = {name: tensor.detach().cpu() for name, tensor in lora_state_dict(unet).items()}
    settings = unet.peft_config[ADAPTER].to_dict()
    # A set, whose order differs from process to process.
    settings["target_modules"] = sorted(settings["target_modules"])
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=state,
        unet_lora_adapter_metadata=settings,
        weight_name=LORA_NAME,
    )
    if unet.conv_in.in_channels > MASK_CHANNELS:
        weights = {name: t.detach().cpu() for name, t in unet.conv_in.state_dict().items()}
        save_file(weights, folder / CONV_IN_NAME)


def load_trained(unet: UNet2DConditionModel, folder: Path) -> None:
    """Load what `save_trained` wrote into a UNet that has the same layers.

    Raises:
        WeightsError: A file is missing, damaged, or of another UNet or rank.
    """
    expected = {f"unet.{name}": tensor for name, tensor in lora_state_dict(unet).items()}
    _fill(expected, folder / LORA_NAME)
    if unet.conv_in.in_channels > MASK_CHANNELS:
        _fill(unet.conv_in.state_dict(), folder / CONV_IN_NAME)


def merged_state_dict(
    unet: UNet2DConditionModel, base_unet: UNet2DConditionModel, *, lora_scale: float
) -> dict[str, torch.Tensor]:
    """Weights of a UNet without LoRA that computes what one with it does.

    Args:
        unet: With LoRA, possibly in bf16 but for what is trained.
        base_unet: As it was loaded, float32, without LoRA.
        lora_scale: Factor on LoRA's contribution.

    Returns:
        float32 tensors under stock names, on the CPU; the input convolution is `unet`'s.

    Raises:
        ValueError: `base_unet` has LoRA on it too.
    """
    state = {name: tensor.clone() for name, tensor in base_unet.state_dict().items()}
    if any(".lora_" in name for name in state):
        raise ValueError("the base's UNet has LoRA on it already; load the base anew")
    for name, module in unet.named_modules():
        if hasattr(module, "lora_A"):
            delta = module.get_delta_weight(ADAPTER).detach().float().cpu()
            state[f"{name}.weight"] += lora_scale * delta
    for name, tensor in unet.conv_in.state_dict().items():
        if unet.conv_in.in_channels > MASK_CHANNELS:
            state[f"conv_in.{name}"] = tensor.detach().float().cpu()
    return state


@torch.no_grad()
def _fill(expected: dict[str, torch.Tensor], path: Path) -> None:
    """Copy a file's tensors into others of exactly the same names and shapes."""
    if not path.is_file():
        raise WeightsError(f"{path.parent}: no generator here ({path.name} is missing)")
    try:
        loaded = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: damaged or cut short ({shorten(error)}); copy it again, or fit again"
        ) from error
    other = sorted(expected.keys() ^ loaded.keys())
    other += sorted(
        name
        for name in expected.keys() & loaded.keys()
        if expected[name].shape != loaded[name].shape
    )
    if other:
        raise WeightsError(
            f"{path}: weights of another UNet, rank or route: {len(other)} names or shapes do not "
            f"fit, such as {other[0]}; use the base model and settings that it was fitted with"
        )
    for name, tensor in expected.items():
        tensor.copy_(loaded[name])
