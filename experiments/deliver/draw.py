"""`sonosweep draw`: image-mask pairs from a fitted generator, without the images behind it."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from datamodules.ellipse import Ellipse, EllipseDistribution, rasterise
from datamodules.errors import InputError
from datamodules.storage import new_folder, require_new
from datamodules.synthetic import SyntheticPair, write_metadata, write_origin, write_pair
from experiments.config.paths import MODELS
from experiments.deliver.sidecar import data_line
from experiments.store.fitted import GENERATOR, GENERATOR_IMAGES
from experiments.store.runs import read_sound
from lightning_modules.generators.pixel.config import SamplerConfig

PACKAGED = MODELS / "hc18-generator"
"""The generator of the package, a folder as `sonosweep export --format compact` writes it."""


def draw_command(
    run_dir: Path,
    *,
    n: int,
    seed: int,
    image_hw: tuple[int, int],
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Draw `n` pairs into a new folder that `synthesis.folder` reads; image/ and mask/ hold
    pictures of `image_hw` px. `run_dir` is a run of a pixel generator, or what `compact` wrote.

    Returns:
        What `origin.json` says of the set, but for the images that the generator has seen.

    Raises:
        InputError: `out` exists, or no fitted pixel generator is in `run_dir`.
        WeightsError: Its weights are damaged.
    """
    require_new(out)
    manifest = read_sound(run_dir)
    folder = run_dir / GENERATOR if (run_dir / GENERATOR).is_dir() else run_dir
    images = _fitted_on(folder)
    # Here, because they are slow to import: a wrong path is refused before that.
    import torch

    from experiments.stages.generator import draw_pairs
    from lightning_modules.generators.pixel.module import load_generator
    from lightning_modules.randomness import keyed_seed

    module = load_generator(folder)
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    # Small heads as often as large ones: those that students fail on.
    distribution = EllipseDistribution.fit(
        [Ellipse(**row["ellipse"]) for row in images],
        size_hws=[tuple(row["size_hw"]) for row in images],
        balance_sizes=True,
    )
    seeds = [keyed_seed("draw", seed, number) for number in range(n)]
    generator_id = str(manifest["id"])
    n_labels = sum(row["is_labelled"] for row in images)
    origin = {
        "generator": generator_id,
        "data": data_line(manifest),
        "n_labels": n_labels,
        "n_unlabelled": len(images) - n_labels,
        "seed": seed,
    }
    pairs = []
    with new_folder(out) as made, console.status(f"drawing {n} images") as status:
        drawn = draw_pairs(
            module,
            distribution=distribution,
            trimesters=[None] * len(images),
            seeds=seeds,
            image_hw=image_hw,
            sampler=SamplerConfig(),
            progress=lambda done, total: status.update(f"solver steps {done}/{total}"),
        )
        for number, (image, ellipse, *_) in enumerate(drawn):
            pair = SyntheticPair(
                sample_id=f"{generator_id[:8]}-{seed}-{number:05d}",
                ellipse=ellipse,
                seed=seeds[number],
                generator_id=generator_id,
                native_size_hw=tuple(module.config.size_hw),
            )
            mask = rasterise(ellipse, size_hw=image_hw)
            write_pair(made, pair.sample_id, image=image, mask=mask)
            pairs.append(pair)
        write_metadata(made / "metadata.jsonl", pairs)
        write_origin(made, images_seen=(row["pixels_sha256"] for row in images), **origin)
    return {"pairs": n, **origin}


def _fitted_on(generator: Path) -> list[dict[str, Any]]:
    """A row for each image that a generator was fitted on."""
    path = generator / GENERATOR_IMAGES
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: missing; give a finished pixel generator of this version, "
            "runs/store/generator/ID"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); copy it again") from error
