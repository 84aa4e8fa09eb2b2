"""New pairs from a trial's own: an image is deformed so that its head becomes another ellipse.

Pure. The map is affine and carries ellipse to ellipse exactly, so the new label is exact as well.
"""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from datamodules.ellipse import Ellipse, EllipseDistribution, scale_ellipse
from datamodules.keyed import text_seed

# Beyond this turn another source is preferred: the probe looks from above.
_MAX_TURN_RAD = math.pi / 4
# A linear warp that shrinks more than this aliases; the image is averaged down beforehand.
_MIN_LINEAR_SCALE = 0.75
# The picture's edge fades into black over this share of the target's width.
_FADE_SHARE = 0.02


def ellipse_map(source: Ellipse, target: Ellipse, *, mirror: bool = False) -> np.ndarray:
    """Return the affine map that carries one ellipse onto the other, major axis to major axis.

    Two such maps exist, half a turn apart (four with mirror images); the one that turns less is
    returned. With `mirror` the picture is flipped left to right first, which leaves above above.
    The map without any turn (symmetric, positive definite) would carry the midline of the brain
    off the major axis.

    Args:
        source: ellipse in pixels.
        target: where it shall lie, in pixels of the new image.
        mirror: flip left to right.

    Returns:
        float64 (2, 3) for column vectors (x, y, 1), source to target pixels.

    Source:
        target axes times inverse source axes; checked on contour points to 1e-9 px.
    """
    axes = _rotation(source.theta_rad)
    flip = np.diag([-1.0 if mirror else 1.0, 1.0])
    arrived = _rotation(_turn_rad(source, target, mirror=mirror)) @ flip @ axes
    new = arrived * (target.semi_major_px, target.semi_minor_px)
    old = axes * (source.semi_major_px, source.semi_minor_px)
    linear = new @ np.linalg.inv(old)
    center = np.array([source.center_x_px, source.center_y_px])
    shift = np.array([target.center_x_px, target.center_y_px]) - linear @ center
    return np.concatenate([linear, shift[:, None]], axis=1)


def _rotation(theta_rad: float) -> np.ndarray:
    cos, sin = math.cos(theta_rad), math.sin(theta_rad)
    return np.array([[cos, -sin], [sin, cos]])


def _turn_rad(source: Ellipse, target: Ellipse, *, mirror: bool) -> float:
    """Return the turn in [-pi/2, pi/2) that brings the (mirrored) major axis to the target's."""
    start_rad = -source.theta_rad if mirror else source.theta_rad
    return (target.theta_rad - start_rad + math.pi / 2) % math.pi - math.pi / 2


def stretch(source: Ellipse, target: Ellipse) -> float:
    """Return the largest factor by which an axis grows or shrinks, 1 or more.

    Both ellipses are in pixels of images of one size (see `scale_ellipse`).
    """
    factors = (
        target.semi_major_px / source.semi_major_px,
        target.semi_minor_px / source.semi_minor_px,
    )
    return max(max(factor, 1 / factor) for factor in factors)


def warp_pair(
    image: np.ndarray,
    *,
    source: Ellipse,
    target: Ellipse,
    size_hw: tuple[int, int],
    mirror: bool = False,
) -> np.ndarray:
    """Deform an image so that its ellipse lies exactly on the target; the label is its raster.

    What the image does not cover is black, as outside of the sector, and the image fades into it:
    a reflection would show pieces of a second head without a label.

    Args:
        image: uint8 (H, W).
        source: the head in pixels of the image; it may leave the image.
        target: where the head shall lie, in pixels of the new image.
        size_hw: rows and columns of the new image.
        mirror: flip left to right.

    Returns:
        uint8 of `size_hw`; the image itself (a copy) where nothing moves.

    Raises:
        ValueError: an image that is not uint8 (H, W).
    """
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"the image must be uint8 (H, W), got {image.dtype} {image.shape}")
    matrix = ellipse_map(source, target, mirror=mirror)
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if scale < _MIN_LINEAR_SCALE:
        height, width = (max(round(side * scale), 1) for side in image.shape)
        source = scale_ellipse(
            source, scale_x=width / image.shape[1], scale_y=height / image.shape[0]
        )
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        matrix = ellipse_map(source, target, mirror=mirror)
    if image.shape == tuple(size_hw) and np.allclose(matrix, np.eye(2, 3), rtol=0, atol=1e-9):
        return image.copy()
    warped = cv2.warpAffine(
        image,
        matrix,
        (size_hw[1], size_hw[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    inside = _coverage(image.shape, matrix=matrix, size_hw=size_hw)
    return np.round(warped * inside).astype(np.uint8)


def _coverage(
    image_hw: tuple[int, int], *, matrix: np.ndarray, size_hw: tuple[int, int]
) -> np.ndarray:
    """Return 1 in the image and a linear fall to 0 beyond its edge, float32 of `size_hw`.

    The fall lies outside, on replicated pixels: nothing of the picture itself is lost.
    """
    inverse = cv2.invertAffineTransform(matrix)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32)
    outside = np.zeros(size_hw, dtype=np.float32)
    for row, side in zip(inverse, image_hw[::-1], strict=True):
        position = (row[0] * x + row[1] * y + row[2]).astype(np.float32)
        # In pixels of the new image.
        unit = float(np.hypot(row[0], row[1]))
        beyond = np.maximum(-0.5 - position, position - (side - 0.5))
        outside = np.maximum(outside, beyond / unit)
    return np.clip(1 - outside / max(_FADE_SHARE * size_hw[1], 1.0), 0, 1)


def warp_pairs(
    images: Sequence[np.ndarray],
    ellipses: Sequence[Ellipse],
    *,
    distribution: EllipseDistribution,
    n: int,
    seed: int,
    size_hw: tuple[int, int],
    max_stretch: float,
) -> Iterator[tuple[np.ndarray, Ellipse, int]]:
    """Draw new ellipses, and deform one of the trial's own images to each.

    Half of the pairs are mirrored left to right. The source is the first in a shuffled order that
    is stretched by at most `max_stretch` and turned by at most 45 degrees; else the first that
    keeps the stretch; else the one that is stretched least. A pair depends on the seed and its own
    number only: the first of many are those of few.

    Args:
        images: the trial's own images, uint8 (H, W), of any sizes.
        ellipses: their heads, in pixels of each image.
        distribution: fitted to these same ellipses, so that no other label is used.
        n: number of pairs, 0 or more.
        seed: with the pair's number the only source of randomness.
        size_hw: rows and columns of the new images.
        max_stretch: largest factor by which an axis should grow or shrink, beside the resize of
            the whole image to `size_hw`; 1 or more.

    Yields:
        The new image, uint8 of `size_hw`; its ellipse in pixels of it; the index of its source.

    Raises:
        ValueError: no images, not one ellipse per image, n below 0 or max_stretch below 1.
    """
    if not images or len(images) != len(ellipses) or n < 0 or not max_stretch >= 1:
        raise ValueError(
            "warping needs images, an ellipse for each, n >= 0 and max_stretch >= 1, got "
            f"{len(images)}, {len(ellipses)}, {n} and {max_stretch}"
        )
    in_target = [
        scale_ellipse(
            ellipse, scale_x=size_hw[1] / image.shape[1], scale_y=size_hw[0] / image.shape[0]
        )
        for image, ellipse in zip(images, ellipses, strict=True)
    ]
    # The checks above run at the call, not at the first pair.
    return (
        _draw_pair(
            images,
            ellipses,
            in_target=in_target,
            distribution=distribution,
            rng=np.random.default_rng(text_seed("warp", seed, number)),
            size_hw=size_hw,
            max_stretch=max_stretch,
        )
        for number in range(n)
    )


def _draw_pair(
    images: Sequence[np.ndarray],
    ellipses: Sequence[Ellipse],
    *,
    in_target: Sequence[Ellipse],
    distribution: EllipseDistribution,
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    max_stretch: float,
) -> tuple[np.ndarray, Ellipse, int]:
    target = distribution.sample(rng, size_hw=size_hw)
    mirror = bool(rng.random() < 0.5)
    order = rng.permutation(len(images)).tolist()
    number = _pick(in_target, target, order=order, mirror=mirror, max_stretch=max_stretch)
    image = warp_pair(
        images[number], source=ellipses[number], target=target, size_hw=size_hw, mirror=mirror
    )
    return image, target, number


def _pick(
    sources: Sequence[Ellipse],
    target: Ellipse,
    *,
    order: Sequence[int],
    mirror: bool,
    max_stretch: float,
) -> int:
    """Return the index of the source to deform; see `warp_pairs`."""
    near = [k for k in order if stretch(sources[k], target) <= max_stretch]
    if not near:
        return min(order, key=lambda k: stretch(sources[k], target))
    for k in near:
        if abs(_turn_rad(sources[k], target, mirror=mirror)) <= _MAX_TURN_RAD:
            return k
    return near[0]
