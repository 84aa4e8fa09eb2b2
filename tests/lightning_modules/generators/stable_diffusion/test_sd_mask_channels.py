"""A mask as channels of the latents."""

import pytest
import torch
from torch.nn import functional

from lightning_modules.generators.stable_diffusion.sampling import (
    mask_channels,
)


def test_mask_channels_by_hand():
    mask = torch.zeros(2, 1, 16, 24)
    mask[0, 0, 9, 18] = 1
    mask[1] = 1
    channels = mask_channels(mask)
    assert channels.shape == (2, 64, 2, 3)
    assert channels.dtype == torch.float32
    # Row 9 and column 18 are row 1 and column 2 of the square (1, 2): channel 8 * 1 + 2.
    assert (channels[0] == 1).nonzero().tolist() == [[10, 1, 2]]
    assert (channels[0] == -1).sum() == channels[0].numel() - 1
    assert (channels[1] == 1).all()
    assert torch.equal(mask_channels(mask.to(torch.uint8)), channels)
    noise = torch.rand(3, 1, 24, 16, generator=torch.Generator().manual_seed(0)).round()
    assert torch.equal(mask_channels(noise), functional.pixel_unshuffle(2 * noise - 1, 8))
    assert mask_channels(mask[:0]).shape == (0, 64, 2, 3)


@pytest.mark.parametrize(
    ("shape", "said"), [((1, 16, 16), "B, 1"), ((1, 2, 16, 16), "B, 1"), ((1, 1, 16, 20), "16x20")]
)
def test_mask_channels_refuses_other_shapes(shape, said):
    with pytest.raises(ValueError, match=said):
        mask_channels(torch.zeros(shape))
