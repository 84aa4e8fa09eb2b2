"""A decoder fine-tune: the encoder in every step against embeddings that are computed once."""

from typing import Any

from experiments.bench_context import Bench
from experiments.bench_encoder import fastest_encoder, published_encoders
from experiments.bench_measure import (
    Line,
    Ratio,
    Result,
    Value,
    Way,
    line_through,
    steps_of,
)
from experiments.bench_stages import TrialStages, first_images, with_steps

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
    steps, images = ((1, 3), (1, 4)) if bench.quick else ((2, 8), (1, 5))
    _measure(bench, found, steps=steps, images=images)
    fit, embed = our_lines(found, steps=steps, images=images)
    found.values += [
        Value(label="ours: fit, fixed part", value=fit.fixed_s, unit="s", how="composed"),
        Value(label="ours: fit, a step of 5", value=fit.per_unit_s, unit="s", how="composed"),
        Value(label="ours: embed, fixed part", value=embed.fixed_s, unit="s", how="composed"),
        Value(label="ours: embed, an image", value=embed.per_unit_s, unit="s", how="composed"),
    ]
    published = Line(
        fixed_s=found.timing(PUBLISHED_START).per_unit_s,
        per_unit_s=found.timing(PUBLISHED).per_unit_s,
    )
    _ratios(found, bench.backbone, published=published, fit=fit, embed=embed, device=bench.device)
    _vit(bench, found, fit=fit)
    found.notes.append(
        f"A fine-tune at N images is {EPOCHS} epochs in batches of {BATCH_SIZE}. Published: "
        "start + steps x a measured step. Ours: fixed parts + N x an embedding + steps x a step; "
        "steps and embeddings are the slope between two sizes of the real stages `embed` and "
        "`fit`, their fixed parts (network, weights, checkpoints on the disk) the rest."
    )
    return found


def _measure(
    bench: Bench, found: Result, *, steps: tuple[int, int], images: tuple[int, int]
) -> None:
    given, trial = _both(bench)
    # In a store of its own: the fits need their embeddings all the time.
    apart = TrialStages(bench, name="embed", overrides=["sweep.real_count=[5]"])
    fit = trial.node("fit")
    trial.run(trial.node("embed"))

    def fitted(number: int, n_steps: int) -> float:
        node = with_steps(trial, fit, steps=n_steps, seed=number + 1)
        return trial.run(node)["seconds"]

    def embedded(n: int) -> float:
        apart.forget_embeddings()
        return apart.run(first_images(apart.node("embed"), n))["seconds"]

    def step(number: int) -> tuple[float, float]:
        return bench.plain.call("step", **given, draw=BATCH_SIZE * (number + 1))

    def build(_: int) -> tuple[float, float]:
        return bench.plain.call("build", backbone=bench.backbone, device=bench.device)

    ways = [
        Way(label=PUBLISHED, unit="step", units=1, call=step),
        Way(label=PUBLISHED_START, unit="network", units=1, call=build),
    ]
    for n in images:
        ways.append(
            Way(label=EMBED.format(n), unit="image", units=n, call=lambda _, n=n: embedded(n))
        )
    for n in steps:
        ways.append(
            Way(label=FIT.format(n), unit="step", units=n, call=lambda r, n=n: fitted(r, n))
        )
    found.timings += bench.measure(ways, repeats=2)


def _both(bench: Bench) -> tuple[dict[str, Any], TrialStages]:
    """What the published step is given, and our trial on the same images."""
    trial = TrialStages(bench, name="finetune", overrides=["sweep.real_count=[5]"])
    names = [name for name, _ in trial.node("embed").content["images"]]
    return published_batch(bench, names), trial


def published_batch(bench: Bench, names: list[str]) -> dict[str, Any]:
    """The arguments of the plain process's step."""
    root, backbone, device = str(bench.root()), bench.backbone, bench.device
    return {"root": root, "names": names, "backbone": backbone, "device": device}


def our_lines(
    found: Result, *, steps: tuple[int, int], images: tuple[int, int]
) -> tuple[Line, Line]:
    """Fit by steps and embed by images, from their two measured sizes each."""
    fit = [found.timing(FIT.format(n)) for n in steps]
    embed = [found.timing(EMBED.format(n)) for n in images]
    return line_through(*fit), line_through(*embed)


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


def _ratios(
    found: Result, backbone: str, *, published: Line, fit: Line, embed: Line, device: str
) -> None:
    for n_images in AMOUNTS:
        theirs, ours = trial_seconds(n_images, published=published, fit=fit, embed=embed)
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


def _vit(bench: Bench, found: Result, *, fit: Line) -> None:
    """ViT-B from the encoder's own measurement: its decoder and embeddings are those of lite."""
    encoder = bench.run("encoder")
    name = bench.vit
    step = bench.measure([_decoder_way(bench)], repeats=2 if bench.quick else 3, warm_up=True)[0]
    found.timings.append(step)
    fastest = fastest_encoder(encoder, name)
    embed = Line(fixed_s=0.0, per_unit_s=fastest.per_unit_s)
    for theirs in published_encoders(encoder, name):
        per_step = BATCH_SIZE * (theirs.per_unit_s + step.per_unit_s)
        published = Line(fixed_s=0.0, per_unit_s=per_step)
        before = len(found.ratios)
        _ratios(found, name, published=published, fit=fit, embed=embed, device=bench.device)
        _rename(found, before, prefix=theirs.label.split(",")[0], name=name)
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
