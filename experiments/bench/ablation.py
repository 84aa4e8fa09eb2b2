"""The whole ablation: 7 amounts x 4 conditions, composed of parts, and a small one for real."""

from collections.abc import Callable, Sequence
from functools import partial

from experiments.bench.context import Bench
from experiments.bench.encoder import fastest_encoder, published_encoders
from experiments.bench.finetune import (
    BATCH_SIZE,
    DECODER_STEP,
    EPOCHS,
    parts_of,
    prefix_of,
    published_batch,
)
from experiments.bench.measure import Line, Ratio, Result, Timing, Value, steps_of
from experiments.bench.real_stages import TrialStages, common_overrides
from experiments.bench.startup import run_sonosweep
from experiments.config.schema import AugmentConfig

PAPER_AMOUNTS = (5, 10, 20, 50, 100, 300, 500)
PAPER_PAIRS = 495
AUGMENT = AugmentConfig()
"""Views of an image under weak and under strong augmentation: our default."""
TARGETS = {("lite", "cpu"): 4.0, ("vit_b", "cpu"): 40.0}


def images_seen(amounts: Sequence[int], *, pairs: int, epochs: int) -> tuple[int, int]:
    """Images that the trials of an ablation see: three conditions of real images, and synthesis.

    Args:
        amounts: Labelled images of the trials of each condition.
        pairs: Synthetic pairs beside them in each synthesis trial.
        epochs: Passes over whatever a trial has.

    Returns:
        Those of the three conditions without pairs together, and of synthesis.
    """
    return 3 * epochs * sum(amounts), epochs * (sum(amounts) + pairs * len(amounts))


def steps_in_all(amounts: Sequence[int], *, pairs: int, epochs: int, batch_size: int) -> int:
    """Optimiser steps of all trials; see `images_seen`."""
    real = sum(steps_of(n, epochs=epochs, batch_size=batch_size) for n in amounts)
    both = sum(steps_of(n + pairs, epochs=epochs, batch_size=batch_size) for n in amounts)
    return 3 * real + both


def embeddings_needed(amounts: Sequence[int], *, pairs: int, augment: AugmentConfig) -> int:
    """Different embeddings of an ablation: nested amounts share theirs, whatever the condition.

    Images, their weak and their strong views, the image itself being a view of both, and pairs.
    """
    return max(amounts) + 2 * augment.augmented_views(amounts) + pairs


def bench_ablation(bench: Bench) -> Result:
    """Seconds of 28 fine-tunes, and of a small ablation that was really run both ways."""
    finetune = bench.run("finetune")
    steps = steps_in_all(PAPER_AMOUNTS, pairs=PAPER_PAIRS, epochs=EPOCHS, batch_size=BATCH_SIZE)
    embeddings = embeddings_needed(PAPER_AMOUNTS, pairs=PAPER_PAIRS, augment=AUGMENT)
    parts = parts_of(finetune)
    real, both = images_seen(PAPER_AMOUNTS, pairs=PAPER_PAIRS, epochs=EPOCHS)
    found = Result(
        name="ablation",
        values=[
            Value(label="images seen", value=real + both, unit="images", how="composed"),
            Value(label="optimiser steps", value=steps, unit="steps", how="composed"),
            Value(label="embeddings of ours", value=embeddings, unit="images", how="composed"),
        ],
        settings={
            "amounts": list(PAPER_AMOUNTS),
            "pairs": PAPER_PAIRS,
            "epochs": EPOCHS,
            "views": [AUGMENT.views_at(amount) for amount in PAPER_AMOUNTS],
        },
    )
    n_trials = 4 * len(PAPER_AMOUNTS)

    def ratio(label: str, name: str, *, a_step: float, fit: Line, an_embedding: float) -> Ratio:
        return Ratio(
            label=f"{label}, 28 fine-tunes",
            published_s=steps * a_step,
            ours_s=n_trials * fit.fixed_s + steps * fit.per_unit_s + embeddings * an_embedding,
            how="composed",
            at_least=TARGETS.get((name, bench.device)),
        )

    measured = {bench.backbone: parts}
    if bench.is_gpu:
        measured[bench.vit] = parts_of(finetune, prefix=prefix_of(bench, bench.vit))
    found.ratios += [
        ratio(
            name,
            name,
            a_step=each.published.per_unit_s,
            fit=each.fit,
            an_embedding=each.embed.per_unit_s,
        )
        for name, each in measured.items()
    ]
    if not bench.is_gpu:
        _vit(bench, found, ratio=partial(ratio, fit=parts.fit), finetune=finetune)
    found.notes.append(
        "Composed: published = steps x a measured step; ours = 28 x a fit's fixed part + steps x a "
        f"step + every embedding once, up to {AUGMENT.n_views} views of an image under weak and "
        f"strong augmentation included ({AUGMENT.max_per_trial} in a trial, at least 2 an image). "
        "Scoring is not in it: `evaluation` has its own ratio."
    )
    _for_real(bench, found)
    return found


def _vit(
    bench: Bench,
    found: Result,
    *,
    ratio: Callable[..., Ratio],
    finetune: Result,
) -> None:
    name, encoder = bench.vit, bench.run("encoder")
    decoder_s = finetune.timing(DECODER_STEP).per_unit_s
    fastest = fastest_encoder(encoder, name).per_unit_s
    for whose, theirs in published_encoders(encoder, name).items():
        a_step = BATCH_SIZE * (theirs.per_unit_s + decoder_s)
        label = f"{name} (against {whose})"
        found.ratios.append(ratio(label, name, a_step=a_step, an_embedding=fastest))


def _for_real(bench: Bench, found: Result) -> None:
    """Two amounts x two conditions through the sweep's runner, and as a loop of plain steps."""
    amounts, steps = (2, 5), 1
    words = [
        *common_overrides(bench, name="ablation"),
        "name=ablation",
        "sweep.real_fraction=[]",
        f"sweep.real_count=[{','.join(map(str, amounts))}]",
        "sweep.condition=[real,strong]",
        f"segmenter.steps={steps}",
        "augment.n_views=2",
        "statistics.primary.prompt=jittered_box",
    ]
    ours = run_sonosweep(["sweep", "demo", *words])
    trial = TrialStages(bench, name="ablation-plain", overrides=["sweep.real_count=[5]"])
    given = published_batch(bench, [name for name, _ in trial.node("embed").content["images"]])
    parts = [
        bench.plain.call("step", **given, draw=BATCH_SIZE * number)
        for number in range(2 * len(amounts) * steps)
    ]
    plain = sum(wall for wall, _ in parts), sum(cpu for _, cpu in parts)
    seen = 2 * len(amounts) * steps * BATCH_SIZE
    label = f"{2 * len(amounts)} small trials, {seen} images seen"
    for whose, (wall, cpu) in (("published", plain), ("ours, a whole sweep with its scores", ours)):
        found.timings.append(
            Timing(label=f"{whose}: {label}", unit="run", units=1, wall_s=[wall], cpu_s=[cpu])
        )
    found.ratios.append(
        Ratio(
            label=f"{bench.backbone}, for real: {label}",
            published_s=plain[0],
            ours_s=ours[0],
            how="measured",
        )
    )
