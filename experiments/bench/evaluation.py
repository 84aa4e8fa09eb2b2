"""Scoring a cohort under five draws of the box: an encoder pass for each, or one an image."""

from experiments.bench.measure import Bench, Found, Line, Way, line_through
from experiments.bench.stages import TrialStages

DRAWS, COHORT = 5, 200
"""The paper's draws, and about as many test images as its split of HC18 has."""


def bench_evaluation(bench: Bench, found: Found) -> None:
    """Seconds of an evaluation of 200 images under five boxes, from measured parts."""
    score, embed, a_box_s = _measured(bench, found)

    def ratio(label: str, backbone: str, *, embed: Line, a_box_s: float) -> None:
        ours_s = embed.seconds(COHORT) + score.seconds(COHORT)
        label = f"{label}, {COHORT} images under {DRAWS} boxes"
        found.ratio(label, COHORT * DRAWS * a_box_s, ours_s, how="composed", target=backbone)

    ratio(bench.backbone, bench.backbone, embed=embed, a_box_s=a_box_s)
    # ViT-B: another encoder pass in place of lite's; decoding and scoring stay. Never by its
    # random weights themselves: masks of noise cost another time to score.
    name, passes = bench.vit, bench.run("encoder").facts
    beside_s = max(0.0, a_box_s - passes[bench.backbone].stock_s)
    own = Line(fixed_s=embed.fixed_s, per_unit_s=passes[name].fastest.per_unit_s)
    for whose, encoder_s in passes[name].published.items():
        ratio(f"{name} (against {whose})", name, embed=own, a_box_s=encoder_s + beside_s)
    found.notes.append(
        f"{name} is composed: the encoders of `encoder` in place of that of {bench.backbone}; "
        "decoding and scoring cost the same, the embeddings having the same shape."
    )


def _measured(bench: Bench, found: Found) -> tuple[Line, Line, float]:
    """Ours to score and to embed, by images, and the published seconds for a box."""
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
    return line, line_through(few, many), a_box.per_unit_s
