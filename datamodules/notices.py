"""What in data may be meant and may be a mistake: a sweep says it and goes on. Pure."""

import re
from collections import defaultdict

from datamodules.annotation import MAX_RESIDUAL_PX
from datamodules.index import Index

_FEW = 3
_NUMBERED = re.compile(r"(?P<stem>.*[^\W_].*?)[ _-]+(?:frame|image|img|slice|view)?[ _-]*\d+", re.I)


def notices(index: Index) -> list[str]:
    """Return a sentence for each thing about exams and shapes that a person should look at.

    All images in one exam, so that no interval can be given; images whose names differ in a last
    number alone and count as exams of their own; annotations that are no ellipses, or the same file
    for different images.
    """
    return [
        *_one_exam(index),
        *_numbered_exams(index),
        *_other_shapes(index),
        *_one_annotation(index),
    ]


def _one_exam(index: Index) -> list[str]:
    exams = {row.exam_id for row in index.rows}
    if len(exams) > 1 or len(index.rows) <= _FEW:
        return []
    return [
        f"all {len(index.rows)} images count as one exam, {min(exams)}, so that there are no "
        "intervals; a column `exam` in the CSV tells exams apart"
    ]


def _numbered_exams(index: Index) -> list[str]:
    exams = {row.exam_id: row.sample_id for row in reversed(index.rows)}
    groups = defaultdict(list)
    for exam_id in sorted(exams):
        if found := _NUMBERED.fullmatch(exam_id):
            groups[found["stem"]].append(exams[exam_id])
    several = [names for names in groups.values() if len(names) > 1]
    # Images that are numbered through have one stem.
    if len(several) < 2:
        return []
    first, second = several[0][:2]
    return [
        f"{first} and {second} are of two exams, as are {sum(map(len, several)) - 2} more images, "
        "whose names differ in their last number; where such exams are of one patient, say so in "
        "the CSV, in a column `exam`"
    ]


def _other_shapes(index: Index) -> list[str]:
    known = [row for row in index.rows if row.residual_px is not None]
    strange = [row for row in known if row.residual_px > MAX_RESIDUAL_PX]
    if not strange:
        return []
    worst = max(strange, key=lambda row: row.residual_px)
    return [
        f"{len(strange)} of {len(known)} annotations are no ellipses, {worst.sample_id} least of "
        f"all ({worst.residual_px:.1f} px off on average); look whether they are heads"
    ]


def _one_annotation(index: Index) -> list[str]:
    groups = defaultdict(list)
    for row in index.rows:
        if row.annotation_sha256 is not None:
            groups[row.annotation_sha256].append(row)
    # Of two copies of an image the annotations are copies too.
    several = [rows for rows in groups.values() if len({row.group_id for row in rows}) > 1]
    if not several:
        return []
    first = several[0][0]
    second = next(row for row in several[0] if row.group_id != first.group_id)
    return [
        f"{sum(map(len, several))} images share their annotation with another one, such as "
        f"{first.sample_id} and {second.sample_id}, whose files are the same; look whether they "
        "are theirs"
    ]
