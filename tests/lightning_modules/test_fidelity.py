"""Fidelity: each measure against an independent reference, a case by hand and degenerate input."""

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from lightning_modules.fidelity import (
    chance_agreement,
    contour_leak_score,
    copy_threshold,
    derangement,
    intensity_statistics,
    kid,
    mask_agreement,
    memorised_fraction,
    nearest_distance,
    polynomial_mmd,
    pooled,
    precision_recall_density_coverage,
)

HW = (54, 80)


def features(n, *, seed, shift=0.0, dimension=16):
    return np.random.default_rng(seed).normal(shift, 1, size=(n, dimension)).astype(np.float32)


def ellipse(*, centre=(40, 27), axes=(22, 15), hw=HW):
    mask = np.zeros(hw, dtype=np.uint8)
    return cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, -1)


def test_pooling_is_the_mean_over_the_grid_in_half_precision_too():
    grid = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    assert pooled(grid).tolist() == [5.5, 17.5]
    assert pooled(grid).dtype == np.float32
    # A sum in float16 would stop at 65504.
    large = np.full((1, 64, 64), 60.0, dtype=np.float16)
    assert pooled(large).tolist() == [60.0]
    random = np.float16(features(12, seed=0).reshape(2, 6, 16))
    reference = torch.from_numpy(random).double().mean(dim=(1, 2)).float()
    assert np.allclose(pooled(random), reference, rtol=0, atol=1e-7)
    for bad in (np.zeros((2, 3)), np.zeros((2, 0, 4))):
        with pytest.raises(ValueError, match="an embedding is"):
            pooled(bad)


def test_mmd_by_hand():
    # D = 1: kernels (0 * 1 + 1)^3 = 1 within a, (2 * 1 + 1)^3 = 27 within b,
    # between: 0 with anything 1; 1 with 2: 27, 1 with 1: 8.
    a, b = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert polynomial_mmd(a, b) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4, abs=1e-12)


def test_mmd_is_that_of_torchmetrics():
    a, b = features(30, seed=1), features(30, seed=2, shift=0.5)
    expected = poly_mmd(torch.from_numpy(a).double(), torch.from_numpy(b).double())
    assert polynomial_mmd(a, b) == pytest.approx(float(expected), abs=1e-9)


def test_mmd_of_samples_of_different_size_is_the_double_sum():
    a, b = features(5, seed=3), features(8, seed=4)

    def kernel(x, y):
        return (float(np.dot(x.astype(float), y.astype(float))) / 16 + 1) ** 3

    within_a = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    within_b = [kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j]
    between = [kernel(x, y) for x in a for y in b]
    expected = np.mean(within_a) + np.mean(within_b) - 2 * np.mean(between)
    assert polynomial_mmd(a, b) == pytest.approx(expected, abs=1e-9)


def test_mmd_is_unbiased():
    values = [
        polynomial_mmd(features(6, seed=10 + i), features(6, seed=10_000 + i)) for i in range(2000)
    ]
    assert min(values) < 0
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_kid_agrees_with_torchmetrics_and_repeats_itself():
    a, b = features(40, seed=5), features(50, seed=6, shift=0.3)
    metric = KernelInceptionDistance(
        feature=torch.nn.Identity(), subsets=400, subset_size=20
    ).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference_mean, reference_sd = (float(value) for value in metric.compute())
    mean, sd = kid(a, b, subsets=400, subset_size=20, seed=0)
    # Two draws of 400 subsets differ by sampling alone: 4 standard errors of the difference.
    assert mean == pytest.approx(reference_mean, abs=4 * np.hypot(sd, reference_sd) / 20)
    assert sd == pytest.approx(reference_sd, rel=0.2)
    assert kid(a, b, subsets=400, subset_size=20, seed=0) == (mean, sd)
    assert kid(a, b, subsets=400, subset_size=20, seed=1)[0] != mean
    # The full samples' own unbiased value is what the subsets scatter around.
    assert mean == pytest.approx(polynomial_mmd(a, b), abs=4 * sd / 20)


def test_kid_separates_shifted_samples():
    near = kid(features(40, seed=1), features(40, seed=2), subsets=50, subset_size=20, seed=0)
    far = kid(
        features(40, seed=1), features(40, seed=2, shift=1), subsets=50, subset_size=20, seed=0
    )
    assert abs(near[0]) < 0.5
    assert far[0] > 3


@pytest.mark.parametrize("subset_size", [0, 1, 8, 9])
def test_kid_refuses_a_subset_that_is_no_subset(subset_size):
    with pytest.raises(ValueError, match="must be 2 to below 8"):
        kid(features(8, seed=0), features(9, seed=1), subsets=3, subset_size=subset_size, seed=0)


def test_kid_refuses_bad_features():
    good = features(8, seed=0)
    bad = good.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        kid(good, bad, subsets=1, subset_size=4, seed=0)
    with pytest.raises(ValueError, match="features are"):
        kid(good, good[:, :5], subsets=1, subset_size=4, seed=0)
    with pytest.raises(ValueError, match="subsets"):
        kid(good, good, subsets=0, subset_size=4, seed=0)
    with pytest.raises(ValueError, match="two rows"):
        polynomial_mmd(good[:1], good)


def prdc_by_loops(real, fake, k):
    """The papers' equations, point by point."""

    def radius(points, i):
        others = [np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i]
        return sorted(others)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, i) for i in range(len(fake))]
    inside = [[np.linalg.norm(r - f) <= real_radii[i] for f in fake] for i, r in enumerate(real)]
    reached = [
        any(np.linalg.norm(r - f) <= fake_radii[j] for j, f in enumerate(fake)) for r in real
    ]
    precision = np.mean([any(row[j] for row in inside) for j in range(len(fake))])
    density = sum(sum(row) for row in inside) / (k * len(fake))
    return precision, np.mean(reached), density, np.mean([any(row) for row in inside])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_its_kin_against_the_equations(k):
    real = features(23, seed=7, dimension=3).astype(float)
    fake = features(31, seed=8, shift=0.6, dimension=3).astype(float)
    assert precision_recall_density_coverage(real, fake, k=k) == pytest.approx(
        prdc_by_loops(real, fake, k)
    )


def test_precision_and_its_kin_by_hand():
    # Reals on a line at 0, 1, 10: radii 1, 1, 9. Fakes at 0.5 and 30: radii 29.5 each.
    real, fake = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [30.0]])
    precision, recall, density, coverage = precision_recall_density_coverage(real, fake, k=1)
    assert precision == 0.5  # 30 lies in no real ball: |30 - 10| > 9
    assert recall == 1.0  # all reals lie within 29.5 of 0.5
    assert density == 2 / 2  # 0.5 lies in the balls of 0 and 1; |0.5 - 10| > 9
    assert coverage == pytest.approx(2 / 3)


def test_copies_are_precise_and_collapse_covers_little():
    real = features(30, seed=9)
    precision, recall, density, coverage = precision_recall_density_coverage(real, real, k=3)
    assert (precision, recall, coverage) == (1, 1, 1)
    assert density > 1
    one_mode = np.repeat(real[:1], 30, axis=0)
    precision, recall, _, coverage = precision_recall_density_coverage(real, one_mode, k=3)
    assert precision == 1
    assert recall == pytest.approx(1 / 30)  # balls of radius 0 hold only what was copied
    assert coverage < 0.5


@pytest.mark.parametrize("k", [0, 4, 5])
def test_k_must_be_below_the_smaller_sample(k):
    with pytest.raises(ValueError, match="below 4"):
        precision_recall_density_coverage(features(4, seed=0), features(9, seed=1), k=k)


def test_nearest_row_and_its_distance():
    training = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    distances, rows = nearest_distance(np.array([[3.0, 4.0], [0.0, 1.0], [6.0, 0.0]]), training)
    assert distances.tolist() == [0, 1, 5]
    assert rows.tolist() == [1, 0, 1]


def test_real_against_itself_leaves_its_exam_out():
    real = np.array([[0.0], [0.1], [5.0], [7.0]])
    exams = ["a", "a", "b", "c"]
    distances, rows = nearest_distance(real, real, query_groups=exams, training_groups=exams)
    assert distances == pytest.approx([5, 4.9, 2, 2])
    assert rows.tolist() == [2, 2, 3, 2]
    # Nothing but the own exam: no neighbour.
    distances, rows = nearest_distance(
        real[:2], real[:2], query_groups=exams[:2], training_groups=exams[:2]
    )
    assert np.isinf(distances).all()
    assert rows.tolist() == [-1, -1]


def test_nearest_of_nothing():
    distances, rows = nearest_distance(features(3, seed=0), np.empty((0, 16)))
    assert np.isinf(distances).all()
    assert rows.tolist() == [-1] * 3
    distances, rows = nearest_distance(np.empty((0, 16)), features(3, seed=0))
    assert (distances.shape, rows.shape) == ((0,), (0,))
    with pytest.raises(ValueError, match="both or of neither"):
        nearest_distance(features(3, seed=0), features(3, seed=1), query_groups=["a"] * 3)
    with pytest.raises(ValueError, match="one group a row"):
        nearest_distance(
            features(3, seed=0), features(3, seed=1), query_groups=["a"], training_groups=["b"] * 3
        )


def test_memorised_share_counts_what_is_nearer_than_the_first_percentile():
    held_out = np.arange(1.0, 102.0)  # 1, 2, ... 101: the first percentile is 2
    assert copy_threshold(held_out) == 2
    synthetic = np.array([0.0, 1.9, 2.0, 50.0])
    assert memorised_fraction(synthetic, held_out) == 0.5
    assert memorised_fraction(synthetic, held_out, quantile=0.5) == 1.0  # all below 51
    assert memorised_fraction(held_out, held_out) == pytest.approx(1 / 101)


def test_planted_copies_are_found_mirrored_ones_as_well():
    train, held_out = features(60, seed=1), features(400, seed=2)
    mirrored = features(60, seed=3)  # stand for the features of the mirrored images
    fresh = features(30, seed=4)
    synthetic = np.concatenate([fresh, train[:6] + 0.01, mirrored[:4] + 0.01])
    rows = np.concatenate([train, mirrored])
    to_train = nearest_distance(synthetic, rows)[0]
    control = nearest_distance(held_out, rows)[0]
    assert memorised_fraction(to_train, control) == pytest.approx(10 / 40, abs=0.03)
    assert memorised_fraction(nearest_distance(fresh, rows)[0], control) <= 2 / 30


@pytest.mark.parametrize("bad", [[], [1.0, np.inf], [np.nan]])
def test_no_threshold_without_held_out_distances(bad):
    with pytest.raises(ValueError, match="finite distances"):
        copy_threshold(np.array(bad))
    with pytest.raises(ValueError, match="no distances"):
        memorised_fraction(np.empty(0), np.ones(3))


def test_agreement_of_pairs_and_of_unrelated_masks():
    left, right = np.zeros(HW, np.uint8), np.zeros(HW, np.uint8)
    left[:, :40], right[:, 20:60] = 1, 1
    assert mask_agreement([left, left], [left, right]).tolist() == [1.0, 0.5]
    assert mask_agreement([], []).shape == (0,)
    # Two images can only swap: each label meets the other's mask.
    assert chance_agreement([left, right], [left, right], seed=0).tolist() == [0.5, 0.5]
    empty = np.zeros(HW, np.uint8)
    assert mask_agreement([empty, empty], [empty, left]).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        mask_agreement([left, left], [left])


def test_chance_is_below_agreement_and_repeats_itself():
    labels = [ellipse(centre=(30 + 2 * i, 20 + i), axes=(12 + i, 10)) for i in range(8)]
    chance = chance_agreement(labels, labels, seed=3)
    assert (chance < 1).all()
    assert mask_agreement(labels, labels).tolist() == [1.0] * 8
    assert np.array_equal(chance, chance_agreement(labels, labels, seed=3))
    orders = {tuple(derangement(range(8), seed=seed)) for seed in range(20)}
    assert len(orders) > 10


@pytest.mark.parametrize("groups", ["ab", "abcdefgh", "aabbc", "aaabbc", "abcabc", "aabb"])
def test_partners_come_from_another_exam_and_each_is_taken_once(groups):
    for seed in range(10):
        partners = derangement(groups, seed=seed)
        assert sorted(partners) == list(range(len(groups)))
        assert all(
            groups[partner] != group for partner, group in zip(partners, groups, strict=True)
        )


def test_partners_of_none_and_where_there_are_none():
    assert derangement([], seed=0).shape == (0,)
    for groups in ("a", "aab"):
        with pytest.raises(ValueError, match="of one group"):
            derangement(groups, seed=0)


def test_contour_score_by_hand():
    # Mask: columns 0-9 of 20. Steps of 8 at the contour and of 2 at columns 13|14; the central
    # difference puts half a step on either side of it.
    mask = np.zeros((12, 20), np.uint8)
    mask[:, :10] = 1
    image = np.zeros((12, 20), np.uint8)
    image[:, 10:] = 8
    image[:, 14:] = 10
    # On the contour: columns 9 and 10 with a gradient of 4. From 3 to 5 px beside it: columns 5 and
    # 6 without one, 13 and 14 with 1.
    assert contour_leak_score(image, mask) == pytest.approx(4 / (2 / 4))
    assert contour_leak_score(image * 3.0 + 7, mask) == pytest.approx(8)
    assert contour_leak_score(image, 1 - mask) == pytest.approx(8)


def test_contour_score_of_noise_is_one_and_of_a_drawn_label_is_high():
    mask = ellipse()
    noise = [np.random.default_rng(seed).integers(0, 255, HW) for seed in range(40)]
    clean = [contour_leak_score(image, mask) for image in noise]
    drawn = [contour_leak_score(image + 300.0 * mask, mask) for image in noise]
    assert np.mean(clean) == pytest.approx(1, abs=0.05)
    assert min(drawn) > 1.3
    # The same edge five pixels off the label is no leak.
    moved = [contour_leak_score(image + 300.0 * ellipse(axes=(26, 19)), mask) for image in noise]
    assert max(moved) < 1


def test_contour_score_without_contour_or_edge():
    noise = np.random.default_rng(0).integers(0, 255, HW)
    flat, mask = np.full(HW, 9), ellipse()
    for nothing in (np.zeros(HW), np.ones(HW)):
        assert np.isnan(contour_leak_score(noise, nothing))
    assert np.isnan(contour_leak_score(flat, mask))
    assert contour_leak_score(flat + 50.0 * mask, mask) == np.inf
    assert np.isnan(contour_leak_score(noise[:4, :4], np.eye(4)))  # nothing 3 px beside it
    assert np.isfinite(contour_leak_score(noise, ellipse(centre=(0, 0))))  # cut by the border
    with pytest.raises(ValueError, match="of one size"):
        contour_leak_score(noise, mask.T)


def test_the_images_border_is_no_contour():
    # The mask touches three borders; bright border rows must not count.
    mask = np.zeros(HW, np.uint8)
    mask[:, :40] = 1
    noise = np.random.default_rng(0).integers(0, 50, HW).astype(float)
    framed = noise.copy()
    framed[:, 0] += 1000
    assert contour_leak_score(framed, mask) == contour_leak_score(noise, mask)


def test_intensity_by_hand_and_by_numpy():
    dark, light = np.zeros(HW, np.uint8), np.full((80, 54), 255, np.uint8)
    half = np.zeros(HW, np.uint8)
    half[:, :40] = 255
    found = intensity_statistics([dark, light, half])
    assert found["mean"]["mean"] == pytest.approx(0.5)
    assert found["mean"]["p50"] == 0.5
    assert found["mean"]["sd"] == pytest.approx(np.sqrt(1 / 6))
    assert found["spread"]["mean"] == pytest.approx(0.5 / 3)
    assert found["mean"]["p1"] == pytest.approx(0.01)  # 2 % of the way from 0 to 0.5
    assert found["spread"]["p99"] == pytest.approx(0.49)
    assert all(np.isnan(v) for part in intensity_statistics([]).values() for v in part.values())
