"""The arithmetic of composed numbers by hand, the child, and that both ways compute the same."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from folder_parts import write_hc18_folder

from datamodules.samples import read_hc18
from experiments.bench.ablation import ablation_jobs, same_images
from experiments.bench.child import Child, run_program
from experiments.bench.data import break_even, prepared
from experiments.bench.encoder import encoder_flops
from experiments.bench.finetune import Parts, steps_of
from experiments.bench.machine import share_of_peak
from experiments.bench.published import PublishedSam
from experiments.bench.results import Line, Ratio, Result, Timing, Value, as_json, line_through
from experiments.bench.startup import stage_gaps
from experiments.bench.views import (
    dice_by_support,
    difference_points,
    embedding_cpu_s,
    fit_cpu_s,
)
from experiments.config.synthesis import AugmentConfig
from experiments.runner.schedule import Task, makespan_s
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig, image_factor
from lightning_modules.segmenters.sam.network import build_sam, decode, encode, for_inference

AMOUNTS = (5, 10, 20, 50, 100, 300, 500)
PARTS = Parts(
    label="a",
    backbone="tiny",
    published=Line(fixed_s=2.0, per_unit_s=10.0),
    fit=Line(fixed_s=3.0, per_unit_s=0.5),
    embed=Line(fixed_s=1.0, per_unit_s=2.0),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_hc18_folder(tmp_path_factory.mktemp("bench") / "hc18")


@pytest.fixture(scope="module")
def samples(root):
    return sorted(read_hc18(root), key=lambda s: s.sample_id)[:3]


def timing(wall, *, units=1.0):
    return Timing(label="a", unit="image", units=units, wall_s=wall, cpu_s=[2 * w for w in wall])


def test_medians_spreads_and_targets_by_hand():
    found = timing([4.0, 1.0, 2.0], units=2)
    assert (found.per_unit_s, found.spread_s, found.cpu_per_unit_s) == (1.0, (0.5, 2.0), 2.0)
    assert replace(found, cpu_s=[]).cpu_per_unit_s is None
    ratios = [Ratio("a", 12.0, 3.0, "measured", bound) for bound in (4, 4.1, None)]
    assert [ratio.reached for ratio in ratios] == [True, False, None]
    assert [Value("a", v, "GiB", at_most=2).reached for v in (2.0, 2.1)] == [True, False]
    assert Value("a", 0.0, "s").reached is None
    content = as_json(Result(name="data", timings=[found], values=[], ratios=ratios))
    assert content == json.loads(json.dumps(content))
    numbers = {"per_unit_s": 1.0, "fastest_s": 0.5, "slowest_s": 2.0, "cpu_per_unit_s": 2.0}
    assert numbers.items() <= content["timings"][0].items()
    assert content["ratios"][1]["ratio"] == 4.0
    assert content["ratios"][1]["reached"] is False


def test_a_line_through_two_sizes_by_hand():
    """2 s for 2 units and 5 s for 8: half a second a unit, one second whatever the size."""
    line = line_through(timing([2.0, 2.0, 9.0], units=2), timing([5.0, 5.0, 1.0], units=8))
    assert line == Line(fixed_s=1.0, per_unit_s=0.5)
    assert (line.seconds(0), line.seconds(10)) == (1.0, 6.0)
    # The larger size took less time: all of it is fixed. More than in proportion: none of it is.
    for short, long, parts in ((3.0, 1.0, (2.0, 0.0)), (1.0, 10.0, (0.0, 2.0))):
        line = line_through(timing([short]), timing([long], units=5))
        assert (line.fixed_s, line.per_unit_s) == parts
    with pytest.raises(ValueError, match="two sizes"):
        line_through(timing([1.0], units=5), timing([1.0], units=5))


def test_a_fine_tune_by_hand():
    """50 images x 20 epochs in fives are 200 steps."""
    assert [steps_of(n) for n in (0, 5, 7, 50, 500)] == [0, 20, 40, 200, 2000]
    assert PARTS.seconds(50) == (2 + 200 * 10, (1 + 50 * 2) + (3 + 200 * 0.5))
    assert same_images(3, parts=PARTS) == (3 * 2002, (1 + 50 * 2) + 3 * (3 + 200 * 0.5))


@pytest.mark.parametrize(
    ("most", "embeddings"),
    # 10 images with 3 weak and 3 strong views beside themselves; or 25 views in a trial, of which
    # 5 images have four and ten have two: of the second five, one is augmented.
    [(None, 10 * 7 + 3), (25, 10 + 2 * (5 * 3 + 5 * 1) + 3)],
)
def test_a_small_ablation_by_hand(most, embeddings):
    augment = AugmentConfig(n_views=4, max_per_trial=most)
    jobs = ablation_jobs((5, 10), pairs=3, augment=augment)
    assert sum(job.embeddings for job in jobs.values()) == embeddings
    fits = {name: job.images for name, job in jobs.items() if job.images}
    real = {f"fit {c} {n}": n for n in (5, 10) for c in ("real", "weak", "strong")}
    assert fits == real | {"fit synthetic 5": 8, "fit synthetic 10": 13}
    weak = [f"embed {kind} {n}" for kind in ("real", "weak") for n in (5, 10)]
    assert list(jobs["fit weak 10"].after) == weak


def test_the_published_ablation():
    """28 fits, 22 stages that embed; on one device all one after the other."""
    jobs = ablation_jobs(AMOUNTS, pairs=495, augment=AugmentConfig())
    fits = [job.images for job in jobs.values() if job.images]
    assert (len(fits), len(jobs), 20 * sum(fits)) == (28, 50, 148_100)
    # Synthesis is about half of it.
    assert 495 * 7 / sum(fits) == pytest.approx(0.468, abs=1e-3)
    one = Line(per_unit_s=1.0)
    parts = replace(PARTS, fit=one, embed=one)
    tasks = {k: Task(seconds=j.seconds(parts), after=j.after) for k, j in jobs.items()}
    embeddings = sum(job.embeddings for job in jobs.values())
    assert makespan_s(tasks, devices=1) == 29_620 + embeddings
    # 500 images and 495 pairs: 20 x 199 steps, which no number of devices makes shorter.
    assert tasks["fit synthetic 500"].seconds == 3980


def test_small_arithmetic_by_hand():
    assert break_even(0.09, files_s=0.1, arrays_s=0.01) == pytest.approx(1.0)
    assert break_even(0.1, files_s=0.01, arrays_s=0.1) == float("inf")
    machine = Result(name="machine", facts={"fp32": 100.0})
    given = {"operations": 5e10, "machine": machine, "precision": "fp32"}
    share = share_of_peak(timing([2.0, 3.0]), **given)
    assert (share.value, share.unit) == (25.0, "%")
    # 3 to 4 channels, kernel 2, stride 2 on 8x8: 16 outputs x 4 x 12 multiply-adds, twice.
    network = torch.nn.Conv2d(3, 4, kernel_size=2, stride=2)
    assert encoder_flops(network, side_px=8) == 2 * 16 * 4 * 12


def test_gaps_lie_between_the_end_of_a_stage_and_the_next_begin(tmp_path):
    for name, begun, ended in (("fit/b", 110.5, 112.0), ("embed/a", 100.0, 110.0)):
        folder = tmp_path / "store" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"started": begun}))
        (folder / "DONE.json").write_text("{}")
        os.utime(folder / "DONE.json", (ended, ended))
    gaps, window_s = stage_gaps(tmp_path)
    assert gaps == [0.5]
    assert window_s == 12.0
    with pytest.raises(ValueError, match="0 finished stages"):
        stage_gaps(tmp_path / "nothing")


def test_views_are_compared_by_support():
    rows = pd.DataFrame(
        {
            "condition": ["weak", "weak", "real", "strong"],
            "support": [1, 0, 0, 0],
            "dice_mean": [0.9, 0.8, 0.7, 0.6],
        }
    )
    assert dice_by_support(rows, "weak") == {1: 0.9, 0: 0.8}
    mean, deviation = difference_points({0: 0.80, 1: 0.90}, {1: 0.88, 0: 0.80})
    assert mean == pytest.approx(1.0)
    assert deviation == pytest.approx(2**0.5)


def test_seconds_of_views_are_those_of_the_markers(tmp_path):
    runs = {
        "embed/a": {"embedded": 10, "cpu_seconds": 20.0},
        "embed/b": {"embedded": 30, "cpu_seconds": 40.0},
        # Found in the store: what it took is no cost of embedding.
        "embed/c": {"embedded": 0, "cpu_seconds": 5.0},
        "fit/d": {"cpu_seconds": 7.0},
        "fit/e": {"cpu_seconds": 9.0},
    }
    for name, done in runs.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "DONE.json").write_text(json.dumps(done))
    assert embedding_cpu_s(tmp_path) == 1.5
    rows = pd.DataFrame({"condition": ["weak", "weak", "real"], "fit_id": ["fit/d", "fit/e", "x"]})
    assert fit_cpu_s(tmp_path, rows, "weak") == 8.0
    with pytest.raises(ValueError, match="nothing was embedded"):
        embedding_cpu_s(tmp_path / "fit")


@pytest.mark.parametrize("backbone", ["tiny", "vit_tiny"])
def test_both_ways_give_the_same_logits(samples, tmp_path, backbone):
    """Cached in fp16, encoder folded or with SDPA, decoded as a batch: within 0.02 of plain."""
    config = SegmenterConfig(backbone=backbone)
    plain = PublishedSam(config, device="cpu")
    items = [plain.read(sample) for sample in samples]
    boxes = [plain.box(item, draw=number) for number, item in enumerate(items)]
    with torch.no_grad():
        expected = torch.cat(
            [plain.decode(plain.embed(i), box) for i, box in zip(items, boxes, strict=True)]
        )
    side, factor = FRAME_SIDE_PX[backbone], image_factor(backbone)
    dataset = prepared(samples, side=side, folder=tmp_path, factor=factor)
    images = dataset.rows[0][0]
    image = torch.from_numpy(np.array(images.images, dtype=np.float32) / 255.0)[:, None]
    valid_hw = torch.from_numpy(np.array(images.valid_hw))
    sam = build_sam(config)
    sam.image_encoder = for_inference(sam.image_encoder)
    embeddings = encode(sam, image, valid_hw=valid_hw, precision="fp32")
    assert embeddings.dtype == torch.float16
    with torch.no_grad():
        found = decode(sam, embeddings, torch.cat(boxes))[0]
    assert (found - expected).abs().max() < 0.02
    assert expected.std() > 0.02
    # The masks that both train on.
    if factor == 1:
        for row, item in enumerate(items):
            assert torch.equal(dataset[row]["mask"], item["mask"][0])
            assert torch.equal(dataset[row]["image"], item["image"][0])


def test_a_published_step_trains_the_decoder_alone(samples):
    plain = PublishedSam(SegmenterConfig(backbone="tiny", learning_rate=1e-3), device="cpu")
    encoder = [p.clone() for p in plain.sam.image_encoder.parameters()]
    losses = [plain.step(samples, draw=0) for _ in range(8)]
    assert losses[-1] < losses[0]
    moved = zip(encoder, plain.sam.image_encoder.parameters(), strict=True)
    assert all(torch.equal(before, after) for before, after in moved)
    row = plain.score(samples[0], draw=0)
    assert row["sample_id"] == samples[0].sample_id
    assert 0 <= row["dice"] <= 1


PLACE = {"backbone": "tiny", "device": "cpu"}
CALLS = "experiments.bench.published"


@pytest.fixture(scope="module")
def child():
    process = Child()
    yield process
    process.close()


def test_each_thing_takes_time_in_a_child(child, root, samples):
    names, given = [sample.sample_id for sample in samples], {"root": str(root), **PLACE}
    for answer in (
        child.call(f"{CALLS}:build", **PLACE),
        child.call(f"{CALLS}:step", **given, names=names, draw=0, weights=None),
        child.call(f"{CALLS}:score", **given, name=names[0], draw=1),
        child.call(f"{CALLS}:encode", **PLACE, library="segment_anything", batch=2),
        child.call(f"{CALLS}:decode", backbone="vit_tiny", device="cpu"),
    ):
        assert answer.seconds.wall_s > 0
        assert answer.seconds.cpu_s >= 0
        assert 0.1 < answer.imported_gib <= answer.peak_gib
        assert answer.gpu_gib == 0


def test_a_childs_errors_and_its_end_are_told(child):
    with pytest.raises(RuntimeError, match="no such folder"):
        child.call(f"{CALLS}:score", root=os.devnull, name="none", draw=0, **PLACE)
    child.call(f"{CALLS}:build", **PLACE)
    child.process.kill()
    child.process.wait()
    with pytest.raises(RuntimeError, match="ended before its answer"):
        child.call(f"{CALLS}:build", **PLACE)
    assert child.call(f"{CALLS}:build", **PLACE).seconds.wall_s > 0
    with pytest.raises(RuntimeError, match="ended with 1: ValueError: why"):
        run_program(["-c", "raise ValueError('why')"])


@pytest.mark.parametrize("keeps_memory", [False, True])
def test_only_ours_has_the_stages_memory_settings(monkeypatch, keeps_memory):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000")
    process = Child(keeps_memory=keeps_memory)
    try:
        # An answer: it has the environment that it runs in.
        process.call(f"{CALLS}:build", **PLACE)
        started = process.process
        environment = Path(f"/proc/{started.pid}/environ").read_bytes()
        assert (b"GLIBC_TUNABLES" in environment) == keeps_memory
        assert b"PYTHONPATH" in environment
    finally:
        process.close()
    assert started.poll() is not None
