"""Scoring a cohort under five draws of the box: an encoder pass for each, or one an image."""

from experiments.bench.context import Bench
from experiments.bench.encoder import fastest_encoder, published_encoders
from experiments.bench.measure import Line, Ratio, Result, Value, Way, line_through
from experiments.bench.real_stages import TrialStages, first_images, with_steps

DRAWS, COHORT = 5, 200
"""The paper's draws, and about as many test images as its split of HC18 has."""
TARGETS = {"lite": 3.0, "vit_b": 4.5}
PUBLISHED = "published: an image under one box, from its files to its scores"
SCORE, EMBED = "ours: score, {} images under 5 boxes", "ours: embed, {} test images"


def bench_evaluation(bench: Bench) -> Result:
    """Seconds of an evaluation of 200 images under five boxes, from measured parts."""
    found = Result(
        name="evaluation",
        settings={"draws": DRAWS, "cohort": COHORT, "backbone": bench.backbone},
    )
    score, embed, a_box = _measured(bench, found)
    name = bench.backbone
    found.ratios.append(_ratio(name, name, score=score, embed=embed, a_box=a_box))
    _vit(bench, found, score=score, embed=embed, a_box=a_box)
    found.notes.append(
        f"Published: {COHORT} x {DRAWS} x an image under one box. Ours: fixed parts + {COHORT} x "
        "(an embedding + decoding and scoring under 5 boxes), the slopes between two sizes of the "
        "real stages `embed` and `score`. Both compute Dice, Hausdorff distance and circumference "
        "at the original size with the same functions."
    )
    return found


def _measured(bench: Bench, found: Result) -> tuple[Line, Line, float]:
    """Ours to score and to embed, by images, and the published seconds for a box."""
    sizes = (1, 3) if bench.quick else (1, 5)
    _measure(bench, found, sizes=sizes)
    score = line_through(*(found.timing(SCORE.format(n)) for n in sizes))
    embed = line_through(*(found.timing(EMBED.format(n)) for n in sizes))
    found.values += [
        Value(label="ours: score, fixed part", value=score.fixed_s, unit="s", how="composed"),
        Value(label="ours: an image, 5 boxes", value=score.per_unit_s, unit="s", how="composed"),
    ]
    return score, embed, found.timing(PUBLISHED).per_unit_s


def _ratio(label: str, name: str, *, score: Line, embed: Line, a_box: float) -> Ratio:
    return Ratio(
        label=f"{label}, {COHORT} images under {DRAWS} boxes",
        published_s=COHORT * DRAWS * a_box,
        ours_s=embed.seconds(COHORT) + score.seconds(COHORT),
        how="composed",
        at_least=TARGETS.get(name),
    )


def _measure(bench: Bench, found: Result, *, sizes: tuple[int, int]) -> None:
    overrides = ["sweep.real_count=[2]"]
    trial = TrialStages(bench, name="evaluation", overrides=overrides)
    test = trial.node("embed", last=True)
    trial.run(trial.node("embed"))
    trial.run(test)
    # Weights are all that scoring needs of it.
    trial.run(with_steps(trial, trial.node("fit"), steps=1, seed=0))
    fit_key = with_steps(trial, trial.node("fit"), steps=1, seed=0).key
    score = trial.node("score")
    score.upstream["fit"] = fit_key
    apart = TrialStages(bench, name="evaluation-embed", overrides=overrides)
    names = [name for name, _ in test.content["images"]]
    given = {"root": str(bench.root()), "backbone": bench.backbone, "device": bench.device}

    def theirs(number: int) -> tuple[float, float]:
        name = names[(number + 1) % len(names)]
        return bench.plain.call("score", **given, name=name, draw=number + 1)

    def embedded(n: int) -> float:
        apart.forget_embeddings()
        return apart.run(first_images(apart.node("embed", last=True), n))["seconds"]

    ways = [Way(label=PUBLISHED, unit="box", units=1, call=theirs)]
    for n in sizes:
        node = first_images(score, n)
        ways += [
            Way(
                label=EMBED.format(n),
                unit="image",
                units=n,
                call=lambda _, n=n: embedded(n),
            ),
            Way(
                label=SCORE.format(n),
                unit="image",
                units=n,
                call=lambda _, node=node: trial.run(node)["seconds"],
            ),
        ]
    found.timings += bench.measure(ways, repeats=5 if bench.is_gpu else 2)


def _vit(bench: Bench, found: Result, *, score: Line, embed: Line, a_box: float) -> None:
    """ViT-B: another encoder pass in place of lite's; decoding and scoring stay.

    Never by its random weights themselves: masks of noise cost another time to score.
    """
    encoder, name = bench.run("encoder"), bench.vit
    # What a box costs beside the encoder.
    beside = max(0.0, a_box - encoder.timing(f"{bench.backbone} stock, fp32").per_unit_s)
    fastest = fastest_encoder(encoder, name).per_unit_s
    own = Line(fixed_s=embed.fixed_s, per_unit_s=fastest)
    for whose, theirs in published_encoders(encoder, name).items():
        label = f"{name} (against {whose})"
        a_box = theirs.per_unit_s + beside
        found.ratios.append(_ratio(label, name, score=score, embed=own, a_box=a_box))
    found.notes.append(
        f"{name} is composed: the encoders of `encoder` in place of that of {bench.backbone}; "
        "decoding and scoring cost the same, the embeddings having the same shape."
    )
