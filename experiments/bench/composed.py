"""A decoder fine-tune: the encoder in every step against embeddings that are computed once."""

import math
from dataclasses import dataclass, replace

from experiments.bench.measure import Bench, Found, Line, Way, line_through
from experiments.bench.stages import TrialStages, weights_of
from lightning_modules.segmenters.sam.config import Backbone

AMOUNTS = (5, 50, 500, 1000)
TARGETED = 50
"""The amount whose ratio has a target."""
TRIALS = (7, 28)
"""Fine-tunes on the same images."""
EPOCHS, BATCH_SIZE = 20, 5


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a fine-tune is made of: the published one by steps; ours by steps and by images."""

    label: str
    backbone: Backbone
    published: Line
    fit: Line
    embed: Line

    def seconds(self, n_images: int, *, n_trials: int = 1) -> tuple[float, float]:
        """Of fine-tunes on the same N images: the published way's, and ours, which embeds once."""
        steps = steps_of(n_images)
        ours = self.embed.seconds(n_images) + n_trials * self.fit.seconds(steps)
        return n_trials * self.published.seconds(steps), ours


def steps_of(n_images: int) -> int:
    """Optimiser steps over so many images; the last batch of an epoch may be smaller."""
    return EPOCHS * math.ceil(n_images / BATCH_SIZE)


def bench_finetune(bench: Bench, found: Found) -> None:
    """Parts of a fine-tune, and from them the time of one, and of many on the same images."""
    small = _measured(bench, found, bench.backbone)
    large = [_measured(bench, found, bench.vit)] if bench.is_gpu else _vit(bench, found, small)
    # The first one is of the small backbone.
    found.facts["parts"] = [small, *large]
    for parts in found.facts["parts"]:
        for n in AMOUNTS:
            label, target = f"{parts.label}, a fine-tune at N = {n}", ""
            if n == TARGETED:
                target = parts.backbone
            found.ratio(label, *parts.seconds(n), how="composed", target=target)
    for n_trials in TRIALS:
        label = f"{small.label}, {n_trials} fine-tunes on the same {TARGETED} images"
        found.ratio(label, *small.seconds(TARGETED, n_trials=n_trials), how="composed", target="")


def _measured(bench: Bench, found: Found, backbone: Backbone) -> Parts:
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
    return Parts(label=backbone, backbone=backbone, published=published, fit=fit, embed=embed)


def _vit(bench: Bench, found: Found, small: Parts) -> list[Parts]:
    """ViT-B by its encoders' own measurement in place of the small one's."""
    facts, name = bench.run("encoder").facts, bench.vit
    passes, a_pass = facts[name], facts[small.backbone].stock_s
    beside_s = max(0.0, small.published.per_unit_s - BATCH_SIZE * a_pass)
    found.notes.append(
        f"{name} is composed: published a step = that of {small.backbone} with 5 passes of the "
        f"large encoder in place of the small one's; ours an embedding = a pass of "
        f"{passes.fastest.label}, a step = that of {small.backbone}, whose decoder and embeddings "
        "have the same shapes."
    )
    embed = Line(per_unit_s=passes.fastest.per_unit_s)
    return [
        replace(
            small,
            label=f"{name} (against {whose})",
            backbone=name,
            published=Line(per_unit_s=BATCH_SIZE * encoder_s + beside_s),
            embed=embed,
        )
        for whose, encoder_s in passes.published.items()
    ]
