"""Procedural training pairs: drawn heads on the ellipses of a trial. Pure; learns from no image.

The scenes are those of `phantom_image`, the outlines those of the trial's own labels.
"""

from collections.abc import Iterator

import numpy as np

from datamodules.ellipse import Ellipse, EllipseDistribution, perimeter_px
from datamodules.keyed import text_seed
from datamodules.phantom_image import draw_head

# Perimeter over the image's width below which a head is drawn as in the first trimester, and from
# which never; between them by chance, linearly. These are the ends of the overlap of the
# trimesters' ranges in `phantom`.
_EARLY_BELOW, _LATE_FROM = 1.35, 1.5


def phantom_pairs(
    *, distribution: EllipseDistribution, n: int, seed: int, size_hw: tuple[int, int]
) -> Iterator[tuple[np.ndarray, Ellipse]]:
    """Draw a head for each of n ellipses from the distribution.

    First-trimester scenes (`early` of `draw_head`) follow the drawn head's size on the screen, see
    `early_probability`: their share is what the trial's own outlines imply, and nothing but the
    distribution is fitted. A pair depends on the seed and its own number only.

    Args:
        distribution: of the trial's own labels.
        n: number of pairs, 0 or more.
        seed: with the pair's number the only source of randomness.
        size_hw: rows and columns, 32 at least.

    Yields:
        The image, uint8 of `size_hw`, and its ellipse in pixels of it.

    Raises:
        ValueError: n below 0 or images smaller than 32 px.
    """
    if n < 0 or min(size_hw) < 32:
        raise ValueError(
            f"phantom pairs need n >= 0 and a size of at least 32x32, got {n} and {size_hw}"
        )
    # The checks above run at the call, not at the first pair.
    return (
        _draw_pair(
            np.random.default_rng(text_seed("phantom", seed, number)),
            distribution=distribution,
            size_hw=size_hw,
        )
        for number in range(n)
    )


def early_probability(ellipse: Ellipse, *, width_px: int) -> float:
    """Return how likely a head of this size is drawn as in the first trimester.

    Args:
        ellipse: in pixels of the image.
        width_px: columns of the image.

    Returns:
        1 where the perimeter is less than 1.35 widths, 0 from 1.5 on, linear between.
    """
    share = perimeter_px(ellipse) / width_px
    return float(np.clip((_LATE_FROM - share) / (_LATE_FROM - _EARLY_BELOW), 0, 1))


def _draw_pair(
    rng: np.random.Generator, *, distribution: EllipseDistribution, size_hw: tuple[int, int]
) -> tuple[np.ndarray, Ellipse]:
    ellipse = distribution.sample(rng, size_hw=size_hw)
    is_early = bool(rng.random() < early_probability(ellipse, width_px=size_hw[1]))
    return draw_head(rng, ellipse=ellipse, size_hw=size_hw, early=is_early), ellipse
