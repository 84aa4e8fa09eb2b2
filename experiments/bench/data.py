"""Loading a training item: PNG decode and ellipse fit against the prepared arrays."""

from pathlib import Path

from torch.utils.data import default_collate

from datamodules.frames import FrameDataset
from datamodules.prepared import prepare_images
from datamodules.samples import Sample, content_hash_of, read_hc18
from experiments.bench.measure import Bench, Found, Way
from experiments.bench.published import read_item
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX


def bench_data(bench: Bench, found: Found) -> None:
    """Seconds an image from its PNG files, and from the prepared, memory-mapped arrays."""
    n, n_reads = found.sizes["images"], found.sizes["reads"]
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

    files, arrays, once = found.measure(
        Way("PNG files, image and ellipse fit", from_files, n),
        Way("prepared arrays", from_arrays, n_reads, ratio="a training item", target="item"),
        Way("preparing, once", prepare_anew, n),
    )
    gained_s = files.per_unit_s - arrays.per_unit_s
    reads = once.per_unit_s / gained_s if gained_s > 0 else float("inf")
    label = "reads of an image after which preparing has paid"
    formula = "preparing / (from files - from arrays), seconds an image"
    found.value(label, reads, "reads", how="composed", formula=formula)
    formula, mib = f"1000 x (image + mask) x {side}^2 B", 1000 * 2 * side**2 / 2**20
    found.value("prepared data of 1,000 images", mib, "MiB", how="composed", formula=formula)


def prepared(samples: list[Sample], *, side: int, folder: Path, factor: int = 1) -> FrameDataset:
    """Training items of these images, prepared in a folder."""
    images = prepare_images(
        samples,
        content_hashes=[content_hash_of(s) for s in samples],
        frame_hw=(side, side),
        mode="pad",
        factor=factor,
        cache_dir=folder,
    )
    rows = range(len(samples))
    return FrameDataset(
        [(images, row) for row in rows], index=rows, synthetic_from=len(rows), embeddings=None
    )
