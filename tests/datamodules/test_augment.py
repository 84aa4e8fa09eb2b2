import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from datamodules import augment
from datamodules.augment import augment_batch, augment_view
from datamodules.config import AUGMENT_EXTRAS, AUGMENT_PARTS, AUGMENT_VERSION
from datamodules.ellipse import Ellipse, rasterise
from datamodules.small_heads import drawn_together


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


@pytest.mark.parametrize("strength", ["weak", "moderate", "strong"])
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


@pytest.mark.parametrize("strength", ["weak", "moderate", "strong"])
@pytest.mark.parametrize("size_hw", [(54, 80), (80, 54), (33, 200), (2, 2), (173, 256)])
def test_shapes_and_types_stay(size_hw, strength):
    for seed in range(6):
        image, mask = augment_view(
            noise(size_hw), np.ones(size_hw, dtype=np.uint8), strength=strength, seed=seed
        )
        assert image.shape == mask.shape == size_hw
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}


@pytest.mark.parametrize("strength", ["weak", "moderate", "strong"])
def test_image_and_mask_move_together(strength):
    mask, moved = head((108, 160)), 0
    for seed in range(30):
        view, view_mask = augment_view(mask * 200, mask, strength=strength, seed=seed)
        # Rectangles hide parts of a picture, and nothing far outside of the head is bright.
        near = cv2.dilate(view_mask, np.ones((9, 9), dtype=np.uint8))
        assert not ((view > 40) & (near == 0)).any()
        inside = cv2.erode(view_mask, np.ones((5, 5), dtype=np.uint8)) == 1
        assert (view[inside] > 0).mean() > 0.4
        moved += dice(mask, view_mask) < 0.97
    assert moved >= 12


@pytest.mark.parametrize(("strength", "degrees"), [("weak", 15), ("moderate", 30), ("strong", 45)])
def test_rotation_reaches_its_angle_and_not_beyond(strength, degrees, monkeypatch):
    recipe = replace(augment._RECIPES[strength], elastic=0.0, aspect=1.0, shift=0.0)
    monkeypatch.setitem(augment._RECIPES, strength, recipe)
    mask = head((200, 200), a=0.25, b=0.07, theta=0.0)
    angles = []
    for seed in range(60):
        _, view_mask = augment_view(mask * 100, mask, strength=strength, seed=seed)
        y, x = np.nonzero(view_mask)
        _, vectors = np.linalg.eigh(np.cov(np.stack([x, y])))
        angles.append(abs(np.degrees(np.arctan(vectors[1, 1] / vectors[0, 1]))))
    assert degrees * 0.8 < max(angles) < degrees + 0.5


@pytest.mark.parametrize(("strength", "most"), [("moderate", 1.5625), ("strong", 2.56)])
@pytest.mark.parametrize("size_hw", [(108, 160), (160, 108)])
def test_a_circle_stays_a_circle_in_any_frame(size_hw, strength, most, monkeypatch):
    recipe = replace(augment._RECIPES[strength], elastic=0.0, aspect=1.0, shift=0.0)
    monkeypatch.setitem(augment._RECIPES, strength, recipe)
    short = min(size_hw)
    mask = head(size_hw, a=0.15 * short / size_hw[1], b=0.15 * short / size_hw[1], theta=0.0)
    areas = []
    for seed in range(20):
        _, view_mask = augment_view(mask, mask, strength=strength, seed=seed)
        y, x = np.nonzero(view_mask)
        assert np.ptp(x) == pytest.approx(np.ptp(y), abs=2)
        areas.append(view_mask.sum() / mask.sum())
    assert most * 0.7 < max(areas) < most * 1.02
    assert 0.98 / most < min(areas) < 1.5 / most


def test_the_mask_of_a_weak_view_neither_grows_nor_shrinks():
    mask = head((173, 256))
    ratios = [
        augment_view(mask, mask, strength="weak", seed=seed)[1].sum() / mask.sum()
        for seed in range(40)
    ]
    assert abs(np.mean(ratios) - 1) < 0.002


@pytest.mark.parametrize("strength", ["weak", "moderate", "strong"])
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


def test_padding_stays_black_and_does_not_change_the_view():
    image, mask = torch.rand(2, 1, 24, 36), torch.zeros(2, 1, 24, 36)
    mask[:, :, 6:18, 9:27] = 1
    frame, label = torch.zeros(2, 1, 36, 36), torch.zeros(2, 1, 36, 36)
    frame[:, :, :24], label[:, :, :24] = image, mask
    seeds, valid = [3, 4], torch.tensor([[24, 36]] * 2)
    _, alone = augment_batch(image, mask, valid_hw=valid, strength="weak", seeds=seeds)
    padded, moved = augment_batch(frame, label, valid_hw=valid, strength="weak", seeds=seeds)
    assert torch.allclose(moved[:, :, :24], alone, atol=1e-4)
    assert not padded[:, :, 24:].any()
    assert not moved[:, :, 24:].any()
    padded, moved = augment_batch(frame, label, valid_hw=valid, strength="strong", seeds=seeds)
    assert not padded[:, :, 24:].any()
    assert not moved[:, :, 24:].any()


def test_an_item_depends_on_its_own_seed_alone_and_images_may_be_larger_than_masks():
    image, mask = torch.rand(3, 1, 48, 72), torch.rand(3, 1, 24, 36).round()
    given = {"valid_hw": torch.tensor([[24, 36]] * 3), "strength": "strong"}
    together = augment_batch(image, mask, seeds=[5, 6, 7], **given)
    given["valid_hw"] = given["valid_hw"][:1]
    alone = augment_batch(image[1:2], mask[1:2], seeds=[6], **given)
    for first, second in zip(together, alone, strict=True):
        assert torch.allclose(first[1:2], second, atol=1e-6)
    assert together[0].min() >= 0
    assert together[0].max() <= 1


def test_rectangles_blacken_the_image_and_leave_the_mask():
    image, mask = np.full((108, 160), 200, dtype=np.uint8), head((108, 160))
    holed = 0
    for seed in range(30):
        view, view_mask = augment_view(image, mask, strength="strong", seed=seed)
        # Far inside the head nothing but rectangles is black.
        inner = cv2.erode(view_mask, np.ones((9, 9), dtype=np.uint8))
        holed += bool((view[inner == 1] == 0).any())
        assert cv2.connectedComponents(view_mask)[0] - 1 == 1
    assert 3 <= holed <= 25


def test_an_empty_mask_stays_empty():
    empty = np.zeros((54, 80), dtype=np.uint8)
    for seed in range(10):
        view, mask = augment_view(noise(), empty, strength="strong", seed=seed)
        assert mask.sum() == 0
        assert view.any()


def test_draws_are_those_of_version_2():
    # Other areas mean other views: count AUGMENT_VERSION up.
    assert AUGMENT_VERSION == 2
    mask = head((173, 256), x=0.2, a=0.3, b=0.25)
    areas = {
        strength: [
            int(augment_view(mask, mask, strength=strength, seed=seed)[1].sum())
            for seed in range(5)
        ]
        for strength in ("weak", "strong")
    }
    assert areas["weak"] == pytest.approx([13783, 13775, 13820, 13689, 13862], rel=0.002)
    assert areas["strong"] == pytest.approx([14128, 6338, 9503, 10219, 22565], rel=0.002)


@pytest.mark.parametrize(
    ("image", "mask", "strength", "message"),
    [
        (noise(), head(), "medium", "one of .*'weak'"),
        (noise(), head((80, 54)), "weak", "one shape"),
        (noise()[None], head()[None], "weak", "one shape"),
        (noise().astype(np.float32), head(), "weak", "uint8"),
        (noise(), head().astype(bool), "weak", "uint8"),
    ],
)
def test_wrong_arguments_are_named(image, mask, strength, message):
    with pytest.raises(ValueError, match=message):
        augment_view(image, mask, strength=strength, seed=0)


def many_views():
    """One image and mask 24 times, and the other arguments of their strong augmentation."""
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 32, 48, generator=rng).expand(24, 1, 32, 48).contiguous()
    mask = torch.zeros_like(image)
    mask[..., 8:24, 12:30] = 1
    of = {"valid_hw": torch.tensor([[32, 48]] * 24), "strength": "strong", "seeds": range(24)}
    return image, mask, of


@pytest.mark.parametrize("name", AUGMENT_PARTS)
def test_a_part_that_is_left_out_changes_views_and_leaves_the_others_as_they_were(name):
    image, mask, of = many_views()
    whole, whole_mask = augment_batch(image, mask, **of)
    less, less_mask = augment_batch(image, mask, **of, without=[name])
    assert not torch.equal(whole, less)
    # Of the same draw: what moves the head is all that may move its mask.
    moves = ("rotation", "mirror", "zoom", "stretch", "shift", "elastic")
    assert torch.equal(whole_mask, less_mask) == (name not in moves)
    none, none_mask = augment_batch(image, mask, **of, without=AUGMENT_PARTS)
    assert torch.allclose(none, image, atol=1e-5)
    assert torch.allclose(none_mask, mask, atol=1e-5)


@pytest.mark.parametrize("name", AUGMENT_EXTRAS)
def test_what_is_added_changes_views_and_leaves_the_rest_as_it_was(name):
    image, mask, of = many_views()
    of |= {"without": [part for part in AUGMENT_PARTS if part not in ("rotation", "shift")]}
    plain, plain_mask = augment_batch(image, mask, **of)
    more, more_mask = augment_batch(image, mask, **of, extra=[name])
    areas, before = (found.sum(dim=(1, 2, 3)) for found in (more_mask, plain_mask))
    if name == "edge_fill":
        assert torch.equal(more_mask, plain_mask)
        assert (more == 0).float().mean() < 0.01 < (plain == 0).float().mean()
        return
    if name == "cut_out":
        assert torch.equal(more_mask, plain_mask)
        hidden = ((more == 0) & (plain > 0)).flatten(1).any(dim=1)
        assert 2 <= hidden.sum() <= 14
        # No pixel of the head is hidden, and what is shown is as it was.
        assert torch.equal(more[plain_mask > 0.5], plain[plain_mask > 0.5])
        assert torch.equal(more[more > 0], plain[more > 0])
        assert ((more > 0).flatten(1).sum(dim=1) < 0.8 * (plain > 0).flatten(1).sum(dim=1)).any()
        return
    smaller = areas != before
    assert 2 <= smaller.sum() <= 14
    assert torch.equal(more[~smaller], plain[~smaller])
    assert (areas <= before * 1.001).all()
    assert (areas < 0.8 * before).any()


def test_a_smaller_head_brings_in_no_border_and_leaves_what_is_far_from_it():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 97), indexing="ij")
    points = torch.stack([x, y])[None]
    # Half axes of 0.4 and 0.2, turned by 30 degrees.
    cos, sin = 0.866, 0.5
    across, along = (x - 0.1) * cos + (y + 0.2) * sin, (y + 0.2) * cos - (x - 0.1) * sin
    distance = ((across / 0.4) ** 2 + (along / 0.2) ** 2).sqrt()
    size = (256, 384)
    grid_y = (torch.arange(size[0]) + 0.5)[:, None] / size[0] * 2 - 1
    grid_x = (torch.arange(size[1]) + 0.5)[None] / size[1] * 2 - 1
    a = (grid_x - 0.1) * cos + (grid_y + 0.2) * sin
    b = (grid_y + 0.2) * cos - (grid_x - 0.1) * sin
    mask = ((a / 0.4) ** 2 + (b / 0.2) ** 2 <= 1).float()[None, None]
    moved = drawn_together(points, mask, torch.tensor([2.0]))
    to_x, to_y = moved[0, 0] - 0.1, moved[0, 1] + 0.2
    there = (((to_x * cos + to_y * sin) / 0.4) ** 2 + ((to_y * cos - to_x * sin) / 0.2) ** 2).sqrt()
    inner = distance < 0.48
    assert torch.allclose(there[inner], 2 * distance[inner], atol=0.01)
    assert torch.equal(moved[0][:, distance > 2.25], points[0][:, distance > 2.25])
    assert ((there - distance) >= -0.01).all()
    order = distance.flatten().argsort()
    assert (there.flatten()[order].diff() > -0.02).all()
    assert torch.equal(drawn_together(points, 0 * mask, torch.tensor([2.0])), points)


def test_a_cut_out_of_no_head_is_the_whole_image():
    image, mask, of = many_views()
    plain, _ = augment_batch(image, 0 * mask, **of)
    cut, _ = augment_batch(image, 0 * mask, **of, extra=["cut_out"])
    assert torch.equal(plain, cut)


@pytest.mark.parametrize("argument", ["without", "extra"])
def test_a_part_that_is_none_is_refused(argument):
    image = torch.zeros(1, 1, 8, 8)
    size = torch.tensor([[8, 8]])
    with pytest.raises(ValueError, match="'colour'"):
        augment_batch(
            image, image, valid_hw=size, strength="strong", seeds=[0], **{argument: ["colour"]}
        )
