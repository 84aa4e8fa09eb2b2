"""Image embeddings of a frozen encoder: one immutable fp16 file an image or augmented view.

This file stores and looks up; the encoder belongs to another package. A file's name is a hash over
the image, the view, the encoder's weights and the compute type, so a change of any of them is
another file and nothing stale is ever read; and an image that several trials, supports or sweeps
share is embedded once. Behind its array a file holds the CRC-32 of all before it, which is compared
once in each process (about 4 ms for the 2 MiB of SAM's); of files of before, which have none, the
size alone is.
"""

import functools
import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datamodules.storage import fsync_path

INDEX_NAME = "embeddings.json"
_CHECKSUM = struct.Struct("<I")


class EmbeddingStore:
    """A folder of embeddings by key."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def __contains__(self, key: str) -> bool:
        """Whether an embedding is there and whole; one that was cut or has other bits is not."""
        return _is_whole(self.path(key))

    def path(self, key: str) -> Path:
        """File of a key, whether it exists or not."""
        return self.root / key[:2] / f"{key}.npy"

    def write(self, key: str, embedding: np.ndarray) -> None:
        """Keep an embedding (C, h, w) as fp16.

        Raises:
            ValueError: If a value is not finite in fp16.
        """
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(embedding).astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError("an embedding is not finite in fp16; choose precision fp32")
        _write_array(self.path(key), half)

    def read(self, key: str) -> np.ndarray:
        """Embedding fp16 (C, h, w), memory-mapped; FileNotFoundError for an unknown key."""
        return np.load(self.path(key), mmap_mode="r")

    def write_view(self, key: str, *, image: np.ndarray, mask: np.ndarray) -> None:
        """Keep the frame and the mask (uint8, both (H, W)) that a view's embedding belongs to."""
        _write_array(self._view_path(key), np.stack([image, mask]))

    def read_view(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """The frame and the mask of a view, uint8 (H, W) each."""
        image, mask = np.load(self._view_path(key))
        return image, mask

    def has_view(self, key: str) -> bool:
        """Whether the view's frame and mask are kept and whole."""
        return _is_whole(self._view_path(key))

    def _view_path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.view.npy"


@dataclass(frozen=True, kw_only=True)
class EmbeddingSet:
    """Embeddings of some images: the keys of each image's views, the image itself being view 0."""

    store: EmbeddingStore
    keys: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self.keys

    def __getitem__(self, sample_id: str) -> np.ndarray:
        """Embedding of an image, fp16 (C, h, w); KeyError for an unknown id."""
        return self.store.read(self.keys[sample_id][0])

    def view(self, sample_id: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Embedding, frame and mask of an augmented view, `number` from 1."""
        key = self.keys[sample_id][number]
        return self.store.read(key), *self.store.read_view(key)


def write_index(folder: Path, keys: Mapping[str, Sequence[str]]) -> None:
    """Write down which embeddings a set is made of."""
    text = json.dumps({sample_id: list(each) for sample_id, each in keys.items()})
    (folder / INDEX_NAME).write_text(text)


def open_embeddings(folder: Path, *, store: EmbeddingStore) -> EmbeddingSet:
    """Open a set that `write_index` described, without reading an array."""
    return EmbeddingSet(store=store, keys=json.loads((folder / INDEX_NAME).read_text()))


def first_absent(folder: Path, *, store: EmbeddingStore) -> str | None:
    """Key of the first embedding of a set that is missing or damaged; None for none or no set."""
    try:
        keys = open_embeddings(folder, store=store).keys
        views = [(key, view) for each in keys.values() for view, key in enumerate(each)]
    except (OSError, ValueError, AttributeError):
        return None
    return next((k for k, v in views if k not in store or (v and not store.has_view(k))), None)


def _is_whole(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return _is_whole_in_state(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.cache
def _is_whole_in_state(path: Path, state: tuple[int, int, int]) -> bool:
    """The same for a file in a state, which a process reads once."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    beyond = state[1] - array.offset - array.nbytes
    if beyond != _CHECKSUM.size:
        return beyond == 0
    data = memoryview(path.read_bytes())
    return _CHECKSUM.pack(zlib.crc32(data[:-beyond])) == data[-beyond:]


def _write_array(path: Path, array: np.ndarray) -> None:
    """Write under a temporary name and rename: two processes may make the same file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, array)
    buffer.write(_CHECKSUM.pack(zlib.crc32(buffer.getbuffer())))
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_path(path.parent)
