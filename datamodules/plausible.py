"""Whether pixel sizes and circumferences can be right, and what probably went wrong. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datamodules.ellipse import perimeter_px
from datamodules.errors import InputError
from datamodules.index import Index, IndexRow
from datamodules.reading import drawn_ellipse

HC_RANGE_MM = (30.0, 420.0)
"""What the circumference of a fetal head can be; HC18's are 44 to 346 mm."""
PIXEL_SIZE_RANGE_MM = (0.02, 1.0)
"""What the pixel size of an ultrasound image can be; HC18's are 0.05 to 0.4 mm."""
HC_TOLERANCE_MM = 2.0
"""The CSV's HC and the annotation's agree to 0.04 mm for HC18's outlines, to 0.3 mm for corrected
filled masks. More than this is worth a look; more than the share below as well cannot be right."""
HC_TOLERANCE_SHARE = 0.02

FIELD_MM = 300.0
"""What an ultrasound image shows at most, in its longer side."""

_MM_PER_CM = 10.0
# Ratios of the annotation's HC to the CSV's, in mm: what makes all of a set's alike.
_CAUSES = {
    2.0: "images enlarged to twice the size that the pixel sizes are for, or pixel sizes doubled",
    0.5: "images resized to half the size that the pixel sizes are for, or pixel sizes halved",
    10.0: "HC in centimetres where millimetres are meant",
    0.1: "pixel sizes in centimetres where millimetres are meant",
}
_RATIO_TOLERANCE = 0.05
# Up to this many images are named one by one.
_NAMED = 3


def doubts(index: Index) -> list[str]:
    """Return a sentence for each thing about lengths in mm that cannot be right.

    The annotation's HC against the CSV's (`contradicts_csv`), HC outside `HC_RANGE_MM`, pixel sizes
    outside `PIXEL_SIZE_RANGE_MM`; with the probable cause where the numbers point to one. Without
    pixel sizes there is nothing to doubt but HC.
    """
    return [*_contradictions(index.rows), *_strange_hcs(index.rows), *_strange_pixels(index.rows)]


def contradicts_csv(row: IndexRow) -> bool:
    """Whether the annotation's HC and the CSV's differ by more than 2 % and 2 mm."""
    if row.hc_fit_mm is None or row.hc_mm is None:
        return False
    allowed_mm = max(HC_TOLERANCE_MM, HC_TOLERANCE_SHARE * row.hc_mm)
    return abs(row.hc_fit_mm - row.hc_mm) > allowed_mm


def require_pixel_size(pixel_size_mm: float, *, size_hw: tuple[int, int], of: str) -> None:
    """Raise InputError, beginning with `of`, for a pixel size that no ultrasound image can have.

    That is outside `PIXEL_SIZE_RANGE_MM`; images made small on purpose have larger pixels, which
    pass where the image shows no more than `FIELD_MM`.

    Args:
        pixel_size_mm: Side of a pixel.
        size_hw: Of the image, px.
        of: What is refused, for the message.
    """
    low, high = PIXEL_SIZE_RANGE_MM
    side_mm = pixel_size_mm * max(size_hw)
    is_small = high < pixel_size_mm and side_mm <= FIELD_MM
    if low <= pixel_size_mm <= high or is_small:
        return
    found = f"a pixel size of {pixel_size_mm:.3g} mm is outside {low:g} to {high:g} mm"
    if not high < pixel_size_mm:
        is_cm = not _outside(pixel_size_mm * _MM_PER_CM, PIXEL_SIZE_RANGE_MM)
        why = "; probably centimetres" if is_cm else ""
    else:
        why = f", and {size_hw[1]}x{size_hw[0]} px would be {side_mm:.0f} mm"
    raise InputError(f"{of}: {found}{why}; give the side of a pixel in mm")


def hc_doubt(hc_mm: float) -> str:
    """Why a measured circumference can be no fetal head's; "" where it can."""
    if not _outside(hc_mm, HC_RANGE_MM):
        return ""
    low, high = HC_RANGE_MM
    return f"an HC of {hc_mm:.1f} mm is outside {low:g} to {high:g} mm; is the pixel size right?"


def _contradictions(rows: Sequence[IndexRow]) -> list[str]:
    off = [row for row in rows if contradicts_csv(row)]
    if len(off) <= _NAMED:
        return [_both_hcs(row) + _because(_cause([row])) for row in off]
    median = float(np.median([row.hc_fit_mm / row.hc_mm for row in off]))
    return [
        f"{len(off)} of {len(rows)} annotations have another HC than the CSV, {median:.3g} times "
        f"it (median){_because(_cause(off))}; {_both_hcs(off[0])}"
    ]


def _both_hcs(row: IndexRow) -> str:
    return (
        f"{row.sample_id}: the annotation's HC is {row.hc_fit_mm:.1f} mm, the CSV's {row.hc_mm:.1f}"
    )


def _cause(off: Sequence[IndexRow]) -> str | None:
    """What makes the ratios of the annotations' HC to the CSV's what they are."""
    if all(_fits_uncorrected(row) for row in off):
        return "filled masks that do not reach beyond the head (data.filled_bias_px=0)"
    ratios = np.array([row.hc_fit_mm / row.hc_mm for row in off])
    median = float(np.median(ratios))
    for ratio, cause in _CAUSES.items():
        if abs(median / ratio - 1) <= _RATIO_TOLERANCE:
            return cause
    if len(off) <= _NAMED:
        return None
    low, high = np.percentile(ratios, [25, 75])
    if high - low <= _RATIO_TOLERANCE * median:
        return f"images resized to {median:.3g} times the size that the pixel sizes are for"
    return "rows of the CSV and images mixed up, or resized images of several sizes"


def _fits_uncorrected(row: IndexRow) -> bool:
    """Whether a filled mask has the CSV's HC as it stands in the file."""
    if row.kind != "filled" or row.filled_bias_px == 0:
        return False
    drawn_mm = perimeter_px(drawn_ellipse(row)) * row.pixel_size_mm
    return not contradicts_csv(replace(row, hc_fit_mm=drawn_mm))


def _strange_hcs(rows: Sequence[IndexRow]) -> list[str]:
    """HC by the CSV, or by the annotation where the CSV has none, that is no fetal head's."""
    known = {row.sample_id: row.hc_fit_mm if row.hc_mm is None else row.hc_mm for row in rows}
    strange = {key: hc for key, hc in known.items() if hc is not None and _outside(hc, HC_RANGE_MM)}
    of_csv = all(row.hc_mm is not None for row in rows if row.sample_id in strange)
    what = "HC" if of_csv else "the annotation's HC"
    cause = "lengths" if of_csv else "pixel sizes"
    return _out_of_range(
        strange, n=len(rows), what=what, limits=HC_RANGE_MM, is_cm=_are_cm(known, HC_RANGE_MM),
        cm_words=f"{cause} in centimetres where millimetres are meant",
    )  # fmt: skip


def _strange_pixels(rows: Sequence[IndexRow]) -> list[str]:
    """Pixel sizes that no scanner has; large ones pass where they give a head that can be."""
    strange = {
        row.sample_id: row.pixel_size_mm
        for row in rows
        if row.pixel_size_mm is not None
        and _outside(row.pixel_size_mm, PIXEL_SIZE_RANGE_MM)
        and not (row.pixel_size_mm > PIXEL_SIZE_RANGE_MM[1] and _fits_a_head(row))
    }
    return _out_of_range(
        strange,
        n=len(rows),
        what="the pixel size",
        limits=PIXEL_SIZE_RANGE_MM,
        is_cm=_are_cm(strange, PIXEL_SIZE_RANGE_MM),
        cm_words="pixel sizes in centimetres where millimetres are meant",
    )


def _fits_a_head(row: IndexRow) -> bool:
    """Images made small on purpose have large pixels: their heads are as large as any."""
    return row.hc_fit_mm is not None and not _outside(row.hc_fit_mm, HC_RANGE_MM)


def _out_of_range(
    strange: dict[str, float],
    *,
    n: int,
    what: str,
    limits: tuple[float, float],
    is_cm: bool,
    cm_words: str,
) -> list[str]:
    if not strange:
        return []
    low, high = min(strange.values()), max(strange.values())
    values = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    first = ", ".join(list(strange)[:_NAMED]) + (", ..." if len(strange) > _NAMED else "")
    return [
        f"{what} of {len(strange)} of {n} images is {values} mm, outside {limits[0]:g} to "
        f"{limits[1]:g} mm{_because(cm_words if is_cm else None)} ({first})"
    ]


def _are_cm(values: dict[str, float | None], limits: tuple[float, float]) -> bool:
    known = [value for value in values.values() if value is not None]
    if not known:
        return False
    median = float(np.median(known))
    return median < limits[0] and not _outside(median * _MM_PER_CM, limits)


def _outside(value: float, limits: tuple[float, float]) -> bool:
    return not limits[0] <= value <= limits[1]


def _because(cause: str | None) -> str:
    return "" if cause is None else f"; probably {cause}"
