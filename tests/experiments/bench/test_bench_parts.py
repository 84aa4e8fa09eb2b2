"""The arithmetic of composed numbers by hand, and that both ways compute the same thing."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_hc18_folder

from datamodules.frames import FrameDataset
from datamodules.prepared import prepare_images
from datamodules.samples import read_hc18
from datamodules.storage import files_sha256
from experiments.bench import machine as bench_machine
from experiments.bench.ablation import embeddings_needed, images_seen, steps_in_all
from experiments.bench.data import break_even
from experiments.bench.encoder import encoder_flops
from experiments.bench.finetune import trial_seconds
from experiments.bench.machine import share_of_peak
from experiments.bench.measure import Line, Result, Value
from experiments.bench.published import PublishedSam
from experiments.bench.scaling import ablation_tasks, same_images
from experiments.bench.startup import stage_gaps
from experiments.bench.views import (
    dice_by_support,
    difference_points,
    embedding_cpu_s,
    fit_cpu_s,
)
from experiments.config.schema import AugmentConfig
from experiments.runner.schedule import makespan_s
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig, image_factor
from lightning_modules.segmenters.sam.network import build_sam, decode, encode, for_inference


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = write_hc18_folder(tmp_path_factory.mktemp("bench") / "hc18")
    return sorted(read_hc18(root), key=lambda s: s.sample_id)[:3]


def test_a_fine_tune_by_hand():
    """50 images x 20 epochs in fives are 200 steps."""
    theirs, ours = trial_seconds(
        50,
        published=Line(fixed_s=2.0, per_unit_s=10.0),
        fit=Line(fixed_s=3.0, per_unit_s=0.5),
        embed=Line(fixed_s=1.0, per_unit_s=2.0),
    )
    assert theirs == 2 + 200 * 10
    assert ours == (1 + 50 * 2) + (3 + 200 * 0.5)


def test_the_ablation_by_hand():
    """Two amounts, three pairs: 3 conditions x 2 epochs x (5 + 10), and 2 x (5 + 3 + 10 + 3)."""
    assert images_seen((5, 10), pairs=3, epochs=2) == (90, 42)
    # Batches of 5: real 1 + 2 an epoch, with pairs 2 + 3 (8 and 13 images).
    assert steps_in_all((5, 10), pairs=3, epochs=2, batch_size=5) == 3 * 2 * 3 + 2 * 5
    # 10 images, each with 3 weak and 3 strong views beside itself, and the pairs.
    four = AugmentConfig(n_views=4, max_per_trial=None)
    assert embeddings_needed((5, 10), pairs=3, augment=four) == 10 * 7 + 3
    # 25 views in a trial: 5 images have four, ten have two. Of the second five, one is augmented.
    few = AugmentConfig(n_views=4, max_per_trial=25)
    assert embeddings_needed((5, 10), pairs=3, augment=few) == 10 + 2 * (5 * 3 + 5 * 1) + 3


def test_synthesis_is_about_half_of_the_papers_ablation():
    amounts = (5, 10, 20, 50, 100, 300, 500)
    real, both = images_seen(amounts, pairs=495, epochs=20)
    assert (real, both) == (59_100, 89_000)
    assert 495 * 20 * 7 / (real + both) == pytest.approx(0.468, abs=1e-3)


def test_small_arithmetic_by_hand():
    assert break_even(0.09, 0.1, 0.01) == pytest.approx(1.0)
    assert break_even(0.1, 0.01, 0.1) == float("inf")
    machine = Result(
        name="machine", values=[Value(label="matrix product, fp32", value=100.0, unit="GFLOP/s")]
    )
    share = share_of_peak("a", operations=5e10, seconds=2.0, machine=machine)
    assert (share.value, share.unit) == (25.0, "%")


def test_the_ablations_tasks_by_hand():
    """28 fits, 22 stages that embed; on one device all one after the other."""
    tasks = ablation_tasks(
        fit=Line(fixed_s=0.0, per_unit_s=1.0), embed=Line(fixed_s=0.0, per_unit_s=1.0)
    )
    assert sum(name.startswith("fit") for name in tasks) == 28
    amounts = (5, 10, 20, 50, 100, 300, 500)
    steps = steps_in_all(amounts, pairs=495, epochs=20, batch_size=5)
    embeddings = embeddings_needed(amounts, pairs=495, augment=AugmentConfig())
    assert makespan_s(tasks, devices=1) == steps + embeddings
    # 500 images and 495 pairs: 20 x 199 steps, which no number of devices makes shorter.
    assert tasks["fit synthetic 500"].seconds == 3980
    assert set(tasks["fit weak 10"].after) == {
        "embed real 5",
        "embed real 10",
        "embed weak 5",
        "embed weak 10",
    }
    lines = {"published": Line(fixed_s=0.0, per_unit_s=10.0), "fit": Line(fixed_s=1, per_unit_s=1)}
    theirs, ours = same_images(3, embed=Line(fixed_s=0.0, per_unit_s=2.0), **lines)
    assert (theirs, ours) == (3 * 2000, 100 + 3 * 201)


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


def test_flops_of_a_convolution_by_hand():
    """3 to 4 channels, kernel 2, stride 2 on 8x8: 16 outputs x 4 x 12 multiply-adds, twice."""
    network = torch.nn.Conv2d(3, 4, kernel_size=2, stride=2)
    assert encoder_flops(network, side_px=8) == 2 * 16 * 4 * 12


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
    side = FRAME_SIDE_PX[backbone]
    prepared = prepare_images(
        samples,
        content_hashes=[files_sha256(s.image_path, s.annotation_path) for s in samples],
        frame_hw=(side, side),
        mode="pad",
        factor=image_factor(backbone),
        cache_dir=tmp_path,
    )
    image = torch.from_numpy(np.array(prepared.images, dtype=np.float32) / 255.0)[:, None]
    valid_hw = torch.from_numpy(np.array(prepared.valid_hw))
    sam = build_sam(config)
    sam.image_encoder = for_inference(sam.image_encoder)
    embeddings = encode(sam, image, valid_hw=valid_hw, precision="fp32")
    assert embeddings.dtype == torch.float16
    with torch.no_grad():
        found = decode(sam, embeddings, torch.cat(boxes))[0]
    assert (found - expected).abs().max() < 0.02
    assert expected.std() > 0.02
    # The masks that both train on.
    if image_factor(backbone) == 1:
        dataset = FrameDataset(
            [(prepared, row) for row in range(len(samples))],
            index=range(len(samples)),
            synthetic_from=len(samples),
            embeddings=None,
        )
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


def test_a_product_that_takes_minutes_is_made_smaller(monkeypatch):
    times = iter([10.0, 10.01])
    monkeypatch.setattr(bench_machine.time, "perf_counter", lambda: next(times))
    # 0.01 s at 256: 5.1 s at 2048, 0.64 s at 1024.
    assert bench_machine.affordable_side(2048, dtype=torch.float32, device="cpu") == 1024
    times = iter([10.0, 10.001])
    assert bench_machine.affordable_side(2048, dtype=torch.float32, device="cpu") == 2048
