"""The index of a data set: every file decoded once, what was found, and its hashes."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Literal

import cv2
import numpy as np

from datamodules.annotation import decode_annotation, decode_image, read_bytes
from datamodules.duplicates import (
    fingerprints,
    group_ids,
    near_duplicate_pairs,
    near_duplicates_between,
    pack_fingerprint,
    unpack_fingerprint,
)
from datamodules.ellipse import Ellipse, perimeter_px
from datamodules.errors import InputError
from datamodules.integrity import sealed, unsealed
from datamodules.samples import Sample

_VERSION = 3
"""Counts up where the same files are read otherwise."""
_PRINTS = ("fingerprint", "content_fingerprint")


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One sample, decoded.

    Attributes:
        sample_id: see `Sample`; likewise exam_id, frame, cohort, pixel_size_mm, hc_mm and
            filled_bias_px.
        size_hw: rows and columns of the image.
        ellipse: fitted to the annotation, bias corrected; None without an annotation, as are
            kind, residual_px, hc_fit_mm and annotation_sha256.
        is_open: see `Annotation`; likewise touches_border (False without an annotation).
        hc_fit_mm: the ellipse's perimeter; None without a pixel size.
        image_sha256: of the file's bytes, with the frame's number where it holds several; likewise
            annotation_sha256.
        fingerprint: of the image, packed; see `pack_fingerprint`.
        content_fingerprint: likewise of what lies within its black margins.
        group_id: exams joined by near-duplicates share it: the unit of splitting.
    """

    sample_id: str
    exam_id: str
    frame: int
    cohort: str
    size_hw: tuple[int, int]
    pixel_size_mm: float | None
    hc_mm: float | None
    ellipse: Ellipse | None
    kind: Literal["outline", "filled"] | None
    is_open: bool
    touches_border: bool
    residual_px: float | None
    hc_fit_mm: float | None
    filled_bias_px: float
    image_sha256: str
    annotation_sha256: str | None
    fingerprint: str
    content_fingerprint: str
    group_id: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """All rows of one cohort in the order of the samples, and the near-duplicates among them."""

    rows: tuple[IndexRow, ...]
    duplicates: tuple[tuple[str, str], ...]

    def to_json(self) -> str:
        """Return the index as JSON; the same index gives the same text."""
        return json.dumps(sealed({"version": _VERSION, **asdict(self)}), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Index":
        """Read what `to_json` wrote.

        Raises:
            ValueError: not an index, one of another version, or changed since.
        """
        try:
            content = unsealed(json.loads(text))
            if content["version"] != _VERSION:
                raise ValueError(f"index version {content['version']}, expected {_VERSION}")
            rows = [_row_from_dict(row) for row in content["rows"]]
            pairs = tuple((first, second) for first, second in content["duplicates"])
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not an index ({error}); build it again") from error
        return cls(rows=tuple(rows), duplicates=pairs)


def _row_from_dict(row: dict) -> IndexRow:
    ellipse = None if row["ellipse"] is None else Ellipse(**row["ellipse"])
    return IndexRow(**{**row, "size_hw": tuple(row["size_hw"]), "ellipse": ellipse})


def build_index(
    samples: Sequence[Sample], *, progress: Callable[[int, int], None] | None = None
) -> Index:
    """Decode every image and annotation once and write down what they are.

    Args:
        samples: of one cohort, ids unique.
        progress: called with (done, total) after each sample.

    Raises:
        InputError: a file is damaged, an annotation is unusable or of another size than its image.
        ValueError: no samples, several cohorts, or an id twice.
    """
    if not samples or len({sample.cohort for sample in samples}) > 1:
        raise ValueError("an index needs at least one sample, and all from one cohort")
    if len({sample.sample_id for sample in samples}) < len(samples):
        raise ValueError("an index needs unique sample ids; index each part of a cohort by itself")
    rows, prints = [], []
    threads = cv2.getNumThreads()
    # One thread per image beats cv2's own threads within an image.
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            try:
                for done, (row, small) in enumerate(pool.map(_decode, samples), start=1):
                    rows.append(row)
                    prints.append(small)
                    if progress is not None:
                        progress(done, len(samples))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        cv2.setNumThreads(threads)
    pairs = near_duplicate_pairs(np.stack(prints))
    groups = group_ids([sample.exam_id for sample in samples], pairs=pairs)
    return Index(
        rows=tuple(
            IndexRow(**row, group_id=group) for row, group in zip(rows, groups, strict=True)
        ),
        duplicates=tuple((samples[i].sample_id, samples[j].sample_id) for i, j in pairs),
    )


def _decode(sample: Sample) -> tuple[dict, np.ndarray]:
    """Return the fields of a row without its group, and the image's fingerprints."""
    data = read_bytes(sample.image_path)
    image = decode_image(data, name=str(sample.image_path), frame=sample.image_frame)
    row = {
        "sample_id": sample.sample_id,
        "exam_id": sample.exam_id,
        "frame": sample.frame,
        "cohort": sample.cohort,
        "size_hw": image.shape,
        "pixel_size_mm": sample.pixel_size_mm,
        "hc_mm": sample.hc_mm,
        "ellipse": None,
        "kind": None,
        "is_open": False,
        "touches_border": False,
        "residual_px": None,
        "hc_fit_mm": None,
        "filled_bias_px": sample.filled_bias_px,
        "image_sha256": _sha256_of(data, sample),
        "annotation_sha256": None,
    }
    if sample.annotation_path is not None:
        row |= _decode_annotation(sample, size_hw=image.shape)
    prints = fingerprints(image)
    packed = dict(zip(_PRINTS, map(pack_fingerprint, prints), strict=True))
    return row | packed, prints


def _sha256_of(data: bytes, sample: Sample) -> str:
    frame = b"" if sample.image_frame is None else b"frame %d" % sample.image_frame
    return hashlib.sha256(data + frame).hexdigest()


def _decode_annotation(sample: Sample, *, size_hw: tuple[int, int]) -> dict:
    path, pixel_size_mm = sample.annotation_path, sample.pixel_size_mm
    data = read_bytes(path)
    annotation = decode_annotation(
        data, name=str(path), filled_bias_px=sample.filled_bias_px, label=sample.label
    )
    if annotation.mask.shape != size_hw:
        height, width = annotation.mask.shape
        raise InputError(
            f"{path}: {width}x{height} px, but its image has {size_hw[1]}x{size_hw[0]}; "
            "export both at one size"
        )
    length_px = perimeter_px(annotation.ellipse)
    return {
        "ellipse": annotation.ellipse,
        "kind": annotation.kind,
        "is_open": annotation.is_open,
        "touches_border": annotation.touches_border,
        "residual_px": annotation.residual_px,
        "hc_fit_mm": None if pixel_size_mm is None else length_px * pixel_size_mm,
        "annotation_sha256": hashlib.sha256(data).hexdigest(),
    }


@dataclass(frozen=True, kw_only=True)
class CrossDuplicate:
    """The same image in two cohorts.

    Attributes:
        cohorts: the keys of both in `cross_cohort_duplicates`' argument, in its order.
        sample_ids: one of each.
        correlation: of their fingerprints, in [-1, 1]; see `resemblance`.
    """

    cohorts: tuple[str, str]
    sample_ids: tuple[str, str]
    correlation: float


def cross_cohort_duplicates(indices: Mapping[str, Index]) -> list[CrossDuplicate]:
    """Find images of one cohort that are near-duplicates of another's.

    No file is read: the indices hold the fingerprints. Within a cohort `Index.duplicates` has them.

    Args:
        indices: by cohort.

    Returns:
        Pairs in the order of the cohorts and of their rows; none for fewer than two cohorts.
    """
    prints = {
        cohort: np.stack([_prints_of(row) for row in index.rows])
        for cohort, index in indices.items()
    }
    return [
        CrossDuplicate(
            cohorts=(first, second),
            sample_ids=(indices[first].rows[i].sample_id, indices[second].rows[j].sample_id),
            correlation=correlation,
        )
        for first, second in combinations(indices, 2)
        for i, j, correlation in near_duplicates_between(prints[first], prints[second])
    ]


def _prints_of(row: IndexRow) -> np.ndarray:
    return np.stack([unpack_fingerprint(getattr(row, name)) for name in _PRINTS])


def data_manifest_sha256(index: Index) -> str:
    """Return one hash over all ids, file hashes, pixel sizes and HCs, in the order of the ids."""
    lines = [
        json.dumps(
            [row.sample_id, row.image_sha256, row.annotation_sha256, row.pixel_size_mm, row.hc_mm]
        )
        for row in sorted(index.rows, key=lambda row: row.sample_id)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
