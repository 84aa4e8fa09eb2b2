"""The gate: fingerprints by hand, near-copies, limits from the generator's own images, reasons."""

import cv2
import numpy as np
import pytest

from experiments.config.synthesis import GateConfig
from experiments.stages.gate import (
    GateLimits,
    fingerprints,
    limits_from_real,
    mirrored,
    reasons,
    similarities,
)


def noise(seed, size_hw=(54, 80)):
    """Smooth random pictures: any two correlate little."""
    field = np.random.default_rng(seed).normal(size=size_hw)
    field = cv2.GaussianBlur(field, (0, 0), 3)
    return np.uint8(np.clip(128 + 40 * field / field.std(), 0, 255))


def correlation(a, b):
    return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]


def block_means(image):
    """96x64 to 48x32 by hand: means of 2x2 blocks, rounded as cv2 rounds to uint8."""
    return np.floor(image.reshape(32, 2, 48, 2).astype(float).mean(axis=(1, 3)) + 0.5)


def test_dot_product_is_the_correlation():
    images = [noise(seed, (32, 48)) for seed in range(3)]  # no resize at this size
    prints = fingerprints(images)
    assert prints.shape == (3, 1536)
    assert prints.dtype == np.float32
    expected = [[correlation(a, b) for b in images] for a in images]
    assert np.allclose(prints @ prints.T, expected, atol=1e-6)
    # Brightness and contrast do not count.
    dimmer = np.uint8(images[0] // 2 + 20)
    assert fingerprints([dimmer])[0] @ prints[0] > 0.999


def test_images_of_any_size_are_averaged_to_one():
    large = [noise(seed, (64, 96)) for seed in (3, 4)]
    prints = fingerprints(large)
    expected = correlation(block_means(large[0]), block_means(large[1]))
    assert prints[0] @ prints[1] == pytest.approx(expected, abs=1e-3)
    mixed = fingerprints([noise(0), noise(0, (80, 54)), noise(0, (540, 800))])
    assert np.allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-6)
    assert np.allclose(mixed.sum(axis=1), 0, atol=1e-4)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_an_image_of_one_value_is_like_none(value):
    flat = np.full((54, 80), value, dtype=np.uint8)
    prints = fingerprints([flat, noise(0)])
    assert not prints[0].any()
    assert similarities(prints[:1], prints[1:]) == 0


def test_mirroring_a_print_mirrors_the_image():
    images = [noise(seed, (32, 48)) for seed in range(2)]
    flipped = [np.ascontiguousarray(image[:, ::-1]) for image in images]
    assert np.allclose(mirrored(fingerprints(images)), fingerprints(flipped), atol=1e-6)
    upside_down = np.ascontiguousarray(images[0][::-1])
    assert not np.allclose(mirrored(fingerprints(images))[0], fingerprints([upside_down])[0])


def test_nearest_real_image():
    real = [noise(seed) for seed in range(5)]
    copy = np.clip(real[3].astype(int) + 3, 0, 255).astype(np.uint8)
    turned = np.ascontiguousarray(real[1][:, ::-1])
    blurred = cv2.GaussianBlur(real[4], (0, 0), 1)
    fresh = noise(99)
    found = similarities(fingerprints([copy, turned, blurred, fresh]), fingerprints(real))
    assert found[:3].argmax(axis=1).tolist() == [3, 1, 4]
    assert found[0].max() > 0.999
    assert found[1].max() > 0.999
    assert found[2].max() > 0.98
    assert found[3].max() < 0.5


def limits_of(images, groups, **changes):
    agreement = np.linspace(0.5, 1.0, len(images))
    settings = {"copy_min_correlation": 0.0, "agreement_slack": 0.0} | changes
    return limits_from_real(
        images, groups=groups, agreement=agreement, config=GateConfig(**settings)
    )


def test_the_agreement_limit_is_a_quantile_of_the_real_ones_unless_it_is_given():
    images, groups = [noise(k) for k in range(5)], list("abcde")
    assert limits_of(images, groups, agreement_quantile=0.0).min_agreement == 0.5
    assert limits_of(images, groups, agreement_quantile=0.5).min_agreement == 0.75
    slack = limits_of(images, groups, agreement_quantile=0.5, agreement_slack=0.1)
    assert slack.min_agreement == pytest.approx(0.65)
    assert limits_of(images, groups, min_agreement=0.1).min_agreement == 0.1
    assert limits_of(images, groups, min_agreement=0.0).min_agreement == 0.0


def test_frames_of_one_exam_do_not_set_the_copy_limit():
    first, other = noise(0), noise(1)
    frame = cv2.GaussianBlur(first, (0, 0), 1)  # another frame of the first exam
    images = [first, frame, other]
    prints = fingerprints(images)
    pairs = similarities(prints, prints)
    assert pairs[0, 1] > 0.98
    grouped = limits_of(images, ["a", "a", "b"], copy_quantile=1.0)
    assert grouped.max_similarity == pytest.approx(max(0.0, pairs[0, 2], pairs[1, 2]), abs=1e-6)
    assert grouped.max_similarity < 0.5
    apart = limits_of(images, ["a", "c", "b"], copy_quantile=1.0)
    assert apart.max_similarity == pytest.approx(pairs[0, 1], abs=1e-6)
    # So that a near-copy of a training image is found although its exam has such a pair.
    near = similarities(fingerprints([cv2.GaussianBlur(first, (0, 0), 0.7)]), prints)
    assert near.max() > grouped.max_similarity


def test_copy_limit_is_the_quantile_of_nearest_neighbours():
    images = [noise(seed) for seed in range(6)]
    prints = fingerprints(images)
    pairs = np.maximum(prints @ prints.T, prints @ mirrored(prints).T)
    np.fill_diagonal(pairs, -1)
    nearest = pairs.max(axis=1)
    for quantile in (0.0, 0.5, 0.99, 1.0):
        found = limits_of(images, list("abcdef"), copy_quantile=quantile).max_similarity
        assert found == pytest.approx(np.quantile(nearest, quantile), abs=1e-6)


def test_mirrored_neighbours_count_for_the_limit():
    turned = np.ascontiguousarray(noise(0)[:, ::-1])
    assert limits_of([noise(0), turned], ["a", "b"]).max_similarity > 0.999


@pytest.mark.parametrize("groups", [["a"], ["a", "a"]])
def test_one_group_says_nothing_about_copies(groups):
    images = [noise(seed) for seed in range(len(groups))]
    assert limits_of(images, groups).max_similarity == 1.0


def two_values(low, high):
    """Half of the image `low`, half `high`."""
    image = np.full((54, 80), low, dtype=np.uint8)
    image[:, 40:] = high
    return image


def test_intensity_ranges_by_hand():
    # Means 51 and 102 of 255 (0.2, 0.4), standard deviations 25.5 and 51 (0.1, 0.2).
    images = [two_values(26, 76), two_values(51, 153)]
    limits = limits_of(images, ["a", "b"], intensity_quantile=0.0, intensity_slack=0.25)
    assert limits.mean_range == pytest.approx((0.2 - 0.05, 0.4 + 0.05))
    low, high = 25 / 255, 51 / 255
    slack = 0.25 * (high - low)
    assert limits.spread_range == pytest.approx((low - slack, high + slack))
    middle = limits_of(images, ["a", "b"], intensity_quantile=0.25, intensity_slack=0.0)
    assert middle.mean_range == pytest.approx((0.25, 0.35))
    assert limits_of(images, ["a", "b"], min_agreement=0.9).min_agreement == 0.9


def test_one_image_still_leaves_a_range():
    limits = limits_of([two_values(51, 153)], ["a"], intensity_slack=0.25)
    assert limits.mean_range == pytest.approx((0.4 - 0.01, 0.4 + 0.01))
    bright = limits_of([np.full((54, 80), 255, np.uint8)], ["a"], intensity_slack=50.0)
    assert bright.mean_range == (0.0, 1.0)
    assert bright.spread_range == (0.0, 0.0)


LIMITS = GateLimits(
    min_agreement=0.7, mean_range=(0.1, 0.3), spread_range=(0.05, 0.2), max_similarity=0.8
)


MEASURED = {
    "agreement": 0.9,
    "mean": 0.2,
    "spread": 0.1,
    "similarity": 0.5,
    "nearest": "001_HC",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"agreement": 0.7, "mean": 0.3, "spread": 0.05, "similarity": 0.8}, []),
        ({"agreement": 0.694}, ["agreement with the segmenter 0.69 below 0.70"]),
        ({"agreement": 0.0}, ["agreement with the segmenter 0.00 below 0.70"]),
        ({"mean": 0.31}, ["mean intensity 0.310 outside 0.100 to 0.300"]),
        ({"mean": 0.09}, ["mean intensity 0.090 outside 0.100 to 0.300"]),
        ({"spread": 0.0}, ["intensity spread 0.000 outside 0.050 to 0.200"]),
        ({"similarity": 0.81}, ["near-copy of 001_HC: correlation 0.810 above 0.800"]),
        (
            {"agreement": 0.1, "mean": 0.9, "similarity": 0.99},
            [
                "agreement with the segmenter 0.10 below 0.70",
                "mean intensity 0.900 outside 0.100 to 0.300",
                "near-copy of 001_HC: correlation 0.990 above 0.800",
            ],
        ),
    ],
)
def test_all_reasons_are_given(changes, expected):
    assert reasons(LIMITS, **(MEASURED | changes)) == expected


@pytest.mark.parametrize("name", ["min_agreement", "intensity_quantile", "copy_quantile"])
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_config_refuses(name, value):
    with pytest.raises(ValueError, match=rf"^gate\.{name}={value}"):
        GateConfig(**{name: value})


def test_few_real_images_do_not_make_everything_a_copy():
    images, groups = [noise(k) for k in range(3)], list("abc")
    assert limits_of(images, groups).max_similarity < 0.5
    assert limits_of(images, groups, copy_min_correlation=0.7).max_similarity == 0.7
