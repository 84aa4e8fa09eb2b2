"""How near generated images are to real ones, and whether they are copies. Pure numpy.

Features are vectors of one space, such as `pooled` image embeddings. No measure here means much
alone: a number of few images in many dimensions is read against the same number of held-out real
images. Distances are Euclidean.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

from lightning_modules.metrics import dice_score


def pooled(embedding: np.ndarray) -> np.ndarray:
    """Reduce an image embedding to one vector, its mean over the grid.

    Args:
        embedding: (C, h, w) float16 or float32, h and w >= 1.

    Returns:
        float32 (C,), computed in float64.

    Raises:
        ValueError: Not (C, h, w), or nothing to pool.
    """
    values = np.asarray(embedding)
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"an embedding is (C, h, w), not {values.shape}")
    return values.reshape(len(values), -1).astype(np.float64).mean(axis=1).astype(np.float32)


def polynomial_mmd(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Squared maximum mean discrepancy of two samples, unbiased, kernel (x . y / D + 1)^3.

    Args:
        features_a: (N, D), N >= 2.
        features_b: (M, D), M >= 2.

    Returns:
        0 on average for two samples of one distribution, so it can be negative. Its scale is the
        features': comparable only within one feature space.

    Raises:
        ValueError: Fewer than two rows, different D, or a value that is not finite.

    Source:
        Gretton et al. 2012, eq. 3; kernel of Binkowski et al. 2018. Equal to
        torchmetrics.image.kid.poly_mmd in float64 to 1e-9 (that one asks for N = M).
    """
    a, b = _as_features(features_a, features_b)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"two rows a sample are needed, not {len(a)} and {len(b)}")
    between = ((a @ b.T / a.shape[1] + 1.0) ** 3).mean()
    return _mean_kernel_of_pairs(a) + _mean_kernel_of_pairs(b) - 2 * float(between)


def kid(
    features_a: np.ndarray,
    features_b: np.ndarray,
    *,
    subsets: int,
    subset_size: int,
    seed: int,
) -> tuple[float, float]:
    """Kernel distance (KID, on these features instead of Inception's) over random subsets.

    Args:
        features_a: (N, D).
        features_b: (M, D).
        subsets: Pairs of subsets that are drawn, each without replacement, >= 1.
        subset_size: Rows of each, from 2 to below N and M.
        seed: Of the draws; the same input and seed give the same result.

    Returns:
        Mean and standard deviation (divisor `subsets`) over the pairs. The subsets overlap, so
        the standard deviation is no standard error.

    Raises:
        ValueError: A subset size outside its range, no subsets, or as in `polynomial_mmd`.

    Source:
        Binkowski et al. 2018. torchmetrics.image.kid.KernelInceptionDistance with the identity as
        its feature network does the same with torch's global random state.
    """
    a, b = _as_features(features_a, features_b)
    if not 2 <= subset_size < min(len(a), len(b)):
        raise ValueError(f"subset_size {subset_size} must be 2 to below {min(len(a), len(b))}")
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, not {subsets}")
    rng = np.random.default_rng(seed)
    values = [
        polynomial_mmd(
            a[rng.choice(len(a), subset_size, replace=False)],
            b[rng.choice(len(b), subset_size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def precision_recall_density_coverage(
    real: np.ndarray, fake: np.ndarray, *, k: int
) -> tuple[float, float, float, float]:
    """Do generated images lie among the real ones, and do they reach all of them?

    Each point carries a ball that just reaches its k-th nearest neighbour in its own sample.
    With far fewer points than dimensions (60 images, 256 channels) these balls estimate no
    manifold: distances are all of one size, so two samples of one distribution give a precision
    and a recall that depend on N, M and k more than on what is shown, and a small shift of all
    features drives both to 0. Compare only with a control of the same N, M and k.

    Args:
        real: (N, D), N > k.
        fake: (M, D), M > k.
        k: Neighbours, >= 1.

    Returns:
        Precision: share of fakes within any real ball. Recall: share of reals within any fake
        ball. Density: real balls that hold a fake, averaged over fakes and divided by k (about 1
        for one distribution, above 1 where fakes crowd). Coverage: share of real balls that hold
        a fake. Density is in [0, N / k], the others in [0, 1].

    Raises:
        ValueError: k outside its range, different D, or a value that is not finite.

    Source:
        Kynkaanniemi et al. 2019, eq. 1-3 (precision, recall); Naeem et al. 2020, eq. 3-4 (density,
        coverage). The ball holds its border, as in those equations.
    """
    real, fake = _as_features(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k {k} must be 1 to below {min(len(real), len(fake))}")
    between = cdist(real, fake)
    in_real_ball = between <= _radii(real, k)[:, None]
    in_fake_ball = between <= _radii(fake, k)[None, :]
    return (
        float(in_real_ball.any(axis=0).mean()),
        float(in_fake_ball.any(axis=1).mean()),
        float(in_real_ball.sum(axis=0).mean() / k),
        float(in_real_ball.any(axis=1).mean()),
    )


def nearest_distance(
    queries: np.ndarray,
    training: np.ndarray,
    *,
    query_groups: Sequence[Hashable] | None = None,
    training_groups: Sequence[Hashable] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each query to the nearest training row, and which row that is.

    Args:
        queries: (N, D).
        training: (M, D); mirrored images are further rows.
        query_groups: Exam of each query. With both groups, rows of the query's own exam are left
            out: that is how real images are measured against themselves.
        training_groups: Exam of each training row.

    Returns:
        Distances float64 (N,) and rows int64 (N,), the first of equally near ones; infinity and
        -1 where no row remains. No queries give two empty arrays.

    Raises:
        ValueError: One kind of groups without the other, groups of another length, different D,
            or a value that is not finite.
    """
    queries, training = _as_features(queries, training)
    if (query_groups is None) != (training_groups is None):
        raise ValueError("nearest_distance: groups of both or of neither are needed")
    if len(queries) == 0 or len(training) == 0:
        return np.full(len(queries), np.inf), np.full(len(queries), -1, dtype=np.int64)
    distances = cdist(queries, training)
    if query_groups is not None and training_groups is not None:
        if (len(query_groups), len(training_groups)) != distances.shape:
            raise ValueError("nearest_distance: one group a row is needed")
        codes = {group: code for code, group in enumerate([*query_groups, *training_groups])}
        own = np.array([codes[group] for group in query_groups])
        theirs = np.array([codes[group] for group in training_groups])
        distances[own[:, None] == theirs[None, :]] = np.inf
    rows = distances.argmin(axis=1)
    nearest = distances[np.arange(len(queries)), rows]
    return nearest, np.where(np.isfinite(nearest), rows, -1)


def copy_threshold(held_out_to_train: np.ndarray, *, quantile: float = 0.01) -> float:
    """Distance below which an image counts as a copy: a low quantile of images that are none.

    Args:
        held_out_to_train: (N,) distances of held-out real images to training, N >= 1; with fewer
            than 1 / quantile of them the result lies between the two smallest.
        quantile: In [0, 1], interpolated linearly.

    Raises:
        ValueError: No distance, or one that is not finite.
    """
    held_out = np.asarray(held_out_to_train, dtype=np.float64)
    if held_out.size == 0 or not np.isfinite(held_out).all():
        raise ValueError("copy_threshold: finite distances of held-out images are needed")
    return float(np.quantile(held_out, quantile))


def memorised_fraction(
    synthetic_to_train: np.ndarray, held_out_to_train: np.ndarray, *, quantile: float = 0.01
) -> float:
    """Share of images nearer to a training image than held-out real images (almost) ever are.

    Args:
        synthetic_to_train: (N,) distances to the nearest training image, N >= 1.
        held_out_to_train: (M,) the same of held-out real images, against the same training rows.
        quantile: Of the held-out distances; images strictly below it are counted.

    Returns:
        A share in [0, 1]; a generator that copies nothing gives about `quantile`.

    Raises:
        ValueError: No distances, or as in `copy_threshold`.
    """
    if len(synthetic_to_train) == 0:
        raise ValueError("memorised_fraction: no distances of synthetic images")
    threshold = copy_threshold(held_out_to_train, quantile=quantile)
    return float((np.asarray(synthetic_to_train) < threshold).mean())


def mask_agreement(masks_a: Sequence[np.ndarray], masks_b: Sequence[np.ndarray]) -> np.ndarray:
    """Dice of each pair of masks.

    Args:
        masks_a: N masks (H, W), non-zero is foreground.
        masks_b: N masks, each of its partner's size.

    Returns:
        float64 (N,) in [0, 1]; (0,) for none. Empty masks as in `dice_score`.

    Raises:
        ValueError: Different counts or sizes.
    """
    pairs = zip(masks_a, masks_b, strict=True)
    return np.array([dice_score(a, b) for a, b in pairs], dtype=np.float64)


def chance_agreement(
    masks_a: Sequence[np.ndarray],
    masks_b: Sequence[np.ndarray],
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Dice of each mask with the mask of another image: agreement that needs no look at images.

    Args:
        masks_a: N masks (H, W), all of one size.
        masks_b: Likewise.
        seed: Of the shuffling.
        groups: Exam of each image; a mask then comes from another exam.

    Returns:
        float64 (N,) in [0, 1]. Errors as in `derangement` and `mask_agreement`.
    """
    partners = derangement(range(len(masks_b)) if groups is None else groups, seed=seed)
    return mask_agreement(masks_a, [masks_b[partner] for partner in partners])


def derangement(groups: Sequence[Hashable], *, seed: int) -> np.ndarray:
    """Permutation that gives every item a partner of another group.

    Groups stand in random order; the partner is as many places on as the largest group is large.

    Args:
        groups: (N,) group of each item.
        seed: Of the order; the same groups and seed give the same permutation.

    Returns:
        int64 (N,), partner of each item, each taken once; (0,) for none.

    Raises:
        ValueError: A group holds more than half of the items.
    """
    members: dict[Hashable, list[int]] = {}
    for item, group in enumerate(groups):
        members.setdefault(group, []).append(item)
    largest = max((len(items) for items in members.values()), default=0)
    if 2 * largest > len(groups):
        raise ValueError(f"derangement: {largest} of {len(groups)} items are of one group")
    rng = np.random.default_rng(seed)
    names = list(members)
    blocks = [rng.permutation(members[names[i]]) for i in rng.permutation(len(names))]
    partners = np.empty(len(groups), dtype=np.int64)
    order = np.concatenate([partners[:0], *blocks])
    partners[order] = np.roll(order, -largest)
    return partners


def contour_leak_score(
    image: np.ndarray, mask: np.ndarray, *, offsets_px: tuple[float, float] = (3.0, 5.0)
) -> float:
    """Edge energy on the label's contour over that on the contours beside it.

    A generator that was given the label can draw it, which hands a segmenter the answer. A real
    skull is bright too, so the score is read against that of real images at the same size.

    Args:
        image: (H, W) uint8 or float, any range and scale: the score does not depend on it.
        mask: (H, W), non-zero is foreground. Where it ends at the image's border is no contour.
        offsets_px: Nearest and farthest distance of the contours beside it, inside and outside.

    Returns:
        Mean gradient magnitude (central differences) of the pixels on either side of the contour
        over that of the pixels beside it; above 1 where the contour itself is the edge. Infinity
        where only the contour has one; nan for a mask without contour (empty, full), one without
        pixels beside it, or an image without an edge there.

    Raises:
        ValueError: Image and mask are not of one size (H, W) of at least 2 x 2.
    """
    image, mask = np.asarray(image, dtype=np.float64), np.asarray(mask) != 0
    if image.ndim != 2 or image.shape != mask.shape or min(image.shape) < 2:
        raise ValueError(f"image {image.shape} and mask {mask.shape} must be of one size (H, W)")
    if not mask.any() or mask.all():
        return float("nan")
    # Half a pixel less: the contour lies midway between the two pixels that it parts.
    distance_px = np.where(
        mask, ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    )
    distance_px -= 0.5
    edge = np.hypot(*np.gradient(image))
    on = distance_px <= 0.5
    beside = (distance_px >= offsets_px[0]) & (distance_px <= offsets_px[1])
    if not beside.any():
        return float("nan")
    energy, energy_beside = float(edge[on].mean()), float(edge[beside].mean())
    if energy_beside > 0:
        return energy / energy_beside
    return float("inf") if energy > 0 else float("nan")


def intensity_statistics(images: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """Describe brightness and contrast of a set of images.

    Args:
        images: uint8 (H, W) each, any sizes; an image weighs the same whatever its size.

    Returns:
        For `mean` and `spread` (a single image's mean and standard deviation, on [0, 1]): `mean`,
        `sd` (divisor N), `p1`, `p50` and `p99` over the images. All nan without images.
    """
    means, spreads = per_image_intensity(images)
    return {"mean": _describe(means), "spread": _describe(spreads)}


def per_image_intensity(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each uint8 image, on [0, 1]; float64 (N,) each."""
    values = [(image.mean() / 255, image.std() / 255) for image in images]
    means, spreads = np.array(values, dtype=np.float64).reshape(-1, 2).T
    return means, spreads


def _describe(values: np.ndarray) -> dict[str, float]:
    if len(values) == 0:
        return dict.fromkeys(("mean", "sd", "p1", "p50", "p99"), float("nan"))
    p1, p50, p99 = (float(number) for number in np.percentile(values, [1, 50, 99]))
    return {
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "p1": p1,
        "p50": p50,
        "p99": p99,
    }


def _mean_kernel_of_pairs(a: np.ndarray) -> float:
    kernel = (a @ a.T / a.shape[1] + 1.0) ** 3
    return float(kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1))


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point to its k-th nearest other point."""
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, k - 1, axis=1)[:, k - 1]


def _as_features(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (N, D) and (M, D)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise ValueError(f"features are (N, D) and (M, D), not {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a feature is not finite")
    return a, b
