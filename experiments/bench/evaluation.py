"""Scoring a cohort under five draws of the box: an encoder pass for each, or one an image."""

from experiments.bench.child import Seconds
from experiments.bench.context import Bench, Way
from experiments.bench.results import Line, Ratio, Result, Value, line_through
from experiments.bench.stages import TrialStages

DRAWS, COHORT = 5, 200
"""The paper's draws, and about as many test images as its split of HC18 has."""


def bench_evaluation(bench: Bench, found: Result) -> None:
    """Seconds of an evaluation of 200 images under five boxes, from measured parts."""
    found.settings = {"draws": DRAWS, "cohort": COHORT, "backbone": bench.backbone}
    score, embed, a_box = _measured(bench, found)

    def ratio(label: str, *, backbone: str, embed: Line, a_box: float) -> None:
        found.ratios.append(
            Ratio(
                f"{label}, {COHORT} images under {DRAWS} boxes",
                COHORT * DRAWS * a_box,
                embed.seconds(COHORT) + score.seconds(COHORT),
                "composed",
                bench.target(found, backbone),
            )
        )

    ratio(bench.backbone, backbone=bench.backbone, embed=embed, a_box=a_box)
    # ViT-B: another encoder pass in place of lite's; decoding and scoring stay. Never by its
    # random weights themselves: masks of noise cost another time to score.
    name, passes = bench.vit, bench.run("encoder").facts
    beside = max(0.0, a_box - passes[bench.backbone].stock_s)
    own = Line(fixed_s=embed.fixed_s, per_unit_s=passes[name].fastest.per_unit_s)
    for whose, encoder_s in passes[name].published.items():
        label = f"{name} (against {whose})"
        ratio(label, backbone=name, embed=own, a_box=encoder_s + beside)
    found.notes += [
        f"{name} is composed: the encoders of `encoder` in place of that of {bench.backbone}; "
        "decoding and scoring cost the same, the embeddings having the same shape.",
        f"Published: {COHORT} x {DRAWS} x an image under one box. Ours: fixed parts + {COHORT} x "
        "(an embedding + decoding and scoring under 5 boxes), the slopes between two sizes of the "
        "real stages `embed` and `score`. Both compute Dice, Hausdorff distance and circumference "
        "at the original size with the same functions.",
    ]


def _measured(bench: Bench, found: Result) -> tuple[Line, Line, float]:
    """Ours to score and to embed, by images, and the published seconds for a box."""
    # Weights are all that scoring needs of the fit.
    words = ["sweep.real_count=[2]", "segmenter.steps=1"]
    trial = TrialStages(bench, name="evaluation", overrides=words)
    apart = TrialStages(bench, name="evaluation-embed", overrides=words)
    trial.run("embed")
    trial.run("embed", last=True)
    trial.run("fit")
    sizes = bench.size(quick=(1, 3), cpu=(1, 5), gpu=(1, 5))
    names = bench.images(sizes[1])
    given = {"root": str(bench.root()), "backbone": bench.backbone}

    def theirs(number: int) -> Seconds:
        name = names[(number + 1) % len(names)]
        return bench.published("score", **given, name=name, draw=number + 1).seconds

    label = "published: an image under one box, from its files to its scores"
    ways = [Way(label, theirs, unit="box")]
    for n in sizes:
        embed = lambda _, n=n: apart.embed_anew(last=True, n=n)  # noqa: E731
        score = lambda _, n=n: trial.run("score", n=n)  # noqa: E731
        ways.append(Way(f"ours: embed, {n} test images", embed, units=n))
        ways.append(Way(f"ours: score, {n} images under 5 boxes", score, units=n))
    timings = bench.measure(found, ways, repeats=bench.size(quick=2, cpu=2, gpu=5))
    a_box, few, short, many, long = timings
    line = line_through(short, long)
    found.values = [
        Value("ours: score, fixed part", line.fixed_s, "s", "composed"),
        Value("ours: an image, 5 boxes", line.per_unit_s, "s", "composed"),
    ]
    return line, line_through(few, many), a_box.per_unit_s
