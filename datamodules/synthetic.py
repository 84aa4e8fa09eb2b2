"""The synthetic set on disk: an external cohort's layout, with a line of metadata a pair.

    image/<name>.png  mask/<name>_Annotation.png (filled)  metadata.jsonl

`metadata.jsonl` follows the image-folder convention (`file_name`). A folder made by others needs
the two picture folders only. Pairs that are new labels of images which are there already hold the
name of the image instead of a copy (`image_of`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules.cohort import read_cohort
from datamodules.ellipse import Ellipse, perimeter_px
from datamodules.errors import InputError
from datamodules.samples import Sample
from datamodules.storage import write_json

COHORT = "synthetic"
ORIGIN_NAME = "origin.json"
"""What is known of the generator that drew a set; see `seen_pixels`."""


@dataclass(frozen=True, kw_only=True)
class SyntheticPair:
    """What is known of one generated pair."""

    sample_id: str
    """Name of the pair, unique in its set."""
    ellipse: Ellipse | None = None
    """The drawn head outline in pixels of the stored image; None where others made the pair."""
    seed: int | None = None
    """Seed of the pair's own noise and outline."""
    generator_id: str | None = None
    """Id of the generator's run."""
    native_size_hw: tuple[int, int] | None = None
    """Height and width at which the generator works, px; the stored image is resized from it."""
    prompt: str | None = None
    """Text that the generator was given, where it reads one."""
    gate: dict[str, Any] = field(default_factory=dict)
    """What the gate measured, by name."""
    reasons: tuple[str, ...] = ()
    """Why the gate rejected the pair; empty for an accepted one."""
    image_of: str | None = None
    """Sample whose image it is, where the set holds the label alone."""


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """Pairs in the order of their names."""

    root: Path
    samples: list[Sample]
    pairs: dict[str, SyntheticPair]


def pair_paths(root: Path, sample_id: str) -> tuple[Path, Path]:
    """Image and mask path of a pair."""
    return root / "image" / f"{sample_id}.png", root / "mask" / f"{sample_id}_Annotation.png"


def write_pair(root: Path, sample_id: str, *, image: np.ndarray | None, mask: np.ndarray) -> None:
    """Write a pair's pictures.

    Args:
        root: Folder of the set.
        sample_id: Name of the pair.
        image: uint8 (H, W); None where the pair is a label alone.
        mask: uint8 (H, W) in {0, 1}; stored filled as 0 and 255.
    """
    for path, picture in zip(pair_paths(root, sample_id), (image, mask * 255), strict=True):
        if picture is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, picture)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W) as PNG; cv2's own writing of files would not raise on a full disk.

    Raises:
        OSError: As any writing does.
    """
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def link_pair(source: Path, target: Path, *, sample_id: str) -> None:
    """Bring a pair's pictures into another set without a copy where the disk allows it."""
    for old, new in zip(pair_paths(source, sample_id), pair_paths(target, sample_id), strict=True):
        new.parent.mkdir(parents=True, exist_ok=True)
        # A stopped attempt may have left the link; copying the file onto itself would fail.
        new.unlink(missing_ok=True)
        try:
            os.link(old, new)
        except OSError:
            shutil.copyfile(old, new)


def write_metadata(path: Path, pairs: Iterable[SyntheticPair]) -> None:
    """Write one JSON line a pair."""
    lines = []
    for pair in pairs:
        image, mask = pair_paths(Path(), pair.sample_id)
        row = {"file_name": image.as_posix(), "mask_file_name": mask.as_posix(), **asdict(pair)}
        # Neither is a key of sets that hold their images.
        del row["file_name" if pair.image_of is not None else "image_of"]
        lines.append(json.dumps(row, allow_nan=False))
    path.write_text("".join(line + "\n" for line in lines))


def read_metadata(path: Path) -> list[SyntheticPair]:
    """Read what `write_metadata` wrote.

    Raises:
        InputError: For a line that is not JSON, names no file or holds a value that cannot be.
    """
    pairs: dict[str, SyntheticPair] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        raise InputError(f"{path}: not UTF-8; save it as such, or remove it") from error
    for number, line in enumerate(lines, start=1):
        try:
            pair = _pair(json.loads(line))
            is_known = pair.sample_id in pairs
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} line {number}: expected a JSON object with `file_name`; "
                "correct the line or remove metadata.jsonl"
            ) from error
        if is_known:
            raise InputError(f"{path} line {number}: names {pair.sample_id} again; keep one line")
        pairs[pair.sample_id] = pair
    return [*pairs.values()]


def _pair(row: dict[str, Any]) -> SyntheticPair:
    ellipse, size = row.get("ellipse"), row.get("native_size_hw")
    picture = Path(row["file_name"] if row.get("image_of") is None else row["mask_file_name"])
    return SyntheticPair(
        sample_id=row.get("sample_id", picture.stem),
        ellipse=Ellipse(**ellipse) if ellipse else None,
        seed=row.get("seed"),
        generator_id=row.get("generator_id"),
        native_size_hw=tuple(size) if size else None,
        prompt=row.get("prompt"),
        gate=row.get("gate", {}),
        reasons=tuple(row.get("reasons", ())),
        image_of=row.get("image_of"),
    )


def read_synthetic(root: Path, *, originals: Mapping[str, Sample] | None = None) -> SyntheticSet:
    """Read a synthetic set, ours or another one in the same layout.

    Args:
        root: Folder of the set.
        originals: Samples by id whose images the set's labels may be of.

    Raises:
        InputError: For a missing or empty folder, an image without its mask, or metadata of
            pictures that are not there.
    """
    metadata = root / "metadata.jsonl"
    listed = read_metadata(metadata) if metadata.exists() else []
    if any(pair.image_of is not None for pair in listed):
        return _read_labels(root, listed, originals=originals or {})
    samples = read_cohort(root, name=COHORT)
    known = {sample.sample_id for sample in samples}
    pairs = {sample_id: SyntheticPair(sample_id=sample_id) for sample_id in sorted(known)}
    for pair in listed:
        if pair.sample_id not in known:
            raise InputError(
                f"{metadata}: names {pair.sample_id}, but image/{pair.sample_id}.png is not "
                "there; restore the picture or remove its line"
            )
        pairs[pair.sample_id] = pair
    return SyntheticSet(root=root, samples=samples, pairs=pairs)


def pixels_sha256(image: np.ndarray) -> str:
    """Hash of an image's size and pixels, whatever its file's format.

    Args:
        image: uint8 (H, W).
    """
    rows, columns = image.shape
    return hashlib.sha256(f"{rows}x{columns}:".encode() + image.tobytes()).hexdigest()


def write_origin(root: Path, *, images_seen: Iterable[str], **about: Any) -> None:
    """Say what is known of the generator behind a set, and `pixels_sha256` of all that it saw."""
    write_json(root / ORIGIN_NAME, {**about, "images_seen": list(images_seen)})


def seen_pixels(root: Path) -> frozenset[str]:
    """`pixels_sha256` of the images that the generator of a set was fitted on, if the set tells.

    Raises:
        InputError: `origin.json` is damaged.
    """
    path = root / ORIGIN_NAME
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(json.loads(path.read_text())["images_seen"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected JSON with `images_seen`; draw the set again") from error


def _read_labels(
    root: Path, listed: Sequence[SyntheticPair], *, originals: Mapping[str, Sample]
) -> SyntheticSet:
    """A set of labels alone, each beside the image that it is of; nothing else of that sample."""
    samples, metadata = [], root / "metadata.jsonl"
    ordered = sorted(listed, key=lambda pair: pair.sample_id)
    for pair in ordered:
        mask = pair_paths(root, pair.sample_id)[1]
        if pair.image_of not in originals:
            raise InputError(
                f"{metadata}: {pair.sample_id} is a label of {pair.image_of}, which is not among "
                "the images; read it with the data that it was made from"
            )
        if not mask.is_file():
            raise InputError(f"{metadata}: names {pair.sample_id}, but {mask} is not there")
        original, pixel_size_mm = originals[pair.image_of], originals[pair.image_of].pixel_size_mm
        hc_mm = None
        if pair.ellipse is not None and pixel_size_mm is not None:
            hc_mm = perimeter_px(pair.ellipse) * pixel_size_mm
        samples.append(
            replace(
                original,
                sample_id=pair.sample_id,
                annotation_path=mask,
                hc_mm=hc_mm,
                cohort=COHORT,
                # As `write_pair` draws it, however the original's is to be read.
                filled_bias_px=0.0,
                label=None,
            )
        )
    return SyntheticSet(
        root=root, samples=samples, pairs={pair.sample_id: pair for pair in ordered}
    )
