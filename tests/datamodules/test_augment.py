import random

import cv2
import numpy as np
import pytest
import torch

from datamodules import augment
from datamodules.augment import augment_view
from datamodules.ellipse import Ellipse, rasterise


def head(size_hw=(54, 80), *, x=0.5, y=0.5, a=0.25, b=0.18, theta=0.4) -> np.ndarray:
    height, width = size_hw
    ellipse = Ellipse(
        center_x_px=x * width - 0.5,
        center_y_px=y * height - 0.5,
        semi_major_px=a * width,
        semi_minor_px=b * width,
        theta_rad=theta,
    )
    return rasterise(ellipse, size_hw=size_hw)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def noise(size_hw=(54, 80)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size_hw, dtype=np.uint8)


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_a_view_is_a_function_of_its_arguments_and_moves_nothing_global(strength):
    image, mask = noise(), head()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = augment_view(image, mask, strength=strength, seed=3)
    torch.rand(5)
    torch.set_rng_state(before[0])
    second = augment_view(image, mask, strength=strength, seed=3)
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    np.testing.assert_array_equal(image, noise())
    np.testing.assert_array_equal(mask, head())
    views = [augment_view(image, mask, strength=strength, seed=s)[0].tobytes() for s in range(12)]
    assert len(set(views)) >= 8


@pytest.mark.parametrize("strength", ["weak", "strong"])
@pytest.mark.parametrize("size_hw", [(54, 80), (80, 54), (33, 200), (2, 2), (173, 256)])
def test_shapes_and_types_stay(size_hw, strength):
    for seed in range(6):
        image, mask = augment_view(
            noise(size_hw), np.ones(size_hw, dtype=np.uint8), strength=strength, seed=seed
        )
        assert image.shape == mask.shape == size_hw
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}


def test_weak_views_without_rotation_or_tone_are_the_four_flips():
    image, mask = noise(), head()
    flips = {
        name: (image[::y, ::x], mask[::y, ::x])
        for name, y, x in [("none", 1, 1), ("x", 1, -1), ("y", -1, 1), ("both", -1, -1)]
    }
    found = dict.fromkeys(flips, 0)
    for seed in range(150):
        view, view_mask = augment_view(image, mask, strength="weak", seed=seed)
        for name, (flipped, flipped_mask) in flips.items():
            if np.array_equal(view, flipped):
                np.testing.assert_array_equal(view_mask, flipped_mask)
                found[name] += 1
    # Expected: 150 x 0.5 (rotation) x 0.5 (tone) x 0.7 (blur) x 0.7 (noise) / 4 = 4.6 each.
    assert min(found.values()) >= 1
    assert 8 <= sum(found.values()) <= 32


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_image_and_mask_move_together(strength, monkeypatch):
    monkeypatch.setattr(augment, "_HOLES", 1)
    monkeypatch.setattr(augment, "_HOLE_SIDE_PX", (1, 1))
    mask = head((108, 160))
    moved = 0
    for seed in range(40):
        view, view_mask = augment_view(mask * 200, mask, strength=strength, seed=seed)
        bright = cv2.threshold(view, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
        assert dice(bright, view_mask) > 0.97
        moved += dice(mask, view_mask) < 0.97
    assert moved >= 15


@pytest.mark.parametrize(("strength", "degrees"), [("weak", 15), ("strong", 45)])
def test_rotation_reaches_its_angle_and_not_beyond(strength, degrees, monkeypatch):
    monkeypatch.setattr(augment, "_ELASTIC_STD_PX", 0.0)
    mask = head((200, 200), a=0.4, b=0.1, theta=0.0)
    angles = []
    for seed in range(60):
        _, view_mask = augment_view(mask * 100, mask, strength=strength, seed=seed)
        y, x = np.nonzero(view_mask)
        _, vectors = np.linalg.eigh(np.cov(np.stack([x, y])))
        angles.append(abs(np.degrees(np.arctan(vectors[1, 1] / vectors[0, 1]))))
    assert degrees * 0.8 < max(angles) < degrees + 0.5


def test_the_mask_neither_grows_nor_shrinks():
    mask = head((173, 256))
    for strength, tolerance in [("weak", 0.002), ("strong", 0.02)]:
        ratios = [
            augment_view(mask, mask, strength=strength, seed=seed)[1].sum() / mask.sum()
            for seed in range(60)
        ]
        assert abs(np.mean(ratios) - 1) < tolerance


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_one_seed_is_one_view_at_every_resolution(strength):
    small_hw, large_hw = (86, 128), (344, 512)
    large = cv2.GaussianBlur(noise(large_hw), (0, 0), 8).astype(np.float32)
    large = np.clip((large - large.mean()) * 8 + 128, 0, 255).astype(np.uint8)
    small = cv2.resize(large, small_hw[::-1], interpolation=cv2.INTER_AREA)
    for seed in range(20):
        view, mask = augment_view(large, head(large_hw), strength=strength, seed=seed)
        expected = cv2.resize(view, small_hw[::-1], interpolation=cv2.INTER_AREA)
        view, small_mask = augment_view(small, head(small_hw), strength=strength, seed=seed)
        assert np.abs(view.astype(float) - expected).mean() < 8
        share = cv2.resize(mask.astype(np.float32), small_hw[::-1], interpolation=cv2.INTER_AREA)
        assert dice((share >= 0.5).astype(np.uint8), small_mask) > 0.96


def test_dropout_blackens_the_image_and_leaves_the_mask():
    image, mask = np.full((108, 160), 200, dtype=np.uint8), head((108, 160))
    holed = 0
    for seed in range(30):
        view, view_mask = augment_view(image, mask, strength="strong", seed=seed)
        # Far inside the head nothing but dropout is black.
        inner = cv2.erode(view_mask, np.ones((9, 9), dtype=np.uint8))
        holed += bool((view[inner == 1] == 0).any())
        pieces = cv2.connectedComponents(1 - view_mask)[0] - 1
        assert pieces == 1
    assert 3 <= holed <= 25


def test_a_head_in_the_corner_does_not_vanish(monkeypatch):
    mask = head((108, 160), x=0.04, y=0.05, a=0.05, b=0.04)

    def smallest() -> float:
        areas = [augment_view(mask, mask, strength="strong", seed=s)[1].sum() for s in range(60)]
        return min(areas) / mask.sum()

    assert smallest() >= 0.3
    monkeypatch.setattr(augment, "_MIN_KEPT_SHARE", 0.0)
    assert smallest() < 0.3


def test_the_original_is_returned_where_every_draw_fails(monkeypatch):
    monkeypatch.setattr(augment, "_MIN_KEPT_SHARE", 2.0)
    image, mask = noise(), head()
    view, view_mask = augment_view(image, mask, strength="strong", seed=0)
    np.testing.assert_array_equal(view, image)
    np.testing.assert_array_equal(view_mask, mask)
    assert view is not image
    assert view_mask is not mask


def test_an_empty_mask_stays_empty():
    empty = np.zeros((54, 80), dtype=np.uint8)
    for seed in range(10):
        view, mask = augment_view(noise(), empty, strength="strong", seed=seed)
        assert mask.sum() == 0
        assert view.any()


def test_draws_are_those_of_version_1():
    # Other areas mean other views: count AUGMENT_VERSION up.
    assert augment.AUGMENT_VERSION == 1
    mask = head((173, 256), x=0.2, a=0.3, b=0.25)
    areas = {
        strength: [
            int(augment_view(mask, mask, strength=strength, seed=seed)[1].sum())
            for seed in range(5)
        ]
        for strength in ("weak", "strong")
    }
    assert areas["weak"] == pytest.approx([13753, 13862, 13839, 13832, 13749], rel=0.002)
    assert areas["strong"] == pytest.approx([13140, 13801, 13862, 12523, 12847], rel=0.002)


@pytest.mark.parametrize(
    ("image", "mask", "strength", "message"),
    [
        (noise(), head(), "medium", "'weak' or 'strong'"),
        (noise(), head((80, 54)), "weak", "one shape"),
        (noise()[None], head()[None], "weak", "one shape"),
        (noise()[:1], head()[:1], "weak", "one shape"),
        (noise().astype(np.float32), head(), "weak", "uint8"),
        (noise(), head().astype(bool), "weak", "uint8"),
    ],
)
def test_wrong_arguments_are_named(image, mask, strength, message):
    with pytest.raises(ValueError, match=message):
        augment_view(image, mask, strength=strength, seed=0)
