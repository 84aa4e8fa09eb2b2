"""The diffusion module draws and is saved; on 32x48 images."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from pixel_parts import (
    fit,
    make_batch,
    make_config,
    make_pair,
)

from lightning_modules.errors import WeightsError
from lightning_modules.generators.pixel.config import SamplerConfig
from lightning_modules.generators.pixel.module import (
    DiffusionModule,
    from_model_range,
    load_generator,
    to_model_range,
)
from lightning_modules.generators.pixel.network import mask_condition
from lightning_modules.generators.pixel.sampling import draw_samples, guided_velocity
from lightning_modules.noise import alphas_sigmas, velocity


@pytest.fixture(scope="module")
def trained() -> DiffusionModule:
    """A generator that has seen eight ellipses for 150 steps."""
    config = make_config(steps=150, warmup_steps=10, learning_rate=3e-3, max_rotation_deg=0.0)
    module = DiffusionModule(config, seed=2)
    fit(module, steps=150, batch_size=8)
    return module.eval()


def test_bf16_output_is_near_float32_s(trained: DiffusionModule):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 1, 32, 48, generator=generator)
    timesteps, condition = torch.tensor([5, 300, 700, 999]), torch.ones(4, 1, 32, 48)
    with torch.no_grad():
        full = trained(inputs, timesteps, condition)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = trained(inputs, timesteps, condition)
    assert mixed.dtype == torch.float32
    error = (mixed - full).square().mean((1, 2, 3)).sqrt()
    assert (error < 0.03 * full.square().mean((1, 2, 3)).sqrt()).all()


# Sampling.


def test_solver_returns_the_image_that_a_perfect_network_sees():
    config = make_config(snr_shift=0.5)
    image = to_model_range(make_batch()["image"], config=config)
    alphas_cumprod = DiffusionModule(config).network.alphas_cumprod

    def perfect(noisy: torch.Tensor, *, timesteps: torch.Tensor, condition: torch.Tensor):
        alpha, sigma = alphas_sigmas(alphas_cumprod, timesteps)
        noise = (noisy - alpha * image.repeat(len(noisy) // 4, 1, 1, 1)) / sigma
        return velocity((noisy - sigma * noise) / alpha, noise=noise, alpha=alpha, sigma=sigma)

    sampler = SamplerConfig(num_inference_steps=10, guidance_scale=2.0, batch_size=4)
    found = draw_samples(
        perfect, torch.zeros(4, 1, 32, 48), seeds=range(4), config=config, sampler=sampler
    )
    # The first step divides by alpha = 5e-5 in float32; later ones forget its rounding.
    assert torch.allclose(found, image, atol=1e-3)


def test_images_follow_new_masks(trained: DiffusionModule):
    masks = torch.stack([make_pair(index)[1] for index in range(100, 106)])
    images = trained.draw_on_masks(
        masks, seeds=range(6), sampler=SamplerConfig(num_inference_steps=10)
    )
    assert images.shape == (6, 1, 32, 48)
    assert images.min() >= 0
    assert images.max() <= 1
    found = (images > 0.25).float()
    dice = 2 * (found * masks).sum((1, 2, 3)) / (found + masks).sum((1, 2, 3))
    assert dice.mean() > 0.9
    shuffled = masks.roll(1, 0)
    chance = 2 * (found * shuffled).sum((1, 2, 3)) / (found + shuffled).sum((1, 2, 3))
    assert chance.mean() < dice.mean() - 0.1


def test_an_image_does_not_depend_on_its_batch(trained: DiffusionModule):
    masks = torch.stack([make_pair(index)[1] for index in range(5)])
    seeds = [11, 12, 13, 14, 2**40]
    sampler = SamplerConfig(num_inference_steps=5, batch_size=5)
    whole = trained.draw_on_masks(masks, seeds=seeds, sampler=sampler)
    again = trained.draw_on_masks(masks, seeds=seeds, sampler=sampler)
    assert torch.equal(whole, again)
    pairs = SamplerConfig(num_inference_steps=5, batch_size=2)
    assert torch.allclose(
        trained.draw_on_masks(masks, seeds=seeds, sampler=pairs), whole, atol=1e-4
    )
    alone = trained.draw_on_masks(masks[4:], seeds=seeds[4:], sampler=sampler)
    assert torch.allclose(alone, whole[4:], atol=1e-4)
    other = trained.draw_on_masks(masks[4:], seeds=[5], sampler=sampler)
    assert (other - alone).abs().mean() > 1e-3


def test_guidance_of_one_is_the_conditional_output_and_two_is_not(trained: DiffusionModule):
    noisy = torch.randn(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    condition = mask_condition(torch.stack([make_pair(i)[1] for i in range(2)]))
    timestep = torch.tensor(700)
    with torch.no_grad():
        plain = trained.network(noisy, timesteps=timestep.expand(2), condition=condition)
        found = {
            scale: guided_velocity(
                trained.network,
                noisy,
                timestep=timestep,
                condition=condition,
                sampler=SamplerConfig(guidance_scale=scale),
            )
            for scale in (1.0, 1.0 + 1e-6, 2.0)
        }
    assert torch.equal(found[1.0], plain)
    assert torch.allclose(found[1.0 + 1e-6], plain, atol=1e-4)
    assert (found[2.0] - plain).abs().max() > 1e-2


def test_sampling_uses_averaged_weights_and_leaves_the_others(trained: DiffusionModule):
    before = [p.detach().clone() for p in trained.network.parameters()]
    mask, sampler = make_pair(0)[1][None], SamplerConfig(num_inference_steps=2)
    averaged = trained.draw_on_masks(mask, seeds=[0], sampler=sampler)
    for mine, theirs in zip(trained.network.parameters(), before, strict=True):
        assert torch.equal(mine, theirs)
    raw = draw_samples(trained.network, mask, seeds=[0], config=trained.config, sampler=sampler)
    assert not torch.equal(from_model_range(raw, config=trained.config), averaged)


def test_progress_counts_network_passes_and_empty_input_gives_none(trained: DiffusionModule):
    calls = []
    sampler = SamplerConfig(num_inference_steps=3, batch_size=2)
    masks = torch.zeros(3, 1, 32, 48)
    trained.draw_on_masks(
        masks,
        seeds=[0, 1, 2],
        sampler=sampler,
        progress=lambda done, all_: calls.append((done, all_)),
    )
    assert calls == [(done, 6) for done in range(1, 7)]
    assert trained.draw_on_masks(masks[:0], seeds=[], sampler=sampler).shape == (0, 1, 32, 48)


def test_wrong_masks_and_seeds_are_refused(trained: DiffusionModule):
    sampler = SamplerConfig(num_inference_steps=2)
    with pytest.raises(ValueError, match="masks have shape"):
        trained.draw_on_masks(torch.zeros(1, 1, 48, 32), seeds=[0], sampler=sampler)
    with pytest.raises(ValueError, match="2 seeds for 1 masks"):
        trained.draw_on_masks(torch.zeros(1, 1, 32, 48), seeds=[0, 1], sampler=sampler)


# Saving.


def test_saved_generator_samples_bit_equal(trained: DiffusionModule, tmp_path: Path):
    trained.save_generator(tmp_path / "generator")
    loaded = load_generator(tmp_path / "generator")
    assert loaded.config == trained.config
    mask, sampler = make_pair(0)[1][None], SamplerConfig(num_inference_steps=3)
    expected = trained.draw_on_masks(mask, seeds=[4], sampler=sampler)
    assert torch.equal(loaded.draw_on_masks(mask, seeds=[4], sampler=sampler), expected)


def test_missing_and_damaged_generators_are_named(tmp_path: Path):
    with pytest.raises(WeightsError, match="no generator here"):
        load_generator(tmp_path)
    module = DiffusionModule(make_config())
    module.save_generator(tmp_path)
    settings = tmp_path / "generator.json"
    wider = {**asdict(make_config()), "block_out_channels": [32, 32]}
    settings.write_text(json.dumps({"config": wider, "seed": 0}))
    with pytest.raises(WeightsError, match="damaged generator"):
        load_generator(tmp_path)
    settings.write_text("{")
    with pytest.raises(WeightsError, match="damaged generator"):
        load_generator(tmp_path)
    module.save_generator(tmp_path)
    (tmp_path / "generator.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="damaged generator"):
        load_generator(tmp_path)
