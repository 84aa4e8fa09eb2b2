"""Pairs without a network: warped, procedural, resized ones, and a random subset."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from folder_parts import write_hc18_folder
from stage_parts import Stages

from datamodules.annotation import read_annotation, read_image
from datamodules.ellipse import rasterise
from datamodules.geometry import image_to_frame, image_to_original, place
from datamodules.synthetic import (
    SyntheticPair,
    read_metadata,
    read_synthetic,
    write_metadata,
    write_pair,
)
from experiments.stages.make_pairs import outlines_of, run_phantom, run_resize, run_subset, run_warp

IDS = ["001_HC", "004_HC", "004_2HC", "007_HC"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return Stages(write_hc18_folder(folder / "hc18"), folder / "runs")


def made_from(stages, ids=IDS, **changes):
    base = {"images": stages.contents(ids), "n": 3, "seed": 5, "image_hw": [54, 80]}
    return base | changes


def pictures(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.glob("*/*.png")}


@pytest.mark.parametrize(("function", "stage"), [(run_warp, "warp"), (run_phantom, "phantom")])
def test_made_pairs_are_read_back_with_exact_labels(stages, function, stage):
    context, result = stages.run(function, stage, made_from(stages))
    assert result == {"pairs": 3}
    found = read_synthetic(context.run_dir)
    assert len(found.samples) == 3
    for sample in found.samples:
        image, ellipse = read_image(sample.image_path), found.pairs[sample.sample_id].ellipse
        mask = cv2.imread(str(sample.annotation_path), cv2.IMREAD_GRAYSCALE)
        assert image.shape == mask.shape == (54, 80)
        assert image.std() > 5
        assert np.array_equal(mask, 255 * rasterise(ellipse, size_hw=(54, 80)))
        # The segmenter reads the mask as it was drawn: nothing is taken off.
        read = read_annotation(sample.annotation_path, filled_bias_px=sample.filled_bias_px).mask
        assert np.array_equal(read * 255, mask)
    assert not set(found.pairs) & set(stages.data.samples)


@pytest.mark.parametrize(("function", "stage"), [(run_warp, "warp"), (run_phantom, "phantom")])
def test_made_pairs_depend_on_images_seed_and_number_alone(stages, function, stage):
    def made(**changes):
        context, _ = stages.run(function, stage, made_from(stages, **changes))
        return [read_metadata(context.run_dir / "metadata.jsonl"), pictures(context.run_dir)]

    base_pairs, base = made()
    assert made() == [base_pairs, base]
    more, _ = made(n=5)
    assert [pair.ellipse for pair in more[:3]] == [pair.ellipse for pair in base_pairs]
    for changes in ({"seed": 6}, {"ids": IDS[:2]}):
        other, _ = made(**changes)
        assert all(a.ellipse != b.ellipse for a, b in zip(other, base_pairs, strict=True))


def test_outlines_are_those_of_the_given_images_alone(stages):
    rows = stages.data.rows
    before = outlines_of(stages.context("warp", {}), IDS)
    assert len(before.features) == len(IDS)
    context = stages.context("warp", {})
    outside = next(name for name in rows if name not in IDS)
    moved = replace(rows[outside].ellipse, center_x_px=1.0)
    context.rows = rows | {outside: replace(rows[outside], ellipse=moved)}
    assert np.array_equal(outlines_of(context, IDS).features, before.features)
    context.rows = rows | {IDS[1]: replace(rows[IDS[1]], ellipse=moved)}
    assert not np.array_equal(outlines_of(context, IDS).features, before.features)


def test_resized_pairs_are_the_real_ones_at_the_generators_detail(stages):
    content = {"images": stages.contents(IDS), "native_hw": [16, 24]}
    context, result = stages.run(run_resize, "resize", content)
    assert result == {"pairs": 4}
    found = read_synthetic(context.run_dir)
    for sample_id, sample in zip(IDS, found.samples, strict=True):
        real = stages.data.samples[sample_id]
        image, blurred = read_image(real.image_path), read_image(sample.image_path)
        placement = place((54, 80), frame_hw=(16, 24), mode="squash")
        small = image_to_frame(image, placement)
        assert small.shape == (16, 24)
        expected = image_to_original(small, placement, interpolation="linear")
        assert np.array_equal(blurred, expected)
        assert blurred.shape == (54, 80)
        # The same picture with less detail, and the very same label.
        assert np.corrcoef(image.ravel(), blurred.ravel())[0, 1] > 0.4
        assert np.diff(blurred.astype(float)).std() < 0.5 * np.diff(image.astype(float)).std()
        mask = read_annotation(real.annotation_path, filled_bias_px=real.filled_bias_px).mask
        drawn = cv2.imread(str(sample.annotation_path), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(drawn, 255 * mask)
        assert found.pairs[sample.sample_id].native_size_hw == (16, 24)


def gated(stages, *, n, kept):
    """Candidates, and a gate that kept the last of them; the keys of both."""
    names = [f"c-{number}" for number in range(n)]
    keys = {}
    for stage, chosen in (("synthesize", names), ("gate", names[n - kept :])):
        context = stages.context(stage, {"n": n, "kept": kept})
        for name in chosen:
            value = np.full((8, 9), 10 * int(name[2:]), dtype=np.uint8)
            write_pair(context.run_dir, name, image=value, mask=(value >= 0).astype(np.uint8))
        pairs = [SyntheticPair(sample_id=name, seed=int(name[2:])) for name in chosen]
        write_metadata(context.run_dir / "metadata.jsonl", pairs)
        keys[stage] = context.node.key
    return keys["synthesize"], keys["gate"]


def subset(stages, candidates, gate, *, seed=0):
    content = {"seed": seed}
    context, result = stages.run(run_subset, "subset", content, candidates=candidates, gate=gate)
    pairs = read_metadata(context.run_dir / "metadata.jsonl")
    assert result == {"pairs": len(pairs)}
    assert set(pictures(context.run_dir)) == {
        name
        for p in pairs
        for name in (f"image/{p.sample_id}.png", f"mask/{p.sample_id}_Annotation.png")
    }
    for pair in pairs:
        image = cv2.imread(str(context.run_dir / "image" / f"{pair.sample_id}.png"), 0)
        assert (image == 10 * pair.seed).all()
    return [pair.seed for pair in pairs]


def test_a_random_subset_is_as_large_as_what_the_gate_kept(stages):
    candidates, gate = gated(stages, n=12, kept=5)
    chosen = subset(stages, candidates, gate)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 5
    assert chosen != [7, 8, 9, 10, 11], "not the gate's own choice"
    assert subset(stages, candidates, gate) == chosen, "again over what an attempt left"
    assert subset(stages, candidates, gate, seed=1) != chosen


def test_a_subset_of_all_is_all(stages):
    assert subset(stages, *gated(stages, n=4, kept=4)) == [0, 1, 2, 3]
