"""Training items that lie on the device as a whole, so that a step on a GPU waits for no copy."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.frames import FrameDataset

AT_ONCE = 64


class ResidentItems(Dataset):
    """The items that a training will draw, of which a batch names the numbers only.

    `fill` turns such a batch into the one that the dataset itself would have given. Items are
    loaded with the first batch, onto the device that it lies on.

    Args:
        dataset: Whose items do not depend on the draw but for the view.
        keys: (row, draw) of every item of the training, in any order.
    """

    def __init__(self, dataset: FrameDataset, *, keys: Iterable[tuple[int, int]]) -> None:
        self.dataset = dataset
        self._number: dict[tuple[int, int], int] = {}
        self._example: list[tuple[int, int]] = []
        for row, draw in keys:
            item = (row, dataset.view_at(row, draw))
            if item not in self._number:
                self._number[item] = len(self._example)
                self._example.append((row, draw))
        self._held: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self._example)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Number, draw and name of an item."""
        row, draw = key
        number = self._number[row, self.dataset.view_at(row, draw)]
        return {"number": number, "draw": draw, "sample_id": self.dataset.sample_id(row)}

    def n_bytes(self) -> int:
        """Bytes that the items take on the device."""
        if not self._example:
            return 0
        return len(self) * sum(value.nbytes for value in self._tensors(0).values())

    def fill(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The whole batch: what is held of its items, beside what it brings."""
        numbers = batch["number"]
        if self._held is None:
            self._held = self._load(numbers.device)
        held = {name: values.index_select(0, numbers) for name, values in self._held.items()}
        return held | {key: batch[key] for key in ("draw", "sample_id")}

    def _load(self, device: torch.device) -> dict[str, torch.Tensor]:
        held: dict[str, torch.Tensor] = {}
        # Reading files lets other threads run; so many at once bound what waits in memory.
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self), AT_ONCE):
                part = range(start, min(start + AT_ONCE, len(self)))
                for number, item in zip(part, pool.map(self._tensors, part), strict=True):
                    for name, value in item.items():
                        if name not in held:
                            shape = (len(self), *value.shape)
                            held[name] = torch.empty(shape, dtype=value.dtype, device=device)
                        held[name][number] = value
        return held

    def _tensors(self, number: int) -> dict[str, torch.Tensor]:
        item = self.dataset[self._example[number]]
        given = {key: value for key, value in item.items() if key not in ("draw", "sample_id")}
        return {key: torch.as_tensor(value) for key, value in given.items()}
