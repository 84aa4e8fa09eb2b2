"""Loading a training item: PNG decode and ellipse fit against the prepared arrays."""

import statistics
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import default_collate

from datamodules.annotation import read_annotation, read_image
from datamodules.frames import FrameDataset
from datamodules.geometry import image_to_frame, mask_to_frame, place
from datamodules.prepared import prepare_images
from datamodules.samples import Sample, read_hc18
from datamodules.storage import files_sha256
from experiments.bench.context import Bench
from experiments.bench.measure import Line, Ratio, Result, Value, Way
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX


def bench_data(bench: Bench) -> Result:
    """Seconds an image from its PNG files, and from the prepared, memory-mapped arrays."""
    samples = sorted(read_hc18(bench.root()), key=lambda s: s.sample_id)[: 8 if bench.quick else 20]
    side = FRAME_SIDE_PX[bench.backbone]
    folder = bench.work / "data"
    dataset = _prepared(samples, side=side, folder=folder)
    n_prepared = 20 if bench.quick else 500
    ways = [
        Way(
            label="PNG files, image and ellipse fit",
            unit="image",
            units=len(samples),
            call=lambda _: _from_files(samples, side=side),
        ),
        Way(
            label="prepared arrays",
            unit="image",
            units=n_prepared,
            call=lambda _: _from_arrays(dataset, n=n_prepared),
        ),
        Way(
            label="preparing, once",
            unit="image",
            units=len(samples),
            call=lambda number: _prepare_anew(samples, side=side, folder=folder / str(number)),
        ),
    ]
    files, arrays, once = timings = bench.measure(ways, repeats=2 if bench.quick else 5)
    return Result(
        name="data",
        timings=timings,
        values=[
            Value(
                label="reads of an image after which preparing has paid",
                value=break_even(once.per_unit_s, files.per_unit_s, arrays.per_unit_s),
                unit="reads",
                how="composed",
                formula="preparing / (from files - from arrays), seconds an image",
            ),
            Value(
                label="prepared data of 1,000 images",
                value=1000 * 2 * side**2 / 2**20,
                unit="MiB",
                how="composed",
                formula=f"1000 x (image + mask) x {side}^2 B",
            ),
        ],
        ratios=[
            Ratio(
                label="a training item",
                published_s=statistics.median(files.wall_s) / files.units,
                ours_s=statistics.median(arrays.wall_s) / arrays.units,
                how="measured",
                at_least=10,
            )
        ],
        settings={"images": len(samples), "frame_px": side},
    )


def break_even(once_s: float, files_s: float, arrays_s: float) -> float:
    """Reads of an image from which on preparing it takes less time; infinite where it never does.

    Args:
        once_s: Seconds to prepare an image.
        files_s: Seconds to read it from its files.
        arrays_s: Seconds to read it prepared.
    """
    line = Line(fixed_s=once_s, per_unit_s=arrays_s)
    gained = files_s - arrays_s
    return line.fixed_s / gained if gained > 0 else float("inf")


def _from_files(samples: list[Sample], *, side: int) -> None:
    for sample in samples:
        image = read_image(sample.image_path)
        annotation = read_annotation(sample.annotation_path, filled_bias_px=sample.filled_bias_px)
        placement = place(image.shape, frame_hw=(side, side), mode="pad")
        pixels = image_to_frame(image, placement).astype(np.float32) / 255.0
        mask = mask_to_frame(annotation.mask, placement).astype(np.float32)
        default_collate([{"image": torch.from_numpy(pixels), "mask": torch.from_numpy(mask)}])


def _from_arrays(dataset: FrameDataset, *, n: int) -> None:
    for number in range(n):
        default_collate([dataset[number % len(dataset)]])


def _prepare_anew(samples: list[Sample], *, side: int, folder: Path) -> None:
    _prepared(samples, side=side, folder=folder)


def _prepared(samples: list[Sample], *, side: int, folder: Path) -> FrameDataset:
    prepared = prepare_images(
        samples,
        content_hashes=[files_sha256(s.image_path, s.annotation_path) for s in samples],
        frame_hw=(side, side),
        mode="pad",
        cache_dir=folder,
    )
    return FrameDataset(
        [(prepared, row) for row in range(len(samples))],
        index=range(len(samples)),
        synthetic_from=len(samples),
        embeddings=None,
    )
