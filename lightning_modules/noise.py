"""The diffusion's arithmetic: schedule, velocity target, loss weight, guidance. All pure.

x_t = alpha_t x_0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1 (variance preserving);
SNR(t) = alpha_t^2 / sigma_t^2.
"""

import torch
from diffusers import DDPMScheduler

NUM_TRAIN_TIMESTEPS = 1000


def cosine_betas(*, snr_shift: float) -> list[float]:
    """Give the betas of the cosine schedule, its signal-to-noise ratio shifted.

    Args:
        snr_shift: Factor s on alpha/sigma, so that SNR becomes s^2 SNR. Larger images stay
            recognisable under more noise and want s of about 64 / size.

    Returns:
        1000 betas in (0, 0.999], for `trained_betas` of any diffusers scheduler. At s = 1 they
        are those of `squaredcos_cap_v2` to float32 rounding; the last step's SNR is 2e-9.

    Source: Nichol and Dhariwal 2102.09672, eq. 17 (as diffusers' `squaredcos_cap_v2`); the shift
        is Hoogeboom et al. 2301.11093, eq. 4: log SNR + 2 log(64 / d).
    """
    schedule = DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS, beta_schedule="squaredcos_cap_v2"
    )
    alphas_cumprod = schedule.alphas.double().cumprod(0)
    snr = snr_shift**2 * alphas_cumprod / (1 - alphas_cumprod)
    shifted = snr / (1 + snr)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), shifted[:-1]])
    return (1 - shifted / previous).clamp(max=0.999).tolist()


def schedule_alphas_cumprod(*, snr_shift: float) -> torch.Tensor:
    """Give (1000,) float32 alpha_t^2 of `cosine_betas`, falling from about 1 to about 0."""
    betas = torch.tensor(cosine_betas(snr_shift=snr_shift), dtype=torch.float64)
    return (1 - betas).cumprod(0).float()


def alphas_sigmas(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give alpha_t and sigma_t, shaped to multiply images.

    Args:
        alphas_cumprod: (T,) products of 1 - beta, in [0, 1].
        timesteps: (B,) int64 in [0, T).

    Returns:
        Two (B, 1, 1, 1) tensors.
    """
    signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return signal.sqrt(), (1 - signal).sqrt()


def velocity(
    image: torch.Tensor, *, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Give the target v = alpha_t eps - sigma_t x_0, shaped as `image` (B, C, H, W).

    Source: Salimans and Ho 2202.00512, section 4 and appendix D; equal to diffusers'
        `DDPMScheduler.get_velocity`.
    """
    return alpha * noise - sigma * image


def image_from_velocity(
    noisy_image: torch.Tensor,
    *,
    velocity: torch.Tensor,
    alpha: torch.Tensor | float,
    sigma: torch.Tensor | float,
) -> torch.Tensor:
    """Invert `velocity`: x_0 = alpha_t x_t - sigma_t v (Salimans and Ho 2202.00512, appendix D)."""
    return alpha * noisy_image - sigma * velocity


def min_snr_weights(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, *, gamma: float
) -> torch.Tensor:
    """Weigh each item's squared error in v so that no noise level rules the training.

    The error in x_0 is sigma_t^2 = 1 / (SNR + 1) times the error in v, so the weight
    min(SNR, gamma) on x_0 becomes min(SNR, gamma) / (SNR + 1) on v. It is computed as
    min(alpha^2, gamma sigma^2), the same number without a division: a terminal SNR of zero gives
    0 and a first step without noise gives 0, where the quotient would be 0/1 and inf/inf.

    Args:
        alphas_cumprod: (T,) products of 1 - beta, in [0, 1].
        timesteps: (B,) int64 in [0, T).
        gamma: Cap of the SNR, above 0; the paper uses 5.

    Returns:
        (B,) weights in [0, gamma / (gamma + 1)].

    Source: Hang et al. 2303.09556, section 3.4 (weights for v); checked against hand values.
    """
    signal = alphas_cumprod[timesteps]
    return torch.minimum(signal, gamma * (1 - signal))


def prediction_weights(
    alphas_cumprod: torch.Tensor,
    timesteps: torch.Tensor,
    *,
    gamma: float | None,
    is_velocity: bool,
) -> torch.Tensor:
    """Min-SNR weights (B,) of the squared error in what a network predicts, v or the noise.

    Args:
        alphas_cumprod: (T,) products of 1 - beta, in (0, 1].
        timesteps: (B,) int64 in [0, T).
        gamma: Cap of the SNR, above 0; None gives ones.
        is_velocity: Whether it predicts v.

    Source: Hang et al. 2303.09556, section 3.4: min(SNR, gamma) / (SNR + 1) for v, and the same
        divided by alpha^2 = SNR / (SNR + 1), so min(1, gamma / SNR), for noise.
    """
    signal = alphas_cumprod[timesteps]
    if gamma is None:
        return torch.ones_like(signal)
    weights = min_snr_weights(alphas_cumprod, timesteps, gamma=gamma)
    return weights if is_velocity else weights / signal


def guide(
    conditional: torch.Tensor,
    *,
    unconditional: torch.Tensor,
    guidance_scale: float,
    rescale: float,
) -> torch.Tensor:
    """Push the network's output towards its condition.

    Args:
        conditional: (B, C, H, W) output with the mask.
        unconditional: (B, C, H, W) output without.
        guidance_scale: w; 1 returns `conditional`, 0 `unconditional`.
        rescale: phi in [0, 1]; 0 leaves the guided output, 1 gives each item the standard
            deviation of its conditional output, which guidance otherwise inflates.

    Returns:
        (B, C, H, W).

    Source: Ho and Salimans 2207.12598, eq. 6 with w = 1 + their w; rescale: Lin et al.
        2305.08891, eq. 14-16 (diffusers' `rescale_noise_cfg`).
    """
    guided = torch.lerp(unconditional, conditional, guidance_scale)
    if rescale == 0:
        return guided
    axes = tuple(range(1, conditional.ndim))
    spread = guided.std(dim=axes, keepdim=True)
    # A constant output has no spread to restore: keep it instead of dividing by zero.
    ratio = torch.where(spread > 0, conditional.std(dim=axes, keepdim=True) / spread, 1.0)
    return guided * (1 + rescale * (ratio - 1))


def low_discrepancy_timesteps(uniform: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Spread timesteps evenly over consecutive items, which lowers the loss's variance.

    Args:
        uniform: () one number in [0, 1) for the whole run.
        draws: (B,) int64 positions in the training stream.

    Returns:
        (B,) int64 in [0, 1000): t = floor(1000 * frac(u + draw * golden ratio)), uniform over
        draws and depending on nothing but u and the draw.

    Source: a Kronecker sequence in place of the batch-wise sampler of Kingma et al. 2107.00630,
        appendix I.1, which would tie an item's timestep to its batch.
    """
    golden = (5**0.5 - 1) / 2
    # float64: draw * golden must keep its fraction for streams of 1e9 items.
    position = (uniform.double() + draws.double() * golden) % 1.0
    return (position * NUM_TRAIN_TIMESTEPS).long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
