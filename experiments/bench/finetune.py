"""A decoder fine-tune: the encoder in every step against embeddings that are computed once."""

from dataclasses import dataclass
from typing import Any

from experiments.bench.context import Bench
from experiments.bench.encoder import fastest_encoder, published_encoders
from experiments.bench.measure import (
    Line,
    Ratio,
    Result,
    Value,
    Way,
    line_through,
    steps_of,
)
from experiments.bench.real_stages import TrialStages, first_images, with_steps
from lightning_modules.segmenters.sam.config import Backbone

AMOUNTS = (5, 50, 500)
EPOCHS, BATCH_SIZE = 20, 5
TARGETS = {("lite", "cpu"): 4, ("vit_b", "cpu"): 30, ("vit_b", "cuda"): 50}
"""Least ratio at 50 images, by backbone and device."""
PUBLISHED = "published: a step of 5 images, encoder in it"
PUBLISHED_START = "published: building the network"
DECODER_STEP = "published: transformers' decoder, forward and backward"
FIT, EMBED = "ours: fit, {} steps", "ours: embed, {} images"


def bench_finetune(bench: Bench) -> Result:
    """Parts of a fine-tune, and from them the time of one at 5, 50 and 500 images."""
    found = Result(
        name="finetune",
        settings={"epochs": EPOCHS, "batch_size": BATCH_SIZE, "backbone": bench.backbone},
    )
    parts = _measured_parts(bench, found, backbone=bench.backbone)
    _ratios(found, bench.backbone, parts, device=bench.device)
    if bench.is_gpu:
        _ratios(found, bench.vit, _measured_parts(bench, found, backbone=bench.vit), device="cuda")
    else:
        _composed_vit(bench, found, fit=parts.fit)
    found.notes.append(
        f"A fine-tune at N images is {EPOCHS} epochs in batches of {BATCH_SIZE}. Published: "
        "start + steps x a measured step. Ours: fixed parts + N x an embedding + steps x a step; "
        "steps and embeddings are the slope between two sizes of the real stages `embed` and "
        "`fit`, their fixed parts (network, weights, checkpoints on the disk) the rest."
    )
    return found


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a fine-tune is made of: the published one by steps; ours by steps and by images."""

    published: Line
    fit: Line
    embed: Line


def parts_of(found: Result, *, prefix: str = "") -> Parts:
    """The parts that `bench_finetune` measured.

    Args:
        found: Its result.
        prefix: `prefix_of` the backbone.
    """

    def line(kind: str, unit: str) -> Line:
        fixed_s, per_unit_s = (
            found.value(f"{prefix}ours: {kind}, {part}").value for part in ("fixed part", unit)
        )
        return Line(fixed_s=fixed_s, per_unit_s=per_unit_s)

    return Parts(
        published=Line(
            fixed_s=found.timing(prefix + PUBLISHED_START).per_unit_s,
            per_unit_s=found.timing(prefix + PUBLISHED).per_unit_s,
        ),
        fit=line("fit", "a step of 5"),
        embed=line("embed", "an image"),
    )


def prefix_of(bench: Bench, backbone: Backbone) -> str:
    """What the labels of a backbone begin with; nothing for the small one."""
    return "" if backbone == bench.backbone else f"{backbone}, "


def _sizes(bench: Bench) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two numbers of steps and two of images."""
    if bench.quick:
        return (1, 3), (1, 4)
    return ((20, 220), (4, 16)) if bench.is_gpu else ((2, 8), (1, 5))


def _measured_parts(bench: Bench, found: Result, *, backbone: Backbone) -> Parts:
    steps, images = _sizes(bench)
    prefix = prefix_of(bench, backbone)
    _measure(bench, found, backbone=backbone, steps=steps, images=images)
    lines = {
        "fit": line_through(*(found.timing(prefix + FIT.format(n)) for n in steps)),
        "embed": line_through(*(found.timing(prefix + EMBED.format(n)) for n in images)),
    }
    for kind, unit in (("fit", "a step of 5"), ("embed", "an image")):
        line = lines[kind]
        for label, value in (("fixed part", line.fixed_s), (unit, line.per_unit_s)):
            label = f"{prefix}ours: {kind}, {label}"
            found.values.append(Value(label=label, value=value, unit="s", how="composed"))
    return parts_of(found, prefix=prefix)


def _measure(
    bench: Bench,
    found: Result,
    *,
    backbone: Backbone,
    steps: tuple[int, int],
    images: tuple[int, int],
) -> None:
    given = {"backbone": backbone, "weights": bench.weights(backbone), "device": bench.device}
    prefix, count = prefix_of(bench, backbone), max(BATCH_SIZE, images[1])
    overrides = [f"sweep.real_count=[{count}]"]
    trial = TrialStages(bench, name=f"finetune-{backbone}", overrides=overrides, backbone=backbone)
    # In a store of its own: the fits need their embeddings all the time.
    apart = TrialStages(bench, name=f"embed-{backbone}", overrides=overrides, backbone=backbone)
    fit = trial.node("fit")
    trial.run(trial.node("embed"))
    names = [name for name, _ in trial.node("embed").content["images"]][:BATCH_SIZE]
    batch = given | {"root": str(bench.root()), "names": names}

    def fitted(number: int, n_steps: int) -> float:
        node = with_steps(trial, fit, steps=n_steps, seed=number + 1)
        return trial.run(node)["seconds"]

    def embedded(n: int) -> float:
        apart.forget_embeddings()
        return apart.run(first_images(apart.node("embed"), n))["seconds"]

    def step(number: int) -> tuple[float, float]:
        return bench.plain.call("step", **batch, draw=BATCH_SIZE * (number + 1))

    ways = [
        Way(label=prefix + PUBLISHED, unit="step", units=1, call=step),
        Way(
            label=prefix + PUBLISHED_START,
            unit="network",
            units=1,
            call=lambda _: bench.plain.call("build", **given),
        ),
    ]
    for n in images:
        label = prefix + EMBED.format(n)
        ways.append(Way(label=label, unit="image", units=n, call=lambda _, n=n: embedded(n)))
    for n in steps:
        label = prefix + FIT.format(n)
        ways.append(Way(label=label, unit="step", units=n, call=lambda r, n=n: fitted(r, n)))
    found.timings += bench.measure(ways, repeats=5 if bench.is_gpu else 2)


def published_batch(bench: Bench, names: list[str]) -> dict[str, Any]:
    """The arguments of the plain process's step."""
    root, backbone, device = str(bench.root()), bench.backbone, bench.device
    return {"root": root, "names": names, "backbone": backbone, "device": device}


def trial_seconds(n_images: int, *, published: Line, fit: Line, embed: Line) -> tuple[float, float]:
    """Seconds of a fine-tune at N images: the published way's, and ours with its embeddings.

    Args:
        n_images: Labelled images.
        published: By steps, the encoder in them.
        fit: Ours, by steps.
        embed: Ours, by images.
    """
    steps = steps_of(n_images, epochs=EPOCHS, batch_size=BATCH_SIZE)
    return published.seconds(steps), embed.seconds(n_images) + fit.seconds(steps)


def _ratios(found: Result, backbone: str, parts: Parts, *, device: str) -> None:
    for n_images in AMOUNTS:
        theirs, ours = trial_seconds(n_images, **vars(parts))
        seen = EPOCHS * n_images
        found.ratios.append(
            Ratio(
                label=f"{backbone}, a fine-tune at N = {n_images}",
                published_s=theirs,
                ours_s=ours,
                how="composed",
                at_least=TARGETS.get((backbone, device)) if n_images == 50 else None,
            )
        )
        found.values += [
            Value(
                label=f"{backbone}, N = {n_images}: {whose}",
                value=seen / seconds,
                unit="images/s",
                how="composed",
                formula=f"{seen} images seen / {seconds:.4g} s",
            )
            for whose, seconds in (("published", theirs), ("ours", ours))
        ]


def _composed_vit(bench: Bench, found: Result, *, fit: Line) -> None:
    """ViT-B from the encoder's own measurement: its decoder and embeddings are those of lite."""
    encoder = bench.run("encoder")
    name = bench.vit
    step = bench.measure([_decoder_way(bench)], repeats=2 if bench.quick else 3, warm_up=True)[0]
    found.timings.append(step)
    fastest = fastest_encoder(encoder, name)
    embed = Line(fixed_s=0.0, per_unit_s=fastest.per_unit_s)
    for whose, theirs in published_encoders(encoder, name).items():
        per_step = BATCH_SIZE * (theirs.per_unit_s + step.per_unit_s)
        published = Line(fixed_s=0.0, per_unit_s=per_step)
        before = len(found.ratios)
        parts = Parts(published=published, fit=fit, embed=embed)
        _ratios(found, name, parts, device=bench.device)
        _rename(found, before, prefix=whose, name=name)
    found.notes.append(
        f"{name} is composed: published a step = 5 x (an encoder pass + transformers' decoder, "
        f"measured apart); ours an embedding = a pass of {fastest.label}, a step = the measured "
        f"step of {bench.backbone}, whose decoder and embeddings have the same shapes."
    )


def _rename(found: Result, before: int, *, prefix: str, name: str) -> None:
    """Say which encoder a ratio is against, and keep one set of values."""
    for place in range(before, len(found.ratios)):
        ratio = found.ratios[place]
        label = ratio.label.replace(f"{name},", f"{name} (against {prefix}),", 1)
        found.ratios[place] = Ratio(**vars(ratio) | {"label": label})
    start = len(found.values) - 2 * len(AMOUNTS)
    for place in range(start, len(found.values)):
        value = found.values[place]
        label = value.label.replace(f"{name},", f"{name} (against {prefix}),", 1)
        found.values[place] = Value(**vars(value) | {"label": label})


def _decoder_way(bench: Bench) -> Way:
    """A published mask decoder's forward and backward on one image, the embedding given."""
    given = {"backbone": bench.vit, "device": bench.device}
    return Way(
        label=DECODER_STEP,
        unit="image",
        units=1,
        call=lambda _: bench.plain.call("decode", **given),
    )
