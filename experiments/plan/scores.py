"""The part of a plan that scores: trials, controls and the box figure."""

from typing import Any

from experiments.plan.box_passes import PASSES
from experiments.plan.fits import Nodes
from experiments.plan.nodes import Node
from lightning_modules.segmenters.table import row_of


def box(nodes: Nodes, fit_key: str, *, ids: list[str], fold: int) -> str:
    """The stage that scores one fitted model under increasing box jitter."""
    test = list(nodes.data.folds[fold].test)
    segmenter = nodes.nodes[fit_key].segmenter
    return nodes.add(
        Node(
            stage="box",
            content={
                "images": nodes.contents(ids),
                "test": nodes.references(test),
                "cohort": nodes.data.name,
                "jitter_draws": nodes.config.evaluation.jitter_draws,
            },
            upstream={
                "fit": fit_key,
                **_cached_test(nodes, segmenter, cohort=nodes.data.name, fold=fold),
            },
            label=f"increasing box jitter: {nodes.nodes[fit_key].title}",
            steps=len(test) * len(PASSES),
            segmenter=segmenter,
        )
    )


def embed_test(
    nodes: Nodes, cohort: str, *, segmenter: str, fold: int, features: bool = False
) -> str:
    """Embeddings of a cohort's test images."""
    ids = _test_ids(nodes, cohort, fold=fold)
    what = f"test images of {cohort}"
    return nodes.embed(ids, what=what, segmenter=segmenter, features=features)


def _cached_test(
    nodes: Nodes, segmenter: str, *, cohort: str, fold: int, is_fitted: bool = True
) -> dict[str, str]:
    """The input that spares the encoder, by role; none where a trial has an encoder of its own."""
    cache = nodes.settings(segmenter).cache if is_fitted else "embedding"
    if cache is None:
        return {}
    features = cache == "features"
    return {
        "embeddings": embed_test(nodes, cohort, segmenter=segmenter, fold=fold, features=features)
    }


def _test_ids(nodes: Nodes, cohort: str, *, fold: int) -> list[str]:
    if cohort == nodes.data.name:
        return list(nodes.data.folds[fold].test)
    return nodes.data.cohorts[cohort]


def tests(nodes: Nodes) -> list[str]:
    # An external cohort is tested by every fold's models.
    return [nodes.data.name, *sorted(nodes.data.cohorts)]


def _evaluation(nodes: Nodes, prompt: str) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt": prompt}
    if prompt == "jittered_box":
        found["jitter_draws"] = nodes.config.evaluation.jitter_draws
        found["jitter_max_px"] = nodes.config.segmenter.jitter_max_px
    return found


def scores(
    nodes: Nodes, fit_key: str | None, *, segmenter: str, fold: int
) -> dict[tuple[str, str], str]:
    """Stages that score a fitted model, or the bare backbone, by cohort and prompt."""
    takes_prompt = row_of(nodes.settings(segmenter)).takes_prompt
    prompts = nodes.config.evaluation.prompts if takes_prompt else ["whole_image"]
    is_fitted = fit_key is not None
    keys = {}
    for cohort in tests(nodes):
        ids = _test_ids(nodes, cohort, fold=fold)
        for prompt in prompts:
            content: dict[str, Any] = {
                "test": nodes.references(ids),
                "cohort": cohort,
                "evaluation": _evaluation(nodes, prompt),
            }
            upstream = {} if fit_key is None else {"fit": fit_key}
            upstream |= _cached_test(
                nodes, segmenter, cohort=cohort, fold=fold, is_fitted=is_fitted
            )
            if fit_key is None:
                content["encoder"] = nodes.encoder(segmenter)
            what = "zero-shot" if fit_key is None else nodes.nodes[fit_key].title
            keys[cohort, prompt] = nodes.add(
                Node(
                    stage="score",
                    content=content,
                    upstream=upstream,
                    label=f"score {what} on {cohort}, {prompt}",
                    steps=len(ids) * content["evaluation"].get("jitter_draws", 1),
                    segmenter=segmenter,
                )
            )
    return keys


def controls(nodes: Nodes, control: str, *, fold: int) -> dict[tuple[str, str], str]:
    """Stages that score a control without a network, by cohort and prompt; none where it reads no
    such prompt."""
    keys, sam = {}, nodes.config.segmenter
    prompts = {
        # Boxes that come from the reference; the constant mask reads no box at all.
        "box_only": ("jittered_box", "tight_box"),
        "mean_mask": ("whole_image",),
    }[control]
    prompts = [p for p in nodes.config.evaluation.prompts if p in prompts]
    train = list(nodes.data.folds[fold].train)
    for cohort in tests(nodes):
        ids = _test_ids(nodes, cohort, fold=fold)
        for prompt in prompts:
            content: dict[str, Any] = {
                "kind": control,
                "test": nodes.references(ids),
                "cohort": cohort,
                "evaluation": _evaluation(nodes, prompt),
                # The box is taken from the mask in the segmenter's frame.
                "frame_side_px": sam.frame_hw[0],
            }
            if sam.geometry != "pad":
                content["geometry"] = sam.geometry
            if control == "mean_mask":
                content["images"] = nodes.contents(train)
            keys[cohort, prompt] = nodes.add(
                Node(
                    stage="control",
                    content=content,
                    label=f"control {control} on {cohort}, {prompt}",
                    steps=len(ids),
                )
            )
    return keys
