"""Augmentation from K embedded views beside fresh augmentation at every step: Dice and time."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from datamodules.errors import InputError
from experiments.bench.context import Bench
from experiments.bench.results import Ratio, Result, Value
from experiments.bench.stages import run_sweep

FRESH = "null"
"""The value of `augment.n_views` that augments and encodes every draw anew."""


@dataclass(frozen=True)
class Sizes:
    """Trials of a comparison, and their settings beside those of `_rows`."""

    n_images: int
    supports: tuple[int, ...]
    views: tuple[int, ...]
    subset: str
    train: str
    test: int
    val: int
    segmenter: tuple[str, ...]


SIZES = {
    "views": Sizes(10, (0, 1, 2), (2, 4, 8), "150", "80", 40, 5, ("steps=60",)),
    "views100": Sizes(100, (0, 1), (2, 4), "null", "null", 40, 5, ("steps=180",)),
}
QUICK = Sizes(3, (0, 1), (2,), "null", "null", 4, 2, ("steps=2", "backbone=tiny"))


def bench_views(bench: Bench, found: Result) -> None:
    """Dice and seconds of fine-tunes under weak and strong augmentation, by number of views.

    The sweeps stay in the bench's folder, so that a second run takes what is there.

    Raises:
        InputError: There is no real data; Dice on phantoms would choose nothing.
    """
    if bench.data_root is None and not bench.quick:
        raise InputError(f"benchmark {found.name} needs real images: give --root or HC18_ROOT")
    sizes = QUICK if bench.quick else SIZES[found.name]
    found.settings = {"sizes": asdict(sizes)}
    # At their smallest both have the same sweeps.
    name = "views" if bench.quick else found.name
    settings = [*map(str, sizes.views), FRESH]
    rows = {n: _rows(bench, sizes, name=f"{name}-{n}", n_views=n) for n in settings}
    # After all sweeps: the mean cost of an embedding is of them all.
    store, at = bench.out.absolute() / "views" / "store", f"N = {sizes.n_images}"
    an_embedding = embedding_cpu_s(store)
    for condition in ("weak", "strong"):
        fresh = dice_by_support(rows[FRESH], condition)
        fresh_s = fit_cpu_s(store, rows[FRESH], condition)
        found.values.append(_dice(f"{at}, {condition}, fresh", fresh))
        for n in sizes.views:
            label, mine = f"{at}, {condition}, {n} views", rows[str(n)]
            found.values.append(_dice(label, dice_by_support(mine, condition), fresh=fresh))
            ours_s = fit_cpu_s(store, mine, condition) + sizes.n_images * n * an_embedding
            found.ratios.append(Ratio(f"{label}: a fine-tune", fresh_s, ours_s, "composed"))
    found.values.append(_dice(f"{at}, no augmentation", dice_by_support(rows[FRESH], "real")))
    found.notes.append(
        "Fresh augmentation stands in the place of the published way, at our step's speed. Seconds "
        "are the processor's, of every process: a fit, and K embeddings an image at the mean cost "
        "of all that these sweeps embedded. Trials of one support share images, seed and batches, "
        "so differences are paired by support."
    )


def dice_by_support(rows: pd.DataFrame, condition: str) -> dict[int, float]:
    """Mean Dice of each support's trial."""
    chosen = rows[rows["condition"] == condition]
    return dict(zip(chosen["support"], chosen["dice_mean"], strict=True))


def difference_points(dice: Mapping[int, float], fresh: Mapping[int, float]) -> tuple[float, float]:
    """Mean and standard deviation over the supports of the paired difference, in points of Dice."""
    points = [100 * (dice[support] - fresh[support]) for support in sorted(fresh)]
    return statistics.mean(points), statistics.stdev(points)


def embedding_cpu_s(store: Path) -> float:
    """Processor seconds an embedding, over every stage of a store that embedded.

    Raises:
        ValueError: None did.
    """
    done = [json.loads(path.read_text()) for path in store.glob("embed/*/DONE.json")]
    worked = [each for each in done if each["embedded"]]
    if not worked:
        raise ValueError(f"{store}: nothing was embedded")
    return sum(each["cpu_seconds"] for each in worked) / sum(each["embedded"] for each in worked)


def fit_cpu_s(store: Path, rows: pd.DataFrame, condition: str) -> float:
    """Median processor seconds of a condition's fits."""
    done = [store / key / "DONE.json" for key in rows.loc[rows["condition"] == condition, "fit_id"]]
    return statistics.median(json.loads(path.read_text())["cpu_seconds"] for path in done)


def _rows(bench: Bench, sizes: Sizes, *, name: str, n_views: str) -> pd.DataFrame:
    """Run, or find, the sweep of one number of views; the rows of its trials."""
    folder, n_images = bench.out.absolute() / "views", sizes.n_images
    words = (
        f"name={name} data.subset.name=views data.subset.n_images={sizes.subset} "
        f"split.test={sizes.test} split.val={sizes.val} split.train={sizes.train} "
        f"augment.n_views={n_views} augment.max_per_trial=null sweep.condition=[real,weak,strong] "
        f"sweep.real_count=[{n_images}] sweep.support=[{','.join(map(str, sizes.supports))}] "
        "sweep.workers=2 evaluation.prompts=[whole_image] evaluation.controls=[] "
        f"statistics.primary.condition=strong statistics.primary.real_count={n_images} "
        f"trainer.accelerator={'gpu' if bench.device == 'cuda' else 'cpu'} wandb.mode=disabled"
    )
    paths = [f"store.root={folder}", f"data.root={bench.root()}"]
    bench.say(f"  {name} ...")
    own = [f"segmenter.{setting}" for setting in sizes.segmenter]
    run_sweep("hc18_small", [*words.split(), *paths, *own])
    rows = pd.read_csv(folder / name / "results.csv")
    return rows[rows["status"] == "done"]


def _dice(
    what: str, dice: Mapping[int, float], *, fresh: Mapping[int, float] | None = None
) -> Value:
    formula = f"mean of {len(dice)} supports"
    if fresh is not None:
        mean, deviation = difference_points(dice, fresh)
        formula += f"; less fresh {mean:+.1f} points (SD {deviation:.1f})"
    return Value(f"{what}: Dice", 100 * statistics.mean(dice.values()), "%", formula=formula)
