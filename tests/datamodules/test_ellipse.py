import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import least_squares

from datamodules.ellipse import (
    Ellipse,
    EllipseDistribution,
    contour_distance_px,
    fit_ellipse,
    perimeter_px,
    rasterise,
    scale_ellipse,
)


def make(x=40.2, y=26.7, a=21.3, b=15.1, theta=0.4) -> Ellipse:
    return Ellipse(center_x_px=x, center_y_px=y, semi_major_px=a, semi_minor_px=b, theta_rad=theta)


def contour(e: Ellipse, t: np.ndarray) -> np.ndarray:
    u, v = e.semi_major_px * np.cos(t), e.semi_minor_px * np.sin(t)
    cos, sin = math.cos(e.theta_rad), math.sin(e.theta_rad)
    return np.stack([e.center_x_px + cos * u - sin * v, e.center_y_px + sin * u + cos * v], axis=1)


def values(e: Ellipse) -> np.ndarray:
    return np.array([e.center_x_px, e.center_y_px, e.semi_major_px, e.semi_minor_px, e.theta_rad])


@pytest.mark.parametrize("theta", [0.0, 0.4, math.pi / 2, 3.1])
@pytest.mark.parametrize("b", [3.0, 15.1, 20.9])
def test_fit_recovers_a_known_ellipse(theta, b):
    expected = make(b=b, theta=theta)
    found = fit_ellipse(contour(expected, np.linspace(0, 2 * math.pi, 40, endpoint=False)))
    difference = values(found) - values(expected)
    difference[4] = math.sin(difference[4])
    np.testing.assert_allclose(difference, 0, atol=1e-6)


def test_fit_of_a_circle_has_equal_axes():
    found = fit_ellipse(contour(make(a=12, b=12), np.arange(20.0)))
    np.testing.assert_allclose(values(found)[:4], [40.2, 26.7, 12, 12], atol=1e-6)


def test_fit_of_a_noisy_half_arc_is_close():
    rng = np.random.default_rng(0)
    expected = make(a=200, b=150)
    points = contour(expected, np.linspace(0.3, 0.3 + math.pi, 600)) + rng.normal(0, 0.5, (600, 2))
    found = fit_ellipse(points)
    np.testing.assert_allclose(values(found)[:4], values(expected)[:4], atol=1.5)


def test_fit_minimises_what_scipy_minimises():
    rng = np.random.default_rng(1)
    points = contour(make(), rng.uniform(0, 5, 80)) + rng.normal(0, 0.6, (80, 2))

    def residuals(p):
        return contour_distance_px(make(*p), points)

    reference = least_squares(residuals, values(make()), xtol=1e-14, ftol=1e-14, gtol=1e-12).x
    np.testing.assert_allclose(values(fit_ellipse(points)), reference, atol=1e-4)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((0, 2)),
        np.random.default_rng(0).random((4, 2)),
        np.stack([np.arange(9.0), 2 * np.arange(9.0)], axis=1),
        np.ones((9, 2)),
        np.full((9, 2), np.nan),
        np.stack([np.arange(-9.0, 10), np.arange(-9.0, 10) ** 2], axis=1),
    ],
    ids=["none", "four", "line", "one point", "nan", "parabola"],
)
def test_fit_refuses_points_that_determine_no_ellipse(points):
    with pytest.raises(ValueError, match="ellipse"):
        fit_ellipse(points)


@pytest.mark.parametrize(("a", "b"), [(21.3, 15.1), (10, 10), (100, 1)])
def test_perimeter_against_numerical_integration(a, b):
    speed = quad(lambda t: math.hypot(a * math.sin(t), b * math.cos(t)), 0, math.pi / 2, limit=200)
    assert perimeter_px(make(a=a, b=b)) == pytest.approx(4 * speed[0], rel=1e-9)


@pytest.mark.parametrize(
    "ellipse",
    [
        make(),
        make(theta=2.5),
        make(x=1, y=52, a=30),
        make(x=40, y=27, a=15.0, b=15.0),
        make(a=400, b=300),
        make(x=-100),
        make(a=0.3, b=0.2),
    ],
)
def test_rasterise_against_a_loop_over_pixels(ellipse):
    expected = np.zeros((54, 80), dtype=np.uint8)
    cos, sin = math.cos(ellipse.theta_rad), math.sin(ellipse.theta_rad)
    for row in range(54):
        for column in range(80):
            dx, dy = column - ellipse.center_x_px, row - ellipse.center_y_px
            u = (cos * dx + sin * dy) / ellipse.semi_major_px
            v = (cos * dy - sin * dx) / ellipse.semi_minor_px
            expected[row, column] = u * u + v * v <= 1 + 1e-12
    mask = rasterise(ellipse, size_hw=(54, 80))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


def test_distance_is_exact_on_axes_and_close_near_the_contour():
    e = make(theta=0.0)
    on_axes = np.array([[40.2 + 25, 26.7], [40.2, 26.7 - 10], [40.2, 26.7]])
    np.testing.assert_allclose(contour_distance_px(e, on_axes), [25 - 21.3, -5.1, -15.1])
    t = np.linspace(0, 2 * math.pi, 100_000)
    points = contour(make(a=23.3, b=17.1), np.linspace(0, 6, 50))
    nearest = [np.linalg.norm(contour(make(), t) - point, axis=1).min() for point in points]
    np.testing.assert_allclose(contour_distance_px(make(), points), nearest, atol=0.05)
    assert contour_distance_px(e, np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize(("scale_x", "scale_y"), [(0.32, 256 / 540), (2.0, 0.5), (1.0, 1.0)])
def test_scaled_ellipse_holds_the_scaled_contour(scale_x, scale_y):
    scaled = scale_ellipse(make(), scale_x=scale_x, scale_y=scale_y)
    points = (contour(make(), np.arange(0, 6, 0.1)) + 0.5) * (scale_x, scale_y) - 0.5
    np.testing.assert_allclose(contour_distance_px(scaled, points), 0, atol=1e-9)
    area = math.pi * scaled.semi_major_px * scaled.semi_minor_px
    assert area == pytest.approx(math.pi * 21.3 * 15.1 * scale_x * scale_y)


def test_scale_and_axes_are_checked():
    with pytest.raises(ValueError, match="positive"):
        scale_ellipse(make(), scale_x=0, scale_y=1)
    with pytest.raises(ValueError, match="semi_minor_px"):
        make(a=10, b=11)
    with pytest.raises(ValueError, match="theta_rad"):
        make(theta=math.pi)


def test_distribution_of_one_ellipse_stays_near_it_and_transfers():
    distribution = EllipseDistribution.fit([make()], size_hws=[(54, 80)])
    rng = np.random.default_rng(0)
    drawn = [distribution.sample(rng, size_hw=(540, 800)) for _ in range(200)]
    axes = np.array([e.semi_major_px for e in drawn])
    assert axes.std() > 1
    assert np.median(axes) == pytest.approx(213, rel=0.05)
    assert np.median([e.center_x_px for e in drawn]) == pytest.approx(406.5, abs=15)
    assert np.median([e.center_y_px for e in drawn]) == pytest.approx(271.5, abs=15)
    # A sixth of the draws on either side end one bandwidth away from what was seen.
    ends = np.log([axes.min() / 213, axes.max() / 213])
    np.testing.assert_allclose(ends, distribution.bandwidth[0] * np.array([-1, 1]))
    small, large = (
        distribution.sample(np.random.default_rng(1), size_hw=size)
        for size in ((54, 80), (540, 800))
    )
    assert large.center_x_px == pytest.approx(10 * (small.center_x_px + 0.5) - 0.5)
    assert large.center_y_px == pytest.approx(10 * (small.center_y_px + 0.5) - 0.5)


def test_a_round_head_stays_within_the_axes_seen():
    distribution = EllipseDistribution.fit([make(a=20, b=20)], size_hws=[(54, 80)])
    rng = np.random.default_rng(0)
    drawn = [distribution.sample(rng, size_hw=(54, 80)) for _ in range(200)]
    most = 20 * math.exp(distribution.bandwidth[0])
    assert max(each.semi_major_px for each in drawn) == pytest.approx(most)


def test_distribution_jitters_less_with_more_ellipses_and_stays_in_range():
    rng = np.random.default_rng(0)
    ellipses = [
        make(x=rng.uniform(30, 50), a=rng.uniform(18, 25), b=rng.uniform(12, 17)) for _ in range(60)
    ]
    few = EllipseDistribution.fit(ellipses[:3], size_hws=[(54, 80)] * 3)
    many = EllipseDistribution.fit(ellipses, size_hws=[(54, 80)] * 60)
    assert (many.bandwidth < few.bandwidth).all()
    # Scott's factor, halved.
    spread = np.log([each.semi_major_px for each in ellipses]).std()
    assert many.bandwidth[0] == pytest.approx(0.5 * 60 ** (-1 / 9) * spread)
    drawn = [many.sample(rng, size_hw=(54, 80)) for _ in range(500)]
    margin = math.exp(many.bandwidth[0])
    axes = [e.semi_major_px for e in ellipses]
    assert max(e.semi_major_px for e in drawn) <= max(axes) * margin * (1 + 1e-9)
    assert min(e.semi_major_px for e in drawn) >= min(axes) / margin * (1 - 1e-9)
    assert np.mean([e.semi_major_px for e in drawn]) == pytest.approx(np.mean(axes), abs=0.5)


def test_balanced_sizes_are_drawn_from_each_tercile_equally_often():
    # Two small, two middle and eleven large heads.
    sizes = [10.0, 11, 20, 21, *([40.0] * 11)]
    ellipses = [make(a=size, b=0.8 * size) for size in sizes]
    given = {"size_hws": [(54, 80)] * len(sizes)}
    fitted = EllipseDistribution.fit(ellipses, **given, balance_sizes=True)
    rng = np.random.default_rng(0)
    rows = [fitted.sample_with_source(rng, size_hw=(54, 80))[1] for _ in range(600)]
    counts = [sum(row < 5 for row in rows), sum(5 <= row < 10 for row in rows)]
    assert counts == pytest.approx([200, 200], abs=40)
    assert set(rows) == set(range(15))
    few = EllipseDistribution.fit(ellipses[:2], size_hws=[(54, 80)] * 2, balance_sizes=True)
    assert {few.sample_with_source(rng, size_hw=(54, 80))[1] for _ in range(20)} == {0, 1}


def test_terciles_go_by_the_area_in_any_order_of_the_ellipses():
    ellipses = [make(a=20, b=9), make(a=10, b=10), make(a=30, b=5)]
    fitted = EllipseDistribution.fit(ellipses, size_hws=[(54, 80)] * 3, balance_sizes=True)
    assert fitted.groups.tolist() == [2, 0, 1]


def test_distribution_repeats_with_the_generator_and_refuses_nothing():
    distribution = EllipseDistribution.fit([make(), make(a=30)], size_hws=[(54, 80)] * 2)
    first = [distribution.sample(np.random.default_rng(5), size_hw=(54, 80)) for _ in range(2)]
    assert first[0] == first[1]
    with pytest.raises(ValueError, match="at least one"):
        EllipseDistribution.fit([], size_hws=[])
