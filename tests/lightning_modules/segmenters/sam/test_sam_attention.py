"""SAM's attention by scaled_dot_product_attention beside the stock one."""

import copy
import shutil

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, Block
from torch.nn.functional import scaled_dot_product_attention

from lightning_modules.segmenters.sam import attention as sam_attention
from lightning_modules.segmenters.sam.attention import (
    SdpaAttention,
    attend_by_position,
    use_sdpa,
    use_stock_attention,
)
from lightning_modules.segmenters.sam.backbones import tiny_vit_encoder
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.network import build_sam


def block(*, window: int, dim: int = 48, size=(9, 12)) -> Block:
    """A block on a grid that is not square and that windows do not divide."""
    torch.manual_seed(0)
    made = Block(
        dim=dim, num_heads=3, use_rel_pos=True, window_size=window, input_size=size, qkv_bias=True
    )
    torch.nn.init.normal_(made.attn.rel_pos_h, std=0.3)
    torch.nn.init.normal_(made.attn.rel_pos_w, std=0.3)
    return made


def run(network, tokens):
    """The output, and the gradients of a loss that sees every part of it."""
    network.zero_grad()
    tokens = tokens.clone().requires_grad_(True)
    output = network(tokens)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    return output.detach(), {"tokens": tokens.grad, **gradients}


@pytest.mark.parametrize("window", [0, 5, 14])
@pytest.mark.parametrize("cpu_tokens", [sam_attention.CPU_TOKENS, 1])
def test_output_and_gradients_are_the_stock_ones(window, cpu_tokens, monkeypatch):
    """All heads at once, and one after the other as a CPU takes them on large grids."""
    monkeypatch.setattr(sam_attention, "CPU_TOKENS", cpu_tokens)
    stock = block(window=window)
    fast = use_sdpa(copy.deepcopy(stock))
    assert isinstance(fast.attn, SdpaAttention)
    tokens = torch.randn(2, 9, 12, 48, generator=torch.Generator().manual_seed(1))
    expected, expected_gradients = run(stock, tokens)
    found, gradients = run(fast, tokens)
    assert torch.allclose(found, expected, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().clamp(min=1)
        assert (gradient - expected_gradients[name]).abs().max() < 1e-5 * scale, name
    # What a wrong bias would change.
    torch.nn.init.zeros_(fast.attn.rel_pos_h)
    assert not torch.allclose(fast(tokens), expected, atol=1e-2)


@pytest.mark.parametrize("window", [0, 14])
def test_a_block_with_the_tokens_and_the_head_size_of_vit_b(window):
    """64x64 tokens, 64 channels a head; two heads of the twelve, forward alone."""
    torch.manual_seed(0)
    stock = Block(
        dim=128,
        num_heads=2,
        qkv_bias=True,
        use_rel_pos=True,
        window_size=window,
        input_size=(64, 64),
    )
    for positions in (stock.attn.rel_pos_h, stock.attn.rel_pos_w):
        assert len(positions) == 2 * (window or 64) - 1
        torch.nn.init.normal_(positions, std=0.2)
    tokens = torch.randn(1, 64, 64, 128)
    with torch.no_grad():
        expected = stock(tokens)
        assert (use_sdpa(stock)(tokens) - expected).abs().max() < 1e-5


def test_without_positions_there_is_no_bias():
    torch.manual_seed(0)
    stock = Attention(dim=48, num_heads=3, use_rel_pos=False)
    tokens = torch.randn(2, 5, 7, 48)
    with torch.no_grad():
        expected = stock(tokens)
        assert (use_sdpa(stock)(tokens) - expected).abs().max() < 1e-6


def test_the_state_dict_is_untouched_and_copies_stay_fast():
    sam = build_sam(SegmenterConfig(backbone="vit_tiny"))
    kinds = {type(m) for m in sam.image_encoder.modules() if isinstance(m, Attention)}
    assert kinds == {SdpaAttention}
    copied = copy.deepcopy(sam.image_encoder)
    stock = use_stock_attention(copy.deepcopy(sam.image_encoder))
    assert {type(m) for m in stock.modules() if isinstance(m, Attention)} == {Attention}
    assert stock.state_dict().keys() == sam.image_encoder.state_dict().keys()
    image = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stock(image)
        assert torch.allclose(sam.image_encoder(image), expected, atol=1e-5)
        assert torch.equal(copied(image), sam.image_encoder(image))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = sam.image_encoder(image)
    assert (half.float() - expected).abs().max() < 0.1


@pytest.mark.long
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@torch.no_grad()
def test_the_compiled_encoder_equals_the_plain_one():
    encoder = tiny_vit_encoder().eval()
    use_sdpa(encoder)
    image = torch.randn(1, 3, encoder.img_size, encoder.img_size)
    compiled = torch.compile(encoder)(image)
    assert (compiled - encoder(image)).abs().max() < 1e-4


@pytest.mark.parametrize("size_hw", [(9, 12), (14, 14), (5, 3)])
def test_positions_as_channels_equal_positions_as_a_bias(size_hw):
    """Grids whose channels fused kernels take, and others; gradients reach all that is given."""
    height, width = size_hw
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(2, 3, *shape, generator=generator).requires_grad_()

    query, key, value = (drawn(height * width, 16) for _ in range(3))
    by_row, by_column = drawn(height, width, height), drawn(height, width, width)
    bias = (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=bias)
    found = attend_by_position(query, key, value, by_row=by_row, by_column=by_column)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
    given = (query, key, value, by_row, by_column)
    pull = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    for one, other in zip(
        torch.autograd.grad((found * pull).sum(), given),
        torch.autograd.grad((expected * pull).sum(), given),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-4)
    exchanged = attend_by_position(query, key, value, by_row=by_row.flip(-1), by_column=by_column)
    assert not torch.allclose(exchanged, expected, atol=1e-2)
