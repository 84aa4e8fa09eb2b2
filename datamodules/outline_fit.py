"""Robust search for the one ellipse that a bright line draws; pure, for `outline`.

Ellipses through five of the line's pixels are scored by how much of them the line covers (RANSAC);
the best are refined on the line's centre, looked up along the ellipse's normals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datamodules.ellipse import Ellipse, contour_distance_px, fit_ellipse, perimeter_px

_REACH_SHARES = (0.04, 0.02, 0.015, 0.015)  # of the shorter side: where refinement looks for line
_MIN_REACH_PX = 2.0
_MIN_AXIS_RATIO = 0.3  # HC18's, squashed to a square, are 0.52 to 0.98
_HYPOTHESES = 1500
_REFINED = 12
_FINISHED = 3
_SCORE_POINTS = 72
_CONTOUR_POINTS = 240
_STEP_PX = 0.5
_MARGIN_SHARE = 0.06  # of the shorter side: how far a run is followed beyond the reach
_WIDE = 2.5  # times the median thickness: a blob on the line


@dataclass(frozen=True, kw_only=True)
class LineAlong:
    """The line near one ellipse, looked up along the normals of R of its points.

    Attributes:
        centers_xy: float64 (R, 2), the line's centre in pixels.
        offsets_px: float64 (R,), distance of the centre from the ellipse, positive outside.
        widths_px: float64 (R,), extent of the line along the normal.
        is_whole: bool (R,), both sides of the line are seen, so that its centre is known.
        closedness: share in [0, 1] of the visible ellipse's length with line near it.
        visible_share: share in [0, 1] of the ellipse's length inside the image.
    """

    centers_xy: np.ndarray
    offsets_px: np.ndarray
    widths_px: np.ndarray
    is_whole: np.ndarray
    closedness: float
    visible_share: float


def best_ellipse(line: np.ndarray, *, threshold: int) -> tuple[Ellipse, LineAlong] | None:
    """Return the ellipse with the longest and most closed line, and the line along it.

    Args:
        line: uint8 (H, W) with at least five pixels above the threshold.
        threshold: grey values above it are the line.

    Returns:
        None where no ellipse follows any line. The result depends on the image alone.

    Source:
        Fischler and Bolles, Random sample consensus (1981).
    """
    found = _candidates(line > threshold)
    tolerance_px = _reach_px(line.shape, _REACH_SHARES[-1]) / 3
    for shares, kept in ((_REACH_SHARES[:1], _FINISHED), (_REACH_SHARES[1:], 1)):
        refined = [
            _refine(ellipse, line=line, threshold=threshold, reach_shares=shares)
            for ellipse in found
        ]
        scored = sorted(
            (r for r in refined if r is not None),
            key=lambda r: _score(r, tolerance_px=tolerance_px),
            reverse=True,
        )
        found = _distinct([ellipse for ellipse, _ in scored])[:kept]
    return scored[0] if scored else None


def _candidates(foreground: np.ndarray) -> list[Ellipse]:
    """Return the ellipses through five pixels each that the line covers best, best first."""
    mask = foreground.astype(np.uint8)
    rows, columns = np.nonzero(foreground)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[rows, columns].astype(np.float64)
    # A blob has many pixels, all of them deep; the line's lie at its edge.
    weights = depth**-2
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    # A fixed seed: the same image gives the same ellipse.
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(points), size=(_HYPOTHESES, 5), p=weights / weights.sum())
    centers, shapes = _conics_through(points[chosen])
    angles = np.arange(_SCORE_POINTS) * (2 * np.pi / _SCORE_POINTS)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    contours = centers[:, :, None] + np.linalg.cholesky(shapes) @ circle
    scores = _scores(contours, to_line=cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3))
    best = np.argsort(-scores, kind="stable")[:_REFINED]
    return [_ellipse(centers[i], shapes[i]) for i in best if scores[i] > 0]


def _conics_through(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (K, 2) and R diag(a^2, b^2) R^T (K, 2, 2) of the conics that are ellipses.

    Args:
        points: float64 (N, 5, 2).
    """
    middle, scale = points.mean(axis=(0, 1)), points.std(axis=(0, 1)).max() + 1e-9
    x, y = np.moveaxis((points - middle) / scale, 2, 0)
    design = np.stack([x * x, x * y, y * y, x, y, np.ones_like(x)], axis=2)
    a, b, c, d, e, f = np.linalg.svd(design)[2][:, -1].T
    determinant = a * c - b * b / 4
    keep = determinant > 1e-9
    a, b, c, d, e, f, determinant = (v[keep] for v in (a, b, c, d, e, f, determinant))
    # Where the gradient (2 a x + b y + d, b x + 2 c y + e) is zero.
    centers = np.stack([b * e - 2 * c * d, b * d - 2 * a * e], axis=1) / (4 * determinant)[:, None]
    level = -(f + (d * centers[:, 0] + e * centers[:, 1]) / 2)
    inverse = np.stack([np.stack([c, -b / 2], 1), np.stack([-b / 2, a], 1)], 1)
    shapes = inverse * (level / determinant)[:, None, None] * scale**2
    centers = middle + scale * centers
    minor_squared, major_squared = np.linalg.eigvalsh(shapes).T
    # A needle would count both of its sides on one straight line.
    real = (minor_squared > 4) & (minor_squared > _MIN_AXIS_RATIO**2 * major_squared)
    return centers[real], shapes[real]


def _scores(contours: np.ndarray, *, to_line: np.ndarray) -> np.ndarray:
    """Return covered length times closedness, float64 (K,): a blob's inside has no length.

    Args:
        contours: (K, 2, P) x and y of points on each ellipse.
        to_line: (H, W) distance from each pixel to the nearest one of the line.
    """
    height, width = to_line.shape
    columns, rows = np.rint(contours).astype(int).transpose(1, 0, 2)
    visible = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    near = to_line[rows.clip(0, height - 1), columns.clip(0, width - 1)] <= _reach_px(
        to_line.shape, _REACH_SHARES[-1]
    )
    closed = np.roll(contours, -1, axis=2) - contours
    length = np.hypot(closed[:, 0], closed[:, 1])
    covered = (length * (near & visible)).sum(axis=1)
    return covered**2 / np.maximum((length * visible).sum(axis=1), 1e-9)


def _ellipse(center: np.ndarray, shape: np.ndarray) -> Ellipse:
    values, vectors = np.linalg.eigh(shape)
    theta_rad = math.atan2(vectors[1, 1], vectors[0, 1]) % math.pi
    return Ellipse(
        center_x_px=float(center[0]),
        center_y_px=float(center[1]),
        semi_major_px=math.sqrt(values[1]),
        semi_minor_px=math.sqrt(values[0]),
        theta_rad=0.0 if theta_rad >= math.pi else theta_rad,
    )


def _reach_px(size_hw: tuple[int, int], share: float) -> float:
    return max(_MIN_REACH_PX, share * min(size_hw))


def _refine(
    ellipse: Ellipse, *, line: np.ndarray, threshold: int, reach_shares: Sequence[float]
) -> tuple[Ellipse, LineAlong] | None:
    """Fit the line's centre near the ellipse, nearer each time; None where there is no line."""
    for share in reach_shares:
        reach_px = _reach_px(line.shape, share)
        along = _line_along(ellipse, line=line, threshold=threshold, reach_px=reach_px)
        if not len(along.offsets_px):
            return None
        is_blob = along.widths_px > _WIDE * np.median(along.widths_px)
        try:
            ellipse = _fit_without_outliers(along.centers_xy[along.is_whole & ~is_blob])
        except ValueError:
            return None
    reach_px = _reach_px(line.shape, _REACH_SHARES[-1])
    along = _line_along(ellipse, line=line, threshold=threshold, reach_px=reach_px)
    return (ellipse, along) if len(along.offsets_px) else None


def _score(refined: tuple[Ellipse, LineAlong], *, tolerance_px: float) -> float:
    """Return covered length times closedness, line counting the less the farther off it is."""
    ellipse, along = refined
    nearness = float(np.mean(1 / (1 + (along.offsets_px / tolerance_px) ** 2)))
    return (nearness * along.closedness) ** 2 * along.visible_share * perimeter_px(ellipse)


def _distinct(ellipses: list[Ellipse]) -> list[Ellipse]:
    """Drop each ellipse that an earlier one equals within a pixel."""
    kept: list[Ellipse] = []
    for ellipse in ellipses:
        contour = _contour(ellipse)[0]
        if all(np.abs(contour_distance_px(other, contour)).max() > 1 for other in kept):
            kept.append(ellipse)
    return kept


def _fit_without_outliers(points: np.ndarray) -> Ellipse:
    """Fit an ellipse, and again without what lies beyond three standard deviations."""
    rough = fit_ellipse(points)
    distance = np.abs(contour_distance_px(rough, points))
    # 1.4826 medians of a normal error's size are its standard deviation.
    return fit_ellipse(points[distance <= max(1.0, 3 * 1.4826 * float(np.median(distance)))])


def _line_along(
    ellipse: Ellipse, *, line: np.ndarray, threshold: int, reach_px: float
) -> LineAlong:
    """Look for the line along the ellipse's normals; the piece nearest to the ellipse counts."""
    contour, normals = _contour(ellipse)
    inside_image = _is_inside(contour, size_hw=line.shape)
    contour, normals = contour[inside_image], normals[inside_image]
    steps = math.ceil((reach_px + _MARGIN_SHARE * min(line.shape)) / _STEP_PX)
    offsets = np.arange(-steps, steps + 1) * _STEP_PX
    positions = contour[:, None] + offsets[:, None] * normals[:, None]
    seen = _is_inside(positions, size_hw=line.shape)
    greys = np.where(seen, _sample(line, positions), threshold)
    row, center, run_width, is_whole = _nearest_runs(greys, threshold=threshold, seen=seen)
    offset = (center - steps) * _STEP_PX
    is_near = np.abs(offset) <= reach_px
    row, offset = row[is_near], offset[is_near]
    return LineAlong(
        centers_xy=contour[row] + offset[:, None] * normals[row],
        offsets_px=offset,
        widths_px=run_width[is_near] * _STEP_PX,
        is_whole=is_whole[is_near],
        closedness=len(row) / max(len(contour), 1),
        visible_share=len(contour) / len(inside_image),
    )


def _contour(ellipse: Ellipse) -> tuple[np.ndarray, np.ndarray]:
    """Return points (P, 2) evenly spread along the ellipse, and outward unit normals (P, 2)."""
    a, b = ellipse.semi_major_px, ellipse.semi_minor_px
    dense = np.linspace(0, 2 * np.pi, 4 * _CONTOUR_POINTS + 1)
    steps = np.hypot(np.diff(a * np.cos(dense)), np.diff(b * np.sin(dense)))
    length = np.concatenate([[0.0], np.cumsum(steps)])
    t = np.interp(np.arange(_CONTOUR_POINTS) / _CONTOUR_POINTS * length[-1], length, dense)
    cos, sin = math.cos(ellipse.theta_rad), math.sin(ellipse.theta_rad)
    turn = np.array([[cos, sin], [-sin, cos]])
    points = np.stack([a * np.cos(t), b * np.sin(t)], axis=1) @ turn
    normals = np.stack([b * np.cos(t), a * np.sin(t)], axis=1) @ turn
    center = (ellipse.center_x_px, ellipse.center_y_px)
    return points + center, normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _is_inside(points_xy: np.ndarray, *, size_hw: tuple[int, int]) -> np.ndarray:
    last_xy = np.array(size_hw[::-1]) - 0.5
    return ((points_xy >= -0.5) & (points_xy <= last_xy)).all(axis=-1)


def _sample(line: np.ndarray, positions_xy: np.ndarray) -> np.ndarray:
    """Return the bilinear greys, float32 (P, S), at positions (P, S, 2); none for no positions."""
    if not len(positions_xy):
        return np.zeros(positions_xy.shape[:2], dtype=np.float32)
    return cv2.remap(
        line.astype(np.float32),
        positions_xy.astype(np.float32),
        None,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _nearest_runs(
    greys: np.ndarray, *, threshold: int, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each row with a run above the threshold, the one nearest to the row's middle.

    Args:
        greys: float (P, S); no more than the threshold where not seen.
        threshold: a run's ends are where the linear greys cross it.
        seen: bool (P, S), samples inside the image.

    Returns:
        Row, centre (in samples), width (in samples) and whether both ends are seen; each (R,).
    """
    padded = np.pad(greys.astype(np.float64), ((0, 0), (1, 1)), constant_values=threshold)
    change = np.diff((padded > threshold).astype(np.int8), axis=1)
    row, before = np.nonzero(change == 1)
    last = np.nonzero(change == -1)[1]
    below, above = padded[row, before], padded[row, before + 1]
    first_edge = before - (above - threshold) / (above - below)
    above, below = padded[row, last], padded[row, last + 1]
    last_edge = last - 1 + (above - threshold) / (above - below)
    center = (first_edge + last_edge) / 2
    order = np.lexsort((np.abs(center - (greys.shape[1] - 1) / 2), row))
    row, first = np.unique(row[order], return_index=True)
    nearest = order[first]
    # Nothing beyond the samples is seen either: a run into it has no known centre.
    seen = np.pad(seen, ((0, 0), (1, 1)))
    is_whole = seen[row, before[nearest]] & seen[row, last[nearest] + 1]
    return row, center[nearest], (last_edge - first_edge)[nearest], is_whole
