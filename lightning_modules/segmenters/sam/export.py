"""A fitted SAM in the formats of segment_anything and of transformers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from segment_anything.modeling import Sam
from torch import nn

if TYPE_CHECKING:
    # Its library takes seconds to import, which segment_anything's format should not pay.
    from transformers import SamConfig, SamModel

_MLP_PARTS = ("iou_prediction_head", "output_hypernetworks_mlps")
"""Perceptrons whose first and last layer transformers calls by names of their own."""

_RENAMED = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^vision_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^vision_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^vision_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^vision_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
)

_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_POSITIONS_HERE = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)


def transformers_name(name: str, *, mlp_depth: Mapping[str, int]) -> str:
    """Give transformers' name of one of segment_anything's weights.

    Args:
        name: As in `Sam.state_dict()`; not the position matrix, which has two names there.
        mlp_depth: Number of layers of each perceptron by its prefix, such as
            `mask_decoder.iou_prediction_head`.

    Returns:
        The name in `SamModel.state_dict()`; a name that is the same in both is returned as it is.
    """
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    found = re.fullmatch(r"(.+)\.layers\.(\d+)\.(weight|bias)", name)
    if found is None or found[1] not in mlp_depth:
        return name
    prefix, layer, last = found[1], int(found[2]), mlp_depth[found[1]] - 1
    # transformers numbers only the layers between the first and the last.
    part = "proj_in" if layer == 0 else "proj_out" if layer == last else f"layers.{layer - 1}"
    return f"{prefix}.{part}.{found[3]}"


def transformers_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights of a `Sam` into those of transformers' `SamModel`.

    Args:
        state: Bare state dict of a `Sam` whose image encoder is a ViT.

    Returns:
        The same tensors under transformers' names, the position matrix under both of its names;
        nothing for nothing.

    Source:
        The two libraries' modules, name by name; `SamModel` gives the same masks to 1e-5.
    """
    depth: dict[str, int] = {}
    for name in state:
        found = re.fullmatch(rf"(.+(?:{'|'.join(_MLP_PARTS)}).*)\.layers\.(\d+)\.weight", name)
        if found is not None:
            depth[found[1]] = max(depth.get(found[1], 0), int(found[2]) + 1)
    renamed = {}
    for name, tensor in state.items():
        if name == _POSITIONS:
            renamed.update(dict.fromkeys(_POSITIONS_HERE, tensor))
        else:
            renamed[transformers_name(name, mlp_depth=depth)] = tensor
    return renamed


def transformers_config(sam: Sam) -> "SamConfig":
    """Read off a network what transformers must know to build the same one.

    Args:
        sam: A `Sam` whose image encoder is segment_anything's ViT, or has its parts.

    Raises:
        ValueError: Its image encoder is no such ViT, so `SamModel` cannot hold it.
    """
    from transformers import (
        SamConfig,
        SamMaskDecoderConfig,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    encoder, decoder, prompts = sam.image_encoder, sam.mask_decoder, sam.prompt_encoder
    if not has_vit(encoder):
        raise ValueError(f"transformers' SamModel holds SAM's ViT, not {type(encoder).__name__}")
    blocks = list(encoder.blocks)
    projection = encoder.patch_embed.proj
    patch = projection.kernel_size[0]
    layer = decoder.transformer.layers[0]
    vision = SamVisionConfig(
        hidden_size=projection.out_channels,
        output_channels=encoder.neck[0].out_channels,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        image_size=encoder.img_size,
        patch_size=patch,
        window_size=max(block.window_size for block in blocks),
        global_attn_indexes=[i for i, block in enumerate(blocks) if block.window_size == 0],
        num_pos_feats=prompts.embed_dim // 2,
        mlp_dim=blocks[0].mlp.lin1.out_features,
        layer_norm_eps=blocks[0].norm1.eps,
        use_rel_pos=hasattr(blocks[0].attn, "rel_pos_h"),
    )
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=prompts.embed_dim,
            image_size=encoder.img_size,
            patch_size=patch,
            mask_input_channels=prompts.mask_downscaling[3].out_channels,
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=decoder.transformer_dim,
            mlp_dim=layer.mlp.lin1.out_features,
            num_hidden_layers=len(decoder.transformer.layers),
            num_attention_heads=decoder.transformer.num_heads,
            num_multimask_outputs=decoder.num_multimask_outputs,
            iou_head_depth=decoder.iou_prediction_head.num_layers,
            iou_head_hidden_dim=decoder.iou_prediction_head.layers[0].out_features,
            # transformers' default is 1e-6, segment_anything's layers have torch's 1e-5.
            layer_norm_eps=layer.norm1.eps,
        ),
    )


def transformers_model(sam: Sam, state: Mapping[str, torch.Tensor]) -> "SamModel":
    """Build transformers' `SamModel` with the weights of a `Sam`, in eval mode on the CPU.

    Args:
        sam: The network, of which the sizes are read.
        state: Its weights under segment_anything's names, as `merged_state_dict` gives them.

    Raises:
        ValueError: The image encoder is no ViT, or a weight is missing, unknown or of another
            shape.
    """
    from transformers import SamModel

    model = SamModel(transformers_config(sam))
    try:
        model.load_state_dict(transformers_state_dict(state), strict=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit transformers' SamModel: {error}") from error
    return model.eval()


def save_transformers(
    sam: Sam,
    state: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json.

    Args:
        sam: The network, of which the sizes are read.
        state: Its weights under segment_anything's names.
        folder: An existing folder.
        image_mean: Of each of the three channels, for pixels in [0, 1].
        image_std: Likewise; above 0.

    Raises:
        ValueError: See `transformers_model`.
    """
    from transformers import SamImageProcessor

    transformers_model(sam, state).save_pretrained(folder)
    side, low_res = sam.image_encoder.img_size, 4 * sam.prompt_encoder.image_embedding_size[0]
    SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": low_res},
        mask_pad_size={"height": low_res, "width": low_res},
        image_mean=list(image_mean),
        image_std=list(image_std),
    ).save_pretrained(folder)


def save_segment_anything(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a bare state dict of tensors, which `torch.load(weights_only=True)` reads.

    Args:
        state: Weights under segment_anything's names.
        path: File to write, .pth.
    """
    # Contiguous copies: a view would drag the whole tensor that it looks at into the file.
    torch.save({name: t.detach().cpu().contiguous().clone() for name, t in state.items()}, path)


def has_vit(image_encoder: nn.Module) -> bool:
    """Whether an image encoder is built of SAM's ViT parts."""
    return hasattr(image_encoder, "blocks") and hasattr(image_encoder, "patch_embed")
