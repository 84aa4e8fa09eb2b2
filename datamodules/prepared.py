"""Images and masks resized once into a network's frame, kept as memory-mapped arrays.

A folder is immutable: it is written under a temporary name and renamed, and its name holds the
hash of everything that determines its content. `DONE.json` names size and hash of each file, which
are compared once in each process that opens it: about a second a GiB.
"""

import contextlib
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.annotation import annotation_of, image_of
from datamodules.geometry import Mode, enlarge, image_to_frame, mask_to_frame, place
from datamodules.integrity import FILES, damaged_file, file_facts, read_sealed, sealed
from datamodules.samples import Sample
from datamodules.storage import commit_folder, content_key, is_array, write_json
from datamodules.unchanged import require_unchanged

SCHEMA_VERSION = 2
"""Counts up where the same files give other pictures or masks."""
ARRAYS = ("images", "masks", "size_hw", "valid_hw")
IDS_NAME, DONE_NAME = "ids.json", "DONE.json"
NAMES = (*(f"{name}.npy" for name in ARRAYS), IDS_NAME)


@dataclass(frozen=True, kw_only=True)
class PreparedImages:
    """Arrays over N images in the order of `sample_ids`, read-only and memory-mapped."""

    sample_ids: list[str]
    images: np.ndarray
    """uint8 (N, h, w), zero in the padding; h and w are the frame's times the factor."""
    masks: np.ndarray
    """uint8 (N, h, w) in {0, 1}."""
    size_hw: np.ndarray
    """int64 (N, 2): original sizes."""
    valid_hw: np.ndarray
    """int64 (N, 2): part of the frame that is image."""


def prepare_images(
    samples: Sequence[Sample],
    *,
    content_hashes: Sequence[str],
    frame_hw: tuple[int, int],
    mode: Mode,
    cache_dir: Path,
    factor: int = 1,
    hashed: Sequence[Sample] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreparedImages:
    """Read, resize and keep the images and masks, or open what was kept before and is whole.

    Args:
        samples: Annotated samples.
        content_hashes: `content_hash_of` each image and annotation, same order.
        frame_hw: Height and width of the frame, px.
        mode: "pad" keeps the aspect, "squash" fills the frame.
        cache_dir: Folder that holds prepared folders.
        factor: Pixels of the arrays per pixel of the frame; `valid_hw` counts the frame's.
        hashed: Samples whose files the hashes are of; None for `samples` themselves.
        progress: Called with (done, total).

    Returns:
        The arrays.

    Raises:
        InputError: For a file that cannot be read, by name.
        ChangedError: For a file that no longer has its hash; nothing is kept then.
    """
    sample_ids = [sample.sample_id for sample in samples]
    labels = {sample.label for sample in samples}
    key = content_key(
        {
            "schema": SCHEMA_VERSION,
            "ids": sample_ids,
            "content": list(content_hashes),
            # The same files are other masks where they are read as another layout.
            "filled_bias_px": [sample.filled_bias_px for sample in samples],
            "frame_hw": list(frame_hw),
            "mode": mode,
            # No label is not named, for the same reason as the factor below.
            **({} if labels == {None} else {"label": [sample.label for sample in samples]}),
            # A factor of 1 is not named, so that what was prepared before is found.
            **({} if factor == 1 else {"factor": factor}),
        }
    )
    folder = Path(cache_dir) / f"prepared-{key}"
    found = _damage(folder) if folder.is_dir() else None
    if found is not None:
        _discard(folder, found)
    if not folder.is_dir():
        with commit_folder(folder) as temporary:
            _write(
                temporary, samples, frame_hw=frame_hw, mode=mode, factor=factor, progress=progress
            )
            # After the last one was read.
            require_unchanged(samples if hashed is None else hashed, content_hashes)
    return open_prepared(folder)


def open_prepared(folder: Path) -> PreparedImages:
    """Open a folder that `prepare_images` wrote."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return PreparedImages(sample_ids=json.loads((folder / IDS_NAME).read_text()), **arrays)


def _damage(folder: Path) -> str | None:
    """What is wrong with a folder, in a few words; None where nothing is."""
    state = []
    for name in (*NAMES, DONE_NAME):
        with contextlib.suppress(FileNotFoundError):
            found = (folder / name).stat()
            state.append((name, found.st_ino, found.st_size, found.st_mtime_ns))
    return _damage_of(folder, tuple(state))


@functools.cache
def _damage_of(folder: Path, state: tuple[tuple[str | int, ...], ...]) -> str | None:  # noqa: ARG001
    """The same for files in a state, which a process reads once."""
    if not (folder / DONE_NAME).exists():
        return _damage_of_before(folder)
    facts = (read_sealed(folder / DONE_NAME) or {}).get(FILES)
    return f"{DONE_NAME} cannot be read" if facts is None else damaged_file(folder, facts)


def _damage_of_before(folder: Path) -> str | None:
    """What is missing or cut in a folder of before, whose files no marker names."""
    try:
        json.loads((folder / IDS_NAME).read_text())
    except (OSError, ValueError):
        return f"{IDS_NAME} cannot be read"
    names = [f"{name}.npy" for name in ARRAYS]
    return next((f"{name} is cut" for name in names if not is_array(folder / name)), None)


def _discard(folder: Path, found: str) -> None:
    """Take a damaged folder out of use; whoever has its arrays open keeps them."""
    print(f"{folder / found}, so it is made again", flush=True)
    target = folder.with_name(f".{folder.name}.damaged-{os.getpid()}")
    # Another process may have done it meanwhile.
    with contextlib.suppress(FileNotFoundError):
        folder.rename(target)
    shutil.rmtree(target, ignore_errors=True)


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """An array uint8 to be filled, which has its room on the disk: a full one would otherwise end
    the process by a signal, at the first page that finds none."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _write(
    temporary: Path,
    samples: Sequence[Sample],
    *,
    frame_hw: tuple[int, int],
    mode: Mode,
    factor: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    shape = (len(samples), frame_hw[0] * factor, frame_hw[1] * factor)
    images, masks = (_new_array(temporary / f"{n}.npy", shape) for n in ("images", "masks"))
    placements = []
    for row, sample in enumerate(samples):
        image = image_of(sample)
        annotation = annotation_of(sample)
        placement = place(image.shape, frame_hw=frame_hw, mode=mode)
        large = enlarge(placement, factor)
        images[row] = image_to_frame(image, large)
        masks[row] = mask_to_frame(annotation.mask, large)
        placements.append(placement)
        if progress is not None:
            progress(row + 1, len(samples))
    images.flush()
    masks.flush()
    for name in ("size_hw", "valid_hw"):
        source = "original_hw" if name == "size_hw" else name
        rows = [getattr(placement, source) for placement in placements]
        np.save(temporary / f"{name}.npy", np.array(rows, dtype=np.int64).reshape(-1, 2))
    ids = [sample.sample_id for sample in samples]
    (temporary / IDS_NAME).write_text(json.dumps(ids))
    facts = file_facts(temporary, NAMES, hashed_below=math.inf)
    write_json(temporary / DONE_NAME, sealed({FILES: facts}))
