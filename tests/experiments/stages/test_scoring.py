"""The stages that score: the mean mask, the model's own box, logits that are no numbers."""

from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from folder_parts import write_hc18_folder
from stage_parts import Stages

from datamodules.annotation import read_annotation
from datamodules.ellipse import Ellipse, rasterise
from datamodules.samples import Sample, content_hash_of, read_hc18
from experiments.plan.stage_table import STAGES
from experiments.runner.sweep import next_batch_parts
from experiments.stages.embed import run_embed
from experiments.stages.evaluation import Protocol, Scorer, evaluate
from experiments.stages.scoring import constant_logits, mean_mask, run_box, run_control, run_score
from experiments.store.kept_masks import read_prediction
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.segmenters.unet.module import UnetModule

VALID_HW = (43, 64)
OWN_BOX = Protocol(prompt="predicted_box", jitter_max_px=19)


def write_head(folder, name, *, size_hw, center_x_px):
    """A sample whose filled annotation is an ellipse in the middle row; and its mask."""
    height, width = size_hw
    ellipse = Ellipse(
        center_x_px=center_x_px,
        center_y_px=height / 2 - 0.5,
        semi_major_px=width / 4,
        semi_minor_px=height / 4,
        theta_rad=0.0,
    )
    mask = rasterise(ellipse, size_hw=size_hw)
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), mask * 255)
    sample = Sample(
        sample_id=name,
        image_path=folder / "unread.png",
        annotation_path=path,
        exam_id=name,
        frame=1,
        pixel_size_mm=None,
        hc_mm=None,
        cohort="x",
    )
    return sample, mask


def test_mean_mask_by_hand(tmp_path):
    """Two heads side by side that overlap: in both, in one, in none; blocks of 2x2 averaged."""
    left, left_mask = write_head(tmp_path, "left", size_hw=(540, 800), center_x_px=300)
    right, right_mask = write_head(tmp_path, "right", size_hw=(540, 800), center_x_px=500)
    mean = mean_mask([left, right])
    assert mean.shape == (270, 400)
    assert mean.dtype == np.float32
    # Middle of the overlap, of each head's own side, of the corner.
    assert [mean[135, x] for x in (200, 80, 320, 2)] == [0.5, 0.0, 0.0, -0.5]
    both = (left_mask.astype(float) + right_mask) / 2
    expected = both.reshape(270, 2, 400, 2).mean(axis=(1, 3)) - 0.5
    assert np.abs(mean - expected).max() < 1e-6
    assert np.array_equal(mean_mask([right, left]), mean)
    assert set(np.sign(mean_mask([left])[135, [80, 320]])) == {1.0, -1.0}


def test_mean_mask_stretches_each_mask_over_its_image(tmp_path):
    """A head in the middle of a square image and of a wide one is the same share of both."""
    wide, _ = write_head(tmp_path, "wide", size_hw=(540, 800), center_x_px=399.5)
    square, _ = write_head(tmp_path, "square", size_hw=(640, 640), center_x_px=319.5)
    apart = np.abs(mean_mask([wide]) - mean_mask([square]))
    assert apart.mean() < 0.01
    assert (mean_mask([wide, square]) > 0).mean() == pytest.approx(np.pi / 16, abs=0.003)


def test_constant_logits_fill_the_image_and_leave_the_padding_out():
    mean = np.full((270, 400), -0.25, dtype=np.float32)
    mean[:135, :200] = 0.25  # the upper left quarter
    sizes = [[43, 64], [64, 40], [64, 64]]
    batch = {"mask": torch.zeros(3, 1, 64, 64), "valid_hw": torch.tensor(sizes)}
    logits = constant_logits(mean)(batch, torch.zeros(3, 4))
    assert logits.shape == (3, 1, 64, 64)
    assert logits.dtype == torch.float32
    for each, (height, width) in zip(logits[:, 0], sizes, strict=True):
        assert (each[height:] == -1).all()
        assert (each[:, width:] == -1).all()
        inside = each[:height, :width]
        assert inside.min() == -0.25
        assert inside.max() == 0.25
        quarter = inside > 0
        assert quarter[: height // 2, : width // 2].all()
        assert not quarter[height // 2 + 1 :].any()
        assert not quarter[:, width // 2 + 1 :].any()
    boxes = torch.rand(3, 4)
    assert torch.equal(constant_logits(mean)(batch, boxes), logits), "no box is read"


class OneBatch:
    """A loader of one batch of two images of 54x80 in a frame of 64."""

    def __init__(self, mask):
        self.dataset = [0, 1]
        self.batch = {
            "image": torch.zeros(2, 1, 64, 64),
            "mask": mask,
            "valid_hw": torch.tensor([VALID_HW] * 2),
            "sample_id": ["001_HC", "003_HC"],
        }

    def __iter__(self):
        return iter([self.batch])


@pytest.fixture
def scorer(hc18_folder):
    samples = {s.sample_id: s for s in read_hc18(hc18_folder)}
    return Scorer(samples=samples, frame_hw=(64, 64), mode="pad")


def blocks(*parts):
    """Logits (2, 1, 64, 64): 1 within each (item, top, bottom, left, right), else -1."""
    logits = torch.full((2, 1, 64, 64), -1.0)
    for item, top, bottom, left, right in parts:
        logits[item, 0, top:bottom, left:right] = 1
    return logits


def own_boxes(first, scorer, *, mask=None):
    """The boxes that the second pass gets after a first pass gave these logits; and the rows."""
    seen, kept = [], {}

    def segment(batch, boxes):
        seen.append(boxes.tolist())
        return first if len(seen) == 1 else first.flip(-1)

    mask = torch.zeros(2, 1, 64, 64) if mask is None else mask
    rows = evaluate(
        segment,
        OneBatch(mask),
        cohort="hc18",
        protocol=OWN_BOX,
        scorer=scorer,
        keep=lambda sample_id, predicted: kept.update({sample_id: predicted}),
    )
    assert len(seen) == 2
    assert seen[0] == [[0, 0, 63, 42]] * 2, "the whole image first"
    assert [row["prompt"] for row in rows] == ["predicted_box"] * 4
    return seen[1], [row for row in rows if row["output"] == "mask"], kept


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # The largest part's; beside it lies a speck.
        ([(0, 10, 30, 5, 40), (0, 0, 2, 60, 62)], [5, 10, 39, 29]),
        # What lies in the padding does not widen it.
        ([(0, 10, 64, 5, 40)], [5, 10, 39, 42]),
        # The whole image's again, where there is no head.
        ([], [0, 0, 63, 42]),
    ],
)
def test_the_models_own_box_is_that_of_its_largest_part_in_the_image(scorer, found, expected):
    boxes, rows, _ = own_boxes(blocks(*found, (1, 3, 6, 7, 9)), scorer)
    assert boxes == [expected, [7, 3, 8, 5]]
    assert [row["sample_id"] for row in rows] == ["001_HC", "003_HC"]
    assert rows[0]["found"] == bool(found)


def test_the_models_own_box_reads_no_reference(scorer):
    first = blocks((0, 10, 30, 5, 40), (1, 3, 36, 7, 50))
    samples = dict(scorer.samples)
    swapped = {
        "001_HC": replace(samples["001_HC"], annotation_path=samples["003_HC"].annotation_path),
        "003_HC": replace(samples["003_HC"], annotation_path=samples["001_HC"].annotation_path),
    }
    masks = torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64)
    found = [
        own_boxes(first, judge, mask=mask)
        for judge, mask in zip((scorer, replace(scorer, samples=swapped)), masks, strict=True)
    ]
    assert found[0][0] == found[1][0]
    for sample_id in swapped:
        assert np.array_equal(found[0][2][sample_id], found[1][2][sample_id])
        assert found[0][2][sample_id].any()
    # The scores do read it.
    assert all(a["dice"] != b["dice"] for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("prompt", ["whole_image", "predicted_box", "tight_box"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_name_the_image(scorer, prompt, bad):
    logits = blocks((0, 1, 9, 1, 9))
    logits[1, 0, 5, 6] = bad
    with pytest.raises(FloatingPointError, match="003_HC: the logits are not finite"):
        evaluate(
            lambda batch, boxes: logits,
            OneBatch(torch.zeros(2, 1, 64, 64)),
            cohort="hc18",
            protocol=Protocol(prompt=prompt),
            scorer=scorer,
        )


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    return Stages(write_hc18_folder(folder / "hc18"), folder / "runs")


TEST = ["002_HC", "005_HC", "006_2HC"]
BOXED = ("model", "ellipse")
TRAIN = ["001_HC", "003_HC", "007_HC"]


def scored(context, output="mask"):
    rows = pd.read_csv(context.run_dir / "per_image.csv")
    return rows[rows["output"] == output]


def kept_masks(context, prompt):
    return {
        name: read_prediction(context.run_dir, prompt=prompt, sample_id=name, size_hw=(54, 80))
        for name in TEST
    }


def content_of(stages, prompt, **changes):
    evaluation = {"prompt": prompt}
    if prompt == "jittered_box":
        evaluation |= {"jitter_draws": 2, "jitter_max_px": 19}
    base = {"test": stages.contents(TEST), "cohort": "hc18", "evaluation": evaluation}
    return base | changes


def test_zero_shot_scores_every_test_image_from_its_embedding(stages):
    """And its own box does not move when all references are exchanged for one another's."""
    images = {"images": stages.contents(TEST), "encoder": {"backbone": "tiny"}}
    embed, _ = stages.run(run_embed, "embed", images)
    upstream = {"embeddings": embed.node.key}
    content = content_of(stages, "predicted_box")
    context, result = stages.run(run_score, "score", content, **upstream)
    rows = scored(context)
    assert rows["sample_id"].tolist() == TEST
    assert set(rows["prompt"]) == {"predicted_box"}
    assert set(rows["test_cohort"]) == {"hc18"}
    dice = {
        f"dice_{name}": pytest.approx(scored(context, name)["dice"].mean())
        for name in ("mask", "ellipse")
    }
    assert result == {"images": 3, **dice}
    real = stages.data.samples
    turned = dict(zip(TEST, TEST[1:] + TEST[:1], strict=True))
    exchanged = {
        name: replace(real[name], annotation_path=real[other].annotation_path)
        for name, other in turned.items()
    }
    other = stages.context("score", content | {"reference": "exchanged"}, **upstream)
    other.samples = real | exchanged
    other.content = {name: content_hash_of(sample) for name, sample in other.samples.items()}
    run_score(other)
    before, after = (kept_masks(each, "predicted_box") for each in (context, other))
    assert any(mask.any() for mask in before.values()), "else nothing is compared"
    for name in TEST:
        assert np.array_equal(before[name], after[name])
    assert scored(other)["hausdorff_mm"].tolist() != rows["hausdorff_mm"].tolist()


def test_out_of_memory_fewer_images_are_scored_at_once(stages, monkeypatch):
    module, sizes = SamModule(stages.config.segmenter).eval(), []
    predict = module.predict

    def watched(batch, boxes):
        sizes.append(len(batch["image"]))
        return predict(batch, boxes)

    monkeypatch.setattr(module, "predict", watched)
    monkeypatch.setattr("experiments.stages.scoring.segmenter_of", lambda *_: module)
    dice = []
    for parts in (1, 4):
        content = content_of(stages, "whole_image", parts=parts)
        context = replace(stages.context("score", content), batch_parts=parts)
        run_score(context)
        dice.append(scored(context)["dice"].tolist())
    assert sizes == [3, 2, 1]
    assert dice[0] == pytest.approx(dice[1], abs=1e-3)
    limit = STAGES["score"].batch_size(content=content, config=stages.config)
    assert next_batch_parts(4, limit=limit) == 8


def test_weights_that_are_no_numbers_fail_the_stage(stages, monkeypatch):
    module = SamModule(stages.config.segmenter).eval()
    torch.nn.init.constant_(module.sam.mask_decoder.mask_tokens.weight, torch.nan)
    monkeypatch.setattr("experiments.stages.scoring.segmenter_of", lambda *_: module)
    context = stages.context("score", content_of(stages, "whole_image"))
    with pytest.raises(FloatingPointError, match="002_HC: the logits are not finite"):
        run_score(context)
    assert not (context.run_dir / "per_image.csv").exists()


def test_the_box_control_has_a_row_per_image_and_draw(stages):
    content = content_of(stages, "jittered_box", kind="box_only", frame_side_px=64)
    context, result = stages.run(run_control, "control", content)
    rows = scored(context)
    assert sorted(zip(rows["sample_id"], rows["draw"], strict=True)) == [
        (name, draw) for name in TEST for draw in (0, 1)
    ]
    assert result["images"] == 3
    assert rows["dice"].between(0.8, 1).all()


def test_the_mean_mask_control_scores_one_mask_for_all(stages):
    content = content_of(
        stages, "whole_image", kind="mean_mask", frame_side_px=64, images=stages.contents(TRAIN)
    )
    context, result = stages.run(run_control, "control", content)
    masks = kept_masks(context, "whole_image")
    assert np.array_equal(masks[TEST[0]], masks[TEST[1]])
    assert np.array_equal(masks[TEST[0]], masks[TEST[2]])
    # What most of the three train heads cover, at the images' own size.
    train = [stages.data.samples[name] for name in TRAIN]
    heads = [
        read_annotation(s.annotation_path, filled_bias_px=s.filled_bias_px).mask for s in train
    ]
    voted = (np.mean(heads, axis=0) > 0.5).astype(np.uint8)
    assert (voted != masks[TEST[0]]).mean() < 0.02
    assert result["dice_mask"] == pytest.approx(scored(context)["dice"].mean())
    assert scored(context)["found"].all()


def test_the_box_stage_makes_the_passes_that_its_cost_counts(stages, monkeypatch):
    module = SamModule(stages.config.segmenter).eval()
    monkeypatch.setattr("experiments.stages.scoring.segmenter_of", lambda *_: module)
    fit, _ = stages.run(lambda _: {}, "fit", {"segmenter": {"tuning": "decoder"}})
    content = {
        "images": stages.contents(TRAIN),
        "test": stages.contents(TEST),
        "cohort": "hc18",
        "jitter_draws": 1,
    }
    context, result = stages.run(run_box, "box", content, fit=fit.node.key)
    rows = scored(context)
    assert len(rows) == STAGES["box"].units_of(content=content, config={}, result=result)
    assert result == {"images": 3, "passes": 15}
    # Each is scored under its own jitter, and the mean mask is that of the train part.
    model = rows[(rows["what"] == "ellipse") & (rows["prompt"] == "jittered_box")]
    by_jitter = model.groupby("jitter_px")["dice"].mean()
    assert by_jitter[0] > by_jitter[20] > by_jitter[80]
    constant = content_of(
        stages, "whole_image", kind="mean_mask", frame_side_px=256, images=stages.contents(TRAIN)
    )
    control, _ = stages.run(run_control, "control", constant)
    mean_mask = rows[rows["what"] == "mean_mask"]["dice"]
    assert mean_mask.tolist() == pytest.approx(scored(control)["dice"].tolist(), abs=0.02)
    passes = rows[["what", "prompt", "jitter_px"]].drop_duplicates().fillna(-1)
    jitters = [(what, "jittered_box", px) for px in (0, 5, 10, 20, 40, 80) for what in BOXED]
    assert [*passes.itertuples(index=False, name=None)] == [
        ("model", "whole_image", -1),
        ("model", "predicted_box", -1),
        ("mean_mask", "whole_image", -1),
        *jitters,
    ]


def test_a_unet_is_scored_on_the_stages_device(stages, monkeypatch):
    """Its weights and its images: on another device than the test's, which computes nothing."""
    unet = UnetConfig(size_hw=(64, 96), decoder_channels=(32, 16, 16, 8, 8), steps=1)
    monkeypatch.setattr(stages.config, "unet", unet)
    monkeypatch.setattr("experiments.stages.fit.device_of", lambda _: torch.device("meta"))
    fit, _ = stages.run(lambda _: {}, "fit", {"seed": 0}, of="unet")
    UnetModule(unet, seed=0).save(fit.run_dir / "segmenter.safetensors")
    seen = []

    def spy(context, *, segment, **_):
        seen.append(segment({"image": torch.zeros(2, 1, 64, 96)}, torch.zeros(2, 4)))
        return {"images": 1}

    monkeypatch.setattr("experiments.stages.scoring._score", spy)
    content = content_of(stages, "whole_image")
    stages.run(run_score, "score", content, of="unet", fit=fit.node.key)
    assert [(logits.device.type, logits.shape) for logits in seen] == [("meta", (2, 1, 64, 96))]
