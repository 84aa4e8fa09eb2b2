"""Scores at the original size: perfect and empty predictions, the control, fixed draws."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from datamodules.annotation import read_annotation
from datamodules.ellipse import Ellipse, contour_distance_px, perimeter_px, rasterise
from datamodules.geometry import place
from datamodules.hc18 import HC18DataModule
from datamodules.head_ellipse import filled_ellipse
from datamodules.samples import Sample, read_hc18
from datamodules.settings import Cache, Frame
from experiments.stages.evaluation import Protocol, Scorer, box_only_logits, evaluate
from experiments.store.columns import PER_IMAGE
from lightning_modules.prompts import boxes_from_masks, ellipse_in_box_mask

JITTERED = Protocol(prompt="jittered_box", jitter_draws=3, jitter_max_px=19)
PROTOCOLS = [replace(JITTERED, prompt=p) for p in ("whole_image", "jittered_box", "tight_box")]
MM = ["hausdorff_mm", "hc_pred_mm", "hc_ref_mm", "hc_err_mm", "hc_abs_err_mm"]


@pytest.fixture
def samples(hc18_folder):
    return {s.sample_id: s for s in read_hc18(hc18_folder)}


@pytest.fixture
def loader(samples, tmp_path):
    """A test loader at any batch size."""

    def build(batch_size=4):
        datamodule = HC18DataModule(
            samples=samples,
            train_ids=[],
            val_ids=[],
            test_ids={"hc18": sorted(samples)},
            frame=Frame(size_hw=(256, 256), resize_mode="pad"),
            cache=Cache(folder=tmp_path / "cache"),
            batch_size=batch_size,
            n_batches=0,
            seed=0,
        )
        datamodule.setup()
        return datamodule.test_dataloader()[0]

    return build


def scored(segment, loader, samples, *, protocols=PROTOCOLS, **named):
    """Rows of all protocols, one after the other."""
    of = {"cohort": "hc18", "scorer": scorer(samples), **named}
    return [row for each in protocols for row in evaluate(segment, loader, protocol=each, **of)]


def scorer(samples):
    return Scorer(samples=samples, frame_hw=(256, 256), mode="pad")


def perfect(batch, boxes):
    return batch["mask"] * 2 - 1


def test_perfect_logits_of_the_frame_score_near_one(samples, loader):
    rows = scored(perfect, loader(), samples)
    assert [row["output"] for row in rows] == ["mask", "ellipse"] * 12 * 5
    for row in rows:
        sample = samples[row["sample_id"]]
        assert row["dice"] > 0.99
        assert row["dice_256"] > 0.99
        assert row["hausdorff_mm"] <= 1.01 * sample.pixel_size_mm
        # The head is about 125 pixels round: 1.5 % is a third of a pixel in radius.
        assert row["hc_abs_err_mm"] < 0.015 * sample.hc_mm
        assert row["hc_err_mm"] == pytest.approx(row["hc_pred_mm"] - sample.hc_mm)
        assert row["hc_abs_err_mm"] == abs(row["hc_err_mm"])
        assert row["hc_ref_mm"] == sample.hc_mm
        assert row["exam_id"] == sample.exam_id


def test_perfect_logits_at_hc18_size(tmp_path):
    """A true ellipse at 540x800 through a 256 px frame: sub-pixel loss only."""
    ellipse = Ellipse(
        center_x_px=402.3, center_y_px=268.7, semi_major_px=231, semi_minor_px=172, theta_rad=0.4
    )
    mask = rasterise(ellipse, size_hw=(540, 800))
    cv2.imwrite(str(tmp_path / "mask.png"), mask * 255)
    sample = Sample(
        sample_id="a",
        image_path=tmp_path / "unused.png",
        annotation_path=tmp_path / "mask.png",
        exam_id="a",
        frame=1,
        pixel_size_mm=0.14,
        hc_mm=perimeter_px(ellipse) * 0.14,
        cohort="x",
    )
    judge = scorer({"a": sample})
    placement = place((540, 800), frame_hw=(256, 256), mode="pad")
    # Signed distance on the frame's grid, as a perfectly calibrated segmenter would give.
    y, x = np.mgrid[:256, :256].astype(float)
    points = np.stack(
        [(x + 0.5) / placement.scale_x - 0.5, (y + 0.5) / placement.scale_y - 0.5], axis=-1
    )
    distance = contour_distance_px(ellipse, points.reshape(-1, 2)).reshape(256, 256)
    logits = torch.from_numpy(-distance).float()[None]
    row = judge.row("a", judge.predicted_mask(logits, "a"))
    assert row["dice"] > 0.998
    assert row["dice_256"] > 0.998
    assert row["hausdorff_mm"] < 0.3
    assert row["hc_abs_err_mm"] < 0.2
    shifted = judge.row("a", judge.predicted_mask(logits.roll(4, dims=2), "a"))
    assert shifted["dice"] < 0.98
    assert shifted["hausdorff_mm"] == pytest.approx(4 * 800 / 256 * 0.14, abs=0.3)


def test_an_exact_prediction_by_hand(samples):
    judge = scorer(samples)
    sample = samples["004_2HC"]
    mask = read_annotation(sample.annotation_path, filled_bias_px=1.4).mask
    assert np.array_equal(judge.reference("004_2HC"), mask)
    row = judge.row("004_2HC", mask)
    assert set(row) | {"test_cohort", "prompt", "draw", "output", "fitted"} == set(PER_IMAGE)
    assert (row["dice"], row["dice_256"], row["hausdorff_mm"]) == (1.0, 1.0, 0.0)
    assert row["found"] is True
    assert (row["exam_id"], row["trimester"], row["hc_ref_mm"]) == ("004", 2, 170.0)
    assert row["hc_pred_mm"] == pytest.approx(170.0, rel=0.01)
    assert judge.row("001_HC", judge.reference("001_HC"))["trimester"] == 1
    assert judge.row("008_HC", judge.reference("008_HC"))["trimester"] == 3


def test_an_empty_prediction(samples):
    judge = scorer(samples)
    predicted = judge.predicted_mask(torch.full((1, 256, 256), -3.0), "001_HC")
    assert predicted.shape == (54, 80)
    assert predicted.dtype == np.uint8
    assert not predicted.any()
    row = judge.row("001_HC", predicted)
    assert (row["dice"], row["dice_256"]) == (0.0, 0.0)
    assert row["found"] is False
    # The worst case, not a gap: no circumference, and as far off as the image allows.
    diagonal_mm = math.hypot(54, 80) * samples["001_HC"].pixel_size_mm
    assert row["hausdorff_mm"] == pytest.approx(diagonal_mm)
    assert (row["hc_pred_mm"], row["hc_ref_mm"]) == (0.0, 70.0)
    assert (row["hc_err_mm"], row["hc_abs_err_mm"]) == (-70.0, 70.0)


def test_a_bitten_mask_is_scored_as_it_is_and_as_its_ellipse(samples):
    judge = scorer(samples)
    whole = judge.reference("004_HC")
    rows, columns = np.nonzero(whole)
    y, right = round(rows.mean()), columns.max()
    bitten = whole.copy()
    bitten[y - 5 : y + 6, right - 6 :] = 0
    as_mask, as_ellipse = judge.rows("004_HC", bitten)
    assert as_mask == judge.row("004_HC", bitten) | {"output": "mask"}
    assert (as_ellipse["output"], as_ellipse["fitted"]) == ("ellipse", True)
    assert as_mask["dice"] < 0.97
    assert as_ellipse["dice"] > 0.98
    ellipse, filled = filled_ellipse(bitten)
    assert as_ellipse["dice"] == judge.row("004_HC", filled)["dice"]
    size_mm = samples["004_HC"].pixel_size_mm
    assert as_ellipse["hc_pred_mm"] == pytest.approx(perimeter_px(ellipse) * size_mm)


def test_without_an_ellipse_the_masks_own_scores_count(samples):
    dot = np.zeros((54, 80), np.uint8)
    dot[20:23, 30:33] = 1
    as_mask, as_ellipse = scorer(samples).rows("004_HC", dot)
    assert "fitted" not in as_mask
    assert as_ellipse == as_mask | {"output": "ellipse", "fitted": False}


def test_a_prediction_that_fills_the_image(samples):
    judge = scorer(samples)
    row = judge.row("001_HC", np.ones((54, 80), dtype=np.uint8))
    area = int(judge.reference("001_HC").sum())
    assert row["dice"] == pytest.approx(2 * area / (area + 54 * 80))
    assert (row["hc_pred_mm"], row["hc_abs_err_mm"]) == (0.0, 70.0)
    assert 0 < row["hausdorff_mm"] < math.hypot(54, 80) * samples["001_HC"].pixel_size_mm


def test_no_mm_without_a_pixel_size(samples):
    unknown = replace(samples["004_HC"], pixel_size_mm=None, hc_mm=None)
    judge = scorer({"004_HC": unknown})
    row = judge.row("004_HC", judge.reference("004_HC"))
    assert not set(row) & set(MM)
    assert row["trimester"] is None
    assert row["dice"] == 1.0


def test_without_a_published_circumference_our_fit_is_the_reference(samples):
    judge = scorer({"004_HC": replace(samples["004_HC"], hc_mm=None)})
    row = judge.row("004_HC", judge.reference("004_HC"))
    assert row["hc_err_mm"] == 0.0
    assert row["hc_ref_mm"] == pytest.approx(170.0, rel=0.01)
    assert row["trimester"] is None


def test_filled_annotations_are_corrected_and_read_once(samples):
    sample = samples["003_HC"]
    outline = read_annotation(sample.annotation_path).mask
    grown = cv2.dilate(outline, np.ones((3, 3), np.uint8))
    cv2.imwrite(str(sample.annotation_path), grown * 255)
    judge = scorer(samples)
    reference = judge.reference("003_HC")
    assert 0.97 * outline.sum() < reference.sum() < 1.03 * outline.sum()
    assert grown.sum() > 1.08 * outline.sum()
    sample.annotation_path.unlink()
    assert judge.reference("003_HC") is reference


def test_offsets_are_fixed_whole_numbers_in_range():
    ids = [f"{n:03d}_HC" for n in range(400)]
    offsets = JITTERED.offsets(ids, draw=0)
    assert offsets.shape == (400, 4)
    assert offsets.dtype == torch.float32
    assert set(offsets.unique().tolist()) == set(range(20))
    assert offsets.mean() == pytest.approx(9.5, abs=0.5)
    assert torch.equal(offsets[[7]], JITTERED.offsets(["007_HC"], draw=0))
    assert not torch.equal(offsets, JITTERED.offsets(ids, draw=1))
    assert len({tuple(row) for row in offsets.tolist()}) > 390
    torch.manual_seed(5)  # no global random state is read
    assert torch.equal(JITTERED.offsets(ids, draw=0), offsets)
    # Frozen: other draws would unpair new trials from old ones.
    assert offsets[:2].tolist() == [[3, 3, 12, 11], [3, 1, 16, 16]]


class Recorder:
    """A segmenter that notes its boxes and answers by `logits`."""

    def __init__(self, logits):
        self.logits, self.boxes = logits, {}

    def __call__(self, batch, boxes):
        for sample_id, box in zip(batch["sample_id"], boxes.tolist(), strict=True):
            self.boxes.setdefault(sample_id, []).append(box)
        return self.logits(batch, boxes)


def test_boxes_are_the_same_for_every_model_and_batch_size(samples, loader):
    def nothing(batch, boxes):
        torch.randn(3)  # a model may use random numbers itself
        return torch.full_like(batch["mask"], -1)

    recorders = []
    for batch_size, logits in ((1, perfect), (4, nothing), (5, nothing)):
        recorder = Recorder(logits)
        scored(recorder, loader(batch_size), samples)
        recorders.append(recorder.boxes)
    assert recorders[0] == recorders[1] == recorders[2]
    assert set(recorders[0]) == set(samples)
    for batch in loader():
        tight = boxes_from_masks(batch["mask"], valid_hw=batch["valid_hw"]).tolist()
        for sample_id, (x0, y0, x1, y1) in zip(batch["sample_id"], tight, strict=True):
            whole, *jittered, last = recorders[0][sample_id]
            assert whole == [0, 0, 255, 172]
            assert last == [x0, y0, x1, y1]
            assert len({tuple(box) for box in jittered}) == 3
            for box in jittered:
                assert 0 <= box[0] <= x0
                assert 0 <= box[1] <= y0
                assert x1 <= box[2] <= 255
                assert y1 <= box[3] <= 172


def test_rows_progress_and_kept_masks(samples, loader):
    calls, kept, ids = [], {}, sorted(samples)
    rows = scored(
        perfect,
        loader(4),
        samples,
        protocols=[JITTERED],
        keep=lambda sample_id, mask: kept.setdefault(sample_id, []).append(mask),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert all(set(row) <= set(PER_IMAGE) for row in rows)
    masks = [r for r in rows if r["output"] == "mask"]
    assert rows[1::2] == [r for r in rows if r["output"] == "ellipse"]
    keys = [(r["test_cohort"], r["prompt"], r["draw"], r["sample_id"]) for r in masks]
    expected = [("hc18", "jittered_box", draw, i) for i in ids for draw in JITTERED.draws]
    assert sorted(keys) == sorted(expected)
    assert calls == [(done, 36) for done in range(4, 37, 4)]
    assert sorted(kept) == ids
    for sample_id, (mask,) in kept.items():
        assert mask.shape == (54, 80)
        reference = read_annotation(samples[sample_id].annotation_path).mask
        assert (mask != reference).mean() < 0.01


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda each: each.prompt)
def test_the_control_reads_no_pixel(samples, loader, protocol):
    control = box_only_logits(protocol)

    def blinded(batch, boxes):
        return control(batch | {"image": torch.rand_like(batch["image"])}, boxes)

    rows = [scored(each, loader(), samples, protocols=[protocol]) for each in (control, blinded)]
    assert rows[0] == rows[1]
    dice = float(np.mean([row["dice"] for row in rows[0]]))
    low, high = {
        "whole_image": (0.3, 0.6),
        "jittered_box": (0.85, 0.95),
        "tight_box": (0.93, 0.99),
    }[protocol.prompt]
    assert low < dice < high


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda each: each.prompt)
def test_the_control_is_the_ellipse_in_the_box_pulled_in_by_the_mean_jitter(protocol):
    boxes, valid_hw = torch.tensor([[60.0, 40, 190, 130]]), torch.tensor([[173, 256]])
    batch = {"mask": torch.zeros(1, 1, 256, 256), "valid_hw": valid_hw}
    logits = box_only_logits(protocol)(batch, boxes)
    shrink_px = 9.5 if protocol.prompt == "jittered_box" else 0.0
    expected = ellipse_in_box_mask(
        boxes, size_hw=(256, 256), valid_hw=valid_hw, shrink_px=shrink_px
    )
    assert logits.tolist() == (expected * 2.0 - 1).tolist()
