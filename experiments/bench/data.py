"""Loading a training item: PNG decode and ellipse fit against the prepared arrays."""

from pathlib import Path

from torch.utils.data import default_collate

from datamodules.frames import FrameDataset
from datamodules.prepared import prepare_images
from datamodules.samples import Sample, read_hc18
from datamodules.storage import files_sha256
from experiments.bench.context import Bench, Way
from experiments.bench.published import read_item
from experiments.bench.results import Ratio, Result, Value
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX


def bench_data(bench: Bench, found: Result) -> None:
    """Seconds an image from its PNG files, and from the prepared, memory-mapped arrays."""
    n, n_reads = bench.size(quick=(8, 20), cpu=(20, 500), gpu=(20, 500))
    samples = sorted(read_hc18(bench.root()), key=lambda s: s.sample_id)[:n]
    side, folder = FRAME_SIDE_PX[bench.backbone], bench.work / "data"
    dataset = prepared(samples, side=side, folder=folder)

    def from_files(_: int) -> None:
        for sample in samples:
            default_collate([read_item(sample, side=side)])

    def from_arrays(_: int) -> None:
        for number in range(n_reads):
            default_collate([dataset[number % len(dataset)]])

    def prepare_anew(number: int) -> None:
        prepared(samples, side=side, folder=folder / str(number))

    ways = [
        Way("PNG files, image and ellipse fit", from_files, units=len(samples)),
        Way("prepared arrays", from_arrays, units=n_reads),
        Way("preparing, once", prepare_anew, units=len(samples)),
    ]
    timings = bench.measure(found, ways, repeats=bench.size(quick=2, cpu=5, gpu=5))
    files_s, arrays_s, once_s = (timing.per_unit_s for timing in timings)
    label = "reads of an image after which preparing has paid"
    reads = break_even(once_s, files_s=files_s, arrays_s=arrays_s)
    formula = "preparing / (from files - from arrays), seconds an image"
    found.values.append(Value(label, reads, "reads", "composed", formula))
    formula = f"1000 x (image + mask) x {side}^2 B"
    mib = 1000 * 2 * side**2 / 2**20
    found.values.append(Value("prepared data of 1,000 images", mib, "MiB", "composed", formula))
    target = bench.target(found)
    found.ratios.append(Ratio("a training item", files_s, arrays_s, "measured", target))
    found.settings = {"images": len(samples), "frame_px": side}


def break_even(once_s: float, *, files_s: float, arrays_s: float) -> float:
    """Reads of an image from which on preparing it takes less time; infinite where it never does.

    Args:
        once_s: Seconds to prepare an image.
        files_s: Seconds to read it from its files.
        arrays_s: Seconds to read it prepared.
    """
    gained = files_s - arrays_s
    return once_s / gained if gained > 0 else float("inf")


def prepared(samples: list[Sample], *, side: int, folder: Path, factor: int = 1) -> FrameDataset:
    """Training items of these images, prepared in a folder."""
    images = prepare_images(
        samples,
        content_hashes=[files_sha256(s.image_path, s.annotation_path) for s in samples],
        frame_hw=(side, side),
        mode="pad",
        factor=factor,
        cache_dir=folder,
    )
    rows = range(len(samples))
    return FrameDataset(
        [(images, row) for row in rows], index=rows, synthetic_from=len(rows), embeddings=None
    )
