"""The part of a plan that makes pairs: generators, candidates, gates and cheaper alternatives."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from experiments.config.conditions import PAIRS, ConditionConfig
from experiments.config.schema import JUDGE
from experiments.plan.fits import Nodes, Pairs
from experiments.plan.nodes import Node
from experiments.plan.scores import embed_test
from lightning_modules.generators.table import row_of

NOT_DRAWN_BY = ("generator", "folder", "folder_labels", "generator_count", "generator_support")
NOT_DRAWN_BY += ("fidelity",)
"""Settings of `synthesis` that say which generator there is, or what is measured afterwards;
drawing reads the others."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the pairs of a trial may be made from."""

    ids: list[str]
    """Images of the trial."""
    segmenter: str
    """The trial's segmenter and its seed: those of its teachers."""
    seed: int
    support: int
    generator: str
    """The generator's block; "" where the condition has none."""
    generator_seed: int
    fold: int


def _generator(nodes: Nodes, ids: list[str], *, source: Source, pseudo: Pairs | None = None) -> str:
    settings = nodes.generator(source.generator)
    row = row_of(settings)
    content = {
        row.content_key: settings.hashed(),
        "images": nodes.contents(ids),
        "seed": source.generator_seed,
    }
    if row.weights_id is not None:
        content["base_id"] = row.weights_id(settings)
    node = Node(
        stage="generator",
        content=content,
        upstream=_pseudo_input(pseudo),
        label=f"fit {_name(source)} on {_images(ids, pseudo)}",
        steps=settings.steps,
        generator=source.generator,
    )
    return nodes.add(node)


def _pseudo_input(pseudo: Pairs | None) -> dict[str, str]:
    """The input of what reads unlabelled images with the labels of a teacher; none without."""
    return {} if pseudo is None else {"pseudo": pseudo.key}


def _images(ids: list[str], pseudo: Pairs | None) -> str:
    """What labels call a generator's images."""
    more = "" if pseudo is None else f" and {pseudo.n} {pseudo.what}"
    return f"{len(ids)} images{more}"


def _name(source: Source) -> str:
    """What labels call a generator; the default kind is not named."""
    return "generator" if source.generator in ("", "pixel") else f"generator {source.generator}"


def _drawing(nodes: Nodes, *, source: Source) -> dict[str, Any]:
    """What drawing depends on beside the generator."""
    settings = nodes.generator(source.generator)
    synthesis = asdict(nodes.config.synthesis)
    for key in NOT_DRAWN_BY:
        del synthesis[key]
    if not synthesis["balance_sizes"]:
        # Not named, so that what was drawn before there was a choice is found.
        del synthesis["balance_sizes"]
    sampler = asdict(nodes.config.sampler_of(settings))
    del sampler["batch_size"]
    row = row_of(settings)
    if not hasattr(settings, "sampler"):
        return {"synthesis": synthesis | {"sampler": sampler}}
    del synthesis["sampler"]
    found = {"synthesis": synthesis, row.content_key: {"sampler": sampler}}
    if settings.draws_outlines:
        found["extractor"] = asdict(nodes.config.extractor)
    return found


def _candidates(nodes: Nodes, ids: list[str], *, source: Source, pseudo: Pairs | None) -> Pairs:
    generator = _generator(nodes, ids, source=source, pseudo=pseudo)
    n, what = nodes.config.synthesis.n_candidates, _made_by(source, ids, pseudo)
    node = Node(
        stage="synthesize",
        content={**_drawing(nodes, source=source), "seed": source.generator_seed},
        upstream={"generator": generator, **_pseudo_input(pseudo)},
        label=f"synthesise {n} candidates ({what})",
        steps=n,
        generator=source.generator,
    )
    key = nodes.add(node)
    unlabelled = [] if pseudo is None else pseudo.unlabelled_ids
    return Pairs(
        key=key,
        source=key,
        n=n,
        what=f"candidates ({what})",
        label_ids=ids,
        unlabelled_ids=unlabelled,
    )


def _made_by(source: Source, ids: list[str], pseudo: Pairs | None) -> str:
    found = f"{_name(source)} on {len(ids)}"
    return found if pseudo is None else f"{found} and {pseudo.n} {pseudo.what}"


def _gated(nodes: Nodes, ids: list[str], *, source: Source, pseudo: Pairs | None) -> Pairs:
    """The gate's node, which is the synthetic set: the same whatever segmenter is fitted on it,
    but for the teacher of unlabelled images."""
    candidates = _candidates(nodes, ids, source=source, pseudo=pseudo)
    judge = nodes.fit(
        "real",
        ConditionConfig(augment=nodes.config.gate.judge_augment),
        segmenter=JUDGE,
        ids=ids,
        seed=0,
        pairs=None,
        fold=source.fold,
    )
    upstream = {"candidates": candidates.key, "segmenter": judge, **_pseudo_input(pseudo)}
    if nodes.settings(JUDGE).cache is not None:
        upstream |= {
            "embeddings": nodes.embed_pairs(candidates, segmenter=JUDGE),
            "real_embeddings": nodes.embed(ids, what="train images", segmenter=JUDGE),
        }
    n = nodes.config.synthesis.n_candidates
    gate = asdict(nodes.config.gate)
    # The judge is an input of its own.
    del gate["judge"], gate["judge_augment"]
    node = Node(
        stage="gate",
        content={
            "gate": gate,
            "images": nodes.contents(ids),
            **nodes.predicting(judge),
        },
        upstream=upstream,
        label=f"gate {n} {candidates.what}",
        steps=n,
        segmenter=JUDGE,
        generator=source.generator,
    )
    key = nodes.add(node)
    gated = replace(candidates, key=key)
    if nodes.config.synthesis.fidelity:
        what = _made_by(source, ids, pseudo)
        _fidelity(nodes, ids, pairs=gated, judge=judge, source=source, what=what)
    return gated


def _fidelity(
    nodes: Nodes, ids: list[str], *, pairs: Pairs, judge: str, source: Source, what: str
) -> None:
    """Measured on a SAM's pooled features: the judge's, or those of the section `segmenter`."""
    segmenter = JUDGE if nodes.settings(JUDGE).cache is not None else ""
    test = nodes.data.folds[source.fold].test
    node = Node(
        stage="fidelity",
        content={
            "images": nodes.contents(ids),
            "test": nodes.contents(test),
            **nodes.predicting(judge),
        },
        upstream={
            "pairs": pairs.key,
            "embeddings": nodes.embed_pairs(pairs, segmenter=segmenter),
            "segmenter": judge,
            "real_embeddings": nodes.embed(
                ids, what="train images", segmenter=segmenter, strength="mirror"
            ),
            "test_embeddings": embed_test(
                nodes, nodes.data.name, segmenter=segmenter, fold=source.fold
            ),
        },
        label=f"fidelity of the synthetic set ({what})",
        steps=1,
        segmenter=JUDGE,
        generator=source.generator,
    )
    nodes.add(node)


def _imported(nodes: Nodes) -> Pairs:
    """Pairs made elsewhere, imported into the store; no gate."""
    pairs = nodes.data.foreign_pairs
    node = Node(
        stage="import_pairs",
        content={"pairs": sorted(pairs.items())},
        label=f"import {len(pairs)} synthetic pairs",
        steps=len(pairs),
    )
    key = nodes.add(node)
    return Pairs(key=key, source=key, n=len(pairs), what="imported pairs", is_foreign=True)


def _made_pairs(nodes: Nodes, factors: ConditionConfig, *, ids: list[str], source: Source) -> Pairs:
    """Pairs that need no network: warped, procedural, or the real ones at the generator's size."""
    row, content = PAIRS[factors.pairs], {"images": nodes.contents(ids)}
    if row.has_generator:
        n = len(ids)
        content |= {"native_hw": list(nodes.generator(source.generator).size_hw)}
    else:
        n, size = nodes.config.synthesis.n_candidates, list(nodes.config.synthesis.image_hw)
        content |= {"n": n, "seed": source.support, "image_hw": size}
    what = f"{row.called} pairs (from {len(ids)} images)"
    key = nodes.add(Node(stage=row.stage, content=content, label=f"make {n} {what}", steps=n))
    return Pairs(key=key, source=key, n=n, what=what, label_ids=ids)


def pairs_of(nodes: Nodes, factors: ConditionConfig, *, source: Source) -> Pairs | None:
    """The pairs that a condition adds to its real images; None for none."""
    if PAIRS[factors.pairs].stage is None and not factors.is_generated and not factors.is_pseudo:
        return None
    pseudo = None
    if factors.uses_unlabelled:
        pseudo = pseudo_labels(nodes, rounds=factors.rounds, source=source)
    if not factors.is_pseudo:
        return _other_pairs(nodes, factors, source=source, pseudo=pseudo)
    if not factors.is_generated:
        return pseudo
    unlabelled = pseudo if factors.images == "unlabelled" else None
    return replace(pseudo, beside=_other_pairs(nodes, factors, source=source, pseudo=unlabelled))


def _student(rounds: int) -> str:
    """What labels call the student of so many rounds: as the built-in conditions are called."""
    return {0: "strong", 1: "self_training"}.get(rounds, f"self_training_{rounds}")


def pseudo_labels(nodes: Nodes, *, rounds: int, source: Source) -> Pairs:
    """The trial's unlabelled images with the labels of its teacher of a round."""
    ids, fold = source.ids, source.fold
    unlabelled = nodes.unlabelled(ids, fold=fold)
    before = pseudo_labels(nodes, rounds=rounds - 1, source=source) if rounds > 1 else None
    # Written out, so that they are the trials `strong` and `self_training` of the same images.
    factors = ConditionConfig(augment="strong")
    if before is not None:
        factors = ConditionConfig(pairs="pseudo", augment="strong", rounds=rounds - 1)
    teacher = nodes.fit(
        _student(rounds - 1),
        factors,
        segmenter=source.segmenter,
        ids=ids,
        seed=source.seed,
        pairs=before,
        fold=fold,
    )
    settings = nodes.settings(source.segmenter)
    node = Node(
        stage="pseudo",
        content={
            "images": nodes.contents(unlabelled),
            "self_training": asdict(nodes.config.self_training),
            "frame_hw": list(settings.frame_hw),
            **nodes.predicting(teacher),
        },
        upstream={"teacher": teacher},
        label=f"label {len(unlabelled)} unlabelled images by {nodes.nodes[teacher].title}",
        steps=len(unlabelled),
        segmenter=source.segmenter,
    )
    key = nodes.add(node)
    return Pairs(
        key=key,
        source=key,
        n=len(unlabelled),
        what=f"unlabelled images labelled by {nodes.nodes[teacher].title}",
        label_ids=ids,
        unlabelled_ids=unlabelled,
    )


def _other_pairs(
    nodes: Nodes, factors: ConditionConfig, *, source: Source, pseudo: Pairs | None
) -> Pairs:
    """Pairs that are made: by a generator, or without a network."""
    synthesis, ids = nodes.config.synthesis, source.ids
    if factors.labels == "fixed":
        if nodes.data.foreign_pairs is not None and factors == ConditionConfig(
            pairs="synthetic", labels="fixed", augment=factors.augment
        ):
            return _imported(nodes)
        support, count = synthesis.generator_support, synthesis.generator_count
        ids = nodes.support(support, count, fold=source.fold)
    if not factors.is_generated:
        return _made_pairs(nodes, factors, ids=ids, source=source)
    if factors.gate == "off":
        return _candidates(nodes, ids, source=source, pseudo=pseudo)
    gated = _gated(nodes, ids, source=source, pseudo=pseudo)
    if factors.gate == "random_subset":
        candidates = nodes.nodes[gated.key].upstream["candidates"]
        node = Node(
            stage="subset",
            content={"seed": source.generator_seed},
            upstream={"candidates": candidates, "gate": gated.key},
            label="as many candidates at random as the gate kept",
            steps=1,
        )
        key = nodes.add(node)
        return replace(gated, key=key)
    return gated
