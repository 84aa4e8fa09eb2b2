"""Peak memory of a decoder fine-tune with 1,000 cached embeddings, in a process of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from datamodules.embeddings import EmbeddingSet, EmbeddingStore
from datamodules.frames import FrameDataset
from datamodules.hc18 import HC18DataModule
from datamodules.prepared import PreparedImages
from datamodules.settings import Cache, Frame, Loading
from experiments.bench.child import Answer, Child
from experiments.bench.context import Bench
from experiments.bench.results import Result, Value
from experiments.config.running import TrainerConfig
from experiments.stages.training import fit, make_trainer
from experiments.store.runs import StatusFile
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, Backbone, SegmenterConfig
from lightning_modules.segmenters.sam.module import SamModule

CHANNELS, STRIDE = 256, 4
RESIDENT = "peak resident memory of the process, libraries included"
ON_GPU = "torch.cuda.max_memory_allocated of the same process"


def bench_memory(bench: Bench, found: Result) -> None:
    """Peak resident memory of the published step, and of ours over 1,000 embeddings."""
    images, steps = bench.size(quick=(20, 2), cpu=(1000, 4), gpu=(1000, 4))
    given = {"backbone": bench.backbone, "device": bench.device}
    own = {"folder": str(bench.work / "memory"), "n": images, "steps": steps}
    ours = _alone("memory:fine_tune", keeps_memory=True, **given, **own)
    batch = {"root": str(bench.root()), "names": bench.images(5), "draw": 0, "weights": None}
    published = _alone("published:step", keeps_memory=False, **given, **batch)
    label, at_most = f"ours: {images} embeddings read, then {steps} steps of 5", bench.target(found)
    step = "published: a step of 5, the encoder in it"
    found.values = [
        Value(label, ours.peak_gib, "GiB", formula=RESIDENT, at_most=at_most),
        Value("of it the imported libraries", ours.imported_gib, "GiB"),
        Value(step, published.peak_gib, "GiB", formula=RESIDENT),
    ]
    if bench.device == "cuda":
        for whose, answer in (("ours", ours), ("published", published)):
            value = Value(f"{whose}: on the GPU", answer.gpu_gib, "GiB", formula=ON_GPU)
            found.values.append(value)
    found.settings = {"images": images, "steps": steps, "backbone": bench.backbone}
    found.notes.append(
        "The embeddings are files of zeros of the true size and type; the trainer reads every "
        "one of them through the loader once before it trains. Pages of mapped files that the "
        "process still holds count as its memory. On a GPU the items drawn are moved there."
    )


def _alone(function: str, *, keeps_memory: bool, **given: object) -> Answer:
    """Do one thing in a process that does nothing else."""
    child = Child(keeps_memory=keeps_memory)
    try:
        return child.call(f"experiments.bench.{function}", **given)
    finally:
        child.close()


class _Loader(HC18DataModule):
    """The real module's loaders over images that were never files."""

    def prepare_data(self) -> None:
        """Nothing: the dataset is given."""


def fine_tune(
    *, folder: str, backbone: Backbone, device: str, n: int, steps: int
) -> Callable[[], object]:
    """Read every embedding through the dataset, then train the decoder as a fit does."""
    side, is_gpu, run_dir = FRAME_SIDE_PX[backbone], device == "cuda", Path(folder) / "run"
    config = SegmenterConfig(backbone=backbone, batch_size=5, steps=steps)
    settings = TrainerConfig(accelerator="gpu" if is_gpu else "cpu")
    resident_bytes = int(settings.resident_gib * 2**30) if is_gpu else 0

    def work() -> None:
        run_dir.mkdir(parents=True)
        dataset = _of_zeros(Path(folder), n=n, side=side)
        for row in range(n):
            dataset[row]
        trainer = make_trainer(
            run_dir=run_dir,
            config=settings,
            precision=config.precision,
            steps=steps,
            logger=None,
            status=StatusFile(run_dir),
            what="steps",
        )
        loader = _Loader(
            samples={},
            train_ids=[part.sample_ids[row] for part, row in dataset.rows],
            val_ids=[],
            test_ids={},
            frame=Frame(size_hw=(side, side), resize_mode="pad"),
            cache=Cache(folder=Path(folder)),
            batch_size=5,
            n_batches=steps,
            seed=0,
            loading=Loading(resident_bytes=resident_bytes),
        )
        loader._datasets["train"] = dataset
        # As the stage `fit` does.
        module = SamModule(config, captures=is_gpu, has_encoder=False)
        fit(trainer, module, loader, run_dir=run_dir)

    return work


def _of_zeros(folder: Path, *, n: int, side: int) -> FrameDataset:
    """Images and embeddings of zeros, one file an embedding as in the store; they take no disk."""
    store = EmbeddingStore(folder / "embeddings")
    keys = {f"image-{number:04d}": [f"{number:064x}"] for number in range(n)}
    shape = (CHANNELS, side // STRIDE, side // STRIDE)
    for (key,) in keys.values():
        store.path(key).parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(store.path(key), mode="w+", dtype=np.float16, shape=shape)
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(n, side, side)
    )
    sizes = np.full((n, 2), side)
    images = PreparedImages(
        sample_ids=list(keys), images=images, masks=images, size_hw=sizes, valid_hw=sizes
    )
    return FrameDataset(
        [(images, row) for row in range(n)],
        index=range(n),
        synthetic_from=n,
        embeddings=[EmbeddingSet(store=store, keys=keys)],
    )
