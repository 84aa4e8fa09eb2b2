"""Prepared images, their masks and embeddings as the items that loaders make batches of."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.embeddings import EmbeddingSet
from datamodules.keyed import text_seed
from datamodules.prepared import PreparedImages


class FrameDataset(Dataset):
    """Prepared images as dicts of arrays, addressed by row or by (row, draw).

    Args:
        rows: Arrays and row of each item.
        index: The batch's `index` of each item.
        synthetic_from: Items from here on are synthetic.
        embeddings: Sets that between them hold every sample, or None for images only.
        views: Augmented views of the real items, of which each draw takes one; None for none.
        n_views: Views an item has, the image itself being view 0.
        seed: Keys the choice of the view.
        large: The images, and masks, of `rows` at an encoder's larger size; None for none.
    """

    def __init__(
        self,
        rows: Sequence[tuple[PreparedImages, int]],
        *,
        index: Sequence[int],
        synthetic_from: int,
        embeddings: Sequence[EmbeddingSet] | None,
        views: EmbeddingSet | None = None,
        n_views: int = 1,
        seed: int = 0,
        large: Sequence[tuple[PreparedImages, int]] | None = None,
    ) -> None:
        self.large = large
        self.rows = list(rows)
        self.index = list(index)
        self.synthetic_from = synthetic_from
        self.embeddings = embeddings
        self.views, self.n_views, self.seed = views, n_views, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, object]:
        """One item: see `HC18DataModule` for the keys. A plain row gets its row as `draw`."""
        position, draw = key if isinstance(key, tuple) else (key, key)
        part, row = self.rows[position]
        sample_id = part.sample_ids[row]
        image, mask = self._pictures(position)
        item: dict[str, object] = {
            "image": torch.from_numpy(image.astype(np.float32) / 255.0)[None],
            "mask": torch.from_numpy(mask.astype(np.float32))[None],
            "index": self.index[position],
            "is_synthetic": position >= self.synthetic_from,
            "size_hw": torch.from_numpy(np.array(part.size_hw[row])),
            "valid_hw": torch.from_numpy(np.array(part.valid_hw[row])),
            "draw": draw,
            "sample_id": sample_id,
        }
        view = self.view_at(position, draw)
        if view:
            embedding, image, mask = self.views.view(sample_id, view)
            item["image"] = torch.from_numpy(image.astype(np.float32) / 255.0)[None]
            item["mask"] = torch.from_numpy(mask.astype(np.float32))[None]
            item["embedding"] = torch.from_numpy(np.array(embedding))
        elif self.embeddings is not None:
            item["embedding"] = torch.from_numpy(np.array(self._embedding(sample_id)))
        return item

    def view_at(self, position: int, draw: int) -> int:
        """Which view a draw of an item takes, 0 being the image itself."""
        if self.views is None or position >= self.synthetic_from:
            return 0
        return view_of(draw, seed=self.seed, n_views=self.n_views)

    def sample_id(self, position: int) -> str:
        """Name of an item."""
        part, row = self.rows[position]
        return part.sample_ids[row]

    def _pictures(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """The image at the encoder's size and the mask of the frame."""
        part, row = self.rows[position]
        large, large_row = (part, row) if self.large is None else self.large[position]
        return large.images[large_row], part.masks[row]

    def _embedding(self, sample_id: str) -> np.ndarray:
        for embeddings in self.embeddings or ():
            if sample_id in embeddings:
                return embeddings[sample_id]
        raise KeyError(f"{sample_id}: no embedding set holds it")


def view_of(draw: int, *, seed: int, n_views: int) -> int:
    """The view that a draw of the training takes: a hash of (seed, draw), so resume is exact."""
    return text_seed("view", seed, draw) % n_views
