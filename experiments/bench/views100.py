"""As `bench_views`, at 100 images, which vary by themselves."""

from experiments.bench.context import Bench
from experiments.bench.measure import Result
from experiments.bench.views import QUICK, Sizes, compare_views

MANY = Sizes(
    name="views100",
    n_images=100,
    supports=(0, 1),
    views=(2, 4),
    words=(
        "data.subset.n_images=null",
        "split.test=40",
        "split.val=5",
        "split.train=null",
        "segmenter.steps=180",
    ),
)


def bench_views100(bench: Bench) -> Result:
    """Dice and seconds of fine-tunes on 100 images, by number of views."""
    return compare_views(bench, QUICK if bench.quick else MANY, name="views100")
