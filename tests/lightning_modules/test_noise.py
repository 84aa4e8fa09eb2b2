"""The diffusion's arithmetic against diffusers, hand values and its own inverse."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from lightning_modules.noise import (
    alphas_sigmas,
    cosine_betas,
    guide,
    image_from_velocity,
    low_discrepancy_timesteps,
    min_snr_weights,
    prediction_weights,
    velocity,
)


def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
    )


def test_cosine_betas_without_shift_are_those_of_diffusers():
    assert torch.allclose(
        torch.tensor(cosine_betas(snr_shift=1.0)), _scheduler().betas, rtol=1e-4, atol=1e-7
    )


def test_shift_multiplies_the_snr_by_its_square_at_every_step_but_the_capped_last():
    def snr(shift: float) -> torch.Tensor:
        signal = (1 - torch.tensor(cosine_betas(snr_shift=shift), dtype=torch.float64)).cumprod(0)
        return signal / (1 - signal)

    assert torch.allclose(snr(0.5)[:-1], 0.25 * snr(1.0)[:-1], rtol=1e-9)
    # Pure noise, where sampling starts, is what training ends with.
    assert snr(0.5)[-1] < 1e-8


def test_alphas_sigmas_of_hand_values():
    alpha, sigma = alphas_sigmas(torch.tensor([1.0, 0.64, 0.0]), torch.tensor([1, 0, 2]))
    assert alpha.shape == (3, 1, 1, 1)
    assert torch.allclose(alpha.flatten(), torch.tensor([0.8, 1.0, 0.0]))
    assert torch.allclose(sigma.flatten(), torch.tensor([0.6, 0.0, 1.0]))


def test_velocity_equals_diffusers_and_inverts_to_the_image():
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 5, 1, 6, 10, generator=generator)
    timesteps = torch.tensor([0, 10, 500, 900, 999])
    scheduler = _scheduler()
    alpha, sigma = alphas_sigmas(scheduler.alphas_cumprod, timesteps)
    target = velocity(image, noise=noise, alpha=alpha, sigma=sigma)
    assert torch.allclose(target, scheduler.get_velocity(image, noise, timesteps), atol=1e-6)
    noisy_image = scheduler.add_noise(image, noise, timesteps)
    found = image_from_velocity(noisy_image, velocity=target, alpha=alpha, sigma=sigma)
    assert torch.allclose(found, image, atol=1e-6)


def test_velocity_of_hand_values():
    target = velocity(torch.tensor([2.0]), noise=torch.tensor([1.0]), alpha=0.8, sigma=0.6)
    assert target.item() == pytest.approx(0.8 * 1.0 - 0.6 * 2.0)


@pytest.mark.parametrize(
    ("signal", "weight"),
    [
        (0.5, 0.5),  # SNR 1: 1 / 2
        (0.8, 0.8),  # SNR 4: 4 / 5
        (0.9, 0.5),  # SNR 9, capped at 5: 5 / 10
        (0.99, 0.05),  # SNR 99, capped: 5 / 100
        (0.0, 0.0),  # zero terminal SNR: 0 / 1
        (1.0, 0.0),  # no noise, SNR infinite: 5 / inf
    ],
)
def test_min_snr_weights_of_hand_values(signal: float, weight: float):
    weights = min_snr_weights(torch.tensor([0.3, signal]), torch.tensor([1]), gamma=5.0)
    assert weights.shape == (1,)
    assert weights.item() == pytest.approx(weight, abs=1e-6)


def test_min_snr_weights_equal_the_papers_quotient_over_the_schedule():
    alphas_cumprod = _scheduler().alphas_cumprod.double()
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = min_snr_weights(alphas_cumprod, torch.arange(1000), gamma=5.0)
    assert torch.allclose(weights, snr.clamp(max=5.0) / (snr + 1), atol=1e-12)


@pytest.mark.parametrize(
    ("gamma", "is_velocity", "expected"),
    [
        (None, True, [1.0, 1.0]),
        (5.0, True, [0.8, 0.5]),
        (5.0, False, [1.0, 5 / 9]),  # SNR 4, below the cap, and 9: min(1, 5 / SNR)
    ],
)
def test_weights_of_a_prediction_of_hand_values(gamma, is_velocity, expected):
    alphas_cumprod, timesteps = torch.tensor([0.8, 0.9]), torch.tensor([0, 1])
    found = prediction_weights(alphas_cumprod, timesteps, gamma=gamma, is_velocity=is_velocity)
    assert found.tolist() == pytest.approx(expected)


def test_guidance_of_one_is_none_of_zero_is_unconditional_and_two_extrapolates():
    conditional, unconditional = torch.tensor([[[[3.0]]]]), torch.tensor([[[[1.0]]]])
    for scale, expected in ((1.0, 3.0), (0.0, 1.0), (2.0, 5.0)):
        guided = guide(conditional, unconditional=unconditional, guidance_scale=scale, rescale=0.0)
        assert guided.item() == expected


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescale_equals_the_papers_formula_item_by_item(rescale: float):
    generator = torch.Generator().manual_seed(1)
    conditional, unconditional = torch.randn(2, 3, 1, 6, 10, generator=generator)
    guided = guide(conditional, unconditional=unconditional, guidance_scale=3.0, rescale=rescale)
    for item in range(3):
        positive, negative = conditional[item].numpy(), unconditional[item].numpy()
        plain = negative + 3.0 * (positive - negative)
        rescaled = plain * positive.std() / plain.std()
        expected = rescale * rescaled + (1 - rescale) * plain
        np.testing.assert_allclose(guided[item].numpy(), expected, atol=1e-5)
    if rescale == 1.0:
        assert torch.allclose(guided.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)), atol=1e-5)


def test_rescale_of_a_constant_output_keeps_it():
    ones = torch.ones(1, 1, 2, 3)
    guided = guide(ones, unconditional=0 * ones, guidance_scale=2.0, rescale=1.0)
    assert torch.equal(guided, 2 * ones)


def test_timesteps_cover_the_range_evenly_and_belong_to_their_draw():
    draws = torch.arange(10_000)
    timesteps = low_discrepancy_timesteps(torch.tensor(0.37), draws)
    counts = torch.bincount(timesteps // 100, minlength=10)
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    # Independent draws would differ by about 30.
    assert (counts - 1000).abs().max() <= 5
    chosen = torch.tensor([7000, 3])
    assert torch.equal(low_discrepancy_timesteps(torch.tensor(0.37), chosen), timesteps[chosen])
    assert low_discrepancy_timesteps(torch.tensor(0.37), draws[:0]).shape == (0,)


def test_any_sixteen_consecutive_items_see_every_eighth_of_the_schedule():
    for start in (0, 5, 999_999_937):
        timesteps = low_discrepancy_timesteps(torch.tensor(0.9), torch.arange(start, start + 16))
        assert set((timesteps // 125).tolist()) == set(range(8))
