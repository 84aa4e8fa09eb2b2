"""SAM's mask decoder for one mask an image: the stock weights, the same result, less arithmetic.

There are seven tokens (IoU, four masks, two box corners) and 4,096 image positions. The stock
decoder projects every position to queries, keys and values; here the few tokens are projected
instead, which moves a product of (4096 x 256)(256 x 128) to one of (7 x 16)(16 x 256) a head:

    (t Wq)(x Wk)' = ((t Wq) Wk') x'         scores of tokens t over positions x
    softmax(...)(x Wv) = (softmax(...) x) Wv

A bias of the keys adds the same to all scores of a token and drops out of the softmax; a bias of
the values comes through it unchanged, as the shares of a token sum to 1. Upscaling runs as matrix
products over channels-last positions, and only the one mask that is asked for is computed.
"""

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import nn
from torch.nn import functional


def decode_one_mask(
    decoder: MaskDecoder,
    *,
    embeddings: torch.Tensor,
    image_pe: torch.Tensor,
    sparse: torch.Tensor,
    n_rows: int | None = None,
) -> torch.Tensor:
    """Decode the mask that SAM gives for an unambiguous prompt.

    Args:
        decoder: The stock one; it is not changed. Weights that only make other masks get no
            gradient.
        embeddings: (B, C, h, w) float32, images and dense prompts added up.
        image_pe: (1, C, h, w) float32, the position of each embedding.
        sparse: (B, P, C) float32, each image's prompt tokens.
        n_rows: Upscale the first so many of the h rows, where the rest is padding; None for all.

    Returns:
        Logits (B, 1, 4h, 4w), 0 below n_rows.

    Source:
        MaskDecoder.predict_masks of segment_anything (first mask), equal to it to 1e-5 of the
        logits' size in float32, gradients too.
    """
    height, width = embeddings.shape[-2:]
    keys = embeddings.flatten(2).transpose(1, 2).contiguous()
    position = image_pe.flatten(2).transpose(1, 2)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
    tokens, keys = _attend_both_ways(decoder.transformer, tokens, keys, position)
    mask_weights = decoder.output_hypernetworks_mlps[0](tokens[:, 1])
    n_rows = height if n_rows is None else n_rows
    upscaled = _upscaled(decoder.output_upscaling, keys[:, : n_rows * width])
    logits = _as_image(upscaled.flatten(1, 3) @ mask_weights[:, :, None], size_hw=(n_rows, width))
    return functional.pad(logits, (0, 0, 0, 4 * (height - n_rows)))


def _attend_both_ways(
    transformer: TwoWayTransformer, tokens: torch.Tensor, keys: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """TwoWayTransformer on positions (B, N, C): tokens (B, T, C) and positions."""
    token_pe, queries = tokens, tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            placed = queries + token_pe
            queries = queries + layer.self_attn(q=placed, k=placed, v=queries)
        queries = layer.norm1(queries)
        placed_keys = keys + position
        attended = _tokens_to_image(
            layer.cross_attn_token_to_image, queries + token_pe, placed_keys, keys
        )
        queries = layer.norm2(queries + attended)
        queries = layer.norm3(queries + layer.mlp(queries))
        attended = _image_to_tokens(
            layer.cross_attn_image_to_token, placed_keys, queries + token_pe, queries
        )
        keys = layer.norm4(keys + attended)
    attended = _tokens_to_image(
        transformer.final_attn_token_to_image, queries + token_pe, keys + position, keys
    )
    return transformer.norm_final_attn(queries + attended), keys


def _tokens_to_image(
    attention: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Few tokens (B, T, C) ask many positions (B, N, C)."""
    batch, n_tokens, _ = query.shape
    projected = _absorbed(attention, attention.q_proj(query), attention.k_proj.weight)
    shares = torch.softmax(projected @ key.transpose(1, 2), dim=-1)
    seen = (shares @ value).view(batch, attention.num_heads, n_tokens, -1)
    weight = _by_head(attention, attention.v_proj.weight)
    values = (seen @ weight.transpose(1, 2)).transpose(1, 2).flatten(2)
    return attention.out_proj(values + attention.v_proj.bias)


def _image_to_tokens(
    attention: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Many positions (B, N, C) ask few tokens (B, T, C)."""
    batch, n_tokens, _ = key.shape
    n_heads = attention.num_heads
    keys = attention.k_proj(key)
    projected = _absorbed(attention, keys, attention.q_proj.weight)
    bias = _heads(attention, keys) @ attention.q_proj.bias.view(n_heads, -1, 1)
    bias = bias.flatten(1)[:, :, None] / _scale(attention)
    scores = torch.baddbmm(bias, projected, query.transpose(1, 2))
    shares = torch.softmax(scores.view(batch, n_heads, n_tokens, -1), dim=2).flatten(1, 2)
    # What each token of each head would put out: (B, heads T, C).
    out = attention.out_proj.weight.t().unflatten(0, (n_heads, -1))
    given = (_heads(attention, attention.v_proj(value)) @ out).flatten(1, 2)
    return torch.baddbmm(attention.out_proj.bias, shares.transpose(1, 2), given)


def _absorbed(attention: Attention, projected: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Scores' other factor for unprojected positions: (B, T, inner) to (B, heads T, C), scaled."""
    heads = _heads(attention, projected) / _scale(attention)
    return (heads @ _by_head(attention, weight)).flatten(1, 2)


def _heads(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """(B, T, inner) to (B, heads, T, inner / heads)."""
    return x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _by_head(attention: Attention, weight: torch.Tensor) -> torch.Tensor:
    """A projection's weight (inner, C) as (heads, inner / heads, C)."""
    return weight.unflatten(0, (attention.num_heads, -1))


def _scale(attention: Attention) -> float:
    return (attention.internal_dim // attention.num_heads) ** 0.5


def _upscaled(upscaling: nn.Sequential, keys: torch.Tensor) -> torch.Tensor:
    """Two transposed convolutions of kernel = stride 2 as products: (B, N, C) to (B, N, 4, 4, c).

    Their pixels stay where they arise: dimension 2 is the pixel of the first one (row by row),
    dimension 3 of the second.
    """
    first, norm, activation, second, last = upscaling
    x = _spread(first, keys)
    x = functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return last(_spread(second, activation(x)))


def _spread(convolution: nn.ConvTranspose2d, x: torch.Tensor) -> torch.Tensor:
    """(..., c_in) to (..., 4, c_out)."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    bias = convolution.bias.repeat(4)
    return functional.linear(x, weight, bias).unflatten(-1, (4, -1))


def _as_image(logits: torch.Tensor, *, size_hw: tuple[int, int]) -> torch.Tensor:
    """Pixels in the order of `_upscaled` (B, h w 4 4, 1) to (B, 1, 4h, 4w)."""
    height, width = size_hw
    pixels = logits.view(-1, height, width, 2, 2, 2, 2)
    pixels = pixels.permute(0, 1, 3, 5, 2, 4, 6)
    return pixels.reshape(-1, 1, 4 * height, 4 * width)
