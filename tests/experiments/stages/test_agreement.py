"""What a judge says of pairs: its Dice, and how hard it finds them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from folder_parts import write_hc18_folder
from stage_parts import Stages

from datamodules.annotation import annotation_of, read_annotation
from datamodules.geometry import mask_to_frame, place
from experiments.stages.agreement import label_agreement
from experiments.stages.context import StageContext
from lightning_modules.prompts import boxes_from_masks, jitter_boxes

IDS = ["001_HC", "002_HC", "003_HC"]


class Bright:
    """A judge that takes what is bright for the head, the surer the brighter."""

    def to(self, device):
        return self

    def predict(self, batch, boxes):
        return 20 * (batch["image"] - 0.5)


class Asked:
    """A judge that keeps what it is asked."""

    def __init__(self):
        self.batches, self.boxes = [], []

    def predict(self, batch, boxes):
        self.batches.append(batch)
        self.boxes.append(boxes)
        return torch.zeros(1, 1, 64, 64)


def test_a_judge_gets_each_samples_embedding_and_its_box_pushed_by_the_mean_jitter(
    hc18_folder, tmp_path, monkeypatch
):
    stages = Stages(hc18_folder, tmp_path / "runs", "gate.prompt=jittered_box")
    context, judge, roles = stages.context("gate", {}, of="sam"), Asked(), []
    known = {name: np.full((1, 2, 2), number) for number, name in enumerate(IDS)}
    monkeypatch.setattr(
        StageContext, "open_embeddings", lambda _, role: roles.append(role) or known
    )
    samples = [stages.data.samples[name] for name in IDS]
    label_agreement(context, samples, judge=judge, role="real_embeddings")
    assert roles == ["real_embeddings"]
    assert [int(batch["embedding"].max()) for batch in judge.batches] == [0, 1, 2]
    settings = context.segmenter
    for sample, batch, box in zip(samples, judge.batches, judge.boxes, strict=True):
        mask = annotation_of(sample).mask
        placement = place(mask.shape, frame_hw=settings.frame_hw, mode=settings.resize_mode)
        tight = boxes_from_masks(
            torch.from_numpy(mask_to_frame(mask, placement))[None, None], valid_hw=batch["valid_hw"]
        )
        offsets = torch.full((1, 4), settings.jitter_max_px / 2)
        assert torch.equal(box, jitter_boxes(tight, offsets=offsets, valid_hw=batch["valid_hw"]))
        assert not torch.equal(box, tight)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """What the judge says of heads of full contrast and of little, in the order of `IDS`."""
    folder = tmp_path_factory.mktemp("agreement")
    stages, found = Stages(write_hc18_folder(folder / "hc18"), folder / "runs"), {}
    context = stages.context("fidelity", {}, of="unet")
    for contrast in (100, 5):
        samples = []
        for name in IDS:
            sample = stages.data.samples[name]
            mask = read_annotation(sample.annotation_path).mask
            image = np.uint8(128 - contrast + 2 * contrast * mask.astype(int))
            path = folder / f"{contrast}-{name}.png"
            assert cv2.imwrite(str(path), image)
            samples.append(replace(sample, image_path=path))
        found[contrast] = label_agreement(context, samples, judge=Bright(), role="")
    return found


def test_the_set_with_less_contrast_is_the_harder_one(judged):
    easy, hard = ([judged[c][name].cross_entropy for name in IDS] for c in (100, 5))
    assert min(hard) > 2 * max(easy)
    # Masks at logit 0 say nothing of it.
    assert [judged[5][n].dice for n in IDS] == pytest.approx(
        [judged[100][n].dice for n in IDS], abs=0.02
    )


def test_cross_entropy_of_a_flat_prediction_by_hand(judged):
    """Inside and outside the logit is 20 (5 / 255 + 0.5 / 255) or 20 (-5 / 255 + 0.5 / 255)."""
    inside, outside = 20 * 5.5 / 255, 20 * -4.5 / 255
    right, other = np.log1p(np.exp(-inside)), np.log1p(np.exp(outside))
    for name in IDS:
        # A mixture by the head's share of the frame, but for the contour's few pixels.
        assert min(right, other) - 0.01 < judged[5][name].cross_entropy < max(right, other) + 0.01
        assert judged[5][name].dice > 0.97
