"""Decoding where a GPU's memory holds fewer images than are drawn at once."""

import pytest
import torch
from diffusers import AutoencoderKL
from sd_parts import VAE

from lightning_modules.generators.stable_diffusion.sampling import decode_latents


@pytest.fixture
def vae():
    torch.manual_seed(1)
    return AutoencoderKL(**VAE).eval()


def holding(vae, most, monkeypatch):
    """Sizes of the batches that the VAE is asked for; it has memory for so many images."""
    decode, asked = vae.decode, []

    def within(latents):
        asked.append(len(latents))
        if len(latents) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    monkeypatch.setattr(vae, "decode", within)
    return asked


def test_latents_that_took_hours_are_decoded_in_smaller_batches(vae, monkeypatch):
    latents = torch.randn(7, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    expected = decode_latents(vae, latents, batch_size=4)
    asked = holding(vae, 2, monkeypatch)
    found = decode_latents(vae, latents, batch_size=6)
    assert asked == [6, 3, 1, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_image_too_large_by_itself_is_an_error(vae, monkeypatch):
    holding(vae, 0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        decode_latents(vae, torch.zeros(2, 4, 8, 16), batch_size=2)
