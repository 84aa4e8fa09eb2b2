"""Pixels as block-cosine channels, each preconditioned by its own Wiener filter. Pure.

Images have little power at high frequencies, noise as much as at low ones. In an orthonormal
cosine basis white noise stays white, while the image's channels have spreads s_k that differ
fiftyfold: knowing s_k, the best linear guess of v is known at every timestep, and a network has
to learn only the rest. That is what keeps a briefly trained generator from leaving noise behind.
"""

import math

import torch
import torch.nn.functional as F


def cosine_basis(patch: int) -> torch.Tensor:
    """Give the orthonormal 2-D cosine basis (DCT-II) of square blocks.

    Args:
        patch: Side of a block, pixels.

    Returns:
        (patch**2, patch**2) float32: row u * patch + v is the frequency (u, v) along y and x,
        column y * patch + x the pixel, as pixel_unshuffle orders them.

    Source: Ahmed, Natarajan and Rao 1974; checked against scipy.fft.dctn to 1e-6.
    """
    index = torch.arange(patch, dtype=torch.float64)
    basis = torch.cos(math.pi / patch * (index + 0.5) * index[:, None]) * math.sqrt(2 / patch)
    basis[0] /= math.sqrt(2)
    return torch.kron(basis, basis).float()


def prior_spreads(patch: int) -> torch.Tensor:
    """Guess the spread of each channel for images of unit variance.

    Returns:
        (patch**2,) s_k = patch / (1 + 3 r^1.8) at radial frequency r = hypot(u, v) * 4 / patch,
        fitted by eye to forty HC18 images of 64x96 in blocks of 4 (3.6 at r = 0, 0.9 at 1, 0.3
        at 2, 0.06 at 4.2); training refines it.
    """
    index = torch.arange(patch, dtype=torch.float32) * 4 / patch
    radius = torch.hypot(index[:, None], index).flatten()
    return patch / (1 + 3 * radius**1.8)


def to_channels(image: torch.Tensor, *, basis: torch.Tensor, patch: int) -> torch.Tensor:
    """Turn (B, 1, H, W) into (B, patch**2, H / patch, W / patch) cosine coefficients."""
    return F.conv2d(F.pixel_unshuffle(image, patch), basis[:, :, None, None].to(image.dtype))


def to_image(channels: torch.Tensor, *, basis: torch.Tensor, patch: int) -> torch.Tensor:
    """Invert `to_channels`."""
    weight = basis.T[:, :, None, None].to(channels.dtype)
    return F.pixel_shuffle(F.conv2d(channels, weight), patch)


def precondition(
    *, alpha: torch.Tensor, sigma: torch.Tensor, spreads: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale a network F so that v = c_skip x_t + c_out F(c_in x_t) is easy from the start.

    With x_0 of spread s: Var(x_t) = alpha^2 s^2 + sigma^2 and Cov(v, x_t) =
    alpha sigma (1 - s^2). So c_skip x_t is the Wiener estimate of v, c_in gives the input unit
    variance, and c_out is the spread of what is left: F's target has unit variance everywhere.

    Args:
        alpha: (B, 1, 1, 1) signal amplitude in [0, 1].
        sigma: (B, 1, 1, 1) noise amplitude, alpha^2 + sigma^2 = 1.
        spreads: (K,) s_k above 0.

    Returns:
        c_in, c_skip and c_out, each (B, K, 1, 1).

    Source: the three conditions of Karras et al. 2206.00364, appendix B.6, for a variance
        preserving process and v, per frequency; checked against least squares on samples.
    """
    spreads = spreads.view(1, -1, 1, 1)
    spread_t = (alpha**2 * spreads**2 + sigma**2).sqrt()
    return 1 / spread_t, alpha * sigma * (1 - spreads**2) / spread_t**2, spreads / spread_t
