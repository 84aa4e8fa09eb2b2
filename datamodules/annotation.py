"""From a PNG (or DICOM) to an image, and from an annotation to a mask and an ellipse."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from datamodules.dicom import is_dicom, one_dicom_image
from datamodules.ellipse import Ellipse, contour_distance_px, fit_ellipse, rasterise
from datamodules.errors import InputError
from datamodules.grey import grey_of
from datamodules.mask_values import foreground_of, one_channel, require_one_colour
from datamodules.samples import Sample

# Root mean square distance of the line's centre (or the mask's edge) from the fitted ellipse, above
# which the annotation is no ellipse. On the 803 + 24 annotations that we have, all of them drawn
# ellipses, it is at most 0.20 px; an outline drawn by hand strays by several pixels.
MAX_RESIDUAL_PX = 1.0

_MIN_PIXELS = 20
_ARC_PX = 8.0
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What an annotation file says.

    Attributes:
        mask: uint8 (H, W) in {0, 1}, the head.
        ellipse: the fit, with the bias of filled masks taken off.
        kind: how the head is drawn in the file.
        is_open: the outline runs out of the image, so that it encloses nothing.
        touches_border: the annotation reaches the image's first or last row or column.
        residual_px: root mean square distance of the drawn line's centre (of the filled mask's
            edge) from the fitted ellipse, averaged over arcs of 8 px.
    """

    mask: np.ndarray
    ellipse: Ellipse
    kind: Literal["outline", "filled"]
    is_open: bool
    touches_border: bool
    residual_px: float


def check_png(data: bytes, *, name: str) -> None:
    """Raise InputError unless the bytes are a whole PNG; cv2 decodes truncated ones in part."""
    if not data.startswith(_PNG_SIGNATURE):
        raise InputError(f"{name}: not a PNG file; save the image as PNG or copy it again")
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[position + 4 : end - 4]) != crc:
            raise InputError(
                f"{name}: damaged PNG (checksum of {kind!r} is wrong); copy or download it again"
            )
        if kind == b"IEND":
            return
        position = end
    raise InputError(f"{name}: PNG cut short after {len(data)} bytes; copy or download it again")


def decode_png(data: bytes, *, name: str) -> np.ndarray:
    """Return a PNG's pixels, uint8 or uint16 (H, W), (H, W, 3) or (H, W, 4), blue first.

    Raises:
        InputError: no PNG, cut short, damaged or too large; `name` is for the message.
    """
    check_png(data, name=name)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        # Its header asks for more pixels than OpenCV allows.
        raise InputError(f"{name}: too large to be an image; copy or download it again") from error
    if pixels is None:
        raise InputError(f"{name}: PNG cannot be decoded; copy or download it again")
    return pixels


def read_bytes(path: Path) -> bytes:
    """Return the file's bytes; InputError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason})") from error


def decode_image(data: bytes, *, name: str, frame: int | None = None) -> np.ndarray:
    """Return the grey image, uint8 (H, W), of the bytes of a PNG or of DICOM; for messages `name`.

    Of DICOM of several frames `frame` is the one that is meant, from 1.

    Raises:
        InputError: neither of them, cut short, damaged, or no `frame` of several.
    """
    if is_dicom(data):
        return one_dicom_image(data, name=name, frame=frame).grey
    return grey_of(decode_png(data, name=name)).grey


def read_image(path: Path, *, frame: int | None = None) -> np.ndarray:
    """Return the grey image, uint8 (H, W): colour and more than 8 bit as by `grey_of`.

    Of DICOM of several frames `frame` is the one that is meant, from 1.

    Raises:
        InputError: unreadable, or see `decode_image`.
    """
    return decode_image(read_bytes(path), name=str(path), frame=frame)


def image_of(sample: Sample) -> np.ndarray:
    """Read a sample's image, uint8 (H, W), see `read_image`."""
    return read_image(sample.image_path, frame=sample.image_frame)


def annotation_of(sample: Sample) -> Annotation:
    """Read a sample's annotation in the way that the sample says."""
    return read_annotation(
        sample.annotation_path, filled_bias_px=sample.filled_bias_px, label=sample.label
    )


def read_annotation(
    path: Path, *, filled_bias_px: float = 0.0, label: int | None = None
) -> Annotation:
    """Read an annotation PNG: an outline or a filled mask of one head.

    See `foreground_of` for the values that count, `parse_annotation` for what they become.
    """
    data = read_bytes(path)
    return decode_annotation(data, name=str(path), filled_bias_px=filled_bias_px, label=label)


def decode_annotation(
    data: bytes, *, name: str, filled_bias_px: float = 0.0, label: int | None = None
) -> Annotation:
    """Like `read_annotation`, from the file's bytes; `name` is for the messages."""
    pixels = decode_png(data, name=name)
    require_one_colour(pixels, name=name, label=label)
    foreground = foreground_of(one_channel(pixels), name=name, label=label)
    return parse_annotation(foreground, name=name, filled_bias_px=filled_bias_px)


def parse_annotation(
    foreground: np.ndarray, *, name: str, filled_bias_px: float = 0.0
) -> Annotation:
    """Turn annotated pixels into a mask and an ellipse.

    Outline: the ellipse is fitted to the line and rasterised; a closed outline that is no ellipse
    is filled up to the line's centre instead. Filled: holes are filled, the ellipse is fitted to
    the mask's edge and its semi-axes shortened by `filled_bias_px`; the mask stays as it is where
    that is zero or where it is no ellipse.

    Args:
        foreground: uint8 (H, W) in {0, 1}.
        name: of the file, for the messages.
        filled_bias_px: by how much filled masks reach beyond the head, in pixels;
            `FILLED_BIAS_PX` for HC18, 0 for other cohorts; negative where they do not reach it.

    Raises:
        InputError: no or hardly any foreground, several pieces, inverted, or nothing that an
            ellipse can be fitted to.
    """
    at_border = _check_drawn(foreground, name=name)
    try:
        is_filled = _is_filled(foreground)
        if is_filled:
            # The edge of a hole would count as the head's.
            foreground = foreground | _enclosed(foreground)
        ellipse, residual_px = _fit(foreground, is_filled=is_filled)
    except ValueError as error:
        raise InputError(f"{name}: no ellipse fits the annotation; draw the head again") from error
    if len(at_border) > 1 and (is_filled or residual_px > MAX_RESIDUAL_PX):
        raise InputError(
            f"{name}: the annotation's {len(at_border)} pieces do not lie on one ellipse; "
            "leave one connected outline or filled head"
        )
    if is_filled:
        return _filled(foreground, fit=(ellipse, residual_px), name=name, bias_px=filled_bias_px)
    inside = rasterise(ellipse, size_hw=foreground.shape)
    window = _window(foreground)
    enclosed = np.zeros_like(foreground)
    enclosed[window] = _enclosed(foreground[window])
    is_open = cv2.countNonZero(enclosed) < 0.5 * cv2.countNonZero(inside)
    keep_drawn = residual_px > MAX_RESIDUAL_PX and not is_open
    return Annotation(
        mask=_add_inner_half(enclosed, line=foreground) if keep_drawn else inside,
        ellipse=ellipse,
        kind="outline",
        is_open=is_open,
        touches_border=bool(at_border.any()),
        residual_px=residual_px,
    )


def _check_drawn(foreground: np.ndarray, *, name: str) -> np.ndarray:
    """Refuse what cannot be one head; return for each piece whether it touches the border."""
    count = cv2.countNonZero(foreground)
    if count < _MIN_PIXELS:
        raise InputError(
            f"{name}: no outline in the annotation ({count} pixels above 127); "
            "draw the head in white (255) on black (0)"
        )
    if foreground[0, 0] and foreground[0, -1] and foreground[-1, 0] and foreground[-1, -1]:
        raise InputError(
            f"{name}: all four corners are annotated; draw the head in white (255) on black (0)"
        )
    at_border = _pieces(foreground[_window(foreground)], connectivity=8)[1]
    pieces = len(at_border)
    # The border may cut one outline into arcs; anything else in pieces is a mistake.
    if pieces > 1 and not at_border.all():
        raise InputError(
            f"{name}: the annotation has {pieces} separate pieces; "
            "leave one connected outline or filled head"
        )
    return at_border


def _filled(
    foreground: np.ndarray, *, fit: tuple[Ellipse, float], name: str, bias_px: float
) -> Annotation:
    ellipse, residual_px = fit
    if bias_px >= ellipse.semi_minor_px:
        raise InputError(
            f"{name}: the head is {2 * ellipse.semi_minor_px:.1f} px wide, too small for the "
            f"correction of filled masks by {bias_px} px"
        )
    ellipse = Ellipse(
        center_x_px=ellipse.center_x_px,
        center_y_px=ellipse.center_y_px,
        semi_major_px=ellipse.semi_major_px - bias_px,
        semi_minor_px=ellipse.semi_minor_px - bias_px,
        theta_rad=ellipse.theta_rad,
    )
    redraw = bias_px != 0 and residual_px <= MAX_RESIDUAL_PX
    return Annotation(
        mask=rasterise(ellipse, size_hw=foreground.shape) if redraw else foreground,
        ellipse=ellipse,
        kind="filled",
        is_open=False,
        touches_border=_on_border(foreground),
        residual_px=residual_px,
    )


def _on_border(mask: np.ndarray) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the bounding box and one pixel around it, where the image has one.

    What touches the window's edge, be it foreground or background, is what touches the image border
    or is not enclosed: so the window stands for the image, at a fraction of the time.
    """
    left, top, width, height = cv2.boundingRect(mask)
    return slice(max(top - 1, 0), top + height + 1), slice(max(left - 1, 0), left + width + 1)


def _pieces(mask: np.ndarray, *, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (background 0) and, for labels 1.., whether each touches the border."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    left, top, width, height = stats[1:, :4].T
    right, bottom = left + width, top + height
    at_end = (right == mask.shape[1]) | (bottom == mask.shape[0])
    return labels, (left == 0) | (top == 0) | at_end


def _edge_points(foreground: np.ndarray) -> np.ndarray:
    """Return the midpoints, float64 (N, 2) as x, y, between foreground and background neighbours.

    Unlike the boundary pixels they have no offset from the drawn edge, and a line's two sides
    average to its centre. What the image border cuts off leaves no points.
    """
    across = _nonzero_xy(foreground[:, 1:] ^ foreground[:, :-1])
    across[:, 0] += 0.5
    down = _nonzero_xy(foreground[1:] ^ foreground[:-1])
    down[:, 1] += 0.5
    return np.concatenate([across, down])


def _nonzero_xy(mask: np.ndarray) -> np.ndarray:
    """Return x and y of the set pixels, float64 (N, 2)."""
    points = cv2.findNonZero(mask)
    return np.zeros((0, 2)) if points is None else points.reshape(-1, 2).astype(np.float64)


def _is_filled(foreground: np.ndarray) -> bool:
    """Tell by the share of the fitted ellipse that is foreground: a thin line covers little."""
    points = _edge_points(foreground)
    rough = fit_ellipse(points[:: max(1, len(points) // 500)])
    inside = rasterise(rough, size_hw=foreground.shape)
    covered = cv2.countNonZero(cv2.bitwise_and(foreground, inside))
    return covered >= 0.5 * max(cv2.countNonZero(inside), 1)


def _fit(foreground: np.ndarray, *, is_filled: bool) -> tuple[Ellipse, float]:
    """Fit the filled mask's edge or the line's pixels; return the residual in pixels as well."""
    points = _edge_points(foreground) if is_filled else _nonzero_xy(foreground)
    if _on_border(foreground):
        # A line that is cut lengthwise, or drawn along the border, shows only one of its sides.
        last_xy = np.array(foreground.shape[::-1]) - 1.0
        depth = np.minimum(points, last_xy - points).min(axis=1)
        points = points[depth > (0.5 if is_filled else _half_thickness_px(foreground))]
    ellipse = fit_ellipse(points)
    distance = contour_distance_px(ellipse, points)
    angle = np.arctan2(points[:, 1] - ellipse.center_y_px, points[:, 0] - ellipse.center_x_px)
    # Averaging over arcs leaves the course of the line and drops its thickness.
    arcs = max(2 * np.pi * ellipse.semi_major_px / _ARC_PX, 8.0)
    arc = np.floor((angle + np.pi) / (2 * np.pi) * arcs).astype(int)
    counts = np.bincount(arc)
    used = counts > 0
    means = np.bincount(arc, weights=distance)[used] / counts[used]
    return ellipse, float(np.sqrt(np.average(means**2, weights=counts[used])))


def _half_thickness_px(line: np.ndarray) -> float:
    return float(cv2.distanceTransform(line, cv2.DIST_L2, 5).max())


def _enclosed(line: np.ndarray) -> np.ndarray:
    """Return the background that the line cuts off from the image border, uint8 (H, W)."""
    labels, at_border = _pieces(1 - line, connectivity=4)
    return np.concatenate([[False], ~at_border]).astype(np.uint8)[labels]


def _add_inner_half(enclosed: np.ndarray, *, line: np.ndarray) -> np.ndarray:
    """Add the line's pixels that are nearer to the enclosed part than to the outside."""
    outside = 1 - (enclosed | line)
    to_inside = cv2.distanceTransform(1 - enclosed, cv2.DIST_L2, 5)
    to_outside = cv2.distanceTransform(1 - outside, cv2.DIST_L2, 5)
    return enclosed | (line & (to_inside <= to_outside))
