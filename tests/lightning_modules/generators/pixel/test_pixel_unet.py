"""The network: geometry of its channels, its condition, its size; and the paired motions."""

import math

import numpy as np
import pytest
import scipy.fft
import torch

from lightning_modules.generators.pixel.config import GeneratorConfig, SamplerConfig
from lightning_modules.generators.pixel.network import MaskGuidedUNet, mask_condition
from lightning_modules.generators.pixel.spectral import (
    cosine_basis,
    precondition,
    to_channels,
    to_image,
)
from lightning_modules.noise import alphas_sigmas
from lightning_modules.pair_jitter import jitter_matrices, jitter_pairs
from lightning_modules.randomness import keyed_rand

SMALL = {"size_hw": (32, 48), "patch": 2, "block_out_channels": (16, 32)}


def _network(**changes: object) -> MaskGuidedUNet:
    torch.manual_seed(0)
    network = MaskGuidedUNet(GeneratorConfig(**{**SMALL, **changes})).eval()
    # It starts at zero; a trained one does not stay there.
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.1)
    return network


def _mask(count: int = 1) -> torch.Tensor:
    mask = torch.zeros(count, 1, 32, 48)
    mask[:, :, 8:20, 10:40] = 1
    return mask


def test_condition_is_one_inside_minus_one_outside_and_zero_when_dropped():
    condition = mask_condition(_mask(2), dropped=torch.tensor([False, True]))
    assert condition[0].sum() == 12 * 30 - (32 * 48 - 12 * 30)
    assert set(condition[0].unique().tolist()) == {-1.0, 1.0}
    assert not condition[1].any()
    # No head at all is not "no mask given".
    assert (mask_condition(torch.zeros(1, 1, 32, 48)) == -1).all()


@pytest.mark.parametrize("attention", ["none", "middle", "deepest"])
def test_output_has_the_images_shape_and_depends_on_mask_and_timestep(attention: str):
    network = _network(attention=attention)
    noisy = torch.randn(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([10, 900])
    with torch.no_grad():
        full = network(noisy, timesteps=steps, condition=mask_condition(_mask(2)))
        none = network(noisy, timesteps=steps, condition=torch.zeros(2, 1, 32, 48))
        later = network(noisy, timesteps=steps + 50, condition=mask_condition(_mask(2)))
    assert full.shape == (2, 1, 32, 48)
    for other in (none, later):
        assert ((full - other).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_other_sizes_pass_if_they_are_multiples():
    network = _network()
    with torch.no_grad():
        image = torch.zeros(1, 1, 20, 28)
        assert network(image, timesteps=torch.tensor([5]), condition=image).shape == image.shape


def test_untrained_network_is_the_wiener_filter():
    """On a flat image every channel but the mean is noise, and v of noise alone is known."""
    network = MaskGuidedUNet(GeneratorConfig(**SMALL)).eval()
    with torch.no_grad():
        network.log_spreads[1:] = -9.0
        network.log_spreads[0] = 0.0
    noise = torch.randn(1, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([300])
    alpha, sigma = alphas_sigmas(network.alphas_cumprod, timesteps)
    with torch.no_grad():
        found = network(sigma * noise, timesteps=timesteps, condition=torch.zeros_like(noise))
    # x_0 = 0 gives v = alpha eps; a mean of unit spread cannot be told from noise: v = 0 there.
    means = torch.nn.functional.avg_pool2d(noise, 2)
    detail = noise - means.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(found, alpha * detail, atol=1e-4)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_cosine_channels_equal_scipys_and_invert(patch: int):
    basis = cosine_basis(patch)
    image = torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    channels = to_channels(image, basis=basis, patch=patch)
    block = image[1, 0, :patch, patch : 2 * patch]
    expected = scipy.fft.dctn(block.numpy(), norm="ortho").reshape(-1)
    np.testing.assert_allclose(channels[1, :, 0, 1].numpy(), expected, atol=1e-5)
    assert torch.allclose(to_image(channels, basis=basis, patch=patch), image, atol=1e-5)


def test_preconditioning_is_the_least_squares_fit():
    generator = torch.Generator().manual_seed(0)
    spreads = torch.tensor([3.0, 1.0, 0.1])
    image = torch.randn(3, 400_000, generator=generator) * spreads[:, None]
    noise = torch.randn(3, 400_000, generator=generator)
    alpha, sigma = torch.full((1, 1, 1, 1), 0.8), torch.full((1, 1, 1, 1), 0.6)
    c_in, c_skip, c_out = (
        term.flatten() for term in precondition(alpha=alpha, sigma=sigma, spreads=spreads)
    )
    noisy, target = 0.8 * image + 0.6 * noise, 0.8 * noise - 0.6 * image
    assert torch.allclose((c_in[:, None] * noisy).std(dim=1), torch.ones(3), atol=0.01)
    slope = (noisy * target).mean(dim=1) / noisy.square().mean(dim=1)
    assert torch.allclose(c_skip, slope, atol=0.01)
    rest = (target - c_skip[:, None] * noisy).std(dim=1)
    assert torch.allclose(c_out, rest, rtol=0.01)


def test_preconditioning_at_both_ends_of_the_schedule():
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    spreads = torch.tensor([2.0])
    # No noise: v = eps is unknown, of spread 1. All noise: v = -x_0, of spread s.
    for alpha, expected in ((one, (0.5, 0.0, 1.0)), (zero, (1.0, 0.0, 2.0))):
        terms = precondition(alpha=alpha, sigma=1 - alpha, spreads=spreads)
        assert tuple(term.item() for term in terms) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 2_648_392), ({**SMALL, "attention": "none"}, 161_144)],
    ids=["default", "small"],
)
def test_documented_parameter_counts(changes: dict, count: int):
    network = MaskGuidedUNet(GeneratorConfig(**changes))
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_hw": (64, 90)}, "size_hw"),
        ({"size_hw": (64,)}, "size_hw"),
        ({"block_out_channels": (12, 32)}, "block_out_channels"),
        ({"block_out_channels": ()}, "block_out_channels"),
        ({"steps": 0}, "steps"),
        ({"warmup_steps": 10_000}, "warmup_steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"mask_dropout": 1.5}, "mask_dropout"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"max_scale": 0.5}, "max_scale"),
        ({"intensity_std": 0.0}, "intensity_std"),
        ({"attention": "all"}, "attention"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_bad_generator_settings_are_named_in_one_line(change: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        GeneratorConfig(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 1000},
        {"guidance_scale": -1.0},
        {"guidance_rescale": 2.0},
        {"batch_size": 0},
    ],
)
def test_bad_sampler_settings_are_named(change: dict):
    with pytest.raises(ValueError, match=next(iter(change))):
        SamplerConfig(**change)


def test_lists_of_a_json_file_become_tuples():
    assert GeneratorConfig(size_hw=[32, 48]).size_hw == (32, 48)


# The paired motions.

LIMITS = {"flip_probability": 0.0, "max_rotation_deg": 0.0, "max_scale": 1.0, "max_shift": 0.0}


def _moments(mask: torch.Tensor) -> tuple[float, float, float, float]:
    """Area, centroid x and y, and the major axis's angle of one (H, W) mask, by plain sums."""
    ys, xs = np.nonzero(mask.numpy())
    cov = np.cov(np.stack([xs, ys]).astype(float))
    vector = np.linalg.eigh(cov)[1][:, -1]
    return len(xs), xs.mean(), ys.mean(), math.atan2(vector[1], vector[0]) % math.pi


def _bar() -> torch.Tensor:
    """A long bar at an angle in a 108x160 frame, off centre."""
    ys, xs = torch.meshgrid(torch.arange(108.0), torch.arange(160.0), indexing="ij")
    u = (xs - 85) * math.cos(0.3) + (ys - 50) * math.sin(0.3)
    v = (ys - 50) * math.cos(0.3) - (xs - 85) * math.sin(0.3)
    return ((u.abs() < 30) & (v.abs() < 8)).float()[None, None]


def _jitter(image: torch.Tensor, **limits: float) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.arange(len(image))
    return jitter_pairs(image, image, seed=3, draws=draws, **{**LIMITS, **limits})


def test_no_limits_leave_pairs_as_they_are():
    image, mask = _jitter(_bar())
    assert torch.equal(image, _bar())
    assert torch.equal(mask, _bar())


def test_certain_flip_mirrors_exactly():
    image = torch.rand(3, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    moved, _ = _jitter(image, flip_probability=1.0)
    assert torch.allclose(moved, image.flip(-1), atol=1e-5)


def test_rotation_keeps_the_area_of_a_bar_in_a_non_square_frame():
    area, _, _, angle = _moments(_bar()[0, 0])
    bars = _bar().expand(8, -1, -1, -1)
    _, masks = _jitter(bars, max_rotation_deg=20.0)
    turns = []
    for mask in masks[:, 0]:
        found_area, _, _, found_angle = _moments(mask)
        # A rotation in squashed coordinates would shear it, and change its length by up to a half.
        assert found_area == pytest.approx(area, rel=0.02)
        extent = np.stack(np.nonzero(mask.numpy())).astype(float)
        assert np.linalg.eigvalsh(np.cov(extent)) == pytest.approx(
            np.linalg.eigvalsh(np.cov(np.stack(np.nonzero(_bar()[0, 0].numpy())))), rel=0.04
        )
        turns.append(math.degrees(found_angle - angle))
    assert max(map(abs, turns)) <= 20.5
    assert max(turns) - min(turns) > 10


def test_scale_and_shift_stay_within_their_limits():
    area, x, y, _ = _moments(_bar()[0, 0])
    bars = _bar().expand(16, -1, -1, -1)
    areas = [_moments(m)[0] / area for m in _jitter(bars, max_scale=1.2)[1][:, 0]]
    assert 1 / 1.46 < min(areas) < 0.85
    assert 1.15 < max(areas) < 1.46
    shifts = [_moments(m)[1:3] for m in _jitter(bars, max_shift=0.1)[1][:, 0]]
    assert 8 < max(abs(found - x) for found, _ in shifts) <= 16.5
    assert 5 < max(abs(found - y) for _, found in shifts) <= 11.5


def test_the_middle_goes_by_the_shift_however_the_rest_turns_and_grows():
    shift = torch.tensor([[0.1, -0.2]])
    matrices = jitter_matrices(
        (108, 160),
        rotation_rad=torch.tensor([0.4]),
        scale=torch.tensor([1.5]),
        shift=shift,
        flip=torch.tensor([True]),
    )
    back = matrices[:, :, :2] @ (2 * shift).unsqueeze(-1) + matrices[:, :, 2:]
    assert torch.allclose(back, torch.zeros(1, 2, 1), atol=1e-6)


def test_each_limit_has_its_own_number_of_an_items_draw():
    area, x, y, angle = _moments(_bar()[0, 0])
    bars = _bar().expand(6, -1, -1, -1)
    uniform = keyed_rand((5,), seed=3, draws=torch.arange(6), stream="pair_jitter")
    turn, scale, *shift = (2 * uniform - 1)[:, :4].unbind(dim=1)
    found = [_moments(mask) for mask in _jitter(bars, max_rotation_deg=20.0)[1][:, 0]]
    turns = [math.degrees(each[3] - angle) for each in found]
    assert turns == pytest.approx((20 * turn).tolist(), abs=0.5)
    areas = [_moments(mask)[0] / area for mask in _jitter(bars, max_scale=1.2)[1][:, 0]]
    assert areas == pytest.approx((1.2 ** (2 * scale)).tolist(), rel=0.03)
    found = [_moments(mask)[1:3] for mask in _jitter(bars, max_shift=0.1)[1][:, 0]]
    for axis, (start, side) in enumerate(((x, 160), (y, 108))):
        moves = [each[axis] - start for each in found]
        assert moves == pytest.approx((0.1 * side * shift[axis]).tolist(), abs=0.5)
    flipped = _jitter(bars, flip_probability=0.5)[1]
    is_flipped = [torch.equal(mask, bar.flip(-1)) for mask, bar in zip(flipped, bars, strict=True)]
    assert is_flipped == (uniform[:, 4] < 0.5).tolist()


def test_an_items_motion_depends_on_its_draw_alone():
    image = torch.rand(4, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    limits = {**LIMITS, "max_rotation_deg": 10.0, "flip_probability": 0.5}
    whole, _ = jitter_pairs(image, image, seed=3, draws=torch.arange(4), **limits)
    part, _ = jitter_pairs(image[2:3], image[2:3], seed=3, draws=torch.tensor([2]), **limits)
    assert torch.equal(whole[2:3], part)


def test_motion_keeps_its_precision_under_autocast():
    full = _jitter(_bar(), max_rotation_deg=10.0, max_shift=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = _jitter(_bar(), max_rotation_deg=10.0, max_shift=0.1)
    assert torch.equal(full[0], mixed[0])


def test_empty_and_full_masks_survive():
    empty, full = torch.zeros(1, 1, 32, 48), torch.ones(1, 1, 32, 48)
    limits = {**LIMITS, "max_rotation_deg": 10.0}
    draws = torch.tensor([0])
    _, moved = jitter_pairs(full, empty, seed=0, draws=draws, **limits)
    assert not moved.any()
    _, moved = jitter_pairs(full, full, seed=0, draws=draws, **limits)
    assert 0.8 < moved.mean() < 1.0
