"""`HC18DataModule`: the one source of batches for the diffusion model and for the segmenter."""

import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.augment import Strength, augment_batch
from datamodules.errors import InputError
from datamodules.frames import FrameDataset
from datamodules.keyed import text_seed
from datamodules.prepared import PreparedImages, prepare_images
from datamodules.resident import ResidentItems
from datamodules.samples import Sample, content_hash_of
from datamodules.settings import Cache, Frame, Loading, Mixture
from datamodules.stream import TrainingStream


class HC18DataModule(LightningDataModule):
    """Batches of prepared images, masks and (where cached) embeddings.

    A batch is a dict:
        image: float32 (B, 1, f h, f w) in [0, 1], zero in the padding; f = `image_factor`.
        mask: float32 (B, 1, h, w) in {0, 1}; of an augmented image with soft edges.
        index: int64 (B,), the image's rank among all real images; synthetic ones follow.
        is_synthetic: bool (B,).
        size_hw: int64 (B, 2), the original size.
        valid_hw: int64 (B, 2), the part of the frame that is image, at its top left.
        draw: int64 (B,), the item's number in the whole training; keys its randomness, which is
            made on the CPU, and so stays there.
        sample_id: list of B names.
        embedding: fp16 (B, C, eh, ew), where `embeddings` is given.

    The order is this module's own, whatever `Trainer(use_distributed_sampler)` says. `batch_size`
    is that of all processes together. The training is one epoch of `n_batches` batches; of several
    epochs each has as many, and goes on with the order of the one before.

    Args:
        samples: All annotated real samples by id; they also give `index`.
        frame: Input size of the network, and how an image is resized to it.
        cache: Prepared images, cached embeddings and known file hashes.
        batch_size: Items in a batch over all processes.
        train_ids: Images to train on.
        val_ids: Images to validate on.
        test_ids: Images to test on, by cohort. Any of the three may be left out.
        n_batches: Batches in an epoch, each of one optimiser step.
        seed: Seed of the order.
        mixture: Composition of training batches.
        loading: Data loading.

    Raises:
        ValueError: If two parts share an image, or settings exclude each other.
        InputError: If a synthetic pair has the name of a real image.
    """

    def __init__(
        self,
        *,
        samples: Mapping[str, Sample],
        frame: Frame,
        cache: Cache,
        batch_size: int,
        train_ids: Sequence[str] = (),
        val_ids: Sequence[str] = (),
        test_ids: Mapping[str, Sequence[str]] | None = None,
        n_batches: int = 0,
        seed: int = 0,
        mixture: Mixture = Mixture(),  # noqa: B008 - frozen
        loading: Loading = Loading(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        test_ids = test_ids or {}
        parts = {"train": set(train_ids), "val": set(val_ids)}
        parts |= {f"test {name}": set(ids) for name, ids in test_ids.items()}
        _refuse_overlap(parts)
        for pair in mixture.synthetic:
            # Embeddings are found by name: the real image's would be taken for the pair's.
            if pair.sample_id in samples:
                raise InputError(
                    f"{pair.image_path}: a real image has this name too; rename the pair"
                )
        self.samples = samples
        self.train_ids, self.val_ids = list(train_ids), list(val_ids)
        self.test_ids = {name: list(ids) for name, ids in test_ids.items()}
        self.synthetic, self.embeddings = list(mixture.synthetic), cache.embeddings
        self.frame, self.mixture, self.cache, self.loading = frame, mixture, cache, loading
        self.batch_size, self.n_batches, self.seed = batch_size, n_batches, seed
        if (frame.image_factor > 1 and cache.views is not None) or (
            mixture.augment and cache.embeddings is not None
        ):
            raise ValueError("cached views and embeddings go with neither images nor augmentation")
        self._datasets: dict[str, FrameDataset] = {}
        self._resident: ResidentItems | None = None

    def prepare_data(self) -> None:
        """Resize all images once, on one process."""
        for factor in {1, self.frame.image_factor}:
            self._real(factor)
            if self.synthetic:
                self._prepare(self.synthetic, hashes=None, factor=factor)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Open the prepared arrays; idempotent."""
        if self._datasets:
            return
        if self.train_ids:
            self._datasets["train"] = self._train_dataset()
        if self.val_ids:
            self._datasets["val"] = self._dataset(self.val_ids)
        for name, ids in self.test_ids.items():
            self._datasets[f"test/{name}"] = self._dataset(ids)

    def train_dataloader(self) -> DataLoader:
        """The training stream; it continues where an interrupted run had stopped."""
        world_size, first_batch = self._world_size, self._batches_seen()
        n_real, n_other = len(self.train_ids), len(self.synthetic)
        if self.mixture.repeat_real:
            n_other = n_real
        pools = self.mixture.pools or [n_other]
        if self.mixture.pool:
            n_real, pools = n_real + n_other, []
        stream = TrainingStream(
            n_real=n_real,
            n_synthetic=pools,
            batch_size=self.batch_size,
            n_batches=self.n_batches,
            synthetic_share=self.mixture.synthetic_share,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=world_size,
            first_batch=first_batch,
            # Processes that load take their first items before Lightning sets the epoch.
            epoch=max(self._epoch, first_batch // max(1, self.n_batches)),
        )
        batch_size = self.batch_size // world_size // self.loading.batch_parts
        dataset = self._datasets["train"]
        self._resident = self._items_to_keep(dataset, stream)
        return self._loader(self._resident or dataset, batch_size=batch_size, sampler=stream)

    def val_dataloader(self) -> DataLoader | list:
        """Validation images in order; an empty list where there are none."""
        return self._eval_loader("val") if "val" in self._datasets else []

    def test_dataloader(self) -> list[DataLoader]:
        """Test images in order, a loader a cohort."""
        return [self._eval_loader(f"test/{name}") for name in self.test_ids]

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move a batch; `draw` stays, as reading it back would wait for the device."""
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved | {"draw": batch["draw"]}

    def on_after_batch_transfer(
        self,
        batch: dict[str, Any],
        dataloader_idx: int,  # noqa: ARG002 - Lightning's signature
    ) -> dict[str, Any]:
        """Complete a batch whose items lie on the device already; augment one to train on."""
        if self._resident is not None and "number" in batch:
            batch = self._resident.fill(batch)
        if self.mixture.augment is None or not self.trainer.training:
            return batch
        image, mask = augment_batch(
            batch["image"],
            batch["mask"],
            valid_hw=batch["valid_hw"],
            strength=self._strength(batch["draw"]),
            without=self.mixture.without,
            extra=self.mixture.extra,
            seeds=[text_seed("augment", self.seed, draw) for draw in batch["draw"].tolist()],
        )
        return batch | {"image": image, "mask": mask}

    def _strength(self, draws: torch.Tensor) -> Strength:
        """How strongly a batch is augmented; every item of it belongs to one step."""
        # Without end (-1 epochs) there is no moderate one.
        n_batches = self.n_batches * self.trainer.max_epochs
        left = n_batches - int(draws[0]) // self.batch_size
        if self.mixture.augment == "strong" and 0 < left <= self.mixture.moderate_end * n_batches:
            return "moderate"
        return self.mixture.augment

    def _items_to_keep(self, dataset: FrameDataset, stream: TrainingStream) -> ResidentItems | None:
        if not self.loading.resident_bytes:
            return None
        # Which items come up is known of one epoch in this order.
        if self.trainer and (self.trainer.max_epochs != 1 or self.trainer.overfit_batches):
            return None
        items = ResidentItems(dataset, keys=stream)
        return items if items.n_bytes() <= self.loading.resident_bytes else None

    def _batches_seen(self) -> int:
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0
        loop = self.trainer.fit_loop
        # `completed` is one short in a checkpoint that was written at a batch's end.
        seen = loop.epoch_loop.batch_progress.current.processed // self.loading.batch_parts
        # Of the epoch begun last: one that has ended is `processed` as well.
        return max(0, loop.epoch_progress.current.ready - 1) * self.n_batches + seen

    def _eval_loader(self, name: str) -> DataLoader:
        # Every process sees every image: exact on uneven sets, where a distributed sampler pads.
        batch_size, parts = self.batch_size, self.loading.batch_parts
        if parts > 1:
            # As many as are trained on at once: it may be here that memory ran out.
            batch_size //= self._world_size * parts
        dataset, sampler = self._datasets[name], None
        if self._world_size > 1:
            # Lightning leaves one that is distributed as it is, here over one process.
            sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=False)
        return self._loader(dataset, batch_size=batch_size, sampler=sampler)

    def _loader(self, dataset: Dataset, *, batch_size: int, sampler: object) -> DataLoader:
        is_kept = isinstance(dataset, ResidentItems)
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            # Numbers cost nothing to load, and nothing to move.
            num_workers=0 if is_kept else self.loading.num_workers,
            worker_init_fn=end_with_parent,
            persistent_workers=False,
            pin_memory=self._is_on_gpu and not is_kept,
        )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _epoch(self) -> int:
        # As Lightning tells samplers; its `current_epoch` is one short after an epoch's checkpoint.
        return self.trainer.fit_loop.epoch_progress.current.processed if self.trainer else 0

    @property
    def _is_on_gpu(self) -> bool:
        """Whether batches go to a GPU; else to pin them would make a context on one, which takes
        hundreds of MiB of it in every process, and fails where it is full."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _real(self, factor: int = 1) -> PreparedImages:
        """All real images, whatever the parts: one prepared folder serves every trial."""
        samples = [self.samples[sample_id] for sample_id in sorted(self.samples)]
        return self._prepare(samples, hashes=self.cache.content_hashes, factor=factor)

    def _prepare(
        self, samples: Sequence[Sample], *, hashes: Mapping[str, str] | None, factor: int = 1
    ) -> PreparedImages:
        return prepare_images(
            samples,
            content_hashes=[hashes[s.sample_id] if hashes else content_hash_of(s) for s in samples],
            frame_hw=tuple(self.frame.size_hw),
            mode=self.frame.resize_mode,
            cache_dir=self.cache.folder,
            factor=factor,
        )

    def _train_dataset(self) -> FrameDataset:
        rows, factor = self._rows_of_training(1), self.frame.image_factor
        index = [row for _, row in self._real_rows(self.train_ids)]
        if self.mixture.repeat_real:
            index = index * 2
        index += range(len(self.samples), len(self.samples) + len(rows) - len(index))
        return FrameDataset(
            rows,
            index=index,
            synthetic_from=len(self.train_ids),
            large=self._rows_of_training(factor) if factor > 1 else None,
            embeddings=self.embeddings,
            views=self.cache.views,
            n_views=self.cache.n_views,
            seed=self.seed,
        )

    def _rows_of_training(self, factor: int) -> list[tuple[PreparedImages, int]]:
        rows = self._real_rows(self.train_ids, factor=factor)
        if self.mixture.repeat_real:
            return rows * 2
        if not self.synthetic:
            return rows
        generated = self._prepare(self.synthetic, hashes=None, factor=factor)
        return rows + [(generated, row) for row in range(len(self.synthetic))]

    def _dataset(self, ids: Sequence[str]) -> FrameDataset:
        rows = self._real_rows(ids)
        factor = self.frame.image_factor
        return FrameDataset(
            rows,
            large=self._real_rows(ids, factor=factor) if factor > 1 else None,
            index=[row for _, row in rows],
            synthetic_from=len(rows),
            embeddings=self.embeddings,
        )

    def _real_rows(
        self, ids: Sequence[str], *, factor: int = 1
    ) -> list[tuple[PreparedImages, int]]:
        real = self._real(factor)
        row_of = {sample_id: row for row, sample_id in enumerate(real.sample_ids)}
        return [(real, row_of[sample_id]) for sample_id in ids]


def end_with_parent(worker: int) -> None:  # noqa: ARG001 - torch's signature
    """End a loader's process when the one that it loads for has ended, in whatever way.

    torch looks whether the system's parent has, which is the server that forked the loader.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _refuse_overlap(parts: Mapping[str, set[str]]) -> None:
    names = list(parts)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            shared = parts[first] & parts[second]
            if shared:
                raise ValueError(f"{first} and {second} share {len(shared)} images: {min(shared)}")
