"""Near-duplicates: the same frame exported twice. Pure."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np

_SIDE = 64
_BLANK_LEVEL = 2
_MIN_COMMON_SHARE = 0.05
# The noise that JPEG leaves in a black margin stays below.
_MARGIN_LEVEL = 6
_MARGIN_SHARE = 0.01

# Correlation from which two images count as one frame. Among 803 training and 40 test images of
# HC18 all eight known pairs (243_3, 392_2, 392_3 twice, 507_2, 788_2, 198_2, 220_2) reach 1.0000.
# The closest frames that do differ are neighbours in one sweep (795: 0.964, 783: 0.957); two exams
# never exceed 0.80, mirrored 0.87. So the margin is 0.02 on either side, and 0.11 between exams. Of
# 60 images padded to a square, mirrored and saved as JPEG all come to 0.98, one made smaller to
# 0.979.
NEAR_DUPLICATE_CORRELATION = 0.98


def fingerprint(image: np.ndarray) -> np.ndarray:
    """Return a small picture of the image, with blank places marked.

    Re-exports of a frame differ in the black boxes that hide its text: cells that are blank in one
    of two images are left out when they are compared. 64x64 cells hold enough of the speckle to
    tell neighbouring frames of one sweep apart.

    Args:
        image: uint8 (H, W), any size.

    Returns:
        float32 (4096,): mean grey level of each cell, NaN where half of it or more is black.
    """
    size = (_SIDE, _SIDE)
    small = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    blank = (image <= _BLANK_LEVEL).astype(np.float32)
    small[cv2.resize(blank, size, interpolation=cv2.INTER_AREA) >= 0.5] = np.nan
    return small.ravel()


def fingerprints(image: np.ndarray) -> np.ndarray:
    """Return the fingerprints of an image and of what lies within its black margins.

    Args:
        image: uint8 (H, W), any size.

    Returns:
        float32 (2, 4096), see `fingerprint`.
    """
    drawn = image > _MARGIN_LEVEL
    rows, columns = (np.flatnonzero(drawn.mean(axis=axis) > _MARGIN_SHARE) for axis in (1, 0))
    content = image
    if len(rows) and len(columns):
        content = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.stack([fingerprint(image), fingerprint(np.ascontiguousarray(content))])


def pack_fingerprint(values: np.ndarray) -> str:
    """Return a fingerprint as text: base64 of whole grey levels, 0 for blank cells.

    A cell that is not blank has a mean of 1.5 or more, so 0 is free. Rounding moves a correlation
    by less than 0.001 where the cells' standard deviation is 10 grey levels.

    Args:
        values: float (4096,) of `fingerprint`.
    """
    levels = np.clip(np.nan_to_num(np.round(values), nan=0.0), 0, 255).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode("ascii")


def unpack_fingerprint(text: str) -> np.ndarray:
    """Return what `pack_fingerprint` packed, float32 (4096,) of whole levels, NaN for blank cells.

    Raises:
        ValueError: not a packed fingerprint.
    """
    data = base64.b64decode(text, validate=True)
    if len(data) != _SIDE**2:
        raise ValueError(f"a packed fingerprint has {_SIDE**2} bytes, got {len(data)}")
    levels = np.frombuffer(data, dtype=np.uint8).astype(np.float32)
    return np.where(levels == 0, np.float32(np.nan), levels)


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation over the cells that are blank in neither fingerprint.

    Args:
        first: float (N, D) with NaN for blank cells.
        second: float (M, D), likewise.

    Returns:
        float64 (N, M) in [-1, 1]; 0 where fewer than 5 % of the cells are common, or constant.

    Source:
        Checked against numpy.corrcoef over the common cells to 1e-6.
    """
    masks = [np.isfinite(each).astype(np.float64) for each in (first, second)]
    # Grey levels around zero keep the differences of large sums accurate.
    values = [np.nan_to_num(each.astype(np.float64) - 64.0, nan=0.0) for each in (first, second)]
    count = np.maximum(masks[0] @ masks[1].T, 1.0)
    sums = values[0] @ masks[1].T, masks[0] @ values[1].T
    variance_first = values[0] ** 2 @ masks[1].T - sums[0] ** 2 / count
    variance_second = masks[0] @ (values[1] ** 2).T - sums[1] ** 2 / count
    covariance = values[0] @ values[1].T - sums[0] * sums[1] / count
    known = (
        (count >= _MIN_COMMON_SHARE * first.shape[1])
        & (variance_first > 1e-6 * count)
        & (variance_second > 1e-6 * count)
    )
    scale = np.sqrt(np.where(known, variance_first * variance_second, 1.0))
    return np.where(known, np.clip(covariance / scale, -1.0, 1.0), 0.0)


def resemblance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the largest correlation of images: as they are, within their margins, or mirrored.

    Args:
        first: float (N, 2, 4096) of `fingerprints`.
        second: float (M, 2, 4096), likewise.

    Returns:
        float64 (N, M) in [-1, 1].
    """
    content = second[:, 1]
    mirrored = content.reshape(-1, _SIDE, _SIDE)[:, :, ::-1].reshape(content.shape)
    whole = correlations(first[:, 0], second[:, 0])
    return np.maximum(
        whole, np.maximum(*(correlations(first[:, 1], each) for each in (content, mirrored)))
    )


def near_duplicate_pairs(
    prints: np.ndarray, *, threshold: float = NEAR_DUPLICATE_CORRELATION
) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, in order, of images that resemble each other.

    Args:
        prints: float (N, 2, 4096) of `fingerprints`.
        threshold: lowest `resemblance` of a pair, in (0, 1].

    Returns:
        Index pairs; empty for fewer than two images.
    """
    pairs = []
    # Blocks bound the memory: 1,024 x N correlations at a time.
    for start in range(0, len(prints), 1024):
        correlation = resemblance(prints[start : start + 1024], prints[start:])
        first, second = np.nonzero(correlation >= threshold)
        keep = first < second
        pairs += zip((first[keep] + start).tolist(), (second[keep] + start).tolist(), strict=True)
    return pairs


def near_duplicates_between(
    first: np.ndarray, second: np.ndarray, *, threshold: float = NEAR_DUPLICATE_CORRELATION
) -> list[tuple[int, int, float]]:
    """Return the pairs of one image of each set that resemble each other.

    Args:
        first: float (N, 2, 4096) of `fingerprints`.
        second: float (M, 2, 4096), likewise.
        threshold: lowest `resemblance` of a pair, in (0, 1].

    Returns:
        (index in first, index in second, resemblance) in order; empty where either set is.
    """
    found = []
    # Blocks bound the memory, as above.
    for start in range(0, len(first), 1024):
        correlation = resemblance(first[start : start + 1024], second)
        rows, columns = np.nonzero(correlation >= threshold)
        values = correlation[rows, columns]
        found += zip((rows + start).tolist(), columns.tolist(), values.tolist(), strict=True)
    return found


def group_ids(exam_ids: Sequence[str], *, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Join exams that share a near-duplicate; a group is the unit of splitting.

    Args:
        exam_ids: the exam of each image.
        pairs: indices of near-duplicates.

    Returns:
        For each image its group: the smallest of the joined exams' ids.
    """
    parent = {exam: exam for exam in exam_ids}

    def root(exam: str) -> str:
        while parent[exam] != exam:
            exam = parent[exam]
        return exam

    for first, second in pairs:
        low, high = sorted((root(exam_ids[first]), root(exam_ids[second])))
        parent[high] = low
    return [root(exam) for exam in exam_ids]
