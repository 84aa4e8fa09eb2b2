"""SAM's ViT attention by scaled_dot_product_attention; the state dict stays as it is."""

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class SdpaAttention(Attention):
    """The stock attention's weights and result, without its attention matrix in memory twice.

    Source:
        segment_anything.modeling.image_encoder.Attention, equal to it to 1e-5 in float32, gradients
        too; the relative positions are MViTv2's (2112.01526, eq. 4), taken from the unscaled query.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend over (B, H, W, C) tokens."""
        batch, height, width, _ = x.shape
        n_tokens = height * width
        qkv = self.qkv(x).reshape(batch, n_tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = None
        if self.use_rel_pos:
            rows = get_rel_pos(height, height, self.rel_pos_h)
            columns = get_rel_pos(width, width, self.rel_pos_w)
            on_grid = query.reshape(batch, self.num_heads, height, width, -1)
            by_row = torch.einsum("bnhwc,hkc->bnhwk", on_grid, rows)
            by_column = torch.einsum("bnhwc,wkc->bnhwk", on_grid, columns)
            bias = by_row[..., :, None] + by_column[..., None, :]
            bias = bias.reshape(batch, self.num_heads, n_tokens, n_tokens).to(query.dtype)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = attended.transpose(1, 2).reshape(batch, height, width, -1)
        return self.proj(attended)


def use_sdpa(image_encoder: nn.Module) -> nn.Module:
    """Let every stock attention of an encoder run through scaled_dot_product_attention.

    Args:
        image_encoder: Changed in place; one without SAM's attention stays as it is.

    Returns:
        The same encoder; weights and their names are untouched.
    """
    for module in image_encoder.modules():
        if type(module) is Attention:
            # The weights stay where they are: only the way to compute with them is another.
            module.__class__ = SdpaAttention
    return image_encoder


def use_stock_attention(image_encoder: nn.Module) -> nn.Module:
    """Undo `use_sdpa`, for comparisons."""
    for module in image_encoder.modules():
        if type(module) is SdpaAttention:
            module.__class__ = Attention
    return image_encoder
