"""Peak memory of a decoder fine-tune with 1,000 cached embeddings, in a process of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from datamodules.embeddings import EmbeddingSet, EmbeddingStore
from datamodules.frames import FrameDataset
from datamodules.hc18 import HC18DataModule
from datamodules.prepared import PreparedImages
from datamodules.settings import Cache, Frame, Loading
from experiments.bench.child import measured, start_child
from experiments.bench.measure import Bench, Found
from experiments.config.running import TrainerConfig
from experiments.stages.training import fit, make_trainer
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, Backbone, SegmenterConfig
from lightning_modules.segmenters.sam.module import SamModule

CHANNELS, STRIDE, BATCH_SIZE = 256, 4, 5
RESIDENT = "peak resident memory of the process, libraries included"
ON_GPU = "torch.cuda.max_memory_allocated of the same process"


def bench_memory(bench: Bench, found: Found) -> None:
    """Peak resident memory of the published step, and of ours over 1,000 embeddings."""
    n, steps = found.sizes["images"], found.sizes["steps"]
    given = {"backbone": bench.backbone, "device": bench.device}
    own = {"folder": str(bench.work / "memory"), "n": n, "steps": steps}
    # Each in a process that does nothing else.
    with start_child(keeps_memory=True) as child:
        ours = measured(child, "experiments.bench.memory:fine_tune", **given, **own)
    names = bench.images(BATCH_SIZE)
    batch = {"root": str(bench.root()), "names": names, "draw": 0, "weights": None}
    with start_child() as child:
        theirs = measured(child, "experiments.bench.published:step", **given, **batch)
    label = f"ours: {n} embeddings read, then {steps} steps of {BATCH_SIZE}"
    found.value(label, ours.peak_gib, "GiB", formula=RESIDENT)
    found.value("of it the imported libraries", ours.imported_gib, "GiB")
    label = f"published: a step of {BATCH_SIZE}, the encoder in it"
    found.value(label, theirs.peak_gib, "GiB", formula=RESIDENT)
    if bench.device == "cuda":
        found.value("ours: on the GPU", ours.gpu_gib, "GiB", formula=ON_GPU)
        found.value("published: on the GPU", theirs.gpu_gib, "GiB", formula=ON_GPU)


class _Loader(HC18DataModule):
    """The real module's loaders over images that were never files."""

    def prepare_data(self) -> None:
        """Nothing: the dataset is given."""


def fine_tune(
    *, folder: str, backbone: Backbone, device: str, n: int, steps: int
) -> Callable[[], object]:
    """Read every embedding through the dataset, then train the decoder as a fit does."""
    side, is_gpu, run_dir = FRAME_SIDE_PX[backbone], device == "cuda", Path(folder) / "run"
    config = SegmenterConfig(backbone=backbone, batch_size=BATCH_SIZE, steps=steps)
    settings = TrainerConfig(accelerator="gpu" if is_gpu else "cpu")

    def work() -> None:
        run_dir.mkdir(parents=True)
        dataset = _of_zeros(Path(folder), n=n, side=side)
        for row in range(n):
            dataset[row]
        trainer = make_trainer(
            run_dir=run_dir, config=settings, precision=config.precision, steps=steps
        )
        loader = _Loader(
            samples={},
            train_ids=[part.sample_ids[row] for part, row in dataset.rows],
            frame=Frame(size_hw=(side, side), resize_mode="pad"),
            cache=Cache(folder=Path(folder)),
            batch_size=BATCH_SIZE,
            n_batches=steps,
            seed=0,
            loading=Loading(resident_bytes=int(settings.resident_gib * 2**30) if is_gpu else 0),
        )
        loader._datasets["train"] = dataset
        # As the stage `fit` does.
        module = SamModule(config, captures=is_gpu, has_encoder=False)
        fit(trainer, module, loader, run_dir=run_dir)

    return work


def _of_zeros(folder: Path, *, n: int, side: int) -> FrameDataset:
    """Images and embeddings of zeros, a file an embedding as in the store; they take no disk."""

    def zeros(path: Path, dtype: type, *shape: int) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    store = EmbeddingStore(folder / "embeddings")
    keys = {f"image-{number:04d}": [f"{number:064x}"] for number in range(n)}
    for (key,) in keys.values():
        zeros(store.path(key), np.float16, CHANNELS, side // STRIDE, side // STRIDE)
    images, sizes = zeros(folder / "images.npy", np.uint8, n, side, side), np.full((n, 2), side)
    images = PreparedImages(
        sample_ids=list(keys), images=images, masks=images, size_hw=sizes, valid_hw=sizes
    )
    return FrameDataset(
        [(images, row) for row in range(n)],
        index=range(n),
        synthetic_from=n,
        embeddings=[EmbeddingSet(store=store, keys=keys)],
    )
