"""Whole jobs with SAM from measured parts: a decoder fine-tune, an evaluation, the ablation.

The published way runs the encoder in every step and for every box; ours once an image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.bench.child import Seconds
from experiments.bench.measure import Bench, Found, Line, Way, line_through
from experiments.bench.stages import TrialStages, common_overrides, run_sweep, weights_of
from experiments.config.synthesis import AugmentConfig
from lightning_modules.segmenters.sam.config import Backbone

AMOUNTS = (5, 50, 500, 1000)
TARGETED = 50
"""The amount whose ratio has a target."""
TRIALS = (7, 28)
"""Fine-tunes on the same images."""
EPOCHS, BATCH_SIZE = 20, 5
DRAWS, COHORT = 5, 200
"""The paper's draws of the box, and about as many test images as its split of HC18 has."""
PAPER_AMOUNTS, PAPER_PAIRS = (5, 10, 20, 50, 100, 300, 500), 495


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a job is made of."""

    label: str
    backbone: Backbone
    published: Line
    """By steps or boxes, the encoder in them."""
    ours: Line
    """By steps or images, without the encoder."""
    embed: Line
    """By images."""

    def fine_tunes(self, n_images: int, *, n_trials: int = 1) -> tuple[float, float]:
        """Seconds of fine-tunes on the same images, the published way and ours."""
        steps = steps_of(n_images)
        ours = self.embed.seconds(n_images) + n_trials * self.ours.seconds(steps)
        return n_trials * self.published.seconds(steps), ours

    def large(self, bench: Bench, *, n_passes: int, embed_s: float = 0.0) -> list["Parts"]:
        """The same with the large backbone, against each of its published encoders.

        Their own measurement stands in place of this backbone's `n_passes` in each published unit
        and in each embedding, of which the stage's fixed part is `embed_s`.
        """
        facts, name = bench.run("encoder").facts, bench.vit
        beside_s = max(0.0, self.published.per_unit_s - n_passes * facts[self.backbone].stock_s)
        embed = Line(fixed_s=embed_s, per_unit_s=facts[name].fastest.per_unit_s)
        return [
            replace(
                self,
                label=f"{name} (against {whose})",
                backbone=name,
                published=Line(per_unit_s=n_passes * encoder_s + beside_s),
                embed=embed,
            )
            for whose, encoder_s in facts[name].published.items()
        ]


def steps_of(n_images: int) -> int:
    """Optimiser steps over so many images; the last batch of an epoch may be smaller."""
    return EPOCHS * math.ceil(n_images / BATCH_SIZE)


def bench_finetune(bench: Bench, found: Found) -> None:
    """Parts of a fine-tune, and from them the time of one, and of many on the same images."""
    small = _fine_tune(bench, found, bench.backbone)
    if bench.is_gpu:
        large = [_fine_tune(bench, found, bench.vit)]
    else:
        large = small.large(bench, n_passes=BATCH_SIZE)
        encoder = bench.run("encoder").facts[bench.vit].fastest.label
        found.notes.append(
            f"{bench.vit} is composed: published a step = that of {small.backbone} with 5 passes "
            "of the large encoder in place of the small one's; ours an embedding = a pass of "
            f"{encoder}, a step = that of {small.backbone}, whose decoder and embeddings have the "
            "same shapes."
        )
    found.facts["parts"] = [small, *large]
    for parts in found.facts["parts"]:
        for n in AMOUNTS:
            target = parts.backbone if n == TARGETED else ""
            found.ratio(f"{parts.label}, a fine-tune at N = {n}", *parts.fine_tunes(n), target)
    for n_trials in TRIALS:
        label = f"{small.label}, {n_trials} fine-tunes on the same {TARGETED} images"
        found.ratio(label, *small.fine_tunes(TARGETED, n_trials=n_trials))


def _fine_tune(bench: Bench, found: Found, backbone: Backbone) -> Parts:
    """Both ways of a backbone in turn, ours at two numbers of steps and two of images."""
    steps, images = found.sizes["steps"], found.sizes["images"]
    prefix = "" if backbone == bench.backbone else f"{backbone}, "
    given = {"backbone": backbone, "weights": weights_of(bench, backbone)}
    batch = {**given, "root": str(bench.root()), "names": bench.images(BATCH_SIZE)}

    def trial(name: str, n_steps: int) -> TrialStages:
        count = f"sweep.real_count=[{max(BATCH_SIZE, *images)}]"
        words = [count, f"segmenter.steps={n_steps}"]
        return TrialStages(bench, name=f"{name}-{backbone}", overrides=words, backbone=backbone)

    def ours(stage: str, n: int, unit: str) -> Way:
        call = {"embed": lambda _: apart.embed_anew(n=n), "fit": lambda _: fits[n].run("fit")}
        return Way(f"{prefix}ours: {stage}, {n} {unit}s", call[stage], units=n, unit=unit)

    # In a store of its own: the fits need their embeddings all the time.
    apart, fits = trial("embed", 1), {n: trial("finetune", n) for n in steps}
    fits[steps[0]].run("embed")
    a_step, start, *sizes = found.measure(
        Way(
            f"{prefix}published: a step of 5 images, encoder in it",
            lambda i: bench.published("step", **batch, draw=BATCH_SIZE * (i + 1)),
            unit="step",
        ),
        Way(
            f"{prefix}published: building the network",
            lambda _: bench.published("build", **given),
            unit="network",
        ),
        *(ours("embed", n, "image") for n in images),
        *(ours("fit", n, "step") for n in steps),
    )
    embed, fit = line_through(*sizes[:2]), line_through(*sizes[2:])
    for kind, line, unit in (("fit", fit, "a step of 5"), ("embed", embed, "an image")):
        found.value(f"{prefix}ours: {kind}, fixed part", line.fixed_s, "s", how="composed")
        found.value(f"{prefix}ours: {kind}, {unit}", line.per_unit_s, "s", how="composed")
    published = Line(fixed_s=start.per_unit_s, per_unit_s=a_step.per_unit_s)
    return Parts(label=backbone, backbone=backbone, published=published, ours=fit, embed=embed)


def bench_evaluation(bench: Bench, found: Found) -> None:
    """Seconds of an evaluation of 200 images under five boxes, from measured parts."""
    small = _evaluation(bench, found)
    # Never by the large one's random weights: masks of noise cost another time to score.
    for parts in (small, *small.large(bench, n_passes=1, embed_s=small.embed.fixed_s)):
        ours_s = parts.embed.seconds(COHORT) + parts.ours.seconds(COHORT)
        label = f"{parts.label}, {COHORT} images under {DRAWS} boxes"
        found.ratio(label, parts.published.seconds(COHORT * DRAWS), ours_s, parts.backbone)
    found.notes.append(
        f"{bench.vit} is composed: the encoders of `encoder` in place of that of {bench.backbone}; "
        "decoding and scoring cost the same, the embeddings having the same shape."
    )


def _evaluation(bench: Bench, found: Found) -> Parts:
    """The small backbone's, ours at two numbers of images."""
    # Weights are all that scoring needs of the fit.
    words, sizes = ["sweep.real_count=[2]", "segmenter.steps=1"], found.sizes["images"]
    trial = TrialStages(bench, name="evaluation", overrides=words)
    apart = TrialStages(bench, name="evaluation-embed", overrides=words)
    trial.run("embed")
    trial.run("embed", last=True)
    trial.run("fit")
    names = bench.images(sizes[1])
    given = {"root": str(bench.root()), "backbone": bench.backbone}
    theirs = lambda i: bench.published("score", **given, name=names[i % len(names)], draw=i + 1)  # noqa: E731
    ways = [
        Way("published: an image under one box, from its files to its scores", theirs, unit="box")
    ]
    for n in sizes:
        embed = lambda _, n=n: apart.embed_anew(last=True, n=n)  # noqa: E731
        score = lambda _, n=n: trial.run("score", n=n)  # noqa: E731
        ways.append(Way(f"ours: embed, {n} test images", embed, units=n))
        ways.append(Way(f"ours: score, {n} images under 5 boxes", score, units=n))
    a_box, few, short, many, long = found.measure(*ways)
    line = line_through(short, long)
    found.value("ours: score, fixed part", line.fixed_s, "s", how="composed")
    found.value("ours: an image, 5 boxes", line.per_unit_s, "s", how="composed")
    return Parts(
        label=bench.backbone,
        backbone=bench.backbone,
        published=Line(per_unit_s=a_box.per_unit_s),
        ours=line,
        embed=line_through(few, many),
    )


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
        fit, embed = parts.ours, parts.embed
        ours = len(fits) * fit.fixed_s + steps * fit.per_unit_s + embeddings * embed.per_unit_s
        theirs, label = steps * parts.published.per_unit_s, f"{parts.label}, {len(fits)} fine-tunes"
        found.ratio(label, theirs, ours, parts.backbone)
    _small_ablation(bench, found)


def _small_ablation(bench: Bench, found: Found) -> None:
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
