"""Scores against brute force, scipy and known ellipses, on non-square masks."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import directed_hausdorff
from skimage.metrics import hausdorff_distance
from skimage.segmentation import find_boundaries

from datamodules.ellipse import Ellipse, perimeter_px, rasterise
from lightning_modules import metrics
from lightning_modules.metrics import (
    dice_at_256,
    dice_score,
    hausdorff_distance_mm,
    head_circumference_mm,
    outline_points,
)

EMPTY, FULL = np.zeros((54, 80), bool), np.ones((54, 80), bool)


def random_masks(seed, size_hw=(54, 80)):
    """Two overlapping blobs with ragged edges and stray pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    masks = []
    for _ in range(2):
        center = rng.uniform(0.3, 0.7, 2) * size_hw
        axes = rng.uniform(0.1, 0.5, 2) * size_hw
        radius = ((y - center[0]) / axes[0]) ** 2 + ((x - center[1]) / axes[1]) ** 2
        masks.append((radius + rng.normal(0, 0.1, size_hw) <= 1) | (rng.random(size_hw) > 0.999))
    return masks


def boundary_by_loop(mask):
    """Foreground pixels with a 4-neighbour that is background or outside, one by one."""
    points = []
    for y, x in np.argwhere(mask):
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            row, column = y + dy, x + dx
            inside = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
            if not inside or not mask[row, column]:
                points.append((y, x))
                break
    return np.array(points)


def test_dice_by_hand():
    pred, target = np.zeros((2, 3), int), np.zeros((2, 3), int)
    pred[0] = 255
    target[:, 0] = 1
    assert dice_score(pred, target) == pytest.approx(2 * 1 / (3 + 2))


@pytest.mark.parametrize("size_hw", [(54, 80), (80, 54)])
def test_dice_equals_sets_of_pixels(size_hw):
    pred, target = random_masks(0, size_hw)
    a, b = set(map(tuple, np.argwhere(pred))), set(map(tuple, np.argwhere(target)))
    assert dice_score(pred, target) == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert dice_score(target, pred) == dice_score(pred, target)


def test_dice_of_empty_and_full():
    assert dice_score(EMPTY, EMPTY) == 1.0
    assert dice_score(EMPTY, FULL) == 0.0
    assert dice_score(FULL, EMPTY) == 0.0
    assert dice_score(FULL, FULL) == 1.0


@pytest.mark.parametrize("score", [dice_score, dice_at_256])
def test_dice_refuses_shapes_that_differ(score):
    with pytest.raises(ValueError, match=r"\(54, 80\) and \(80, 54\)"):
        score(EMPTY, EMPTY.T)
    with pytest.raises(ValueError, match="one size"):
        score(EMPTY[None], EMPTY[None])


def test_dice_at_256_samples_pixel_centres():
    pred, target = random_masks(1, (512, 768))
    # Factors 2 and 3: the sample of frame pixel i is the original one at floor((i + 0.5) * factor).
    rows, columns = (np.arange(256) * 2 + 1), (np.arange(256) * 3 + 1)
    expected = dice_score(pred[np.ix_(rows, columns)], target[np.ix_(rows, columns)])
    assert dice_at_256(pred, target) == expected
    assert dice_at_256(EMPTY, EMPTY) == 1.0
    assert dice_at_256(EMPTY, FULL) == 0.0


def test_hausdorff_by_hand():
    pred, target = EMPTY.copy(), EMPTY.copy()
    pred[10, 10] = target[13, 14] = True
    assert hausdorff_distance_mm(pred, target, pixel_size_mm=0.2) == pytest.approx(5 * 0.2)
    # A square inside a square, 5 px from its border on each side: 5, and its corners 5 * sqrt(2).
    outer, inner = EMPTY.copy(), EMPTY.copy()
    outer[10:40, 20:60] = True
    inner[15:35, 25:55] = True
    expected = pytest.approx(5 * math.sqrt(2))
    assert hausdorff_distance_mm(outer, inner, pixel_size_mm=1) == expected


@pytest.mark.parametrize("density", [0.002, 0.3, 0.9])
def test_hausdorff_by_a_tree_equals_that_by_a_distance_transform(monkeypatch, density):
    rng = np.random.default_rng(5)
    pred, target = rng.random((40, 70)) < density, rng.random((40, 70)) < 0.1
    found = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(metrics, "TREE_SHARE", share)
        found.append(hausdorff_distance_mm(pred, target, pixel_size_mm=0.3))
    assert found[0] == found[1] > 0


def test_a_pixel_beside_a_hole_by_its_corner_alone_is_no_boundary():
    holed = FULL.copy()
    holed[9, 9] = False
    # (9, 10) and (10, 9) are boundary, 9 px from the border; (10, 10) would be 10 px from it.
    assert hausdorff_distance_mm(holed, FULL, pixel_size_mm=1) == 9


def test_hausdorff_is_between_boundaries_not_between_filled_masks():
    ring = FULL.copy()
    ring[20:30, 30:50] = False
    # The rim's pixel (26, 29) is 26 px from row 0, 27 from row 53, 29 from column 0: the border is
    # the full mask's only boundary. Between filled masks the distance would be 5.
    assert hausdorff_distance_mm(ring, FULL, pixel_size_mm=1) == pytest.approx(26)


@pytest.mark.parametrize("size_hw", [(54, 80), (80, 54), (1, 30)])
@pytest.mark.parametrize("seed", range(4))
def test_hausdorff_equals_brute_force_and_scipy(size_hw, seed):
    pred, target = random_masks(seed, size_hw)
    pred.flat[3] = target.flat[7] = True
    a, b = boundary_by_loop(pred), boundary_by_loop(target)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    brute = max(distances.min(axis=1).max(), distances.min(axis=0).max())
    scipys = max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0])
    result = hausdorff_distance_mm(pred, target, pixel_size_mm=0.5)
    assert result == pytest.approx(brute * 0.5, abs=1e-9)
    assert result == pytest.approx(scipys * 0.5, abs=1e-9)
    assert hausdorff_distance_mm(target, pred, pixel_size_mm=0.5) == result


@pytest.mark.parametrize("size_hw", [(54, 80), (80, 54)])
@pytest.mark.parametrize("seed", range(4))
def test_hausdorff_equals_scikit_image(size_hw, seed):
    masks = random_masks(seed, size_hw)
    # Its own boundaries: inner, 4-neighbours, the image's border counting as background.
    boundaries = [
        find_boundaries(np.pad(mask, 1), connectivity=1, mode="inner")[1:-1, 1:-1] for mask in masks
    ]
    expected_mm = 0.13 * hausdorff_distance(*boundaries)
    assert expected_mm > 0
    result = hausdorff_distance_mm(masks[0], masks[1], pixel_size_mm=0.13)
    assert result == pytest.approx(expected_mm, abs=1e-9)


def test_hausdorff_of_empty_masks():
    assert hausdorff_distance_mm(EMPTY, EMPTY, pixel_size_mm=1) == 0.0
    assert hausdorff_distance_mm(EMPTY, FULL, pixel_size_mm=1) == math.inf
    assert hausdorff_distance_mm(FULL, EMPTY, pixel_size_mm=1) == math.inf
    assert hausdorff_distance_mm(FULL, FULL, pixel_size_mm=1) == 0.0


def random_ellipse(rng, *, center_xy, semi_major_px):
    a = rng.uniform(*semi_major_px)
    return Ellipse(
        center_x_px=center_xy[0] + rng.uniform(-1, 1),
        center_y_px=center_xy[1] + rng.uniform(-1, 1),
        semi_major_px=a,
        semi_minor_px=a * rng.uniform(0.65, 0.95),
        theta_rad=rng.uniform(0, math.pi),
    )


def test_circumference_of_known_ellipses():
    """A bias of half a pixel in the outline would be 3.1 px of perimeter."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(30):
        ellipse = random_ellipse(rng, center_xy=(400, 270), semi_major_px=(60, 260))
        mask = rasterise(ellipse, size_hw=(540, 800))
        errors.append(head_circumference_mm(mask, pixel_size_mm=1) - perimeter_px(ellipse))
    assert abs(np.mean(errors)) < 0.05
    assert np.abs(errors).max() < 0.3


def test_circumference_is_in_mm():
    ellipse = random_ellipse(np.random.default_rng(1), center_xy=(40, 27), semi_major_px=(20, 25))
    mask = rasterise(ellipse, size_hw=(54, 80))
    one = head_circumference_mm(mask, pixel_size_mm=1)
    assert one == pytest.approx(perimeter_px(ellipse), abs=1)
    assert head_circumference_mm(mask, pixel_size_mm=0.13) == pytest.approx(0.13 * one)


def test_circumference_of_ellipses_cut_by_the_border():
    """Points along the border would pull the fit in by tens of pixels."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(10):
        ellipse = random_ellipse(rng, center_xy=(400, 170), semi_major_px=(220, 300))
        mask = rasterise(ellipse, size_hw=(540, 800))
        if mask[0].any():
            errors.append(head_circumference_mm(mask, pixel_size_mm=1) - perimeter_px(ellipse))
    assert len(errors) >= 5
    assert np.abs(errors).max() < 0.5


def test_circumference_ignores_holes_and_smaller_components():
    ellipse = random_ellipse(
        np.random.default_rng(2), center_xy=(400, 270), semi_major_px=(150, 180)
    )
    mask = rasterise(ellipse, size_hw=(540, 800))
    expected = head_circumference_mm(mask, pixel_size_mm=1)
    spoilt = mask.copy()
    spoilt[260:280, 390:420] = 0
    spoilt[5:25, 5:40] = 1
    assert head_circumference_mm(spoilt, pixel_size_mm=1) == expected


def test_circumference_is_nan_where_nothing_can_be_fitted():
    line, dot = EMPTY.copy(), EMPTY.copy()
    line[:, 40:] = True
    dot[20, 30] = True
    for mask in (EMPTY, FULL, line, dot):
        assert math.isnan(head_circumference_mm(mask, pixel_size_mm=1))


def test_outline_points_by_hand():
    mask = np.zeros((3, 4))
    mask[0, 1:3] = 7
    points = set(map(tuple, outline_points(mask).tolist()))
    # Nothing above the top row: there the image ends.
    assert points == {(1.0, 0.5), (2.0, 0.5), (0.5, 0.0), (2.5, 0.0)}
    assert outline_points(EMPTY).shape == (0, 2)
    assert outline_points(FULL).shape == (0, 2)


@pytest.mark.parametrize("pixel_size_mm", [0, -1, math.nan, math.inf])
def test_pixel_size_must_be_a_length(pixel_size_mm):
    with pytest.raises(ValueError, match="pixel_size_mm"):
        head_circumference_mm(FULL, pixel_size_mm=pixel_size_mm)
    with pytest.raises(ValueError, match="pixel_size_mm"):
        hausdorff_distance_mm(FULL, FULL, pixel_size_mm=pixel_size_mm)
