"""The published ablation, 7 amounts x 4 conditions, from measured parts; a small one for real."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from experiments.bench.child import Seconds
from experiments.bench.context import Bench, Way
from experiments.bench.finetune import BATCH_SIZE, EPOCHS, Parts, steps_of
from experiments.bench.results import Ratio, Result, Value
from experiments.bench.stages import common_overrides, run_sweep
from experiments.config.synthesis import AugmentConfig
from experiments.runner.schedule import Task, makespan_s
from lightning_modules.segmenters.sam.backbones import VITS, vit_encoder
from lightning_modules.segmenters.sam.config import IMAGE_SIDE_PX

PAPER_AMOUNTS = (5, 10, 20, 50, 100, 300, 500)
PAPER_PAIRS = 495
AUGMENT = AugmentConfig()
"""Views of an image under weak and under strong augmentation: our default."""
DEVICES = (1, 8, 64)
IMAGES = (5, 50, 500, 1000)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage of the ablation: a fit of so many images and steps, or embeddings."""

    images: int = 0
    """Images that a fit sees once an epoch; 0 for a stage that embeds."""
    embeddings: int = 0
    after: tuple[str, ...] = ()
    """Stages that embed for it."""

    def seconds(self, parts: Parts) -> float:
        """Of this stage, at measured costs."""
        if self.images:
            return parts.fit.seconds(steps_of(self.images))
        return parts.embed.seconds(self.embeddings)


def ablation_jobs(amounts: Sequence[int], *, pairs: int, augment: AugmentConfig) -> dict[str, Job]:
    """Three conditions of real images and one with pairs: what embeds first, then the fits.

    An amount's images are those of the amount before it and more: each stage embeds the rest, for
    whatever condition needs it. An image is a view of its own, of which every condition has use.
    """
    jobs = {"pairs": Job(embeddings=pairs)}
    before = 0
    for count in amounts:
        more = (augment.views_at(count) or 1) - 1
        for kind, n_views in (("real", 1), ("weak", more), ("strong", more)):
            jobs[f"embed {kind} {count}"] = Job(embeddings=(count - before) * n_views)
        before = count
    for place, count in enumerate(amounts):
        real, weak, strong = (
            tuple(f"embed {kind} {n}" for n in amounts[: place + 1])
            for kind in ("real", "weak", "strong")
        )
        jobs[f"fit real {count}"] = Job(images=count, after=real)
        jobs[f"fit weak {count}"] = Job(images=count, after=real + weak)
        jobs[f"fit strong {count}"] = Job(images=count, after=real + strong)
        jobs[f"fit synthetic {count}"] = Job(images=count + pairs, after=(*real, "pairs"))
    return jobs


def bench_ablation(bench: Bench, found: Result) -> None:
    """Seconds of 28 fine-tunes, and of a small ablation that was really run both ways."""
    jobs = ablation_jobs(PAPER_AMOUNTS, pairs=PAPER_PAIRS, augment=AUGMENT)
    fits = [job.images for job in jobs.values() if job.images]
    steps = sum(map(steps_of, fits))
    embeddings = sum(job.embeddings for job in jobs.values())
    found.values = [
        Value("images seen", EPOCHS * sum(fits), "images", "composed"),
        Value("optimiser steps", steps, "steps", "composed"),
        Value("embeddings of ours", embeddings, "images", "composed"),
    ]
    views = [AUGMENT.views_at(amount) for amount in PAPER_AMOUNTS]
    found.settings = {"amounts": list(PAPER_AMOUNTS), "pairs": PAPER_PAIRS, "epochs": EPOCHS}
    found.settings["views"] = views
    for parts in bench.run("finetune").facts["parts"]:
        fit, embed = parts.fit, parts.embed
        ours = len(fits) * fit.fixed_s + steps * fit.per_unit_s + embeddings * embed.per_unit_s
        theirs, target = steps * parts.published.per_unit_s, bench.target(found, parts.backbone)
        label = f"{parts.label}, {len(fits)} fine-tunes"
        found.ratios.append(Ratio(label, theirs, ours, "composed", target))
    found.notes.append(
        "Composed: published = steps x a measured step; ours = 28 x a fit's fixed part + steps x a "
        f"step + every embedding once, up to {AUGMENT.n_views} views of an image under weak and "
        f"strong augmentation included ({AUGMENT.max_per_trial} in a trial, at least 2 an image). "
        "Scoring is not in it: `evaluation` has its own ratio."
    )
    _for_real(bench, found)


def _for_real(bench: Bench, found: Result) -> None:
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
        steps = [bench.published("step", **batch, draw=draw).seconds for draw in draws]
        return Seconds(*map(sum, zip(*steps, strict=True)))

    label = f"4 small trials, {4 * BATCH_SIZE} images seen"
    ours = f"ours, a whole sweep with its scores: {label}"
    ways = [
        Way(f"published: {label}", plain, unit="run"),
        Way(ours, lambda _: run_sweep("demo", words), unit="run"),
    ]
    theirs, sweep = bench.measure(found, ways, repeats=1, warm_up=False)
    label = f"{bench.backbone}, for real: {label}"
    found.ratios.append(Ratio(label, theirs.per_unit_s, sweep.per_unit_s, "measured"))


def bench_scaling(bench: Bench, found: Result) -> None:
    """Times over images, image size, trials and devices; all but the encoder composed."""
    parts, name = bench.run("finetune").facts["parts"][0], bench.backbone
    for n_images in IMAGES:
        label = f"{name}: a fine-tune at N = {n_images}"
        found.ratios.append(Ratio(label, *parts.seconds(n_images), "composed"))
    for n_trials in (1, 7, 28):
        label = f"{name}: {n_trials} fine-tunes on the same 50 images"
        found.ratios.append(Ratio(label, *same_images(n_trials, parts=parts), "composed"))
    _image_size(bench, found)
    jobs = ablation_jobs(PAPER_AMOUNTS, pairs=PAPER_PAIRS, augment=AUGMENT)
    tasks = {key: Task(seconds=job.seconds(parts), after=job.after) for key, job in jobs.items()}
    found.settings = {"devices": list(DEVICES)}
    spans = {n: makespan_s(tasks, devices=n) for n in DEVICES}
    for n_devices, seconds in spans.items():
        used = 100 * spans[1] / seconds / n_devices
        label = f"{name}: the ablation's 28 fine-tunes on {n_devices} such devices"
        formula = f"simulated; {used:.0f} % of the devices' time"
        found.values.append(Value(label, seconds / 3600, "h", "composed", formula))
    found.notes.append(
        "Devices are simulated as the sweep starts its stages: each device one stage, embeddings "
        "before the fits that need them, costs as measured here. The largest fit is the floor."
    )


def same_images(n_trials: int, *, parts: Parts) -> tuple[float, float]:
    """Seconds of so many fine-tunes on the same 50 images; ours embeds them once."""
    steps = steps_of(50)
    ours = parts.embed.seconds(50) + n_trials * parts.fit.seconds(steps)
    return n_trials * parts.published.seconds(steps), ours


def _image_size(bench: Bench, found: Result) -> None:
    """The large encoder with random weights at smaller images."""
    patch, largest = VITS[bench.vit].patch_px, IMAGE_SIDE_PX[bench.vit]
    ways = []
    for side in (largest // 4, largest // 2):
        torch.manual_seed(0)
        encoder = vit_encoder(VITS[bench.vit], side_px=side).eval().to(bench.device)
        image = torch.zeros(1, 3, side, side, device=bench.device)

        @torch.no_grad()
        def call(_: int, encoder=encoder, image=image) -> None:
            encoder(image)

        label = f"{bench.vit} SDPA, fp32, {side} px, {(side // patch) ** 2} tokens"
        ways.append(Way(label, call))
    bench.measure(found, ways, repeats=bench.size(quick=2, cpu=3, gpu=3))
    found.notes.append(f"{bench.vit} at {largest} px stands under `encoder`.")
