"""What an index says, for a person or a program: counts, measures and findings."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from datamodules.ellipse import perimeter_px
from datamodules.index import Index
from datamodules.notices import notices
from datamodules.plausible import HC_TOLERANCE_MM, contradicts_csv, doubts
from datamodules.reading import bias_notes, drawn_ellipse
from datamodules.samples import trimester


def summary(index: Index) -> dict:
    """Count and measure what is in the index, in plain values that go into JSON.

    Returns:
        images, exams, groups, frames_per_exam, annotations (by kind), open_outlines and
        touching_border (sample ids), sizes ("800x540": count), pixel_size_mm and hc_mm (min, max,
        mean; None without any), trimesters ("1", "2", "3": count), hc_error_mm (by kind, see
        `hc_errors`), duplicates (pairs of ids), implausible (sentences, see `doubts`) and findings
        (sentences, the implausible ones first).
    """
    rows, implausible = index.rows, doubts(index)
    frames = Counter(Counter(row.exam_id for row in rows).values())
    sizes = Counter(f"{row.size_hw[1]}x{row.size_hw[0]}" for row in rows)
    trimesters = Counter(trimester(row.hc_mm) for row in rows)
    return {
        "images": len(rows),
        "exams": len({row.exam_id for row in rows}),
        "groups": len({row.group_id for row in rows}),
        "frames_per_exam": {str(number): frames[number] for number in sorted(frames)},
        "annotations": dict(sorted(Counter(row.kind or "none" for row in rows).items())),
        "open_outlines": [row.sample_id for row in rows if row.is_open],
        "touching_border": [row.sample_id for row in rows if row.touches_border],
        "sizes": dict(sizes.most_common()),
        "pixel_size_mm": _range([row.pixel_size_mm for row in rows]),
        "hc_mm": _range([row.hc_mm for row in rows]),
        "trimesters": {str(number): trimesters[number] for number in (1, 2, 3)},
        "hc_error_mm": hc_errors(index),
        "duplicates": [list(pair) for pair in index.duplicates],
        "implausible": implausible,
        "findings": [*implausible, *_findings(index)],
    }


def hc_errors(index: Index) -> dict[str, dict[str, float | int]]:
    """Compare the fitted HC with the CSV's: mean and max of |fit - CSV| in mm, and n.

    Returns:
        By "outline", "filled" (bias corrected) and "filled_uncorrected"; only those that occur.
    """
    errors: dict[str, list[float]] = {"outline": [], "filled": [], "filled_uncorrected": []}
    for row in index.rows:
        if row.hc_fit_mm is None or row.hc_mm is None:
            continue
        errors[row.kind].append(abs(row.hc_fit_mm - row.hc_mm))
        if row.kind == "filled" and row.filled_bias_px != 0:
            uncorrected_mm = perimeter_px(drawn_ellipse(row)) * row.pixel_size_mm
            errors["filled_uncorrected"].append(abs(uncorrected_mm - row.hc_mm))
    return {
        kind: {"mean": float(np.mean(values)), "max": float(np.max(values)), "n": len(values)}
        for kind, values in errors.items()
        if values
    }


def _range(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"min": min(known), "max": max(known), "mean": float(np.mean(known))}


def _findings(index: Index) -> list[str]:
    """Return one sentence for each thing that the user should know, with the files' names."""
    rows = {row.sample_id: row for row in index.rows}
    found, errors = [*notices(index), *bias_notes(index)], hc_errors(index)
    drawn = errors.get("filled_uncorrected")
    if drawn is not None and errors["filled"]["mean"] > drawn["mean"]:
        found.append(
            f"the correction makes the HC errors of filled masks larger, {drawn['mean']:.3g} to "
            f"{errors['filled']['mean']:.3g} mm; data.filled_bias_px=0 leaves it out"
        )
    found += [
        f"{row.sample_id}: the outline "
        f"{'runs out of the image' if row.touches_border else 'is open'}; its ellipse is used"
        for row in index.rows
        if row.is_open
    ]
    found += [
        f"{row.sample_id}: the annotation's HC is {row.hc_fit_mm:.1f} mm, the CSV's {row.hc_mm:.1f}"
        for row in index.rows
        if row.hc_fit_mm is not None
        and row.hc_mm is not None
        and abs(row.hc_fit_mm - row.hc_mm) > HC_TOLERANCE_MM
        and not contradicts_csv(row)
    ]
    for first, second in index.duplicates:
        sentence = f"{first} and {second}: the same image"
        if rows[first].exam_id != rows[second].exam_id:
            sentence += ", in two exams; they stay in one part of every split"
        hcs = rows[first].hc_mm, rows[second].hc_mm
        if None not in hcs and abs(hcs[0] - hcs[1]) > 0:
            sentence += f"; their HCs differ by {abs(hcs[0] - hcs[1]):.2f} mm"
        found.append(sentence)
    if all(row.pixel_size_mm is None for row in index.rows):
        found.append("no pixel sizes: measures in mm are left out")
    return found
