"""SAM's ViT attention by scaled_dot_product_attention; the state dict stays as it is."""

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

CPU_TOKENS = 1024
"""Above so many tokens a CPU takes one head after the other."""


class SdpaAttention(Attention):
    """The stock attention's weights and result, without its attention matrix in memory twice.

    Source:
        segment_anything.modeling.image_encoder.Attention, equal to it to 1e-5 in float32, gradients
        too; the relative positions are MViTv2's (2112.01526, eq. 4), taken from the unscaled query.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend over (B, H, W, C) tokens."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        n_heads = self.num_heads
        if x.device.type == "cpu" and height * width > CPU_TOKENS:
            # A head's bias at a time stays nearer to the processor: a third of the time less.
            n_heads = 1
        parts = [part.split(n_heads, dim=1) for part in (query, key, value)]
        attended = [
            self._attend(*heads, size_hw=(height, width)) for heads in zip(*parts, strict=True)
        ]
        together = torch.cat(attended, dim=1).transpose(1, 2)
        return self.proj(together.reshape(batch, height, width, -1))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        size_hw: tuple[int, int],
    ) -> torch.Tensor:
        """Attend with some heads: (B, heads, H W, c) each, and so the result."""
        bias = None
        if self.use_rel_pos:
            height, width = size_hw
            rows = get_rel_pos(height, height, self.rel_pos_h)
            columns = get_rel_pos(width, width, self.rel_pos_w)
            on_grid = query.unflatten(2, size_hw)
            by_row = torch.einsum("bnhwc,hkc->bnhwk", on_grid, rows)
            by_column = torch.einsum("bnhwc,wkc->bnhwk", on_grid, columns)
            bias = by_row[..., :, None] + by_column[..., None, :]
            bias = bias.flatten(4).flatten(2, 3).to(query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=bias)


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
