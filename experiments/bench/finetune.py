"""A decoder fine-tune: the encoder in every step against embeddings that are computed once."""

import math
from dataclasses import dataclass

from experiments.bench.child import Seconds
from experiments.bench.context import Bench, Way
from experiments.bench.results import Line, Ratio, Result, Value, line_through
from experiments.bench.stages import TrialStages, weights_of
from lightning_modules.segmenters.sam.config import Backbone

AMOUNTS = (5, 50, 500)
TARGETED = 50
"""The amount whose ratio has a target."""
EPOCHS, BATCH_SIZE = 20, 5


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a fine-tune is made of: the published one by steps; ours by steps and by images."""

    label: str
    backbone: Backbone
    published: Line
    fit: Line
    embed: Line

    def seconds(self, n_images: int) -> tuple[float, float]:
        """Of a fine-tune at N images: the published way's, and ours with its embeddings."""
        steps = steps_of(n_images)
        ours = self.embed.seconds(n_images) + self.fit.seconds(steps)
        return self.published.seconds(steps), ours


def steps_of(n_images: int, *, epochs: int = EPOCHS, batch_size: int = BATCH_SIZE) -> int:
    """Optimiser steps over so many images; the last batch of an epoch may be smaller."""
    return epochs * math.ceil(n_images / batch_size)


def bench_finetune(bench: Bench, found: Result) -> None:
    """Parts of a fine-tune, and from them the time of one at 5, 50 and 500 images."""
    found.settings = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "backbone": bench.backbone}
    small = _measured(bench, found, bench.backbone)
    parts = [small]
    parts += [_measured(bench, found, bench.vit)] if bench.is_gpu else _vit(bench, found, small)
    # The first one is of the small backbone.
    found.facts["parts"] = parts
    for each in parts:
        _ratios(bench, found, each)
    found.notes.append(
        f"A fine-tune at N images is {EPOCHS} epochs in batches of {BATCH_SIZE}. Published: "
        "start + steps x a measured step. Ours: fixed parts + N x an embedding + steps x a step; "
        "steps and embeddings are the slope between two sizes of the real stages `embed` and "
        "`fit`, their fixed parts (network, weights, checkpoints on the disk) the rest."
    )


def _measured(bench: Bench, found: Result, backbone: Backbone) -> Parts:
    """Both ways of a backbone in turn, ours at two numbers of steps and two of images."""
    steps = bench.size(quick=(1, 3), cpu=(2, 8), gpu=(20, 220))
    images = bench.size(quick=(1, 4), cpu=(1, 5), gpu=(4, 16))
    prefix = "" if backbone == bench.backbone else f"{backbone}, "
    given = {"backbone": backbone, "weights": weights_of(bench, backbone)}
    batch = {**given, "root": str(bench.root()), "names": bench.images(BATCH_SIZE)}
    count = f"sweep.real_count=[{max(BATCH_SIZE, images[1])}]"

    def trial(name: str, n_steps: int) -> TrialStages:
        words = [count, f"segmenter.steps={n_steps}"]
        return TrialStages(bench, name=f"{name}-{backbone}", overrides=words, backbone=backbone)

    def step(number: int) -> Seconds:
        return bench.published("step", **batch, draw=BATCH_SIZE * (number + 1)).seconds

    # In a store of its own: the fits need their embeddings all the time.
    apart, fits = trial("embed", 1), {n: trial("finetune", n) for n in steps}
    fits[steps[0]].run("embed")
    ways = [
        Way(f"{prefix}published: a step of 5 images, encoder in it", step, unit="step"),
        Way(
            f"{prefix}published: building the network",
            lambda _: bench.published("build", **given).seconds,
            unit="network",
        ),
    ]
    for n in images:
        label = f"{prefix}ours: embed, {n} images"
        ways.append(Way(label, lambda _, n=n: apart.embed_anew(n=n), units=n))
    for n in steps:
        label = f"{prefix}ours: fit, {n} steps"
        ways.append(Way(label, lambda _, n=n: fits[n].run("fit"), units=n, unit="step"))
    repeats = bench.size(quick=2, cpu=2, gpu=5)
    a_step, start, few, many, short, long = bench.measure(found, ways, repeats=repeats)
    fit, embed = line_through(short, long), line_through(few, many)
    for kind, line, unit in (("fit", fit, "a step of 5"), ("embed", embed, "an image")):
        for part, seconds in (("fixed part", line.fixed_s), (unit, line.per_unit_s)):
            value = Value(f"{prefix}ours: {kind}, {part}", seconds, "s", "composed")
            found.values.append(value)
    published = Line(fixed_s=start.per_unit_s, per_unit_s=a_step.per_unit_s)
    return Parts(label=backbone, backbone=backbone, published=published, fit=fit, embed=embed)


def _vit(bench: Bench, found: Result, small: Parts) -> list[Parts]:
    """ViT-B from the encoder's own measurement: its decoder and embeddings are those of lite."""
    passes, name = bench.run("encoder").facts[bench.vit], bench.vit
    way = Way(
        "published: transformers' decoder, forward and backward",
        lambda _: bench.published("decode", backbone=name).seconds,
    )
    (decoder,) = bench.measure(found, [way], repeats=bench.size(quick=2, cpu=3, gpu=3))
    found.notes.append(
        f"{name} is composed: published a step = 5 x (an encoder pass + transformers' decoder, "
        f"measured apart); ours an embedding = a pass of {passes.fastest.label}, a step = the "
        f"measured step of {small.backbone}, whose decoder and embeddings have the same shapes."
    )
    return [
        Parts(
            label=f"{name} (against {whose})",
            backbone=name,
            published=Line(per_unit_s=BATCH_SIZE * (encoder_s + decoder.per_unit_s)),
            fit=small.fit,
            embed=Line(per_unit_s=passes.fastest.per_unit_s),
        )
        for whose, encoder_s in passes.published.items()
    ]


def _ratios(bench: Bench, found: Result, parts: Parts) -> None:
    for n_images in AMOUNTS:
        both, seen = parts.seconds(n_images), EPOCHS * n_images
        target = bench.target(found, parts.backbone) if n_images == TARGETED else None
        label = f"{parts.label}, a fine-tune at N = {n_images}"
        found.ratios.append(Ratio(label, *both, "composed", target))
        for whose, seconds in zip(("published", "ours"), both, strict=True):
            label, formula = f"{parts.label}, N = {n_images}: {whose}", f"{seen} images seen"
            formula += f" / {seconds:.4g} s"
            found.values.append(Value(label, seen / seconds, "images/s", "composed", formula))
