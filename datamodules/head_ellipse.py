"""The ellipse of a predicted mask, robust to a bite and to a spur. Pure."""

import math

import cv2
import numpy as np

from datamodules.ellipse import Ellipse, ellipse_from_axes, rasterise

_BORDER_PX = 2
_MIN_INNER_SHARE = 0.4
_MIN_POINTS = 20
_MIN_SEMI_AXIS_PX = 2
_REFITS = 3
_DROPPED_SHARE = 0.15
_GOOD_RESIDUAL = 0.01
_HALF_PIXEL = 0.5


def head_ellipse(mask: np.ndarray) -> Ellipse | None:
    """Fit an ellipse to the outer contour of a mask's largest part.

    A first fit to all points, then three, each without the 15 % of the points that lie farthest
    from the ellipse before it (those within 1 % of its radius stay): a bite or a spur is left out.
    Where a head is cut by the image's border, the contour's points along the border say nothing of
    the head; they are left out where enough others remain.

    Args:
        mask: (H, W) bool, or numbers of which the non-zero ones are foreground.

    Returns:
        The ellipse in the pixels of the mask; None where there is none: an empty mask, a part with
        fewer than 20 points of contour, a line, semi-axes that are not in (2, 2 W) pixels.

    Raises:
        ValueError: The mask is not (H, W).

    Source:
        Fitzgibbon, Pilu and Fisher 1999, as `cv2.fitEllipseDirect`; the trimmed refits are ours,
        checked on drawn ellipses to one pixel in each semi-axis.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask is (H, W), not {mask.shape}")
    points = _contour(mask != 0)
    used, found = points, None
    for _ in range(1 + _REFITS):
        if len(used) < _MIN_POINTS:
            break
        found = _fit(used)
        if found is None or not _is_possible(found, width=mask.shape[1]):
            return None
        residual = _radial_residual(found, points)
        limit = np.quantile(residual, 1 - _DROPPED_SHARE)
        used = points[residual <= max(limit, _GOOD_RESIDUAL)]
    if found is None:
        return None
    # The contour runs through pixel centres, half a pixel inside the true edge.
    x, y, first, second, theta_rad = found
    axes = (first + _HALF_PIXEL, second + _HALF_PIXEL)
    return ellipse_from_axes((x, y), axes=axes, theta_rad=theta_rad)


def filled_ellipse(mask: np.ndarray) -> tuple[Ellipse | None, np.ndarray]:
    """Turn a mask into the ellipse that stands for it.

    Args:
        mask: See `head_ellipse`.

    Returns:
        The ellipse and its pixels, uint8 (H, W) in {0, 1}; None and the mask itself where no
        ellipse fits, or none with a pixel in the image.
    """
    ellipse = head_ellipse(mask)
    if ellipse is not None:
        filled = rasterise(ellipse, size_hw=np.asarray(mask).shape)
        if filled.any():
            return ellipse, filled
    return None, mask


def _contour(mask: np.ndarray) -> np.ndarray:
    """Points (N, 2) x, y of the largest 4-connected part's outer contour, float32; maybe none."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4
    )
    if count <= 1:
        return np.empty((0, 2), np.float32)
    part = (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(contours, key=len)[:, 0].astype(np.float32)
    last = np.array(mask.shape[::-1]) - 1 - _BORDER_PX
    is_inner = ((points > _BORDER_PX) & (points < last)).all(axis=1)
    return points[is_inner] if is_inner.mean() > _MIN_INNER_SHARE else points


def _fit(points: np.ndarray) -> tuple[float, float, float, float, float] | None:
    """Centre x and y, two semi-axes and the first one's angle; None where OpenCV finds none."""
    try:
        (x, y), (first, second), degrees = cv2.fitEllipseDirect(points)
    except cv2.error:
        return None
    return x, y, first / 2, second / 2, math.radians(degrees)


def _is_possible(found: tuple[float, ...], *, width: int) -> bool:
    """Whether every number is finite and both semi-axes are those of something in an image."""
    axes = found[2:4]
    return all(map(math.isfinite, found)) and all(
        _MIN_SEMI_AXIS_PX < axis < 2 * width for axis in axes
    )


def _radial_residual(found: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    """|r - 1| of points, (N,), r being their distance in units of the ellipse's own radius."""
    x, y, first, second, theta_rad = found
    cos, sin = math.cos(theta_rad), math.sin(theta_rad)
    dx, dy = points[:, 0] - x, points[:, 1] - y
    return np.abs(np.hypot((cos * dx + sin * dy) / first, (cos * dy - sin * dx) / second) - 1)
