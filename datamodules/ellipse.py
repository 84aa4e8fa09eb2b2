"""Ellipses: fit, distance, perimeter, raster, scaling, and a distribution to draw new ones from.

Pure. Image coordinates throughout: x to the right, y down, pixel centres at integers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ellipe

_MIN_SEMI_AXIS_PX = 0.5
_MAX_ITERATIONS = 100
_TOLERANCE_PX = 1e-6


@dataclass(frozen=True, kw_only=True)
class Ellipse:
    """An ellipse in pixels.

    Attributes:
        center_x_px: column of the centre (0.0 is the centre of the first column).
        center_y_px: row of the centre.
        semi_major_px: longer semi-axis, > 0.
        semi_minor_px: shorter semi-axis, in (0, semi_major_px].
        theta_rad: angle of the major axis, from +x towards +y, in [0, pi).
    """

    center_x_px: float
    center_y_px: float
    semi_major_px: float
    semi_minor_px: float
    theta_rad: float

    def __post_init__(self):
        if not 0 < self.semi_minor_px <= self.semi_major_px < math.inf:
            raise ValueError(
                "an ellipse needs 0 < semi_minor_px <= semi_major_px, "
                f"got {self.semi_minor_px} and {self.semi_major_px}"
            )
        if not 0 <= self.theta_rad < math.pi:
            raise ValueError(f"theta_rad must lie in [0, pi), got {self.theta_rad}")


def ellipse_from_axes(
    center_xy: Sequence[float], *, axes: Sequence[float], theta_rad: float
) -> Ellipse:
    """Return the ellipse of a centre, two semi-axes in any order and the first one's angle.

    All in pixels and radians; ValueError where a semi-axis is not positive and finite.
    """
    first, second = float(axes[0]), float(axes[1])
    if second > first:
        first, second, theta_rad = second, first, theta_rad + math.pi / 2
    theta_rad = float(theta_rad) % math.pi
    return Ellipse(
        center_x_px=float(center_xy[0]),
        center_y_px=float(center_xy[1]),
        semi_major_px=first,
        semi_minor_px=second,
        # -1e-17 % pi rounds to pi itself.
        theta_rad=0.0 if theta_rad >= math.pi else theta_rad,
    )


def _from_moments(center_xy: Sequence[float], matrix: np.ndarray) -> Ellipse:
    """Return the ellipse whose matrix R diag(a^2, b^2) R^T is given."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] <= 0:
        raise ValueError("the points do not determine an ellipse")
    theta = math.atan2(vectors[1, 1], vectors[0, 1])
    return ellipse_from_axes(center_xy, axes=np.sqrt(values[::-1]), theta_rad=theta)


def _fit_direct(points: np.ndarray) -> Ellipse:
    """Least-squares conic that is always an ellipse (Halir and Flusser 1998)."""
    center, scale = points.mean(axis=0), points.std(axis=0).max()
    x, y = ((points - center) / scale).T
    quadratic = np.stack([x * x, x * y, y * y], axis=1)
    linear = np.stack([x, y, np.ones_like(x)], axis=1)
    cross = quadratic.T @ linear
    reduce = -np.linalg.solve(linear.T @ linear, cross.T)
    reduced = quadratic.T @ quadratic + cross @ reduce
    values, vectors = np.linalg.eig(np.stack([reduced[2] / 2, -reduced[1], reduced[0] / 2]))
    # Numerical noise makes the eigenvalue of exact data complex.
    vectors = np.real(vectors[:, np.argsort(np.abs(values))])
    is_ellipse = 4 * vectors[0] * vectors[2] - vectors[1] ** 2 > 0
    if not is_ellipse.any():
        raise ValueError("the points do not determine an ellipse")
    a, b, c = vectors[:, is_ellipse][:, 0]
    d, e, f = reduce @ (a, b, c)
    form = np.array([[a, b / 2], [b / 2, c]])
    middle = np.linalg.solve(form, (-d / 2, -e / 2))
    level = middle @ form @ middle - f
    matrix = np.linalg.inv(form) * level
    return _from_moments(center + scale * middle, matrix * scale**2)


def _parameters(ellipse: Ellipse) -> np.ndarray:
    return np.array(
        [
            ellipse.center_x_px,
            ellipse.center_y_px,
            math.log(ellipse.semi_major_px),
            math.log(ellipse.semi_minor_px),
            ellipse.theta_rad,
        ]
    )


def _residuals(parameters: np.ndarray, points: np.ndarray) -> np.ndarray:
    """First-order signed distance: (r - 1) / |grad r| with r the scaled radius."""
    cos, sin = math.cos(parameters[4]), math.sin(parameters[4])
    dx, dy = points[:, 0] - parameters[0], points[:, 1] - parameters[1]
    a, b = math.exp(parameters[2]), math.exp(parameters[3])
    u, v = (cos * dx + sin * dy) / a, (cos * dy - sin * dx) / b
    radius, slope = np.hypot(u, v), np.hypot(u / a, v / b)
    at_center = slope == 0
    return np.where(at_center, -min(a, b), (radius - 1) * radius / np.where(at_center, 1.0, slope))


def fit_ellipse(points_xy_px: np.ndarray) -> Ellipse:
    """Fit the ellipse with the smallest squared distance to the points.

    A direct algebraic fit starts a Levenberg-Marquardt refinement of the distances; without it
    partial arcs and thick lines come out too small.

    Args:
        points_xy_px: points, float (N, 2), x and y in pixels, N >= 5; all of a thick line's
            pixels may be given, the fit is then the line's centre.

    Returns:
        The ellipse, semi-axes and centre in pixels.

    Raises:
        ValueError: fewer than five points, or points that determine no ellipse (on a line,
            on a parabola).

    Source:
        Halir and Flusser, Numerically stable direct least squares fitting of ellipses (1998);
        refinement checked against scipy.optimize.least_squares to 1e-4 px.
    """
    points = np.asarray(points_xy_px, dtype=np.float64).reshape(-1, 2)
    if len(points) < 5:
        raise ValueError(f"an ellipse needs at least 5 points, got {len(points)}")
    if not np.isfinite(points).all() or np.linalg.matrix_rank(points - points.mean(axis=0)) < 2:
        raise ValueError("the points do not determine an ellipse")
    try:
        start = _fit_direct(points)
    except np.linalg.LinAlgError as error:
        raise ValueError("the points do not determine an ellipse") from error
    best = _refine(_parameters(start), points)
    axes = np.exp(best[2:4])
    extent = np.ptp(points, axis=0).max()
    if not np.isfinite(best).all() or axes.min() < _MIN_SEMI_AXIS_PX or axes.max() > 50 * extent:
        raise ValueError("the points do not determine an ellipse")
    return ellipse_from_axes(best[:2], axes=axes, theta_rad=best[4])


def _refine(parameters: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Levenberg-Marquardt on the distances, with a numerical Jacobian."""
    residual = _residuals(parameters, points)
    loss, damping = residual @ residual, 1e-3
    for _ in range(_MAX_ITERATIONS):
        # The same small shift of the contour (1e-5 px) in each parameter.
        size = math.exp(parameters[2])
        steps = 1e-5 / np.array([1, 1, size, size, size])
        shifted = [_residuals(parameters + shift, points) for shift in np.diag(steps)]
        jacobian = (np.stack(shifted) - residual) / steps[:, None]
        normal, gradient = jacobian @ jacobian.T, jacobian @ residual
        # The angle of a circle is free: a floor keeps the system solvable.
        scale = np.diag(np.maximum(normal.diagonal(), 1e-9 * len(points)))
        while True:
            change = -np.linalg.solve(normal + damping * scale, gradient)
            # An axis may not change by more than a fifth in one step.
            change[2:4] = np.clip(change[2:4], -0.2, 0.2)
            moved_px = np.abs(change * [1, 1, size, size, size]).max()
            if not moved_px > _TOLERANCE_PX:
                return parameters
            trial = parameters + change
            trial_residual = _residuals(trial, points)
            trial_loss = trial_residual @ trial_residual
            if trial_loss <= loss:
                break
            damping *= 4
        parameters, residual, loss = trial, trial_residual, trial_loss
        damping = max(damping / 10, 1e-12)
    return parameters


def contour_distance_px(ellipse: Ellipse, points_xy_px: np.ndarray) -> np.ndarray:
    """Return the signed distance of points from the contour, to first order.

    Exact for circles and on the axes; elsewhere good close to the contour only.

    Args:
        ellipse: the ellipse.
        points_xy_px: float (N, 2), x and y in pixels.

    Returns:
        float64 (N,), pixels, positive outside; empty for no points.

    Source:
        Checked against the nearest of 100,000 contour points: within 0.05 px at 2 px.
    """
    points = np.asarray(points_xy_px, dtype=np.float64).reshape(-1, 2)
    return _residuals(_parameters(ellipse), points)


def perimeter_px(ellipse: Ellipse) -> float:
    """Return the exact perimeter 4 a E(1 - b^2 / a^2), in pixels.

    HC18's head circumference is this times the pixel size.

    Source:
        Complete elliptic integral of the second kind; checked against numerical integration of
        the arc length to 1e-9 relative.
    """
    eccentricity_squared = 1 - (ellipse.semi_minor_px / ellipse.semi_major_px) ** 2
    return float(4 * ellipse.semi_major_px * ellipe(eccentricity_squared))


def rasterise(ellipse: Ellipse, *, size_hw: tuple[int, int]) -> np.ndarray:
    """Fill the ellipse: a pixel is set where its centre lies inside or on the contour.

    Args:
        ellipse: may leave the image in part or wholly.
        size_hw: rows and columns of the mask.

    Returns:
        uint8 (H, W) in {0, 1}; all zero where the ellipse holds no pixel centre.
    """
    height, width = size_hw
    cos, sin = math.cos(ellipse.theta_rad), math.sin(ellipse.theta_rad)
    a, b = ellipse.semi_major_px, ellipse.semi_minor_px
    # The contour is p dx^2 + 2 q dx dy + r dy^2 = 1: each row holds one span of columns.
    p, q = (cos / a) ** 2 + (sin / b) ** 2, cos * sin * (a**-2 - b**-2)
    r = (sin / a) ** 2 + (cos / b) ** 2
    dy = np.arange(height) - ellipse.center_y_px
    under_root = (q * dy) ** 2 - p * (r * dy * dy - 1)
    half = np.sqrt(np.maximum(under_root, 0)) / p
    middle = ellipse.center_x_px - q * dy / p
    # The tolerance keeps points on the contour in, whatever the rounding.
    first = np.clip(np.ceil(middle - half - 1e-9), 0, width)
    last = np.clip(np.floor(middle + half + 1e-9), -1, width - 1)
    last[under_root < 0] = -1
    columns = np.arange(width, dtype=np.int32)
    spans = (columns >= first.astype(np.int32)[:, None]) & (
        columns <= last.astype(np.int32)[:, None]
    )
    return spans.astype(np.uint8)


def scale_ellipse(ellipse: Ellipse, *, scale_x: float, scale_y: float) -> Ellipse:
    """Return the exact image of the ellipse under x' = (x + 0.5) scale_x - 0.5, likewise y.

    Unequal scales turn and reshape the ellipse; scaling its axes alone would be wrong.

    Args:
        ellipse: in the pixels of the original image.
        scale_x: new width / old width, > 0.
        scale_y: new height / old height, > 0.

    Raises:
        ValueError: a scale that is not positive.
    """
    if scale_x <= 0 or scale_y <= 0:
        raise ValueError(f"scales must be positive, got {scale_x} and {scale_y}")
    cos, sin = math.cos(ellipse.theta_rad), math.sin(ellipse.theta_rad)
    axes = np.array([[cos, -sin], [sin, cos]]) * (ellipse.semi_major_px, ellipse.semi_minor_px)
    scaled = np.array([[scale_x], [scale_y]]) * axes
    center = (
        (ellipse.center_x_px + 0.5) * scale_x - 0.5,
        (ellipse.center_y_px + 0.5) * scale_y - 0.5,
    )
    return _from_moments(center, scaled @ scaled.T)


# Standard deviations used where the sample is too small to have its own: of log a (relative to
# the image width), log(b / a), the centre's x and y relative to the image; and of the angle.
_PRIOR_STD = np.array([0.15, 0.06, 0.05, 0.05])
_PRIOR_THETA_STD_RAD = 0.3


@dataclass(frozen=True, kw_only=True)
class EllipseDistribution:
    """Smoothed bootstrap over ellipses, in units of the image size so that it transfers.

    Attributes:
        features: float64 (N, 4): log(a / W), log(b / a), x / W, y / H of the centre.
        thetas_rad: float64 (N,).
        groups: int64 (N,), None for none: an ellipse is drawn from each group equally often.
    """

    features: np.ndarray
    thetas_rad: np.ndarray
    groups: np.ndarray | None = None

    @classmethod
    def fit(
        cls,
        ellipses: Sequence[Ellipse],
        *,
        size_hws: Sequence[tuple[int, int]],
        balance_sizes: bool = False,
    ) -> "EllipseDistribution":
        """Store the ellipses of images of the given sizes (rows, columns).

        With `balance_sizes` each tercile of their sizes, a b / W^2, is drawn from equally often.

        Raises:
            ValueError: no ellipse, or not one size per ellipse.
        """
        if not ellipses:
            raise ValueError("the distribution needs at least one ellipse")
        features = [
            [
                math.log(ellipse.semi_major_px / width),
                math.log(ellipse.semi_minor_px / ellipse.semi_major_px),
                (ellipse.center_x_px + 0.5) / width,
                (ellipse.center_y_px + 0.5) / height,
            ]
            for ellipse, (height, width) in zip(ellipses, size_hws, strict=True)
        ]
        groups, rows = None, np.array(features)
        if balance_sizes:
            ranks = np.argsort(np.argsort(2 * rows[:, 0] + rows[:, 1], kind="stable"))
            groups = 3 * ranks // len(ranks)
        return cls(
            features=rows,
            thetas_rad=np.array([e.theta_rad for e in ellipses]),
            groups=groups,
        )

    @property
    def bandwidth(self) -> np.ndarray:
        """Jitter of the four features, float64 (4,): Scott's factor for five dimensions."""
        spread = np.minimum(self.features.std(axis=0), _PRIOR_STD)
        # Two frames of one exam have hardly any spread: below ten ellipses the prior counts too.
        weight = min(1.0, len(self.features) / 10)
        return self._shrink * (weight * spread + (1 - weight) * _PRIOR_STD)

    @property
    def _shrink(self) -> float:
        return 0.5 * len(self.features) ** (-1 / 9)

    def sample(self, rng: np.random.Generator, *, size_hw: tuple[int, int]) -> Ellipse:
        """Draw a training ellipse and jitter it, inside the ranges seen plus one bandwidth.

        Args:
            rng: the only source of randomness; the same state gives the same ellipse.
            size_hw: rows and columns of the image that the ellipse is for.

        Returns:
            An ellipse in pixels of that image; like the training ones it may leave it.
        """
        return self.sample_with_source(rng, size_hw=size_hw)[0]

    def sample_with_source(
        self, rng: np.random.Generator, *, size_hw: tuple[int, int]
    ) -> tuple[Ellipse, int]:
        """Draw as `sample` does, and say which ellipse given to `fit` it came from."""
        height, width = size_hw
        row = self._draw_row(rng)
        bandwidth = self.bandwidth
        low = self.features.min(axis=0) - bandwidth
        high = self.features.max(axis=0) + bandwidth
        # b never exceeds a.
        high[1] = min(high[1], 0.0)
        jittered = self.features[row] + bandwidth * rng.standard_normal(4)
        log_axis, log_ratio, x, y = np.clip(jittered, low, high)
        theta = self.thetas_rad[row] + self._shrink * _PRIOR_THETA_STD_RAD * rng.standard_normal()
        major = width * math.exp(log_axis)
        drawn = ellipse_from_axes(
            (x * width - 0.5, y * height - 0.5),
            axes=(major, major * math.exp(log_ratio)),
            theta_rad=theta,
        )
        return drawn, row

    def _draw_row(self, rng: np.random.Generator) -> int:
        if self.groups is None:
            return int(rng.integers(len(self.features)))
        group = rng.choice(np.unique(self.groups))
        return int(rng.choice(np.flatnonzero(self.groups == group)))
