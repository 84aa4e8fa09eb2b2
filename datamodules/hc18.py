"""`HC18DataModule`: the one source of batches for the diffusion model and for the segmenter."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.augment import Strength, augment_view
from datamodules.embeddings import EmbeddingSet
from datamodules.errors import InputError
from datamodules.geometry import Mode, shrink_mask
from datamodules.prepared import PreparedImages, prepare_images
from datamodules.samples import Sample
from datamodules.storage import files_sha256
from datamodules.stream import TrainingStream


class FrameDataset(Dataset):
    """Prepared images as dicts of arrays, addressed by row or by (row, draw).

    Args:
        rows: Arrays and row of each item.
        index: The batch's `index` of each item.
        synthetic_from: Items from here on are synthetic.
        embeddings: Sets that between them hold every sample, or None for images only.
        views: Augmented views of the real items, of which each draw takes one; None for none.
        n_views: Views an item has, the image itself being view 0.
        seed: Keys the choice of the view and fresh augmentation.
        large: The images, and masks, of `rows` at an encoder's larger size; None for none.
        augment: Augment each draw of a real item anew; None for none.
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
        augment: Strength | None = None,
    ) -> None:
        self.large, self.augment = large, augment
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
        image, mask = self._pictures(position, draw)
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
        view = 0
        if self.views is not None and position < self.synthetic_from:
            view = view_of(draw, seed=self.seed, n_views=self.n_views)
        if view:
            embedding, image, mask = self.views.view(sample_id, view)
            item["image"] = torch.from_numpy(image.astype(np.float32) / 255.0)[None]
            item["mask"] = torch.from_numpy(mask.astype(np.float32))[None]
            item["embedding"] = torch.from_numpy(np.array(embedding))
        elif self.embeddings is not None:
            item["embedding"] = torch.from_numpy(np.array(self._embedding(sample_id)))
        return item

    def _pictures(self, position: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """The image at the encoder's size and the mask of the frame, augmented where asked for."""
        part, row = self.rows[position]
        large, large_row = part, row
        if self.large is not None:
            large, large_row = self.large[position]
        image, mask = large.images[large_row], part.masks[row]
        if self.augment is None or position >= self.synthetic_from:
            return image, mask
        factor = image.shape[0] // mask.shape[0]
        height, width = np.array(part.valid_hw[row]) * factor
        moved, moved_mask = augment_view(
            np.array(image[:height, :width]),
            np.array(large.masks[large_row][:height, :width]),
            strength=self.augment,
            seed=_seed_of(draw, seed=self.seed),
        )
        frame, label = np.zeros_like(image), np.zeros(image.shape, np.uint8)
        frame[:height, :width], label[:height, :width] = moved, moved_mask
        return frame, shrink_mask(label, factor)

    def _embedding(self, sample_id: str) -> np.ndarray:
        for embeddings in self.embeddings or ():
            if sample_id in embeddings:
                return embeddings[sample_id]
        raise KeyError(f"{sample_id}: no embedding set holds it")


def view_of(draw: int, *, seed: int, n_views: int) -> int:
    """The view that a draw of the training takes: a hash of (seed, draw), so resume is exact."""
    digest = hashlib.sha256(f"view:{seed}:{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % n_views


def _seed_of(draw: int, *, seed: int) -> int:
    digest = hashlib.sha256(f"augment:{seed}:{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


class HC18DataModule(LightningDataModule):
    """Batches of prepared images, masks and (where cached) embeddings.

    A batch is a dict:
        image: float32 (B, 1, f h, f w) in [0, 1], zero in the padding; f = `image_factor`.
        mask: float32 (B, 1, h, w) in {0, 1}.
        index: int64 (B,), the image's rank among all real images; synthetic ones follow.
        is_synthetic: bool (B,).
        size_hw: int64 (B, 2), the original size.
        valid_hw: int64 (B, 2), the part of the frame that is image, at its top left.
        draw: int64 (B,), the item's number in the whole training; keys its randomness.
        sample_id: list of B names.
        embedding: fp16 (B, C, eh, ew), where `embeddings` is given.

    Use `Trainer(use_distributed_sampler=False)`: the order is this module's own. `batch_size` is
    that of all processes together. The training is one epoch of `n_batches` batches.

    Args:
        samples: All annotated real samples by id; they also give `index`.
        train_ids: Images to train on.
        val_ids: Images to validate on; may be empty.
        test_ids: Images to test on, by cohort.
        synthetic: Synthetic samples, train only.
        synthetic_share: Share of each batch that they fill, in [0, 1].
        repeat_real: Fill that share with the real images once more, in an order of their own: the
            control that has a synthetic condition's batches and nothing new in them.
        frame_hw: Height and width of the frame, px.
        resize_mode: "pad" or "squash".
        batch_size: Items in a batch over all processes.
        n_batches: Batches in the training, each of one optimiser step.
        seed: Seed of the order.
        cache_dir: Folder for prepared images.
        embeddings: Sets that hold every image's embedding, or None.
        views: Augmented views of the train images, or None.
        n_views: Views an image has, itself being view 0.
        image_factor: Pixels of `image` per pixel of the frame; not with `views`.
        augment: Augment each draw of a real train image anew, by (seed, draw); not with
            `embeddings`, which are of the image as it is.
        pool: Draw real and synthetic images from one pool instead of by `synthetic_share`.
        content_hashes: `files_sha256` of every real pair, where it is known already.
        num_workers: Loader processes; 0 loads in the training process.
        batch_parts: Parts in which each process loads its share of a training batch, for
            `Trainer(accumulate_grad_batches=batch_parts)`; must divide that share.

    Raises:
        ValueError: If two parts share an image, or settings exclude each other.
        InputError: If a synthetic pair has the name of a real image.
    """

    def __init__(
        self,
        *,
        samples: Mapping[str, Sample],
        train_ids: Sequence[str],
        val_ids: Sequence[str],
        test_ids: Mapping[str, Sequence[str]],
        frame_hw: tuple[int, int],
        resize_mode: Mode,
        batch_size: int,
        n_batches: int,
        seed: int,
        cache_dir: Path,
        synthetic: Sequence[Sample] = (),
        synthetic_share: float = 0.5,
        repeat_real: bool = False,
        embeddings: Sequence[EmbeddingSet] | None = None,
        views: EmbeddingSet | None = None,
        n_views: int = 1,
        image_factor: int = 1,
        augment: Strength | None = None,
        pool: bool = False,
        content_hashes: Mapping[str, str] | None = None,
        num_workers: int = 0,
        batch_parts: int = 1,
    ) -> None:
        super().__init__()
        parts = {"train": set(train_ids), "val": set(val_ids)}
        parts |= {f"test {name}": set(ids) for name, ids in test_ids.items()}
        _refuse_overlap(parts)
        for pair in synthetic:
            # Embeddings are found by name: the real image's would be taken for the pair's.
            if pair.sample_id in samples:
                raise InputError(
                    f"{pair.image_path}: a real image has this name too; rename the pair"
                )
        self.samples = samples
        self.train_ids, self.val_ids = list(train_ids), list(val_ids)
        self.test_ids = {name: list(ids) for name, ids in test_ids.items()}
        self.synthetic = list(synthetic)
        self.synthetic_share, self.repeat_real = synthetic_share, repeat_real
        self.frame_hw, self.resize_mode = tuple(frame_hw), resize_mode
        self.batch_size, self.n_batches, self.seed = batch_size, n_batches, seed
        self.cache_dir = Path(cache_dir)
        self.embeddings, self.views, self.n_views = embeddings, views, n_views
        if (image_factor > 1 and views is not None) or (augment and embeddings is not None):
            raise ValueError("cached views and embeddings go with neither images nor augmentation")
        self.image_factor, self.augment, self.pool = image_factor, augment, pool
        self.content_hashes = content_hashes
        self.num_workers, self.batch_parts = num_workers, batch_parts
        self._datasets: dict[str, FrameDataset] = {}

    def prepare_data(self) -> None:
        """Resize all images once, on one process."""
        for factor in {1, self.image_factor}:
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
        """The training stream; it goes on where an interrupted run had stopped."""
        world_size = self.trainer.world_size if self.trainer else 1
        n_real, n_other = len(self.train_ids), len(self.synthetic)
        if self.repeat_real:
            n_other = n_real
        if self.pool:
            n_real, n_other = n_real + n_other, 0
        stream = TrainingStream(
            n_real=n_real,
            n_synthetic=n_other,
            batch_size=self.batch_size,
            n_batches=self.n_batches,
            synthetic_share=self.synthetic_share,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=world_size,
            first_batch=self._batches_seen(),
        )
        batch_size = self.batch_size // world_size // self.batch_parts
        return self._loader("train", batch_size=batch_size, sampler=stream)

    def val_dataloader(self) -> DataLoader | list:
        """Validation images in order; an empty list where there are none."""
        return self._eval_loader("val") if "val" in self._datasets else []

    def test_dataloader(self) -> list[DataLoader]:
        """Test images in order, a loader a cohort."""
        return [self._eval_loader(f"test/{name}") for name in self.test_ids]

    def _batches_seen(self) -> int:
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0
        # `completed` is one short in a checkpoint that was written at a batch's end.
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed // self.batch_parts

    def _eval_loader(self, name: str) -> DataLoader:
        # Every process sees every image: exact on uneven sets, where a distributed sampler pads.
        return self._loader(name, batch_size=self.batch_size, sampler=None)

    def _loader(self, name: str, *, batch_size: int, sampler: object) -> DataLoader:
        return DataLoader(
            self._datasets[name],
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
        )

    def _real(self, factor: int = 1) -> PreparedImages:
        """All real images, whatever the parts: one prepared folder serves every trial."""
        samples = [self.samples[sample_id] for sample_id in sorted(self.samples)]
        return self._prepare(samples, hashes=self.content_hashes, factor=factor)

    def _prepare(
        self, samples: Sequence[Sample], *, hashes: Mapping[str, str] | None, factor: int = 1
    ) -> PreparedImages:
        return prepare_images(
            samples,
            content_hashes=[
                hashes[s.sample_id] if hashes else files_sha256(s.image_path, s.annotation_path)
                for s in samples
            ],
            frame_hw=self.frame_hw,
            mode=self.resize_mode,
            cache_dir=self.cache_dir,
            factor=factor,
        )

    def _train_dataset(self) -> FrameDataset:
        rows = self._rows_of_training(1)
        index = [row for _, row in self._real_rows(self.train_ids)]
        if self.repeat_real:
            index = index * 2
        index += range(len(self.samples), len(self.samples) + len(rows) - len(index))
        return FrameDataset(
            rows,
            index=index,
            synthetic_from=len(self.train_ids),
            large=self._rows_of_training(self.image_factor) if self.image_factor > 1 else None,
            augment=self.augment,
            embeddings=self.embeddings,
            views=self.views,
            n_views=self.n_views,
            seed=self.seed,
        )

    def _rows_of_training(self, factor: int) -> list[tuple[PreparedImages, int]]:
        rows = self._real_rows(self.train_ids, factor=factor)
        if self.repeat_real:
            return rows * 2
        if not self.synthetic:
            return rows
        generated = self._prepare(self.synthetic, hashes=None, factor=factor)
        return rows + [(generated, row) for row in range(len(self.synthetic))]

    def _dataset(self, ids: Sequence[str]) -> FrameDataset:
        rows = self._real_rows(ids)
        factor = self.image_factor
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


def _refuse_overlap(parts: Mapping[str, set[str]]) -> None:
    names = list(parts)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            shared = parts[first] & parts[second]
            if shared:
                raise ValueError(f"{first} and {second} share {len(shared)} images: {min(shared)}")
