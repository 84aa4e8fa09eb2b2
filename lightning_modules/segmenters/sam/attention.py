"""SAM's ViT attention by scaled_dot_product_attention; the state dict stays as it is."""

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import nn
from torch.nn import functional
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
        if not self.use_rel_pos:
            return scaled_dot_product_attention(query, key, value)
        height, width = size_hw
        rows = get_rel_pos(height, height, self.rel_pos_h)
        columns = get_rel_pos(width, width, self.rel_pos_w)
        on_grid = query.unflatten(2, size_hw)
        by_row = torch.einsum("bnhwc,hkc->bnhwk", on_grid, rows).to(query.dtype)
        by_column = torch.einsum("bnhwc,wkc->bnhwk", on_grid, columns).to(query.dtype)
        if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
            # Kernels of these types that take no bias keep no attention matrix in memory.
            return attend_by_position(query, key, value, by_row=by_row, by_column=by_column)
        bias = by_row[..., :, None] + by_column[..., None, :]
        bias = bias.flatten(4).flatten(2, 3)
        return scaled_dot_product_attention(query, key, value, attn_mask=bias)


def attend_by_position(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    by_row: torch.Tensor,
    by_column: torch.Tensor,
) -> torch.Tensor:
    """Attention whose relative positions are further channels of queries and keys.

    A key at row r and column c gets a 1 in row channel r and in column channel c, so the product
    with a query whose channels hold its bias to each row and column adds just that bias:

        s q k' + b_row[r] + b_column[c] = s (q, b_row / s, b_column / s) (k, e_r, e_c)'

    Args:
        query: (B, heads, H W, c), as are key and value.
        by_row: (B, heads, H, W, H), each query's bias to each row of keys.
        by_column: (B, heads, H, W, W), to each column.

    Returns:
        (B, heads, H W, c).

    Source:
        scaled_dot_product_attention with the bias by_row + by_column, equal to it to 1e-5 in
        float32.
    """
    channels = query.shape[-1]
    height, width = by_row.shape[2:4]
    scale = channels**-0.5
    # Fused kernels take channels by eights.
    n_padding = -(channels + height + width) % 8
    places = torch.arange(height * width, device=query.device)
    at_row = torch.arange(height, device=query.device) == (places // width)[:, None]
    at_column = torch.arange(width, device=query.device) == (places % width)[:, None]
    at = torch.cat([at_row, at_column], dim=1).to(key.dtype)
    at = functional.pad(at, (0, n_padding)).expand(*key.shape[:2], -1, -1)
    bias = torch.cat([by_row, by_column], dim=-1).flatten(2, 3) / scale
    attended = scaled_dot_product_attention(
        torch.cat([query, functional.pad(bias, (0, n_padding))], dim=-1),
        torch.cat([key, at], dim=-1),
        functional.pad(value, (0, at.shape[-1])),
        scale=scale,
    )
    return attended[..., :channels]


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
