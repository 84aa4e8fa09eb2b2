"""The part of a plan that makes pairs: generators, candidates, gates and cheaper alternatives."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from datamodules.errors import InputError
from datamodules.splits import check_count
from experiments.config.conditions import ConditionConfig
from experiments.config.grid import Cell
from experiments.config.schema import JUDGE
from experiments.plan.fits import Nodes, Pairs
from experiments.plan.nodes import Node
from experiments.plan.scores import embed_test
from lightning_modules.generators.table import row_of

_NOT_DRAWN_BY = ("generator", "folder", "folder_labels", "generator_count", "generator_support")
_NOT_DRAWN_BY += ("fidelity",)
"""Settings of `synthesis` that say which generator there is, or what is measured afterwards;
drawing reads the others, a new one too."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a generator sees."""

    cell: Cell
    ids: list[str]
    """Labelled images."""
    pseudo: Pairs | None
    """Unlabelled ones with a teacher's labels."""

    @property
    def upstream(self) -> dict[str, str]:
        """The input of stages that read unlabelled images; none without."""
        return {} if self.pseudo is None else {"pseudo": self.pseudo.key}

    @property
    def words(self) -> str:
        """What labels call the generator; the default kind is not named."""
        kind = "" if self.cell.generator in ("", "pixel") else f" {self.cell.generator}"
        more = "" if self.pseudo is None else f" and {self.pseudo.n} {self.pseudo.what}"
        return f"generator{kind} on {len(self.ids)} images{more}"


def _generator(nodes: Nodes, source: _Source) -> str:
    settings = nodes.generator(source.cell.generator)
    row = row_of(settings)
    content = {
        row.content_key: settings.hashed(),
        "images": nodes.contents(source.ids),
        "seed": source.cell.generator_seed,
    }
    if row.weights_id is not None:
        content["base_id"] = row.weights_id(settings)
    if row.reads_prompts:
        # Its sentences name trimesters, which the CSV tells and no image.
        units = nodes.data.units
        content["trimesters"] = [units[sample_id].stratum for sample_id in source.ids]
        if source.pseudo is not None:
            known = [units[name] for name in source.pseudo.unlabelled_ids if name in units]
            content["pixel_sizes_mm"] = [unit.pixel_size_mm for unit in known]
    node = Node(
        stage="generator",
        content=content,
        upstream=source.upstream,
        label=f"fit {source.words}",
        steps=settings.steps,
        generator=source.cell.generator,
    )
    return nodes.add(node)


def _drawing(nodes: Nodes, generator: str) -> dict[str, Any]:
    """What drawing depends on beside the generator's weights."""
    settings = nodes.generator(generator)
    synthesis = asdict(nodes.config.synthesis)
    for key in _NOT_DRAWN_BY:
        del synthesis[key]
    if not synthesis["balance_sizes"]:
        # Not named, so that what was drawn before there was a choice is found.
        del synthesis["balance_sizes"]
    sampler = asdict(nodes.config.sampler_of(settings))
    del sampler["batch_size"]
    if not hasattr(settings, "sampler"):
        return {"synthesis": synthesis | {"sampler": sampler}}
    del synthesis["sampler"]
    found = {"synthesis": synthesis, row_of(settings).content_key: {"sampler": sampler}}
    if settings.draws_outlines:
        found["extractor"] = asdict(nodes.config.extractor)
    return found


def _candidates(nodes: Nodes, source: _Source) -> Pairs:
    n, cell = nodes.config.synthesis.n_candidates, source.cell
    node = Node(
        stage="synthesize",
        content={**_drawing(nodes, cell.generator), "seed": cell.generator_seed},
        upstream={"generator": _generator(nodes, source), **source.upstream},
        label=f"synthesise {n} candidates ({source.words})",
        steps=n,
        generator=cell.generator,
    )
    return Pairs(
        key=nodes.add(node),
        n=n,
        what=f"candidates ({source.words})",
        label_ids=source.ids,
        unlabelled_ids=[] if source.pseudo is None else source.pseudo.unlabelled_ids,
    )


def _gated(nodes: Nodes, source: _Source) -> Pairs:
    """The gate's node, which is the synthetic set: the same whatever segmenter is fitted on it,
    but for the teacher of unlabelled images."""
    config, ids, candidates = nodes.config, source.ids, _candidates(nodes, source)
    cell = replace(source.cell, condition="real", segmenter=JUDGE, seed=0, generator="")
    factors = ConditionConfig(augment=config.gate.judge_augment)
    judge = nodes.fit(factors, cell=cell, ids=ids)
    upstream = {"candidates": candidates.key, "segmenter": judge, **source.upstream}
    if nodes.settings(JUDGE).cache == "embedding":
        upstream |= {
            "embeddings": nodes.embed_pairs(candidates, segmenter=JUDGE),
            "real_embeddings": nodes.embed(ids, what="train images", segmenter=JUDGE),
        }
    gate, judging = asdict(config.gate), nodes.predicting(judge, segmenter=JUDGE)
    # The judge is an input of its own.
    del gate["judge"], gate["judge_augment"]
    node = Node(
        stage="gate",
        content={"gate": gate, "images": nodes.contents(ids), **judging},
        upstream=upstream,
        label=f"gate {candidates.n} {candidates.what}",
        steps=candidates.n,
        segmenter=JUDGE,
        generator=source.cell.generator,
    )
    gated = replace(candidates, key=nodes.add(node), embedded=candidates.key)
    if config.synthesis.fidelity:
        _fidelity(nodes, source, pairs=gated, judge=judge)
    return gated


def _fidelity(nodes: Nodes, source: _Source, *, pairs: Pairs, judge: str) -> None:
    """Measured on a SAM's pooled features: the judge's, or those of the section `segmenter`."""
    segmenter = JUDGE if nodes.settings(JUDGE).cache == "embedding" else ""
    of, ids, fold = {"segmenter": segmenter}, source.ids, source.cell.fold
    node = Node(
        stage="fidelity",
        content={
            "images": nodes.contents(ids),
            "test": nodes.contents(nodes.data.folds[fold].test),
            **nodes.predicting(judge, segmenter=JUDGE),
        },
        upstream={
            "pairs": pairs.key,
            "embeddings": nodes.embed_pairs(pairs, **of),
            "segmenter": judge,
            "real_embeddings": nodes.embed(ids, what="train images", strength="mirror", **of),
            "test_embeddings": embed_test(nodes, nodes.data.name, fold=fold, **of),
        },
        label=f"fidelity of the synthetic set ({source.words})",
        steps=1,
        segmenter=JUDGE,
        generator=source.cell.generator,
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
    return Pairs(key=nodes.add(node), n=len(pairs), what="imported pairs", is_foreign=True)


def _made_pairs(nodes: Nodes, factors: ConditionConfig, *, ids: list[str], cell: Cell) -> Pairs:
    """Pairs that need no network: warped, procedural, or the real ones at the generator's size."""
    row, content = factors.source, {"images": nodes.contents(ids)}
    if factors.draws_outlines:
        n, size = nodes.config.synthesis.n_candidates, list(nodes.config.synthesis.image_hw)
        content |= {"n": n, "seed": cell.support, "image_hw": size}
    else:
        n = len(ids)
        content |= {"native_hw": list(nodes.generator(cell.generator).size_hw)}
    what = f"{row.called} pairs (from {len(ids)} images)"
    key = nodes.add(Node(stage=row.stage, content=content, label=f"make {n} {what}", steps=n))
    return Pairs(key=key, n=n, what=what, label_ids=ids)


def pairs_of(nodes: Nodes, factors: ConditionConfig, *, cell: Cell) -> list[Pairs]:
    """The sets of pairs that a condition adds to its real images."""
    pseudo, sets = None, []
    if factors.uses_unlabelled:
        pseudo = pseudo_labels(nodes, rounds=factors.rounds, cell=cell)
    if factors.source.is_pseudo:
        sets.append(pseudo)
    if factors.source.is_made:
        seen = pseudo if factors.images == "unlabelled" else None
        sets.append(_other_pairs(nodes, factors, cell=cell, pseudo=seen))
    return sets


def pseudo_labels(nodes: Nodes, *, rounds: int, cell: Cell) -> Pairs:
    """The trial's unlabelled images with the labels of its teacher of a round."""
    ids, unlabelled = nodes.images_of(cell), nodes.unlabelled(cell)
    # Written out, so that teachers are the trials `strong` and `self_training` of the same images.
    student, factors, before = "strong", ConditionConfig(augment="strong"), []
    if rounds > 1:
        student = "self_training" if rounds == 2 else f"self_training_{rounds - 1}"
        factors = ConditionConfig(pairs="pseudo", augment="strong", rounds=rounds - 1)
        before = [pseudo_labels(nodes, rounds=rounds - 1, cell=cell)]
    teaching = replace(cell, condition=student, generator="")
    teacher = nodes.fit(factors, cell=teaching, ids=ids, sets=before)
    by = nodes.nodes[teacher].title
    node = Node(
        stage="pseudo",
        content={
            "images": nodes.contents(unlabelled),
            "self_training": asdict(nodes.config.self_training),
            "frame_hw": list(nodes.settings(cell.segmenter).frame_hw),
            **nodes.predicting(teacher, segmenter=cell.segmenter),
        },
        upstream={"teacher": teacher},
        label=f"label {len(unlabelled)} unlabelled images by {by}",
        steps=len(unlabelled),
        segmenter=cell.segmenter,
    )
    return Pairs(
        key=nodes.add(node),
        n=len(unlabelled),
        what=f"unlabelled images labelled by {by}",
        label_ids=ids,
        unlabelled_ids=unlabelled,
    )


def _other_pairs(
    nodes: Nodes, factors: ConditionConfig, *, cell: Cell, pseudo: Pairs | None
) -> Pairs:
    """Pairs that are made: by a generator, or without a network."""
    synthesis, ids = nodes.config.synthesis, nodes.images_of(cell)
    if factors.labels == "fixed":
        # What is done to the pairs afterwards does not matter.
        bare = replace(factors, augment="none", without=[], extra=[], at_most=None, order="drawn")
        is_imported = bare == ConditionConfig(pairs="synthetic", labels="fixed")
        if nodes.data.foreign_pairs is not None and is_imported:
            if factors.order != "drawn":
                raise InputError(
                    f"condition {cell.condition}: order={factors.order} needs what a gate "
                    "measured, and the pairs of synthesis.folder pass none; use order=drawn"
                )
            return _imported(nodes)
        n, support = synthesis.generator_count, synthesis.generator_support
        n_train = len(nodes.data.folds[cell.fold].train)
        check_count(n, n_train=n_train, key="synthesis.generator_count")
        ids = nodes.images_of(Cell(condition="", n_real=n, support=support, fold=cell.fold))
    if not factors.source.is_generated:
        return _made_pairs(nodes, factors, ids=ids, cell=cell)
    source = _Source(cell=cell, ids=ids, pseudo=pseudo)
    if factors.gate == "off":
        return _candidates(nodes, source)
    gated = _gated(nodes, source)
    if factors.gate == "on":
        return gated
    node = Node(
        stage="subset",
        content={"seed": cell.generator_seed},
        upstream={"candidates": gated.embedded, "gate": gated.key},
        label="as many candidates at random as the gate kept",
        steps=1,
    )
    return replace(gated, key=nodes.add(node))
