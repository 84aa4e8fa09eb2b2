import math
from dataclasses import astuple

import cv2
import numpy as np
import pytest

from datamodules.ellipse import (
    Ellipse,
    EllipseDistribution,
    contour_distance_px,
    fit_ellipse,
    rasterise,
    scale_ellipse,
)
from datamodules.warp import ellipse_map, stretch, warp_pair, warp_pairs

SIZE_HW = (54, 80)


def make(x=40.2, y=26.7, a=21.3, b=15.1, theta=0.4) -> Ellipse:
    return Ellipse(center_x_px=x, center_y_px=y, semi_major_px=a, semi_minor_px=b, theta_rad=theta)


def contour(e: Ellipse, n: int = 100) -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, n, endpoint=False)
    u, v = e.semi_major_px * np.cos(t), e.semi_minor_px * np.sin(t)
    cos, sin = math.cos(e.theta_rad), math.sin(e.theta_rad)
    return np.stack([e.center_x_px + cos * u - sin * v, e.center_y_px + sin * u + cos * v], axis=1)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def noise(size_hw=SIZE_HW, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, size_hw, dtype=np.uint8)


PAIRS = [
    (make(), make(x=35, y=30, a=25, b=13, theta=0.9)),
    (make(theta=0.1), make(theta=3.0)),
    (make(theta=1.5), make(x=10, y=50, theta=0.2)),
    (make(a=15.1), make(a=30, b=10, theta=2.0)),
]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_contour_arrives_on_the_target(source, target, mirror):
    matrix = ellipse_map(source, target, mirror=mirror)
    arrived = contour(source) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(contour_distance_px(target, arrived), 0, atol=1e-9)
    found = fit_ellipse(arrived)
    np.testing.assert_allclose(astuple(found)[:4], astuple(target)[:4], atol=1e-6)
    assert math.sin(found.theta_rad - target.theta_rad) == pytest.approx(0, abs=1e-6)
    assert (np.linalg.det(matrix[:, :2]) < 0) == mirror
    # Major axis to major axis: the tip of one is a tip of the other.
    tip = contour(source)[0] @ matrix[:, :2].T + matrix[:, 2]
    tips = contour(target, n=2)
    assert np.linalg.norm(tips - tip, axis=1).min() == pytest.approx(0, abs=1e-9)


def test_maps_computed_by_hand():
    source = make(x=0, y=0, a=2, b=1, theta=0)
    # Twice as long, three times as wide, moved by (10, 20).
    target = make(x=10, y=20, a=4, b=3, theta=0)
    np.testing.assert_allclose(ellipse_map(source, target), [[2, 0, 10], [0, 3, 20]], atol=1e-12)
    np.testing.assert_allclose(
        ellipse_map(source, target, mirror=True), [[-2, 0, 10], [0, 3, 20]], atol=1e-12
    )
    # From -10 to +10 degrees (170 in [0, 180)): a turn by 20, not by 160 backwards.
    tilt = math.radians(10)
    turn = ellipse_map(make(x=0, y=0, theta=math.pi - tilt), make(x=0, y=0, theta=tilt))
    cos, sin = math.cos(2 * tilt), math.sin(2 * tilt)
    np.testing.assert_allclose(turn, [[cos, -sin, 0], [sin, cos, 0]], atol=1e-12)
    # The mirror image of a head at 170 degrees is one at 10: no turn is left.
    flip = ellipse_map(
        make(x=0, y=0, theta=math.pi - tilt), make(x=0, y=0, theta=tilt), mirror=True
    )
    np.testing.assert_allclose(flip, [[-1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_stretch_is_the_largest_factor_either_way():
    assert stretch(make(a=20, b=10), make(a=20, b=10, theta=1.0)) == 1.0
    assert stretch(make(a=20, b=10), make(a=30, b=10)) == pytest.approx(1.5)
    assert stretch(make(a=20, b=10), make(a=20, b=5)) == pytest.approx(2.0)


def test_nothing_moves_where_the_target_is_the_source():
    image = noise()
    found = warp_pair(image, source=make(), target=make(), size_hw=SIZE_HW)
    np.testing.assert_array_equal(found, image)
    assert found is not image


def test_a_shift_by_whole_pixels_and_a_flip_are_exact():
    image = noise()
    moved = warp_pair(image, source=make(), target=make(x=45.2, y=24.7), size_hw=SIZE_HW)
    np.testing.assert_array_equal(moved[:-2, 5:], image[2:, :-5])
    centred = make(x=39.5, theta=0.0)
    flipped = warp_pair(image, source=centred, target=centred, size_hw=SIZE_HW, mirror=True)
    np.testing.assert_array_equal(flipped, image[:, ::-1])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_warped_mask_is_the_raster_of_the_target(source, target, mirror):
    size_hw = (162, 240)
    source, target = (scale_ellipse(e, scale_x=3, scale_y=3) for e in (source, target))
    warped = warp_pair(
        rasterise(source, size_hw=size_hw) * 255,
        source=source,
        target=target,
        size_hw=size_hw,
        mirror=mirror,
    )
    mask = (warped >= 128).astype(np.uint8)
    assert dice(mask, rasterise(target, size_hw=size_hw)) > 0.995
    inner = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0][:, 0]
    inner = inner[(inner.min(axis=1) > 0) & (inner < np.array(size_hw[::-1]) - 1).all(axis=1)]
    # Contour pixels lie half a pixel inside.
    assert abs(contour_distance_px(target, inner).mean() + 0.4) < 0.3


@pytest.mark.parametrize("target_hw", [(540, 800), (173, 256), (54, 80)])
def test_dice_with_the_raster_at_other_sizes(target_hw):
    source = scale_ellipse(make(), scale_x=10, scale_y=10)
    scale = target_hw[1] / 80
    target = scale_ellipse(make(x=38, a=19, b=16, theta=0.7), scale_x=scale, scale_y=scale)
    mask = rasterise(source, size_hw=(540, 800)) * 255
    warped = warp_pair(mask, source=source, target=target, size_hw=target_hw)
    assert dice((warped >= 128).astype(np.uint8), rasterise(target, size_hw=target_hw)) > 0.995


def test_a_large_image_is_averaged_not_subsampled():
    # White noise of variance v keeps about v / 16 where 4 x 4 pixels become one.
    image = noise((540, 800))
    source = scale_ellipse(make(), scale_x=10, scale_y=10)
    target = scale_ellipse(make(), scale_x=2.5, scale_y=2.5)
    found = warp_pair(image, source=source, target=target, size_hw=(135, 200))
    assert found[5:-5, 5:-5].astype(float).std() < 1.3 * image.astype(float).std() / 4
    reference = cv2.resize(image, (200, 135), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - reference)[1:-1, 1:-1].max() <= 2


def test_outside_of_the_image_is_black_after_a_short_fade():
    image = np.full(SIZE_HW, 200, dtype=np.uint8)
    moved = warp_pair(image, source=make(), target=make(x=60.2), size_hw=SIZE_HW)
    # Moved by 20 px: columns 0-17 are black, 20 on are the image.
    assert (moved[:, :18] == 0).all()
    assert (moved[:, 20:] == 200).all()
    assert ((moved[:, 19] > 0) & (moved[:, 19] < 200)).all()
    assert (warp_pair(image, source=make(), target=make(x=500), size_hw=SIZE_HW) == 0).all()


def trial(n: int = 4) -> tuple[list[np.ndarray], list[Ellipse], EllipseDistribution]:
    rng = np.random.default_rng(4)
    ellipses = [make(a=rng.uniform(15, 24), b=12, theta=rng.uniform(0, 3)) for _ in range(n)]
    images = [rasterise(e, size_hw=SIZE_HW) * 255 for e in ellipses]
    return images, ellipses, EllipseDistribution.fit(ellipses, size_hws=[SIZE_HW] * n)


def draw(n: int, seed: int = 7, max_stretch: float = 1.3, size_hw=(108, 160)) -> list:
    images, ellipses, distribution = trial()
    return list(
        warp_pairs(
            images,
            ellipses,
            distribution=distribution,
            n=n,
            seed=seed,
            size_hw=size_hw,
            max_stretch=max_stretch,
        )
    )


def test_pairs_fit_their_ellipses_and_use_all_sources():
    pairs = draw(40)
    assert len(pairs) == 40
    assert {source for _, _, source in pairs} == {0, 1, 2, 3}
    for image, ellipse, _ in pairs:
        assert image.shape == (108, 160)
        assert image.dtype == np.uint8
        assert dice((image >= 128).astype(np.uint8), rasterise(ellipse, size_hw=(108, 160))) > 0.98


def test_a_pair_depends_on_the_seed_and_its_number_only():
    few, many, other = draw(3), draw(6), draw(3, seed=8)
    for first, second in zip(few, many[:3], strict=True):
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1:] == second[1:]
    assert few[0][1] != other[0][1]
    assert draw(0) == []


def test_sources_that_need_little_stretch_are_preferred():
    _, ellipses, _ = trial()
    scaled = [scale_ellipse(e, scale_x=2, scale_y=2) for e in ellipses]
    for limit in (1.0, 1.1, 1.3):
        for _, target, source in draw(40, max_stretch=limit):
            needed = [stretch(e, target) for e in scaled]
            assert needed[source] <= max(limit, min(needed))


def test_half_of_the_pairs_are_mirrored():
    # One source with a bright left half: it is on the right where the pair is mirrored.
    image = np.zeros(SIZE_HW, dtype=np.uint8)
    image[:, :40] = 255
    ellipse = make(x=39.5, theta=0.0)
    pairs = warp_pairs(
        [image],
        [ellipse],
        distribution=EllipseDistribution.fit([ellipse], size_hws=[SIZE_HW]),
        n=60,
        seed=0,
        size_hw=SIZE_HW,
        max_stretch=1.5,
    )
    mirrored = 0
    for warped, target, _ in pairs:
        row, column = round(target.center_y_px), target.center_x_px
        mirrored += int(warped[row, round(column + 8)]) > int(warped[row, round(column - 8)])
    assert 18 <= mirrored <= 42


@pytest.mark.parametrize(
    "change", [{"images": []}, {"ellipses": [make()]}, {"n": -1}, {"max_stretch": 0.9}]
)
def test_wrong_arguments_are_refused_at_the_call(change):
    images, ellipses, distribution = trial()
    with pytest.raises(ValueError, match="warping needs"):
        warp_pairs(
            change.get("images", images),
            change.get("ellipses", ellipses),
            distribution=distribution,
            n=change.get("n", 2),
            seed=0,
            size_hw=SIZE_HW,
            max_stretch=change.get("max_stretch", 1.3),
        )


@pytest.mark.parametrize("image", [noise()[None], noise().astype(np.float32)])
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        warp_pair(image, source=make(), target=make(), size_hw=SIZE_HW)
