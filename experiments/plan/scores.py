"""The part of a plan that scores: trials, controls and the box figure."""

from collections.abc import Iterable, Iterator
from typing import Any

from experiments.plan.box_passes import PASSES
from experiments.plan.fits import Nodes
from experiments.plan.nodes import Node, TrialSpec
from lightning_modules.segmenters.table import row_of


def box(nodes: Nodes, trial: TrialSpec) -> str:
    """The stage that scores the model of a trial under increasing box jitter."""
    fit_key, segmenter, fold = trial.fit_key, trial.segmenter, trial.fold
    test = list(nodes.data.folds[fold].test)
    cohort, cache = nodes.data.name, nodes.settings(segmenter).cache
    cached = _cached_test(nodes, cache, cohort=cohort, segmenter=segmenter, fold=fold)
    node = Node(
        stage="box",
        content={
            "images": nodes.contents(nodes.images_of(trial)),
            "test": nodes.references(test),
            "cohort": cohort,
            "jitter_draws": nodes.config.evaluation.jitter_draws,
            **nodes.predicting(fit_key, segmenter=segmenter),
        },
        upstream={"fit": fit_key, **cached},
        label=f"increasing box jitter: {nodes.nodes[fit_key].title}",
        steps=len(test) * len(PASSES),
        segmenter=segmenter,
    )
    return nodes.add(node)


def embed_test(
    nodes: Nodes, cohort: str, *, segmenter: str, fold: int, cache: str = "embedding"
) -> str:
    """Embeddings of a cohort's test images."""
    ids = _test_ids(nodes, cohort, fold=fold)
    what = f"test images of {cohort}"
    return nodes.embed(ids, what=what, segmenter=segmenter, cache=cache)


def _cached_test(
    nodes: Nodes, cache: str | None, *, cohort: str, segmenter: str, fold: int
) -> dict[str, str]:
    """The input that spares the encoder, by role; none where a trial has an encoder of its own."""
    if cache is None:
        return {}
    key = embed_test(nodes, cohort, segmenter=segmenter, fold=fold, cache=cache)
    return {"embeddings": key}


def _test_ids(nodes: Nodes, cohort: str, *, fold: int) -> list[str]:
    if cohort == nodes.data.name:
        return list(nodes.data.folds[fold].test)
    return nodes.data.cohorts[cohort]


def _tested(
    nodes: Nodes, prompts: Iterable[str], *, fold: int
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each cohort and prompt, and what scoring it reads; an external cohort is every fold's."""
    evaluation = nodes.config.evaluation
    for cohort in (nodes.data.name, *sorted(nodes.data.cohorts)):
        references = nodes.references(_test_ids(nodes, cohort, fold=fold))
        for prompt in prompts:
            read: dict[str, Any] = {"prompt": prompt}
            if prompt == "jittered_box":
                read["jitter_draws"] = evaluation.jitter_draws
                read["jitter_max_px"] = nodes.config.segmenter.jitter_max_px
            yield cohort, prompt, {"test": references, "cohort": cohort, "evaluation": read}


def scores(
    nodes: Nodes, fit_key: str | None, *, segmenter: str, fold: int
) -> dict[tuple[str, str], str]:
    """Stages that score a fitted model, or the bare backbone, by cohort and prompt."""
    settings = nodes.settings(segmenter)
    prompts = ["whole_image"]
    if row_of(settings).takes_prompt:
        prompts = nodes.config.evaluation.prompts
    if fit_key is None:
        what, fitted, cache = "zero-shot", {}, "embedding"
        own = {"encoder": nodes.encoder(segmenter)}
    else:
        what, fitted, cache = nodes.nodes[fit_key].title, {"fit": fit_key}, settings.cache
        own = nodes.predicting(fit_key, segmenter=segmenter)
    keys = {}
    for cohort, prompt, content in _tested(nodes, prompts, fold=fold):
        cached = _cached_test(nodes, cache, cohort=cohort, segmenter=segmenter, fold=fold)
        node = Node(
            stage="score",
            content=content | own,
            upstream=fitted | cached,
            label=f"score {what} on {cohort}, {prompt}",
            steps=len(content["test"]) * content["evaluation"].get("jitter_draws", 1),
            segmenter=segmenter,
        )
        keys[cohort, prompt] = nodes.add(node)
    return keys


def controls(nodes: Nodes, control: str, *, fold: int) -> dict[tuple[str, str], str]:
    """Stages that score a control without a network, by cohort and prompt; none where it reads no
    such prompt."""
    keys, sam = {}, nodes.config.segmenter
    # Boxes that come from the reference; the constant mask reads no box at all.
    reads = {"box_only": ("jittered_box", "tight_box"), "mean_mask": ("whole_image",)}[control]
    # The box is taken from the mask in the segmenter's frame.
    own: dict[str, Any] = {"kind": control, "frame_side_px": sam.frame_hw[0]}
    if sam.geometry != "pad":
        own["geometry"] = sam.geometry
    if control == "mean_mask":
        own["images"] = nodes.contents(nodes.data.folds[fold].train)
    prompts = [prompt for prompt in nodes.config.evaluation.prompts if prompt in reads]
    for cohort, prompt, content in _tested(nodes, prompts, fold=fold):
        node = Node(
            stage="control",
            content=content | own,
            label=f"control {control} on {cohort}, {prompt}",
            steps=len(content["test"]),
        )
        keys[cohort, prompt] = nodes.add(node)
    return keys
