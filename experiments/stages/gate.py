"""Which generated pairs are refused, and why. Pure functions on arrays.

Every limit is taken from the generator's own labelled images, so the label budget of a row is all
that the gate has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from experiments.config.synthesis import GateConfig
from lightning_modules.fidelity import per_image_intensity

FINGERPRINT_HW = (32, 48)


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """What a candidate must keep to."""

    min_agreement: float
    mean_range: tuple[float, float]
    """Mean intensity in [0, 1]."""
    spread_range: tuple[float, float]
    """Standard deviation of the intensity."""
    max_similarity: float
    """Correlation with the nearest real image, mirrored or not."""


def fingerprints(images: Sequence[np.ndarray]) -> np.ndarray:
    """Reduce images to unit vectors whose dot product is their correlation.

    Args:
        images: uint8 (H, W) each, any size.

    Returns:
        float32 (N, 32 * 48) of mean 0 and length 1; an image of one value gives zeros.
    """
    rows = np.empty((len(images), FINGERPRINT_HW[0] * FINGERPRINT_HW[1]), dtype=np.float32)
    for row, image in zip(rows, images, strict=True):
        small = cv2.resize(image, FINGERPRINT_HW[::-1], interpolation=cv2.INTER_AREA)
        row[:] = small.astype(np.float32).ravel()
        row -= row.mean()
        length = np.linalg.norm(row)
        row /= length if length > 0 else 1.0
    return rows


def mirrored(prints: np.ndarray) -> np.ndarray:
    """Fingerprints of the images mirrored left to right."""
    return prints.reshape(-1, *FINGERPRINT_HW)[:, :, ::-1].reshape(prints.shape)


def similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation (N, M) of images by their fingerprints, the second ones mirrored or not."""
    return np.maximum(first @ second.T, first @ mirrored(second).T)


def limits_from_real(
    images: Sequence[np.ndarray],
    *,
    groups: Sequence[str],
    agreement: Sequence[float],
    config: GateConfig,
) -> GateLimits:
    """Set the limits from the generator's images; where all are of one group, nothing can be a
    near-copy.

    Args:
        images: uint8 (H, W) real images.
        groups: Exam group of each; similarities within a group are no measure of copying.
        agreement: Dice between each label and the gate's segmenter.
        config: Quantiles and slack.
    """
    limit = config.min_agreement
    if limit is None:
        quantile = float(np.quantile(agreement, config.agreement_quantile))
        limit = max(0.0, quantile - config.agreement_slack)
    means, spreads = per_image_intensity(images)
    prints, names = fingerprints(images), np.array(groups)
    similarity = similarities(prints, prints)
    similarity[names[:, None] == names[None, :]] = -1.0
    nearest = similarity.max(axis=1)
    nearest = nearest[nearest > -1.0]
    most = 1.0
    if len(nearest):
        copied = float(np.quantile(nearest, config.copy_quantile))
        most = max(config.copy_min_correlation, copied)
    return GateLimits(
        min_agreement=limit,
        mean_range=_range(means, config),
        spread_range=_range(spreads, config),
        max_similarity=most,
    )


def _range(values: np.ndarray, config: GateConfig) -> tuple[float, float]:
    low = float(np.quantile(values, config.intensity_quantile))
    high = float(np.quantile(values, 1 - config.intensity_quantile))
    # A handful of images spans less than ultrasound does; one image spans nothing.
    slack = config.intensity_slack * max(high - low, 0.1 * high)
    return max(0.0, low - slack), min(1.0, high + slack)


def reasons(
    limits: GateLimits,
    *,
    agreement: float,
    mean: float,
    spread: float,
    similarity: float,
    nearest: str,
) -> list[str]:
    """Why a candidate is refused, a phrase a reason; empty for one that passes.

    Args:
        limits: What it must keep to; the others are the same measures of the candidate.
        nearest: Real image that it is most similar to.
    """
    found = []
    if agreement < limits.min_agreement:
        found.append(
            f"agreement with the segmenter {agreement:.2f} below {limits.min_agreement:.2f}"
        )
    for name, value, (low, high) in (
        ("mean intensity", mean, limits.mean_range),
        ("intensity spread", spread, limits.spread_range),
    ):
        if not low <= value <= high:
            found.append(f"{name} {value:.3f} outside {low:.3f} to {high:.3f}")
    if similarity > limits.max_similarity:
        found.append(
            f"near-copy of {nearest}: correlation {similarity:.3f} "
            f"above {limits.max_similarity:.3f}"
        )
    return found
