"""Which of SAM's weights are trained: the decoder's alone, LoRA, adapters, or the whole encoder.

The prompt encoder is frozen under every mode, and normalisation layers keep their statistics.
"""

from collections.abc import Sequence

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.randomness import keyed_seed
from lightning_modules.segmenters.sam.config import EncoderPrecision, SegmenterConfig
from lightning_modules.segmenters.sam.network import BackboneSam, encoder_input

UNUSED_DECODER_PARTS = (
    "iou_prediction_head.",
    "output_hypernetworks_mlps.1.",
    "output_hypernetworks_mlps.2.",
    "output_hypernetworks_mlps.3.",
)
"""What the loss of a single mask does not reach; kept as it was, so that DDP waits for nothing."""
KEY_BIAS = ".k_proj.bias"
"""It adds the same to all scores of a query, so no output depends on it; AdamW would make steps
of its gradient's rounding."""
UNUSED_ENCODER_PARTS = ("norm_head.", "head.")
"""TinyViT's classifier, which its features do not pass."""
ATTENTION_BIASES = ".attention_biases"
"""TinyViT adds a copy of them that no gradient reaches in eval mode, in which encoders are trained
so that no statistic moves."""


class WithAdapter(nn.Module):
    """A frozen part of a block, followed by a bottleneck that starts as the identity.

    Source: Houlsby et al. 1902.00751, section 2.1 (down, nonlinearity, up, skip connection).
    """

    def __init__(self, module: nn.Module, *, channels: int, width: int) -> None:
        super().__init__()
        self.module = module
        self.adapter_down = nn.Linear(channels, width)
        self.adapter_up = nn.Linear(width, channels)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the part, then add what the bottleneck makes of its output (..., channels)."""
        output = self.module(x)
        return output + self.adapter_up(nn.functional.gelu(self.adapter_down(output)))


def apply_tuning(sam: Sam, config: SegmenterConfig, *, seed: int) -> None:
    """Freeze a SAM but for what `config.tuning` trains; adds LoRA or adapters in place.

    Args:
        sam: From `build_sam`; its output is unchanged, for LoRA and adapters start at zero. An
            encoder that is trained gets convolutions that lie channels-last.
        config: `tuning` and its settings are read.
        seed: Keys the initial weights of LoRA and adapters.
    """
    sam.requires_grad_(False)
    for name, parameter in sam.mask_decoder.named_parameters():
        is_used = not name.startswith(UNUSED_DECODER_PARTS) and not name.endswith(KEY_BIAS)
        parameter.requires_grad_(is_used)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed("tuning", seed))
        if config.tuning in ("lora", "late_lora"):
            _add_lora(sam.image_encoder, config)
        elif config.tuning == "adapter":
            _add_adapters(sam.image_encoder, width=config.adapter_width)
        elif config.tuning == "full":
            for name, parameter in sam.image_encoder.named_parameters():
                is_used = not name.startswith(UNUSED_ENCODER_PARTS)
                parameter.requires_grad_(is_used and not name.endswith(ATTENTION_BIASES))
    if config.tuning != "decoder":
        # As the images are: LiteMedSAM's training step takes three fifths of the time on a CPU.
        for part in sam.image_encoder.modules():
            if isinstance(part, nn.Conv2d):
                part.to(memory_format=torch.channels_last)


def _add_lora(encoder: nn.Module, config: SegmenterConfig) -> None:
    # Seconds of import, which other modes need not pay.
    from peft import LoraConfig, inject_adapter_in_model

    first = first_trained_block(encoder) if config.tuning == "late_lora" else 0
    names = [
        name
        for name, module in encoder.named_modules()
        if name.endswith(".qkv")
        and isinstance(module, nn.Linear)
        and (not isinstance(encoder, ImageEncoderViT) or int(name.split(".")[1]) >= first)
    ]
    alpha = config.lora_rank if config.lora_alpha is None else config.lora_alpha
    lora = LoraConfig(r=config.lora_rank, lora_alpha=alpha, target_modules=names, bias="none")
    inject_adapter_in_model(lora, encoder)


def _add_adapters(encoder: nn.Module, *, width: int) -> None:
    blocks = [m for m in encoder.modules() if hasattr(m, "attn") and hasattr(m, "mlp")]
    for block in blocks:
        channels = block.attn.proj.out_features
        block.attn = WithAdapter(block.attn, channels=channels, width=width)
        block.mlp = WithAdapter(block.mlp, channels=channels, width=width)


def first_trained_block(encoder: nn.Module) -> int:
    """The ViT block from which `late_lora` trains: the first one of the later half."""
    return len(encoder.blocks) // 2


def encode_prefix(encoder: ImageEncoderViT, prepared: torch.Tensor) -> torch.Tensor:
    """Run the part of a ViT that `late_lora` leaves frozen.

    Args:
        encoder: SAM's ViT.
        prepared: (B, 3, S, S), normalised (`encoder_input`).

    Returns:
        Tokens (B, S / 16, S / 16, C) before the first trained block.
    """
    tokens = encoder.patch_embed(prepared)
    if encoder.pos_embed is not None:
        tokens = tokens + encoder.pos_embed
    return _through(encoder.blocks[: first_trained_block(encoder)], tokens, checkpointing=False)


@torch.no_grad()
def encode_features(
    sam: BackboneSam, image: torch.Tensor, *, valid_hw: torch.Tensor, precision: EncoderPrecision
) -> torch.Tensor:
    """Run `encode_prefix` on images as `encode` runs the whole encoder.

    Returns:
        (B, S / 16, S / 16, C) float16, contiguous.
    """
    sam.image_encoder.eval()
    prepared = encoder_input(sam, image, valid_hw=valid_hw)
    use_bf16 = precision == "bf16"
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=use_bf16):
        tokens = encode_prefix(sam.image_encoder, prepared)
    return tokens.to(torch.float16).contiguous()


def encode_suffix(
    encoder: ImageEncoderViT, tokens: torch.Tensor, *, checkpointing: bool = False
) -> torch.Tensor:
    """Run the rest of a ViT: tokens of `encode_prefix` to the embedding (B, 256, h, w).

    Source: segment_anything's ImageEncoderViT.forward, equal to it after `encode_prefix`.
    """
    blocks = encoder.blocks[first_trained_block(encoder) :]
    tokens = _through(blocks, tokens, checkpointing=checkpointing)
    return encoder.neck(tokens.permute(0, 3, 1, 2))


def run_encoder(
    encoder: nn.Module, prepared: torch.Tensor, *, checkpointing: bool = False
) -> torch.Tensor:
    """Run a whole encoder with gradients; a ViT's blocks twice where `checkpointing` says so."""
    if not (checkpointing and isinstance(encoder, ImageEncoderViT)):
        return encoder(prepared)
    tokens = encoder.patch_embed(prepared)
    if encoder.pos_embed is not None:
        tokens = tokens + encoder.pos_embed
    tokens = _through(encoder.blocks, tokens, checkpointing=True)
    return encoder.neck(tokens.permute(0, 3, 1, 2))


def _through(
    blocks: Sequence[nn.Module], tokens: torch.Tensor, *, checkpointing: bool
) -> torch.Tensor:
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, use_reentrant=False)
        else:
            tokens = block(tokens)
    return tokens


@torch.no_grad()
def merged_state_dict(sam: Sam) -> dict[str, torch.Tensor]:
    """The weights under segment_anything's own names, LoRA added into the weights it stands on.

    Returns:
        Tensors that load strictly into the backbone as `build_sam` makes it; outputs are equal to
        1e-5.

    Raises:
        ValueError: For adapters, which no stock network can hold.
    """
    if any(isinstance(module, WithAdapter) for module in sam.modules()):
        raise ValueError("adapters cannot be merged into SAM's own weights")
    state = sam.state_dict()
    for name, module in sam.named_modules():
        if hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default")
            key = f"{name}.base_layer.weight"
            state[key] = state[key] + delta.to(state[key])
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if ".lora_" not in name
    }
