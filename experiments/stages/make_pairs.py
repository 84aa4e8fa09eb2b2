"""Stages that make pairs without a network: cheaper alternatives to a generator, and controls."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.annotation import annotation_of, image_of
from datamodules.ellipse import Ellipse, EllipseDistribution, rasterise
from datamodules.errors import ChangedError
from datamodules.geometry import image_to_frame, image_to_original, place
from datamodules.phantom_pairs import phantom_pairs
from datamodules.synthetic import (
    SyntheticPair,
    link_pair,
    pair_paths,
    read_metadata,
    read_synthetic,
    write_metadata,
    write_pair,
    write_png,
)
from datamodules.unchanged import REMEDY, require_unchanged
from datamodules.warp import warp_pairs
from experiments.stages.context import StageContext
from experiments.stages.labelled import labelled_images
from experiments.stages.stage_logger import log_pairs
from lightning_modules.randomness import keyed_seed

# Beyond this a head's texture no longer looks like ultrasound; the nearest source is taken then.
MAX_STRETCH = 1.4


def run_warp(context: StageContext) -> dict[str, Any]:
    """Deform the trial's own pairs to new ellipses drawn from theirs."""
    content = context.node.content
    ids = context.pick(content["images"])
    made = warp_pairs(
        [image_of(sample) for sample in context.picked(content["images"])],
        [context.rows[sample_id].ellipse for sample_id in ids],
        distribution=outlines_of(context, ids),
        n=content["n"],
        seed=content["seed"],
        size_hw=tuple(content["image_hw"]),
        max_stretch=MAX_STRETCH,
    )
    return _write_all(context, ((image, ellipse) for image, ellipse, _ in made))


def run_phantom(context: StageContext) -> dict[str, Any]:
    """Draw procedural heads on outlines drawn from the trial's own."""
    content = context.node.content
    made = phantom_pairs(
        distribution=outlines_of(context, context.pick(content["images"])),
        n=content["n"],
        seed=content["seed"],
        size_hw=tuple(content["image_hw"]),
    )
    return _write_all(context, made)


def run_resize(context: StageContext) -> dict[str, Any]:
    """Pass real images through the generator's own size: its blur, with the real content."""
    content = context.node.content
    native = tuple(content["native_hw"])
    pairs = []
    for number, sample in enumerate(context.picked(content["images"])):
        image, name = image_of(sample), f"resized-{number:05d}"
        placement = place(image.shape, frame_hw=native, mode="squash")
        small = image_to_frame(image, placement)
        resized = image_to_original(small, placement, interpolation="linear")
        write_pair(context.run_dir, name, image=resized, mask=annotation_of(sample).mask)
        pairs.append(SyntheticPair(sample_id=name, native_size_hw=native))
    return _finished(context, pairs)


def run_subset(context: StageContext) -> dict[str, Any]:
    """Take as many candidates at random as the gate kept: what a gate is worth beside its size."""
    source = context.upstream_dir("candidates")
    candidates = read_metadata(source / "metadata.jsonl")
    n_kept = len(read_metadata(context.upstream_dir("gate") / "metadata.jsonl"))
    rng = np.random.default_rng(keyed_seed("subset", context.node.content["seed"]))
    chosen = sorted(rng.permutation(len(candidates))[:n_kept].tolist())
    for number in chosen:
        link_pair(source, context.run_dir, sample_id=candidates[number].sample_id)
    return _finished(context, [candidates[k] for k in chosen])


def run_import_pairs(context: StageContext) -> dict[str, Any]:
    """Import synthetic pairs made elsewhere into the store."""
    folder = Path(context.config.synthesis.folder)
    foreign, hashes = read_synthetic(folder), dict(context.node.content["pairs"])
    if foreign.pairs.keys() != hashes.keys():
        raise ChangedError(f"{folder}: other pairs than when the sweep began; {REMEDY}")
    for sample in foreign.samples:
        image = image_of(sample)
        image_path, mask_path = pair_paths(context.run_dir, sample.sample_id)
        for path in (image_path, mask_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_png(image_path, image)
        mask_path.write_bytes(sample.annotation_path.read_bytes())
    require_unchanged(foreign.samples, [hashes[s.sample_id] for s in foreign.samples])
    return _finished(context, [foreign.pairs[s.sample_id] for s in foreign.samples])


def outlines_of(
    context: StageContext, ids: list[str], *, balance_sizes: bool = False
) -> EllipseDistribution:
    """The distribution of the outlines of these images, and of those that a teacher labelled."""
    known = labelled_images(context, ids)
    return EllipseDistribution.fit(
        [each.ellipse for each in known],
        size_hws=[each.size_hw for each in known],
        balance_sizes=balance_sizes,
    )


def _write_all(context: StageContext, made: Iterable[tuple[np.ndarray, Ellipse]]) -> dict[str, Any]:
    content, status = context.node.content, context.status()
    pairs = []
    for number, (image, ellipse) in enumerate(made):
        name = f"{context.node.stage}-{context.node.id[:8]}-{number:05d}"
        mask = rasterise(ellipse, size_hw=tuple(content["image_hw"]))
        write_pair(context.run_dir, name, image=image, mask=mask)
        pairs.append(SyntheticPair(sample_id=name, ellipse=ellipse))
        status.update("pairs", done=number + 1, total=content["n"])
    return _finished(context, pairs)


def _finished(context: StageContext, pairs: list[SyntheticPair]) -> dict[str, Any]:
    write_metadata(context.run_dir / "metadata.jsonl", pairs)
    log_pairs(context)
    return {"pairs": len(pairs)}
