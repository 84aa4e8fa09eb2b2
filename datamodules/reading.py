"""How the annotations of a folder are to be read: the head's label, the bias of filled masks."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from datamodules.annotation import MAX_RESIDUAL_PX
from datamodules.ellipse import Ellipse, perimeter_px
from datamodules.index import Index, IndexRow
from datamodules.samples import Sample

# A measured bias this near to the expected one is the expected one, so that the same kind of masks
# is read alike in every folder. Half of a redistribution's 300 masks lie within 0.04 px.
_SAME_PX = 0.1
_USUAL_SPREAD_PX = 0.06
_DIGITS = 1
_WORTH_A_NOTE_PX = 0.3
_FEWEST = 5
# Beyond these the circumferences say something else than how the masks were filled.
_MOST_PX = 5.0
_MOST_SPREAD_PX = 1.0
_MOST_ERROR_PX = 0.1


def reads_as(
    samples: Sequence[Sample], *, label: int | None, filled_bias_px: float | None
) -> list[Sample]:
    """Return the samples with what the user says of their annotations; None says nothing."""
    said = {} if label is None else {"label": label}
    if filled_bias_px is not None:
        said["filled_bias_px"] = filled_bias_px
    return [replace(sample, **said) for sample in samples] if said else list(samples)


@dataclass(frozen=True, kw_only=True)
class MeasuredBias:
    """By how much filled masks reach beyond the CSV's circumference, in pixels.

    Attributes:
        median_px: over the masks.
        error_px: standard error of the median.
    """

    median_px: float
    error_px: float


def measured_bias(rows: Sequence[IndexRow]) -> MeasuredBias | None:
    """Measure by how much filled masks reach beyond the CSV's circumference.

    Masks at the border, and those that are no ellipse, do not count.

    Returns:
        None for fewer than five masks with HC and pixel size, or where they disagree: more than
        5 px, spread over more than 1 px, or a standard error of the median above 0.1 px.
    """
    known = [excess for row in rows if (excess := _excess_px(row)) is not None]
    if len(known) < _FEWEST:
        return None
    median = float(np.median(known))
    # 1.4826 makes it a standard deviation, 1.253 is what the median loses against the mean.
    spread = 1.4826 * float(np.median(np.abs(np.array(known) - median)))
    spread = max(spread, _USUAL_SPREAD_PX)  # Of a few masks it is found too small.
    error = 1.253 * spread / math.sqrt(len(known))
    is_clear = abs(median) <= _MOST_PX and spread <= _MOST_SPREAD_PX and error <= _MOST_ERROR_PX
    return MeasuredBias(median_px=median, error_px=error) if is_clear else None


def _excess_px(row: IndexRow) -> float | None:
    """How much longer a filled mask's semi-axes are than its HC asks for."""
    is_known = row.kind == "filled" and row.hc_mm is not None and row.pixel_size_mm is not None
    if not is_known or row.touches_border or row.residual_px > MAX_RESIDUAL_PX:
        return None
    length_px = perimeter_px(drawn_ellipse(row)) - row.hc_mm / row.pixel_size_mm
    return length_px / (2 * math.pi)


def drawn_ellipse(row: IndexRow) -> Ellipse:
    """The ellipse of a filled mask as it stands in the file, uncorrected."""
    return _grown(row.ellipse, row.filled_bias_px)


def settle_bias(index: Index) -> Index:
    """Correct filled masks by the bias that their CSV shows, where a correction is expected.

    The expected bias stays where the measured one lies within 0.1 px (or three standard errors) of
    it, and where none can be measured. Masks of which no bias is expected (external cohorts) stay
    as they are.

    Args:
        index: of one folder, built with the expected bias.

    Returns:
        An index whose filled rows carry the bias that counts, and the ellipses that it leaves.
    """
    filled = [row for row in index.rows if row.kind == "filled" and row.filled_bias_px != 0]
    measured = measured_bias(filled)
    if measured is None or _agrees(measured, filled[0].filled_bias_px):
        return index
    # No negative zero: it would be another value in hashes.
    bias_px = round(measured.median_px, _DIGITS) + 0.0
    if bias_px >= min(drawn_ellipse(row).semi_minor_px for row in filled):
        return index
    chosen = {row.sample_id for row in filled}
    rows = [_with_bias(r, bias_px) if r.sample_id in chosen else r for r in index.rows]
    return replace(index, rows=tuple(rows))


def _agrees(measured: MeasuredBias, bias_px: float) -> bool:
    return abs(measured.median_px - bias_px) <= max(_SAME_PX, 3 * measured.error_px)


def bias_notes(index: Index) -> list[str]:
    """Say how filled masks are read: a sentence, and where that looks wrong, another one."""
    filled = [row for row in index.rows if row.kind == "filled"]
    if not filled:
        return []
    bias_px, measured = filled[0].filled_bias_px, measured_bias(filled)
    how = "taken as they are"
    if bias_px != 0:
        how = f"made {'smaller' if bias_px > 0 else 'larger'} by {abs(bias_px)} px on every side"
    if measured is None:
        how += " (assumed: by the CSV's HC it cannot be told; data.filled_bias_px sets it)"
    found = [f"{len(filled)} of {len(index.rows)} annotations are filled masks, {how}"]
    if measured is not None and abs(measured.median_px - bias_px) > _WORTH_A_NOTE_PX:
        found.append(
            f"by the CSV's HC the filled masks reach {measured.median_px:.2f} px beyond the head; "
            f"data.filled_bias_px={measured.median_px:.1f} takes that off (for a test cohort "
            f"data.cohort_filled_bias_px.NAME={measured.median_px:.1f})"
        )
    return found


def is_as_expected(index: Index, *, before: Index) -> bool:
    """Whether filled masks are read as `before` says, and the CSV's HC agrees."""
    filled = [row for row in index.rows if row.kind == "filled" and row.filled_bias_px != 0]
    return index is before and (not filled or measured_bias(filled) is not None)


def settled(expected: Index, *, filled_bias_px: float | None) -> tuple[Index, list[str]]:
    """`settle_bias`, unless the user has given the bias, and what to say where it is another."""
    if filled_bias_px is not None:
        return expected, []
    index = settle_bias(expected)
    return index, [] if is_as_expected(index, before=expected) else bias_notes(index)


def settled_samples(samples: Sequence[Sample], index: Index) -> list[Sample]:
    """The samples with the biases of their index."""
    bias_px = {row.sample_id: row.filled_bias_px for row in index.rows}
    return [
        sample
        if bias_px[sample.sample_id] == sample.filled_bias_px
        else replace(sample, filled_bias_px=bias_px[sample.sample_id])
        for sample in samples
    ]


def _with_bias(row: IndexRow, bias_px: float) -> IndexRow:
    ellipse = _grown(row.ellipse, row.filled_bias_px - bias_px)
    hc_fit_mm = None
    if row.pixel_size_mm is not None:
        hc_fit_mm = perimeter_px(ellipse) * row.pixel_size_mm
    return replace(row, ellipse=ellipse, hc_fit_mm=hc_fit_mm, filled_bias_px=bias_px)


def _grown(ellipse: Ellipse, by_px: float) -> Ellipse:
    axes = {"semi_major_px": ellipse.semi_major_px + by_px}
    axes["semi_minor_px"] = ellipse.semi_minor_px + by_px
    return Ellipse(**{**asdict(ellipse), **axes})
