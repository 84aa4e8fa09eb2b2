"""The order in which training samples are seen: a pure function of (seed, batch number)."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DistributedSampler

from datamodules.keyed import text_seed


def _permutation(n: int, *, seed: int, stream: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(text_seed("order", seed, stream, epoch) >> 1)
    return torch.randperm(n, generator=generator).tolist()


class TrainingStream(DistributedSampler):
    """Yields (dataset index, draw) for every item of every batch, real items first.

    Each batch holds `round(synthetic_share * batch_size)` synthetic items where there are any.
    Both kinds run through their own shuffled passes, and so does each of several pools of
    synthetic items, which take equal parts of the places over the training. `draw` numbers the
    items of the whole training, whatever the number of processes; it keys their noise, jitter and
    augmentation. With several processes each takes every world_size-th item of the global batch,
    so 1 x 8 and 2 x 4 see the same items. It is a `DistributedSampler` by name alone: Lightning and
    others leave such a one as it is, and would divide the items of any other once more.

    A later epoch, by `set_epoch`, goes on where the one before it ends.

    Args:
        n_real: Real items, dataset indices 0 to n_real - 1; at least one.
        n_synthetic: Synthetic items, dataset indices from n_real on; may be 0. Several numbers
            are pools, one after the other; an empty pool takes no place.
        batch_size: Items in a global batch, over all processes.
        n_batches: Batches in the whole training, or in each of its epochs.
        synthetic_share: Share of a batch in [0, 1] that synthetic items fill.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes; must divide `batch_size`.
        first_batch: Batches that an interrupted run has already seen, over all epochs; they are
            skipped.
        epoch: Number of the epoch, from 0.

    Raises:
        ValueError: If `world_size` does not divide `batch_size` or there is no real item.
    """

    def __init__(
        self,
        *,
        n_real: int,
        n_synthetic: int | Sequence[int],
        batch_size: int,
        n_batches: int,
        synthetic_share: float,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
        epoch: int = 0,
    ) -> None:
        if n_real < 1:
            raise ValueError("a training stream needs at least one real item")
        if batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size} cannot be divided over {world_size} processes"
            )
        sizes = [n_synthetic] if isinstance(n_synthetic, int) else n_synthetic
        self.n_real, self.pools = n_real, [size for size in sizes if size > 0]
        self.batch_size, self.n_batches = batch_size, n_batches
        self.synthetic_per_batch = round(synthetic_share * batch_size) if self.pools else 0
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.first_batch, self.epoch = first_batch, epoch

    def __len__(self) -> int:
        # The full length also on resume: Lightning counts batches from the start of the epoch.
        return self.n_batches * (self.batch_size // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        real_per_batch = self.batch_size - self.synthetic_per_batch
        first = self.epoch * self.n_batches
        for batch in range(max(first, self.first_batch), first + self.n_batches):
            real = self._pass(batch * real_per_batch, real_per_batch, n=self.n_real, stream=0)
            items = [*real, *self._synthetic(batch)]
            for slot in range(self.rank, self.batch_size, self.world_size):
                yield items[slot], batch * self.batch_size + slot

    def _synthetic(self, batch: int) -> list[int]:
        """Dataset indices of a batch's synthetic items; of the whole training's places each pool
        takes every `len(pools)`-th."""
        first, last = (self.synthetic_per_batch * number for number in (batch, batch + 1))
        found, offset, step = [], self.n_real, len(self.pools)
        for place, n in enumerate(self.pools):
            start, end = (-(-(bound - place) // step) for bound in (first, last))
            picked = self._pass(start, end - start, n=n, stream=1 + place)
            found += [offset + index for index in picked]
            offset += n
        return found

    def _pass(self, start: int, count: int, *, n: int, stream: int) -> Sequence[int]:
        picked: list[int] = []
        while len(picked) < count:
            epoch, offset = divmod(start + len(picked), n)
            order = _permutation(n, seed=self.seed, stream=stream, epoch=epoch)
            picked += order[offset : offset + count - len(picked)]
        return picked
