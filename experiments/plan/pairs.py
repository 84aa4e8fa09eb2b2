"""The part of a plan that makes pairs: generators, candidates, gates and their cheap rivals."""

from dataclasses import asdict, replace
from typing import Any

from experiments.plan.fits import Nodes, Pairs
from experiments.plan.nodes import Node
from experiments.plan.scores import embed_test
from lightning_modules.generators.stable_diffusion.weights import base_id


def _generator(nodes: Nodes, ids: list[str], *, generator_seed: int) -> str:
    name = nodes.config.generator_section
    content = {
        name: nodes.section(name),
        "images": nodes.contents(ids),
        "seed": generator_seed,
    }
    if name == "stable_diffusion":
        content["base_id"] = _base_id(nodes)
    return nodes.add(
        Node(
            stage="generator",
            content=content,
            label=f"fit generator on {len(ids)} images",
            steps=nodes.config.active_generator.steps,
        )
    )


def _base_id(nodes: Nodes) -> str:
    stable = nodes.config.stable_diffusion
    return base_id(stable.base_model, revision=stable.revision)


def _synthesis(nodes: Nodes) -> dict[str, Any]:
    """What drawing depends on beside the generator."""
    synthesis = nodes.section("synthesis")
    if nodes.config.synthesis.generator == "pixel":
        return {"synthesis": synthesis}
    del synthesis["sampler"]
    sampler = asdict(nodes.config.stable_diffusion.sampler)
    del sampler["batch_size"]
    found = {"synthesis": synthesis, "stable_diffusion": {"sampler": sampler}}
    if nodes.config.stable_diffusion.route == "sd_in_channel":
        found["extractor"] = nodes.section("extractor")
    return found


def _candidates(nodes: Nodes, ids: list[str], *, generator_seed: int) -> Pairs:
    generator = _generator(nodes, ids, generator_seed=generator_seed)
    n, count = nodes.config.synthesis.n_candidates, len(ids)
    key = nodes.add(
        Node(
            stage="synthesize",
            content={**_synthesis(nodes), "seed": generator_seed},
            upstream={"generator": generator},
            label=f"synthesise {n} candidates (generator on {count})",
            steps=n,
        )
    )
    return Pairs(key=key, source=key, n=n, what=f"candidates (generator on {count})", label_ids=ids)


def _gated(nodes: Nodes, ids: list[str], *, generator_seed: int, fold: int) -> Pairs:
    """The gate's node, which is the synthetic set."""
    candidates = _candidates(nodes, ids, generator_seed=generator_seed)
    # A judge on a frozen encoder, whatever is tuned elsewhere: its embeddings are of the store.
    segmenter = nodes.fit("real", ids=ids, seed=0, pairs=None, fold=fold, tuning="decoder")
    embeddings = nodes.embed_pairs(candidates)
    n = nodes.config.synthesis.n_candidates
    key = nodes.add(
        Node(
            stage="gate",
            content={"gate": nodes.section("gate"), "images": nodes.contents(ids)},
            upstream={
                "candidates": candidates.key,
                "embeddings": embeddings,
                "real_embeddings": nodes.embed(ids, what="train images"),
                "segmenter": segmenter,
            },
            label=f"gate {n} candidates (generator on {len(ids)})",
            steps=n,
        )
    )
    _fidelity(nodes, ids, pairs=key, embeddings=embeddings, segmenter=segmenter, fold=fold)
    return replace(candidates, key=key)


def _fidelity(
    nodes: Nodes, ids: list[str], *, pairs: str, embeddings: str, segmenter: str, fold: int
) -> None:
    test = nodes.data.folds[fold].test
    nodes.add(
        Node(
            stage="fidelity",
            content={"images": nodes.contents(ids), "test": nodes.contents(test)},
            upstream={
                "pairs": pairs,
                "embeddings": embeddings,
                "segmenter": segmenter,
                "real_embeddings": nodes.embed(ids, what="train images", strength="mirror"),
                "test_embeddings": embed_test(nodes, nodes.data.name, fold=fold),
            },
            label=f"fidelity of the synthetic set (generator on {len(ids)})",
            steps=1,
        )
    )


def _imported(nodes: Nodes) -> Pairs:
    """Somebody else's pairs, taken into the store; no gate."""
    pairs = nodes.data.foreign_pairs
    key = nodes.add(
        Node(
            stage="import_pairs",
            content={"pairs": sorted(pairs.items())},
            label=f"import {len(pairs)} synthetic pairs",
            steps=len(pairs),
        )
    )
    return Pairs(key=key, source=key, n=len(pairs), what="imported pairs", is_foreign=True)


def _made_pairs(
    nodes: Nodes, stage: str, *, ids: list[str], seed: int, extra: dict[str, Any] | None = None
) -> Pairs:
    """Pairs that need no network: warped, procedural, or the real ones at another size."""
    n = len(ids) if stage == "resize" else nodes.config.synthesis.n_candidates
    what = {"warp": "warped", "phantom": "procedural", "resize": "resized"}[stage]
    content = {"images": nodes.contents(ids), **(extra or {})}
    if stage != "resize":
        size = list(nodes.config.synthesis.image_hw)
        content |= {"n": n, "seed": seed, "image_hw": size}
    key = nodes.add(
        Node(
            stage=stage,
            content=content,
            label=f"make {n} {what} pairs (from {len(ids)} images)",
            steps=n,
        )
    )
    what = f"{what} pairs (from {len(ids)} images)"
    return Pairs(key=key, source=key, n=n, what=what, label_ids=ids)


def pairs_of(
    nodes: Nodes,
    condition: str,
    *,
    ids: list[str],
    support: int,
    generator_seed: int,
    fold: int,
) -> Pairs | None:
    """The pairs that a condition adds to its real images; None for none."""
    synthesis = nodes.config.synthesis
    if condition == "warp" or condition == "phantom":
        return _made_pairs(nodes, condition, ids=ids, seed=support)
    if condition.startswith("synthetic_same_budget"):
        return _gated(nodes, ids, generator_seed=generator_seed, fold=fold)
    if condition == "synthetic" and nodes.data.foreign_pairs is not None:
        return _imported(nodes)
    if not condition.startswith("synthetic") and condition != "real_resized":
        return None
    named = nodes.support(synthesis.generator_support, synthesis.generator_count, fold=fold)
    if condition == "real_resized":
        native = list(nodes.config.active_generator.size_hw)
        return _made_pairs(nodes, "resize", ids=named, seed=0, extra={"native_hw": native})
    if condition == "synthetic_no_gate":
        return _candidates(nodes, named, generator_seed=generator_seed)
    gated = _gated(nodes, named, generator_seed=generator_seed, fold=fold)
    if condition == "synthetic_random_subset":
        candidates = nodes.nodes[gated.key].upstream["candidates"]
        key = nodes.add(
            Node(
                stage="subset",
                content={"seed": generator_seed},
                upstream={"candidates": candidates, "gate": gated.key},
                label="as many candidates at random as the gate kept",
                steps=1,
            )
        )
        return replace(gated, key=key)
    return gated
