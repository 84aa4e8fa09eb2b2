"""The fast mask decoder against segment_anything's own: logits and every gradient."""

import pytest
import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from lightning_modules.segmenters.sam.decoder import decode_one_mask


def decoder_of(*, depth, grid, dtype):
    """A stock decoder of SAM's width with weights of a trained one's size, and inputs for it."""
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=depth, embedding_dim=256, mlp_dim=64, num_heads=8)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer).to(dtype)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            # Biases start at zero for some layers: an error in one would not show.
            parameter.add_(0.05 * torch.randn_like(parameter))
            if "norm" in name and name.endswith("weight"):
                parameter.mul_(1.5)
    given = {
        "embeddings": torch.randn(3, 256, *grid, dtype=dtype),
        "image_pe": torch.randn(1, 256, *grid, dtype=dtype),
        "sparse": torch.randn(3, 2, 256, dtype=dtype),
    }
    return decoder, given


def stock(decoder, given):
    """Image by image, as segment_anything's own predictor calls it."""
    outputs = [
        decoder(
            image_embeddings=embedding[None],
            image_pe=given["image_pe"],
            sparse_prompt_embeddings=sparse[None],
            dense_prompt_embeddings=torch.zeros_like(embedding)[None],
            multimask_output=False,
        )
        for embedding, sparse in zip(given["embeddings"], given["sparse"], strict=True)
    ]
    return torch.cat([logits for logits, _ in outputs])


def gradients(decoder, given, run):
    """Gradients by name of a loss that every pixel weighs on differently."""
    decoder.zero_grad()
    inputs = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    logits = run(decoder, inputs)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits.square() * weights + logits * weights.flip(-1)).mean().backward()
    found = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    return found | {name: tensor.grad for name, tensor in inputs.items()}


def fast(decoder, given):
    return decode_one_mask(decoder, **given)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_stock_decoder(depth, grid, dtype, tolerance):
    decoder, given = decoder_of(depth=depth, grid=grid, dtype=dtype)
    with torch.no_grad():
        logits, expected = fast(decoder, given), stock(decoder, given)
    assert logits.shape == (3, 1, 4 * grid[0], 4 * grid[1])
    size = expected.abs().max()
    assert size > 0.1
    assert (logits - expected).abs().max() < tolerance * size


@pytest.mark.parametrize("depth", [1, 2])
def test_gradients_equal_those_of_the_stock_decoder(depth):
    decoder, given = decoder_of(depth=depth, grid=(4, 4), dtype=torch.float64)
    found, expected = (gradients(decoder, given, run) for run in (fast, stock))
    assert set(given) < set(found)
    for name, gradient in expected.items():
        size = gradient.abs().max()
        if name in found:
            assert (found[name] - gradient).abs().max() < 1e-10 * max(size, 1e-3), name
        else:
            # Weights that no output depends on: other masks', and the bias of keys.
            assert size < 1e-15, name
            assert "mlps" in name or name.endswith("k_proj.bias")


def test_the_bias_of_keys_changes_nothing():
    decoder, given = decoder_of(depth=2, grid=(4, 4), dtype=torch.float64)
    with torch.no_grad():
        before = stock(decoder, given)
        for name, parameter in decoder.named_parameters():
            if name.endswith("k_proj.bias"):
                parameter.add_(torch.randn_like(parameter))
        after = stock(decoder, given)
    assert torch.allclose(before, after, rtol=0, atol=1e-12)


def test_rows_of_padding_are_left_out_and_change_nothing_above():
    decoder, given = decoder_of(depth=2, grid=(5, 3), dtype=torch.float64)
    with torch.no_grad():
        whole = fast(decoder, given)
        above = decode_one_mask(decoder, **given, n_rows=3)
    assert above.shape == whole.shape
    assert torch.allclose(above[:, :, :12], whole[:, :, :12], rtol=0, atol=1e-12)
    assert (above[:, :, 12:] == 0).all()
    assert (whole[:, :, 12:] != 0).any()
