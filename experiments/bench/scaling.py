"""How cost grows: with images, with image size, with trials, and over devices."""

import torch

from experiments.bench.ablation import AUGMENT, PAPER_AMOUNTS, PAPER_PAIRS
from experiments.bench.context import Bench
from experiments.bench.finetune import BATCH_SIZE, EPOCHS, parts_of, trial_seconds
from experiments.bench.measure import Line, Ratio, Result, Value, Way, steps_of
from experiments.runner.schedule import Task, makespan_s
from lightning_modules.segmenters.sam.backbones import VITS, vit_encoder
from lightning_modules.segmenters.sam.config import IMAGE_SIDE_PX, Backbone

DEVICES = (1, 8, 64)
IMAGES = (5, 50, 500, 1000)


def bench_scaling(bench: Bench) -> Result:
    """Times over images, image size, trials and devices; all but the encoder composed."""
    finetune = bench.run("finetune")
    parts = parts_of(finetune)
    fit, embed = parts.fit, parts.embed
    published = Line(fixed_s=0.0, per_unit_s=parts.published.per_unit_s)
    found = Result(name="scaling", settings={"devices": list(DEVICES)})
    for n_images in IMAGES:
        theirs, ours = trial_seconds(n_images, published=published, fit=fit, embed=embed)
        label = f"{bench.backbone}: a fine-tune at N = {n_images}"
        found.ratios.append(Ratio(label=label, published_s=theirs, ours_s=ours, how="composed"))
    for n_trials in (1, 7, 28):
        theirs, ours = same_images(n_trials, published=published, fit=fit, embed=embed)
        label = f"{bench.backbone}: {n_trials} fine-tunes on the same 50 images"
        found.ratios.append(Ratio(label=label, published_s=theirs, ours_s=ours, how="composed"))
    _image_size(bench, found)
    tasks = ablation_tasks(fit=fit, embed=embed)
    one = makespan_s(tasks, devices=1)
    for n_devices in DEVICES:
        seconds = makespan_s(tasks, devices=n_devices)
        found.values.append(
            Value(
                label=f"{bench.backbone}: the ablation's 28 fine-tunes on {n_devices} such devices",
                value=seconds / 3600,
                unit="h",
                how="composed",
                formula=f"simulated; {100 * one / seconds / n_devices:.0f} % of the devices' time",
            )
        )
    found.notes.append(
        "Devices are simulated as the sweep starts its stages: each device one stage, embeddings "
        "before the fits that need them, costs as measured here. The largest fit is the floor."
    )
    return found


def same_images(n_trials: int, *, published: Line, fit: Line, embed: Line) -> tuple[float, float]:
    """Seconds of so many fine-tunes on the same 50 images; ours embeds them once."""
    steps = steps_of(50, epochs=EPOCHS, batch_size=BATCH_SIZE)
    ours = embed.seconds(50) + n_trials * fit.seconds(steps)
    return n_trials * published.seconds(steps), ours


def ablation_tasks(*, fit: Line, embed: Line) -> dict[str, Task]:
    """The published ablation as our stages: what embeds first, then the 28 fits.

    An amount's images are those of the amount before it and more: each stage embeds the rest.
    """
    tasks: dict[str, Task] = {"pairs": Task(seconds=embed.seconds(PAPER_PAIRS))}
    before = 0
    for count in PAPER_AMOUNTS:
        augmented = (AUGMENT.views_at(count) or 1) - 1
        for kind, n_views in (("real", 1), ("weak", augmented), ("strong", augmented)):
            seconds = embed.seconds((count - before) * n_views)
            tasks[f"embed {kind} {count}"] = Task(seconds=seconds)
        before = count
    for place, count in enumerate(PAPER_AMOUNTS):
        real = tuple(f"embed real {n}" for n in PAPER_AMOUNTS[: place + 1])
        for condition in ("real", "weak", "strong", "synthetic"):
            after, images = real, count
            if condition == "synthetic":
                after, images = (*real, "pairs"), count + PAPER_PAIRS
            elif condition != "real":
                more = tuple(f"embed {condition} {n}" for n in PAPER_AMOUNTS[: place + 1])
                after = (*real, *more)
            steps = steps_of(images, epochs=EPOCHS, batch_size=BATCH_SIZE)
            tasks[f"fit {condition} {count}"] = Task(seconds=fit.seconds(steps), after=after)
    return tasks


def _image_size(bench: Bench, found: Result) -> None:
    """The large encoder with random weights at smaller images."""
    name: Backbone = bench.vit
    patch, largest = VITS[name].patch_px, IMAGE_SIDE_PX[name]
    sides = (largest // 4, largest // 2)
    ways = []
    for side in sides:
        torch.manual_seed(0)
        encoder = vit_encoder(VITS[name], side_px=side).eval().to(bench.device)
        image = torch.zeros(1, 3, side, side, device=bench.device)

        def call(_: int, encoder=encoder, image=image) -> None:
            with torch.no_grad():
                encoder(image)

        label = f"{name} SDPA, fp32, {side} px, {(side // patch) ** 2} tokens"
        ways.append(Way(label=label, unit="image", units=1, call=call))
    found.timings += bench.measure(ways, repeats=2 if bench.quick else 3)
    found.notes.append(f"{name} at {largest} px stands under `encoder`.")
