"""The published ablation, 7 amounts x 4 conditions, from measured parts; a small one for real."""

from collections.abc import Sequence

from experiments.bench.child import Seconds
from experiments.bench.finetune import BATCH_SIZE, EPOCHS, steps_of
from experiments.bench.measure import Bench, Found, Way
from experiments.bench.stages import common_overrides, run_sweep
from experiments.config.synthesis import AugmentConfig

PAPER_AMOUNTS = (5, 10, 20, 50, 100, 300, 500)
PAPER_PAIRS = 495


def n_embeddings(amounts: Sequence[int], *, pairs: int, augment: AugmentConfig) -> int:
    """Encoder passes of ours: of every image, of its weak and strong views, and of every pair.

    An amount's images are those of the amount before it and more.
    """
    return pairs + max(amounts) + 2 * augment.augmented_views(amounts)


def bench_ablation(bench: Bench, found: Found) -> None:
    """Seconds of 28 fine-tunes, and of a small ablation that was really run both ways."""
    # Real images under no, weak and strong augmentation, and real images with pairs.
    fits = [n + more for n in PAPER_AMOUNTS for more in (0, 0, 0, PAPER_PAIRS)]
    steps = sum(map(steps_of, fits))
    embeddings = n_embeddings(PAPER_AMOUNTS, pairs=PAPER_PAIRS, augment=AugmentConfig())
    found.value("images seen", EPOCHS * sum(fits), "images", how="composed")
    found.value("optimiser steps", steps, "steps", how="composed")
    found.value("embeddings of ours", embeddings, "images", how="composed")
    for parts in bench.run("finetune").facts["parts"]:
        fit, embed = parts.fit, parts.embed
        ours = len(fits) * fit.fixed_s + steps * fit.per_unit_s + embeddings * embed.per_unit_s
        theirs, label = steps * parts.published.per_unit_s, f"{parts.label}, {len(fits)} fine-tunes"
        found.ratio(label, theirs, ours, how="composed", target=parts.backbone)
    _for_real(bench, found)


def _for_real(bench: Bench, found: Found) -> None:
    """Two amounts x two conditions through the sweep's runner, and as a loop of plain steps."""
    words = (
        "name=ablation sweep.real_fraction=[] sweep.real_count=[2,5] sweep.condition=[real,strong] "
        "segmenter.steps=1 augment.n_views=2 statistics.primary.prompt=jittered_box"
    )
    words = [*common_overrides(bench, name="ablation"), *words.split()]
    batch = {"root": str(bench.root()), "names": bench.images(BATCH_SIZE)}
    batch |= {"backbone": bench.backbone, "weights": None}

    def plain(_: int) -> Seconds:
        draws = [BATCH_SIZE * number for number in range(4)]
        steps = [bench.published("step", **batch, draw=draw) for draw in draws]
        return Seconds(*map(sum, zip(*steps, strict=True)))

    label = f"4 small trials, {4 * BATCH_SIZE} images seen"
    ours = f"ours, a whole sweep with its scores: {label}"
    ratio = f"{bench.backbone}, for real: {label}"
    found.measure(
        Way(f"published: {label}", plain, unit="run"),
        Way(ours, lambda _: run_sweep(words), unit="run", ratio=ratio),
        repeats=1,
        warm_up=False,
    )
