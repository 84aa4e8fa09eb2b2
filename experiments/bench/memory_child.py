"""The process that the memory benchmark measures: a fine-tune, then its peaks in GiB."""

import resource
import sys
from pathlib import Path

import numpy as np
import torch
from lightning import LightningModule

from datamodules.embeddings import EmbeddingSet, EmbeddingStore
from datamodules.frames import FrameDataset
from datamodules.hc18 import HC18DataModule
from datamodules.prepared import PreparedImages
from datamodules.samples import read_hc18
from datamodules.settings import Cache, Frame, Loading
from experiments.bench.published import PublishedSam
from experiments.config.running import TrainerConfig
from experiments.stages.training import fit, make_trainer
from experiments.store.runs import StatusFile
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, Backbone, SegmenterConfig
from lightning_modules.segmenters.sam.module import SamModule

CHANNELS, STRIDE = 256, 4


def write_embeddings(folder: Path, *, n: int, grid: int) -> EmbeddingSet:
    """Embeddings of zeros, one file an image as the store keeps them; they take no disk."""
    store = EmbeddingStore(folder / "embeddings")
    keys = {f"image-{number:04d}": [f"{number:064x}"] for number in range(n)}
    for (key,) in keys.values():
        path = store.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(CHANNELS, grid, grid))
    return EmbeddingSet(store=store, keys=keys)


class _Loader(HC18DataModule):
    """The real module's loaders over images that were never files."""

    def __init__(
        self, dataset: FrameDataset, *, side: int, steps: int, folder: Path, resident_bytes: int
    ) -> None:
        super().__init__(
            samples={},
            train_ids=[part.sample_ids[row] for part, row in dataset.rows],
            val_ids=[],
            test_ids={},
            frame=Frame(size_hw=(side, side), resize_mode="pad"),
            cache=Cache(folder=folder),
            batch_size=5,
            n_batches=steps,
            seed=0,
            loading=Loading(resident_bytes=resident_bytes),
        )
        self._datasets["train"] = dataset

    def prepare_data(self) -> None:
        """Nothing: the dataset is given."""


def fine_tune(folder: Path, *, backbone: Backbone, device: str, n: int, steps: int) -> None:
    """Read every embedding through the dataset, then train the decoder as a fit does."""
    side = FRAME_SIDE_PX[backbone]
    embeddings = write_embeddings(folder, n=n, grid=side // STRIDE)
    folder.joinpath("run").mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(n, side, side)
    )
    prepared = PreparedImages(
        sample_ids=list(embeddings.keys),
        images=images,
        masks=images,
        size_hw=np.full((n, 2), side),
        valid_hw=np.full((n, 2), side),
    )
    dataset = FrameDataset(
        [(prepared, row) for row in range(n)],
        index=range(n),
        synthetic_from=n,
        embeddings=[embeddings],
    )
    for row in range(n):
        dataset[row]
    config = SegmenterConfig(backbone=backbone, batch_size=5, steps=steps)
    # As the stage `fit` does.
    is_gpu = device == "cuda"
    module: LightningModule = SamModule(config, captures=is_gpu, has_encoder=False)
    settings = TrainerConfig(accelerator="gpu" if is_gpu else "cpu")
    trainer = make_trainer(
        run_dir=folder / "run",
        config=settings,
        precision=config.precision,
        steps=steps,
        logger=None,
        status=StatusFile(folder / "run"),
        what="steps",
    )
    loader = _Loader(
        dataset,
        side=side,
        steps=steps,
        folder=folder,
        resident_bytes=int(settings.resident_gib * 2**30) if is_gpu else 0,
    )
    fit(trainer, module, loader, run_dir=folder / "run")


def published(root: Path, *, backbone: Backbone, device: str, n: int) -> None:
    """One step of the published way on n images."""
    plain = PublishedSam(SegmenterConfig(backbone=backbone), device=device)
    plain.step(sorted(read_hc18(root), key=lambda s: s.sample_id)[:n], draw=0)


def main() -> None:
    """Arguments: way, data folder, own folder, backbone, device, images, steps."""
    way, root, folder, backbone, device, images, steps = sys.argv[1:]
    torch.manual_seed(0)
    imported = _peak_gib()
    if way == "ours":
        fine_tune(Path(folder), backbone=backbone, device=device, n=int(images), steps=int(steps))
    else:
        published(Path(root), backbone=backbone, device=device, n=int(images))
    print(imported, _peak_gib(), torch.cuda.max_memory_allocated() / 2**30)


def _peak_gib() -> float:
    # On Linux the unit is KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
