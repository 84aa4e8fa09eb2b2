"""Peak memory of a decoder fine-tune with 1,000 cached embeddings, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from experiments.bench.context import Bench
from experiments.bench.measure import Result, Value
from experiments.config.paths import ROOT


def bench_memory(bench: Bench) -> Result:
    """Peak resident memory of the published step, and of ours over 1,000 embeddings."""
    images, steps = (20, 2) if bench.quick else (1000, 4)
    folder = bench.work / "memory"
    imported, ours, ours_gpu = _peaks_gib("ours", bench, folder=folder, images=images, steps=steps)
    _, published, published_gpu = _peaks_gib("published", bench, folder=folder, images=5, steps=1)
    on_gpu = (("ours", ours_gpu), ("published", published_gpu)) if bench.device == "cuda" else ()
    return Result(
        name="memory",
        values=[
            Value(
                label=f"ours: {images} embeddings read, then {steps} steps of 5",
                value=ours,
                unit="GiB",
                formula="peak resident memory of the process, libraries included",
                at_most=2.0 if bench.device == "cpu" else None,
            ),
            Value(label="of it the imported libraries", value=imported, unit="GiB"),
            Value(
                label="published: a step of 5, the encoder in it",
                value=published,
                unit="GiB",
                formula="peak resident memory of the process, libraries included",
            ),
            *(
                Value(
                    label=f"{whose}: on the GPU",
                    value=value,
                    unit="GiB",
                    formula="torch.cuda.max_memory_allocated of the same process",
                )
                for whose, value in on_gpu
            ),
        ],
        settings={"images": images, "steps": steps, "backbone": bench.backbone},
        notes=[
            "The embeddings are files of zeros of the true size and type; the trainer reads every "
            "one of them through the loader once before it trains. Pages of mapped files that the "
            "process still holds count as its memory. On a GPU the items drawn are moved there."
        ],
    )


def _peaks_gib(
    way: str, bench: Bench, *, folder: Path, images: int, steps: int
) -> tuple[float, float, float]:
    """Peak resident memory after the imports and at the end, and the GPU's."""
    package = str(ROOT)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    words = [way, str(bench.root()), str(folder), bench.backbone, bench.device]
    environment = {**os.environ, "PYTHONPATH": path}
    if way == "published":
        environment.pop("GLIBC_TUNABLES", None)
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.bench.memory_child", *words, str(images), str(steps)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no words"]
        raise RuntimeError(f"the fine-tune of the memory benchmark failed: {lines[-1]}")
    imported, peak, on_gpu = map(float, ended.stdout.split()[-3:])
    return imported, peak, on_gpu
