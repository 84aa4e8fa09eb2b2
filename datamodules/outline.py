"""From a drawn outline to an ellipse, and from an ellipse to an outline. Pure; no torch.

A generator's outline has gaps, noise, second lines and blobs, so the fit is robust (`outline_fit`),
and what it says about the line decides whether the ellipse is accepted.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from datamodules.config_outline import ExtractorConfig
from datamodules.ellipse import Ellipse, contour_distance_px, scale_ellipse
from datamodules.outline_fit import LineAlong, best_ellipse

if TYPE_CHECKING:
    # That module needs torch.
    from datamodules.geometry import Placement

_MIN_PIXELS = 20
_MIN_PIECE_SHARE = 0.01  # of the shorter side: smaller pieces are noise


@dataclass(frozen=True, kw_only=True)
class ExtractedOutline:
    """What was found in an outline image.

    Attributes:
        ellipse: in pixels of the image; None where it is refused.
        residual_px: median distance of the line's centre from the ellipse; None without any fit.
        closedness: share in [0, 1] of the visible ellipse's length that the line covers; 0 without
            any fit.
        thickness_px: median thickness of the line; None without any fit.
        reason: why it is refused; None where it is accepted.
    """

    ellipse: Ellipse | None
    residual_px: float | None
    closedness: float
    thickness_px: float | None
    reason: str | None


def extract_ellipse(outline: np.ndarray, config: ExtractorConfig | None = None) -> ExtractedOutline:
    """Find the one ellipse that an outline image shows, or say why there is none.

    Of several ellipses the one with the longest and most closed line wins: of two lines around a
    head the outer one. The result depends on the image alone.

    Args:
        outline: uint8 (H, W), the line bright on dark.
        config: what is accepted; the defaults where it is None.

    Returns:
        The ellipse in the image's own pixels (`outline_to_original` undoes a squash), or a reason;
        an empty, full or noisy image gives a reason.

    Raises:
        ValueError: not a grey uint8 image.

    Source:
        Fischler and Bolles, Random sample consensus (1981); tested on drawn ellipses to 0.5 px.
    """
    if outline.ndim != 2 or outline.dtype != np.uint8:
        raise ValueError(f"outline must be uint8 (H, W), got {outline.dtype} {outline.shape}")
    config = ExtractorConfig() if config is None else config
    line = _without_specks(outline, threshold=config.threshold)
    count = int((line > config.threshold).sum())
    if count < _MIN_PIXELS:
        return _refused(f"{count} pixels of line above {config.threshold}, {_MIN_PIXELS} needed")
    share = count / line.size
    if share > config.max_foreground_share:
        return _refused(
            f"{share:.2f} of the image above {config.threshold}, "
            f"more than {config.max_foreground_share:g}"
        )
    best = best_ellipse(line, threshold=config.threshold)
    if best is None:
        return _refused(f"no ellipse fits the {count} pixels above {config.threshold}")
    return _judge(best[0], line=best[1], size_hw=outline.shape, config=config)


def _refused(reason: str) -> ExtractedOutline:
    return ExtractedOutline(
        ellipse=None, residual_px=None, closedness=0.0, thickness_px=None, reason=reason
    )


def _judge(
    ellipse: Ellipse, *, line: LineAlong, size_hw: tuple[int, int], config: ExtractorConfig
) -> ExtractedOutline:
    """Accept the ellipse, or name the first limit that it breaks."""
    residual_px = float(np.median(np.abs(line.offsets_px)))
    thickness_px = float(np.median(line.widths_px))
    radius_px = math.sqrt(ellipse.semi_major_px * ellipse.semi_minor_px)
    minor_share = ellipse.semi_minor_px / min(size_hw)
    major_share = ellipse.semi_major_px / max(size_hw)
    thickness_share = thickness_px / min(size_hw)
    limits = (
        ("visible share", line.visible_share, config.min_visible_share, "below"),
        ("semi-minor axis share", minor_share, config.min_semi_minor_share, "below"),
        ("semi-major axis share", major_share, config.max_semi_major_share, "above"),
        ("closedness", line.closedness, config.min_closedness, "below"),
        ("thickness share", thickness_share, config.max_thickness_share, "above"),
        ("residual share", residual_px / radius_px, config.max_residual_share, "above"),
    )
    reason = None
    for name, value, limit, side in limits:
        if value < limit if side == "below" else value > limit:
            reason = f"{name} {value:.3g} {side} {limit:g}"
            break
    return ExtractedOutline(
        ellipse=ellipse if reason is None else None,
        residual_px=residual_px,
        closedness=line.closedness,
        thickness_px=thickness_px,
        reason=reason,
    )


def _without_specks(outline: np.ndarray, *, threshold: int) -> np.ndarray:
    """Blacken pieces that are shorter than a hundredth of the image's shorter side."""
    foreground = (outline > threshold).astype(np.uint8)
    if not foreground.any():
        return outline
    _, labels, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    extent = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    is_speck = extent < _MIN_PIECE_SHARE * min(outline.shape)
    # Label 0 is the background, whose greys place the line's edge.
    is_speck[0] = False
    return np.where(is_speck[labels], np.uint8(0), outline)


def outline_to_original(ellipse: Ellipse, placement: "Placement") -> Ellipse:
    """Bring an ellipse of the generator's frame back to the original image; exact.

    Args:
        ellipse: in frame pixels, padded or squashed.
        placement: of the original image in the frame.
    """
    return scale_ellipse(ellipse, scale_x=1 / placement.scale_x, scale_y=1 / placement.scale_y)


def outline_to_frame(ellipse: Ellipse, placement: "Placement") -> Ellipse:
    """Bring an ellipse of the original image into the generator's frame; exact."""
    return scale_ellipse(ellipse, scale_x=placement.scale_x, scale_y=placement.scale_y)


def draw_outline(ellipse: Ellipse, *, size_hw: tuple[int, int], thickness_px: float) -> np.ndarray:
    """Draw an ellipse's line, anti-aliased.

    Args:
        ellipse: in pixels of the image; may leave it in part or wholly.
        size_hw: rows and columns.
        thickness_px: of the line, > 0; HC18's own is 2.3 to 2.6 at 540x800.

    Returns:
        float32 (H, W) in [0, 1]: by how much the line covers each pixel, measured across it.

    Raises:
        ValueError: a thickness that is not positive.
    """
    if not (math.isfinite(thickness_px) and thickness_px > 0):
        raise ValueError(f"thickness_px must be positive, got {thickness_px}")
    rows, columns = np.indices(size_hw)
    points = np.stack([columns.ravel(), rows.ravel()], axis=1)
    distance = contour_distance_px(ellipse, points).reshape(size_hw)
    half = thickness_px / 2
    covered = np.minimum(distance + 0.5, half) - np.maximum(distance - 0.5, -half)
    return np.clip(covered, 0, 1).astype(np.float32)
