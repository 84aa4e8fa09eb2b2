import numpy as np
import pytest

from datamodules import phantom_pairs as module
from datamodules.ellipse import Ellipse, EllipseDistribution, perimeter_px, rasterise
from datamodules.phantom_pairs import early_probability, phantom_pairs

SIZE_HW = (54, 80)


def make(a=20.0, b=15.0) -> Ellipse:
    return Ellipse(
        center_x_px=40.0, center_y_px=26.0, semi_major_px=a, semi_minor_px=b, theta_rad=0.2
    )


def distribution(*ellipses: Ellipse) -> EllipseDistribution:
    return EllipseDistribution.fit(ellipses, size_hws=[SIZE_HW] * len(ellipses))


def draw(n: int, *, seed: int = 0, size_hw=SIZE_HW) -> list[tuple[np.ndarray, Ellipse]]:
    fitted = distribution(make(), make(a=22), make(a=18, b=14))
    return list(phantom_pairs(distribution=fitted, n=n, seed=seed, size_hw=size_hw))


def test_pairs_are_images_of_their_size_with_a_head_in_them():
    pairs = draw(12, size_hw=(173, 256))
    assert len(pairs) == 12
    edges, insides = [], []
    for image, ellipse in pairs:
        assert image.shape == (173, 256)
        assert image.dtype == np.uint8
        mask = rasterise(ellipse, size_hw=(173, 256)).astype(bool)
        inner = rasterise(
            Ellipse(
                center_x_px=ellipse.center_x_px,
                center_y_px=ellipse.center_y_px,
                semi_major_px=ellipse.semi_major_px - 5,
                semi_minor_px=ellipse.semi_minor_px - 5,
                theta_rad=ellipse.theta_rad,
            ),
            size_hw=(173, 256),
        ).astype(bool)
        edges.append(image[mask & ~inner].mean())
        insides.append(image[inner].mean())
    # The skull is brighter than what it encloses.
    assert np.mean(edges) > 1.3 * np.mean(insides)


def test_a_pair_depends_on_the_seed_and_its_number_only():
    few, many, other = draw(3), draw(5), draw(3, seed=1)
    for first, second in zip(few, many[:3], strict=True):
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1] == second[1]
    assert few[0][1] != other[0][1]
    assert not np.array_equal(few[0][0], few[1][0])
    assert draw(0) == []


def test_ellipses_are_those_of_the_distribution():
    for _, ellipse in draw(40):
        assert 15 < ellipse.semi_major_px < 28
        assert 0.5 < ellipse.semi_minor_px / ellipse.semi_major_px <= 1


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1), (1.35, 1), (1.425, 0.5), (1.5, 0)])
def test_small_heads_are_early(share, expected):
    circle = make(a=share * 80 / (2 * np.pi), b=share * 80 / (2 * np.pi))
    assert perimeter_px(circle) / 80 == pytest.approx(share)
    assert early_probability(circle, width_px=80) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("a", "expected"), [(14.0, 20), (26.0, 0)])
def test_the_share_of_early_scenes_follows_the_labels(a, expected, monkeypatch):
    early = []

    def record(rng, *, ellipse, size_hw, early: bool, seen=early):
        seen.append(early)
        return np.zeros(size_hw, dtype=np.uint8)

    monkeypatch.setattr(module, "draw_head", record)
    fitted = distribution(*[make(a=a, b=0.8 * a)] * 12)
    list(phantom_pairs(distribution=fitted, n=20, seed=0, size_hw=SIZE_HW))
    assert sum(early) == expected


@pytest.mark.parametrize(
    "arguments", [{"n": -1, "size_hw": SIZE_HW}, {"n": 1, "size_hw": (31, 80)}]
)
def test_wrong_arguments_are_refused_at_the_call(arguments):
    with pytest.raises(ValueError, match="phantom pairs need"):
        phantom_pairs(distribution=distribution(make()), seed=0, **arguments)
