"""Image embeddings of a frozen encoder: one immutable fp16 array an image set, memory-mapped.

This file stores and looks up; the encoder belongs to another room, and so does the
name of a set: a hash over the images, the encoder's weights and the compute type, so that a change
of any of them is another set and nothing stale is ever read.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.storage import commit_folder


@dataclass(frozen=True, kw_only=True)
class EmbeddingSet:
    """fp16 (N, C, h, w) memory-mapped, with the sample id of each row."""

    array: np.ndarray
    rows: dict[str, int]

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self.rows

    def __getitem__(self, sample_id: str) -> np.ndarray:
        """Embedding of a sample, fp16 (C, h, w); KeyError for an unknown id."""
        return self.array[self.rows[sample_id]]


def write_embeddings(
    folder: Path,
    *,
    sample_ids: Sequence[str],
    batches: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    progress: Callable[[int, int], None] | None = None,
) -> EmbeddingSet:
    """Write batches of embeddings as one array, under a temporary name until it is whole.

    Args:
        folder: Where the set will be; its parent is made.
        sample_ids: Id of each row.
        batches: Arrays (b, *shape), together len(sample_ids) rows.
        shape: (C, h, w) of one embedding.
        progress: Called with (rows done, rows in all).

    Raises:
        ValueError: If the batches do not add up, or hold a value that is not finite in fp16.
    """
    with commit_folder(folder) as temporary:
        array = np.lib.format.open_memmap(
            temporary / "embeddings.npy",
            mode="w+",
            dtype=np.float16,
            shape=(len(sample_ids), *shape),
        )
        row = 0
        for batch in batches:
            with np.errstate(over="ignore"):
                half = np.asarray(batch).astype(np.float16)
            is_finite = np.isfinite(half).all(axis=(1, 2, 3))
            if not is_finite.all():
                raise ValueError(
                    f"embedding of {sample_ids[row + int(is_finite.argmin())]}: not finite in "
                    "fp16; choose precision fp32"
                )
            array[row : row + len(half)] = half
            row += len(half)
            if progress is not None:
                progress(row, len(sample_ids))
        if row != len(sample_ids):
            raise ValueError(f"{row} embeddings for {len(sample_ids)} samples")
        array.flush()
        (temporary / "ids.json").write_text(json.dumps(list(sample_ids)))
    return open_embeddings(folder)


def open_embeddings(folder: Path) -> EmbeddingSet:
    """Open a set that `write_embeddings` wrote, without reading the array."""
    ids = json.loads((folder / "ids.json").read_text())
    return EmbeddingSet(
        array=np.load(folder / "embeddings.npy", mmap_mode="r"),
        rows={sample_id: row for row, sample_id in enumerate(ids)},
    )
