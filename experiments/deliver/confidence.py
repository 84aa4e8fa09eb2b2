"""How far a prediction can be believed, from the image and the prediction alone. Pure."""

import numpy as np

from datamodules.ellipse import Ellipse, rasterise
from experiments.config.synthesis import SelfTrainingConfig
from lightning_modules.metrics import dice_score

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the image, both corners inclusive; pixel centres are integers."""
VIEW_ZOOM = SelfTrainingConfig.view_zoom
"""Size of the image in the second view, in which a head must be found again."""
MIN_CONFIDENCE = SelfTrainingConfig.min_agreement
"""What self-training would not learn from, a person should look at."""
_MIN_AREA_SHARE = 0.01
_MIN_ASPECT = 0.5
_MIN_SD = 2.0
"""Of the grey values, 0 to 255; an ultrasound image has 30 and more."""


def judge(
    image: np.ndarray,
    *,
    mask: np.ndarray,
    second_mask: np.ndarray,
    ellipse: Ellipse | None,
    why: str = "no ellipse fits",
    runs_dice: float = 1.0,
) -> tuple[float, str]:
    """Say how well mask, ellipse and a second view agree, and whether a head can look like that.

    Args:
        image: uint8 (H, W).
        mask: (H, W), non-zero is foreground, predicted from the image.
        second_mask: (H, W), predicted from the image at `VIEW_ZOOM`, and mapped back.
        ellipse: Fitted to the mask; None where none fits.
        why: The reason where none fits.
        runs_dice: Smallest Dice of the mask of several segmenters with that of one of them.

    Returns:
        The confidence: the smallest one of Dice(mask, ellipse), Dice(mask, second mask) and
        `runs_dice`, 0 without an ellipse; and every reason to doubt it, "" where there is none.

    Raises:
        ValueError: The shapes differ.
    """
    confidence, reasons = 0.0, []
    if image.std() < _MIN_SD:
        reasons.append("the image is nearly constant")
    if ellipse is None:
        reasons.append(why)
    else:
        filled = rasterise(ellipse, size_hw=mask.shape)
        own = min(dice_score(mask, filled), dice_score(mask, second_mask))
        confidence = min(own, runs_dice)
        if filled.mean() < _MIN_AREA_SHARE:
            reasons.append(f"the ellipse covers less than {_MIN_AREA_SHARE:.0%} of the image")
        if ellipse.semi_minor_px < _MIN_ASPECT * ellipse.semi_major_px:
            reasons.append(f"the ellipse is less than {_MIN_ASPECT} as wide as it is long")
        if own < MIN_CONFIDENCE:
            reasons.append(f"mask, ellipse and second view agree by {own:.3f} only")
        if runs_dice < MIN_CONFIDENCE:
            reasons.append(f"the runs agree by {runs_dice:.3f} only")
    return confidence, "; ".join(reasons)
