"""Augmentation from K embedded views beside fresh augmentation at every step: Dice and time."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.errors import InputError
from experiments.bench.context import Bench
from experiments.bench.measure import Ratio, Result, Value
from experiments.bench.startup import run_sonosweep

CONDITIONS = ("weak", "strong")
FRESH = "null"
"""The value of `augment.n_views` that augments and encodes every draw anew."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Trials of a comparison."""

    name: str
    """What its sweeps' names begin with."""
    n_images: int
    supports: tuple[int, ...]
    views: tuple[int, ...]
    words: tuple[str, ...]
    """Settings beside these."""


FEW = Sizes(
    name="views",
    n_images=10,
    supports=(0, 1, 2),
    views=(2, 4, 8),
    words=(
        "data.subset.name=views",
        "data.subset.n_images=150",
        "split.test=40",
        "split.val=5",
        "split.train=80",
        "segmenter.steps=60",
    ),
)
QUICK = Sizes(
    name="views",
    n_images=3,
    supports=(0, 1),
    views=(2,),
    words=(
        "data.subset.n_images=null",
        "split.test=4",
        "split.val=2",
        "split.train=null",
        "segmenter.backbone=tiny",
        "segmenter.steps=2",
    ),
)


def bench_views(bench: Bench) -> Result:
    """Dice and seconds of fine-tunes under weak and strong augmentation, by number of views.

    The sweeps stay in the bench's folder, so that a second run takes what is there.

    Raises:
        InputError: There is no real data; Dice on phantoms would choose nothing.
    """
    return compare_views(bench, QUICK if bench.quick else FEW, name="views")


def compare_views(bench: Bench, sizes: Sizes, *, name: str) -> Result:
    """The same at sizes that are given; see `bench_views`."""
    if bench.data_root is None and not bench.quick:
        raise InputError(f"benchmark {name} needs real images: give --root or HC18_ROOT")
    found = Result(name=name, settings={"sizes": asdict(sizes)})
    views = (*map(str, sizes.views), FRESH)
    rows = {each: _rows(bench, sizes, each) for each in views}
    # After all sweeps: the mean cost of an embedding is of them all.
    _compare(found, sizes, rows, store=bench.keep / "views" / "store")
    found.notes.append(
        "Fresh augmentation stands in the place of the published way, at our step's speed. Seconds "
        "are the processor's, of every process: a fit, and K embeddings an image at the mean cost "
        "of all that these sweeps embedded. Trials of one support share images, seed and batches, "
        "so differences are paired by support."
    )
    return found


def _compare(found: Result, sizes: Sizes, rows: Mapping[str, pd.DataFrame], *, store: Path) -> None:
    """Dice and seconds of each number of views beside those of fresh augmentation."""
    an_embedding = embedding_cpu_s(store)
    at = f"N = {sizes.n_images}"
    for condition in CONDITIONS:
        fresh = dice_by_support(rows[FRESH], condition)
        fresh_s = fit_cpu_s(store, rows[FRESH], condition)
        found.values.append(_dice(f"{at}, {condition}, fresh: Dice", fresh, fresh=None))
        for views in map(str, sizes.views):
            label = f"{at}, {condition}, {views} views"
            dice = dice_by_support(rows[views], condition)
            found.values.append(_dice(f"{label}: Dice", dice, fresh=fresh))
            fit_s = fit_cpu_s(store, rows[views], condition)
            found.ratios.append(
                Ratio(
                    label=f"{label}: a fine-tune",
                    published_s=fresh_s,
                    ours_s=fit_s + sizes.n_images * int(views) * an_embedding,
                    how="composed",
                )
            )
    real = dice_by_support(rows[FRESH], "real")
    found.values.append(_dice(f"{at}, no augmentation: Dice", real, fresh=None))


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
    done = [_done(path.parent) for path in sorted(store.glob("embed/*/DONE.json"))]
    worked = [each for each in done if each["embedded"]]
    if not worked:
        raise ValueError(f"{store}: nothing was embedded")
    return sum(each["cpu_seconds"] for each in worked) / sum(each["embedded"] for each in worked)


def fit_cpu_s(store: Path, rows: pd.DataFrame, condition: str) -> float:
    """Median processor seconds of a condition's fits."""
    keys = rows.loc[rows["condition"] == condition, "fit_id"]
    return statistics.median(_done(store / key)["cpu_seconds"] for key in keys)


def _rows(bench: Bench, sizes: Sizes, n_views: str) -> pd.DataFrame:
    """Run, or find, the sweep of one number of views; the rows of its trials."""
    folder = bench.keep / "views"
    name = f"{sizes.name}-{n_views}"
    words = [
        f"name={name}",
        f"store.root={folder}",
        f"data.root={bench.root()}",
        *sizes.words,
        f"augment.n_views={n_views}",
        "augment.max_per_trial=null",
        "sweep.condition=[real,weak,strong]",
        f"sweep.real_count=[{sizes.n_images}]",
        f"sweep.support={_listed(sizes.supports)}",
        "sweep.workers=2",
        "evaluation.prompts=[whole_image]",
        "evaluation.controls=[]",
        "statistics.primary.condition=strong",
        f"statistics.primary.real_count={sizes.n_images}",
        f"trainer.accelerator={'gpu' if bench.device == 'cuda' else 'cpu'}",
        "wandb.mode=disabled",
    ]
    bench.say(f"  {name} ...")
    run_sonosweep(["sweep", "hc18_small", *words])
    rows = pd.read_csv(folder / name / "results.csv")
    return rows[rows["status"] == "done"]


def _dice(label: str, dice: Mapping[int, float], *, fresh: Mapping[int, float] | None) -> Value:
    formula = f"mean of {len(dice)} supports"
    if fresh is not None:
        mean, deviation = difference_points(dice, fresh)
        formula += f"; less fresh {mean:+.1f} points (SD {deviation:.1f})"
    return Value(label=label, value=100 * statistics.mean(dice.values()), unit="%", formula=formula)


def _listed(numbers: Sequence[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def _done(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "DONE.json").read_text())
