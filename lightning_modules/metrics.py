"""Scores of a predicted mask, at the original image's size. Pure numpy, one image at a time."""

import cv2
import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from datamodules.ellipse import fit_ellipse, perimeter_px

PAPER_SIDE_PX = 256
"""The paper scores in a 256x256 squashed frame."""
TREE_SHARE = 0.03
"""Boundaries of a larger share of the pixels, as noise has, are met faster by a distance transform
of all pixels than by a tree of theirs."""


def dice_score(pred_mask: np.ndarray, target: np.ndarray) -> float:
    """Dice similarity of two masks, 2 |A and B| / (|A| + |B|).

    Args:
        pred_mask: (H, W) bool, or numbers of which the non-zero ones are foreground.
        target: (H, W), likewise.

    Returns:
        A number in [0, 1]; 1 where both are empty, 0 where one is.

    Raises:
        ValueError: The shapes differ.
    """
    pred_mask, target = _as_pair(pred_mask, target)
    total = int(pred_mask.sum()) + int(target.sum())
    if total == 0:
        return 1.0
    return 2 * int((pred_mask & target).sum()) / total


def dice_at_256(pred_mask: np.ndarray, target: np.ndarray) -> float:
    """Dice of both masks resampled to the paper's 256x256 squashed frame, by nearest neighbour.

    Arguments, result and errors as in `dice_score`.
    """
    pred_mask, target = _as_pair(pred_mask, target)
    size = (PAPER_SIDE_PX, PAPER_SIDE_PX)
    small = [
        # INTER_NEAREST drops the half pixel and shifts the mask; INTER_NEAREST_EXACT does not.
        cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
        for mask in (pred_mask, target)
    ]
    return dice_score(small[0], small[1])


def hausdorff_distance_mm(
    pred_mask: np.ndarray, target: np.ndarray, *, pixel_size_mm: float
) -> float:
    """Symmetric Hausdorff distance between the boundaries of two masks.

    A boundary is the set of foreground pixels with a background pixel, or the outside of the
    image, above, below, left or right of them. Distances are between pixel centres. The result is
    the largest distance from a boundary pixel of either mask to the nearest one of the other.

    Args:
        pred_mask: (H, W) bool, or numbers of which the non-zero ones are foreground.
        target: (H, W), likewise.
        pixel_size_mm: Side of a pixel, mm, > 0.

    Returns:
        Distance in mm; 0 where both masks are empty, inf where exactly one is: no boundary is
        near one that is not there.

    Raises:
        ValueError: The shapes differ, or the pixel size is not positive.

    Source:
        skimage.metrics.hausdorff_distance, and scipy.spatial.distance.directed_hausdorff taken
        both ways, on the boundaries' pixels; equal to both to 1e-9 px. (torchmetrics
        1.9 is wrong on masks that are not square.)
    """
    _require_pixel_size(pixel_size_mm)
    pred_mask, target = _as_pair(pred_mask, target)
    if not pred_mask.any() and not target.any():
        return 0.0
    if not pred_mask.any() or not target.any():
        return float("inf")
    rows, columns = _bounding_box(pred_mask | target)
    # Outside the masks there is nothing to measure, and a head fills a third of its image.
    boundaries = _boundary(pred_mask[rows, columns]), _boundary(target[rows, columns])
    far_px = max(_farthest_px(*boundaries), _farthest_px(*boundaries[::-1]))
    return far_px * pixel_size_mm


def head_circumference_mm(mask: np.ndarray, *, pixel_size_mm: float) -> float:
    """Perimeter of the ellipse fitted to the outline of a mask's largest component.

    The outline's points lie midway between a foreground pixel and the background pixel beside it,
    where the true edge lies on average; the outermost foreground pixels themselves would lie half
    a pixel inside it. Where the mask ends at the image's border there is no background pixel and
    therefore no point: an ellipse cut by the border is fitted to what of its outline is seen.
    Holes are filled first.

    Args:
        mask: (H, W) bool, or numbers of which the non-zero ones are foreground.
        pixel_size_mm: Side of a pixel, mm, > 0.

    Returns:
        The ellipse's true perimeter in mm; nan where no ellipse can be fitted (an empty mask, one
        that fills the image, a line).

    Raises:
        ValueError: The mask is not (H, W), or the pixel size is not positive.
    """
    _require_pixel_size(pixel_size_mm)
    points_xy_px = outline_points(mask)
    try:
        return perimeter_px(fit_ellipse(points_xy_px)) * pixel_size_mm
    except ValueError:
        return float("nan")


def outline_points(mask: np.ndarray) -> np.ndarray:
    """Sample the outer outline of a mask's largest component, without the image's border.

    Args:
        mask: (H, W) bool, or numbers of which the non-zero ones are foreground.

    Returns:
        (N, 2) float64 x, y in pixels, pixel centres being integers: the midpoints of all pairs of
        a foreground and a background pixel that share a side. (0, 2) for an empty or full mask.

    Raises:
        ValueError: The mask is not (H, W).
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask is (H, W), not {mask.shape}")
    mask = mask != 0
    if not mask.any():
        return np.empty((0, 2))
    rows, columns = _bounding_box(mask, margin=1)
    filled = ndimage.binary_fill_holes(_largest_component(mask[rows, columns]))
    y_between, x = np.nonzero(filled[1:] != filled[:-1])
    y, x_between = np.nonzero(filled[:, 1:] != filled[:, :-1])
    across = np.stack([x, y_between + 0.5], axis=1)
    along = np.stack([x_between + 0.5, y], axis=1)
    return np.concatenate([across, along]) + np.array([columns.start, rows.start])


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the 8-connected component with most pixels (the first of equal ones)."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count <= 1:
        return mask
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def _bounding_box(mask: np.ndarray, *, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns that hold the foreground, widened by a margin as far as the image goes."""
    spans = []
    for axis in (1, 0):
        where = np.flatnonzero(mask.any(axis=axis))
        spans.append(slice(max(0, int(where[0]) - margin), int(where[-1]) + 1 + margin))
    return spans[0], spans[1]


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Foreground pixels that share a side with the background or the outside."""
    framed = np.pad(mask, 1)
    inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inner


def _farthest_px(boundary: np.ndarray, other: np.ndarray) -> float:
    """Largest distance from a pixel of one boundary to the nearest of the other, both not empty."""
    points, others = np.argwhere(boundary), np.argwhere(other)
    if len(points) + len(others) > TREE_SHARE * boundary.size:
        return float(ndimage.distance_transform_edt(~other)[boundary].max())
    return float(KDTree(others).query(points)[0].max())


def _as_pair(pred_mask: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pred_mask, target = np.asarray(pred_mask), np.asarray(target)
    if pred_mask.ndim != 2 or pred_mask.shape != target.shape:
        shapes = f"{pred_mask.shape} and {target.shape}"
        raise ValueError(f"two masks (H, W) of one size are needed, not {shapes}")
    return pred_mask != 0, target != 0


def _require_pixel_size(pixel_size_mm: float) -> None:
    if not 0 < pixel_size_mm < np.inf:
        raise ValueError(f"pixel_size_mm must be positive and finite, not {pixel_size_mm}")
