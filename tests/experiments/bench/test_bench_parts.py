"""The arithmetic of composed numbers by hand, the child, and that both ways compute the same."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_parts import write_hc18_folder

from datamodules.errors import InputError
from datamodules.samples import read_hc18
from experiments.bench.cases import CASES, Case, Target
from experiments.bench.child import Seconds, measured, run_program, start_child
from experiments.bench.composed import PAPER_AMOUNTS, Parts, n_embeddings, steps_of
from experiments.bench.data import prepared
from experiments.bench.encoder import encoder_flops
from experiments.bench.measure import Bench, Found, Line, Timing, Way, line_through
from experiments.bench.published import PublishedSam
from experiments.bench.startup import stage_gaps
from experiments.config.synthesis import AugmentConfig
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig, image_factor
from lightning_modules.segmenters.sam.network import build_sam, decode, encode, for_inference


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_hc18_folder(tmp_path_factory.mktemp("bench") / "hc18")


@pytest.fixture(scope="module")
def samples(root):
    return sorted(read_hc18(root), key=lambda s: s.sample_id)[:3]


def timing(wall, *, units=1.0):
    return Timing(label="a", unit="image", units=units, wall_s=wall, cpu_s=[2 * w for w in wall])


def test_medians_ratios_targets_and_shares_of_the_peak_by_hand(monkeypatch):
    """Two ways of 2 units: 8, 16 and 12 s against 4, 1 and 2 s, in turn after a warm-up."""
    targets = (Target(6, "it"), Target(2.0, "a value"))
    sizes = {"repeats": (3, 1, 1)}
    case = Case("a toy", "toy:toy", targets=targets, sizes=sizes, note="a note")
    monkeypatch.setitem(CASES, "toy", case)
    bench = Bench(device="cpu", quick=True)
    bench.results["machine"] = Found(name="machine", bench=bench, facts={"fp32": 100.0})
    found, called, seconds = Found(name="toy", bench=bench), [], {0: (8.0, 4.0), 1: (16.0, 1.0)}

    def call(way):
        def work(number):
            called.append((way, number))
            return Seconds(seconds.get(number, (12.0, 2.0))[way], 7.0)

        return work

    # 5e10 operations in half a second of a machine of 1e11 a second.
    ours = Way("ours", call(1), 2, ratio="toys", target="it", flops=5e10)
    found.measure(Way("published", call(0), 2), ours)
    assert called == [(way, number) for number in (-1, 0, 1, 2) for way in (0, 1)]
    found.value("a value", 2.0, "GiB")
    found.value("another", 2.1, "GiB")
    found.ratio("composed", 12.0, 3.0, "it")
    content = found.as_json()
    assert content == json.loads(json.dumps(content))
    theirs, ours = content["timings"]
    assert (theirs["per_unit_s"], theirs["fastest_s"], theirs["slowest_s"]) == (6.0, 4.0, 8.0)
    assert (ours["per_unit_s"], ours["cpu_per_unit_s"], ours["wall_s"]) == (1.0, 3.5, [4, 1, 2])
    rows = [(r["ratio"], r["at_least"], r["reached"], r["how"]) for r in content["ratios"]]
    assert rows == [(6.0, 6, True, "measured"), (4.0, 6, False, "composed")]
    values = [(v["value"], v["at_most"], v["reached"]) for v in content["values"]]
    assert values == [(100.0, None, None), (2.0, 2.0, True), (2.1, None, None)]
    assert (content["settings"], content["notes"]) == ({"repeats": 3}, ["a note"])


def test_a_line_through_two_sizes_by_hand():
    """2 s for 2 units and 5 s for 8: half a second a unit, one second whatever the size."""
    line = line_through(timing([2.0, 2.0, 9.0], units=2), timing([5.0, 5.0, 1.0], units=8))
    assert line == Line(fixed_s=1.0, per_unit_s=0.5)
    assert (line.seconds(0), line.seconds(10)) == (1.0, 6.0)
    # The larger size took less time: all of it is fixed. More than in proportion: none of it is.
    for short, long, parts in ((3.0, 1.0, (2.0, 0.0)), (1.0, 10.0, (0.0, 2.0))):
        line = line_through(timing([short]), timing([long], units=5))
        assert (line.fixed_s, line.per_unit_s) == parts


def test_fine_tunes_by_hand():
    """50 images x 20 epochs in fives are 200 steps."""
    assert [steps_of(n) for n in (0, 5, 7, 50, 500)] == [0, 20, 40, 200, 2000]
    published, fit = Line(fixed_s=2.0, per_unit_s=10.0), Line(fixed_s=3.0, per_unit_s=0.5)
    embed = Line(fixed_s=1.0, per_unit_s=2.0)
    parts = Parts(label="a", backbone="tiny", published=published, ours=fit, embed=embed)
    assert parts.fine_tunes(50) == (2 + 200 * 10, (1 + 50 * 2) + (3 + 200 * 0.5))
    assert parts.fine_tunes(50, n_trials=3) == (3 * 2002, (1 + 50 * 2) + 3 * (3 + 200 * 0.5))


@pytest.mark.parametrize(
    ("amounts", "pairs", "views", "expected"),
    # 10 images with 3 weak and 3 strong views beside themselves; or 25 views in a trial, of which
    # 5 images have four and ten have two: of the second five, one is augmented.
    [
        ((5, 10), 3, {"n_views": 4, "max_per_trial": None}, 10 * 7 + 3),
        ((5, 10), 3, {"n_views": 4, "max_per_trial": 25}, 10 + 2 * (5 * 3 + 5 * 1) + 3),
        # As docs/performance.md counts it: 7 views of 50 images, 3 of 50 and 1 of 400.
        (PAPER_AMOUNTS, 495, {}, 500 + 495 + 2 * (7 * 50 + 3 * 50 + 400)),
    ],
)
def test_embeddings_of_an_ablation_by_hand(amounts, pairs, views, expected):
    assert n_embeddings(amounts, pairs=pairs, augment=AugmentConfig(**views)) == expected


def test_operations_of_a_convolution_by_hand():
    """3 to 4 channels, kernel 2, stride 2 on 8x8: 16 outputs x 4 x 12 multiply-adds, twice."""
    network = torch.nn.Conv2d(3, 4, kernel_size=2, stride=2)
    assert encoder_flops(network, side_px=8) == 2 * 16 * 4 * 12


def test_gaps_lie_between_the_end_of_a_stage_and_the_next_begin(tmp_path):
    for name, begun, ended in (("fit/b", 110.5, 112.0), ("embed/a", 100.0, 110.0)):
        folder = tmp_path / "store" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"started": begun}))
        (folder / "DONE.json").write_text("{}")
        os.utime(folder / "DONE.json", (ended, ended))
    prepared = tmp_path / "store" / "prepared" / "prepared-a"
    prepared.mkdir(parents=True)
    (prepared / "DONE.json").write_text("{}")
    assert stage_gaps(tmp_path) == ([0.5], 12.0)


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
        found = decode(sam, embeddings, torch.cat(boxes))
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
    with start_child() as process:
        yield process


def test_each_thing_takes_time_in_a_child(child, root, samples):
    names, given = [sample.sample_id for sample in samples], {"root": str(root), **PLACE}
    for answer in (
        measured(child, f"{CALLS}:build", **PLACE),
        measured(child, f"{CALLS}:step", **given, names=names, draw=0, weights=None),
        measured(child, f"{CALLS}:score", **given, name=names[0], draw=1),
        measured(child, f"{CALLS}:encode", **PLACE, library="segment_anything", batch=2),
    ):
        assert answer.seconds.wall_s > 0
        assert answer.seconds.cpu_s >= 0
        assert 0.1 < answer.imported_gib <= answer.peak_gib
        assert answer.gpu_gib == 0


def test_errors_of_children_and_programs_are_told(child):
    with pytest.raises(InputError, match="no such folder"):
        measured(child, f"{CALLS}:score", root=os.devnull, name="none", draw=0, **PLACE)
    with pytest.raises(RuntimeError, match="ended with 1: ValueError: why"):
        run_program(["-c", "raise ValueError('why')"])


@pytest.mark.parametrize("keeps_memory", [False, True])
def test_only_ours_has_the_stages_memory_settings(monkeypatch, keeps_memory):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000")
    with start_child(keeps_memory=keeps_memory) as process:
        found = process.submit(Path("/proc/self/environ").read_bytes).result()
    assert (b"GLIBC_TUNABLES" in found) == keeps_memory
    assert b"PYTHONPATH" in found
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.trim_threshold=1000000"
