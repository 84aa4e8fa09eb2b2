"""Images larger than their frame, padded or squashed: from the file to masks at its own size."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from deliver_parts import segment_images
from folder_parts import write_hc18_folder
from hc18_parts import TEST, TRAIN, all_batches, builder, ready
from stage_parts import Stages

from datamodules.annotation import read_annotation, read_image
from datamodules.augment import augment_view
from datamodules.embeddings import open_embeddings
from datamodules.geometry import (
    boxes_to_frame,
    enlarge,
    image_to_frame,
    mask_to_frame,
    place,
    shrink_mask,
)
from datamodules.prepared import prepare_images
from datamodules.samples import content_hash_of
from experiments.stages.embed import run_embed
from experiments.stages.evaluation import Protocol, Scorer, evaluate
from experiments.stages.scoring import run_score
from experiments.store.kept_masks import read_prediction
from lightning_modules.metrics import dice_score
from lightning_modules.randomness import keyed_seed
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.network import encode

# vit_tiny's: 54x80 in a frame of 32, four image pixels to a frame's.
VALID = {"pad": (22, 32), "squash": (32, 32)}
MODES = ["pad", "squash"]
FRAME = {mode: {"frame_hw": (32, 32), "mode": mode} for mode in MODES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hc18_folder(tmp_path_factory.mktemp("frames") / "hc18")


@pytest.fixture(params=MODES)
def stages(request, folder, tmp_path):
    made = Stages(folder, tmp_path / "runs")
    made.config.segmenter = replace(
        made.config.segmenter, backbone="vit_tiny", geometry=request.param
    )
    return made


def pictures(sample):
    """The image and the mask at their own size."""
    mask = read_annotation(sample.annotation_path, filled_bias_px=sample.filled_bias_px).mask
    return read_image(sample.image_path), mask


# --- placements ---


@pytest.mark.parametrize("mode", MODES)
def test_an_enlarged_frame_covers_the_same_part_of_the_image(mode):
    small = place((54, 80), frame_hw=(32, 32), mode=mode)
    large = enlarge(small, 4)
    assert small.valid_hw == VALID[mode]
    assert large.frame_hw == (128, 128)
    assert large.valid_hw == tuple(4 * side for side in VALID[mode])
    assert enlarge(small, 1) == small
    boxes = np.array([[0.0, 0, 79, 53], [12, 7, 30.5, 41]])
    expected = (boxes_to_frame(boxes, small) + 0.5) * 4 - 0.5
    assert np.allclose(boxes_to_frame(boxes, large), expected, atol=1e-12)


def test_shrunk_masks_by_hand():
    """Of blocks of 2x2: none, a quarter, half, all."""
    mask = np.array([[0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], np.uint8)
    assert shrink_mask(mask, 2).tolist() == [[0, 0], [1, 1]]
    assert shrink_mask(mask, 2).dtype == np.uint8
    assert shrink_mask(mask, 1) is mask
    assert shrink_mask(np.zeros((12, 20), np.uint8), 4).tolist() == [[0] * 5] * 3
    assert shrink_mask(np.ones((12, 20), np.uint8), 4).tolist() == [[1] * 5] * 3


@pytest.mark.parametrize("mode", MODES)
def test_a_shrunk_mask_is_the_mask_of_the_frame(mode):
    mask = np.zeros((540, 800), np.uint8)
    cv2.ellipse(mask, (420, 260), (230, 170), 20, 0, 360, 1, -1)
    frame = place(mask.shape, frame_hw=(256, 256), mode=mode)
    shrunk = shrink_mask(mask_to_frame(mask, enlarge(frame, 4)), 4)
    assert dice_score(shrunk, mask_to_frame(mask, frame)) > 0.997


# --- prepared arrays and batches ---


@pytest.mark.parametrize("mode", MODES)
def test_prepared_images_are_of_the_larger_frame(folder, tmp_path, mode):
    samples = builder(folder, tmp_path)().samples
    chosen = [samples[name] for name in TEST]
    given = {"content_hashes": [content_hash_of(sample) for sample in chosen], "mode": mode}
    given |= {"frame_hw": (32, 32), "cache_dir": tmp_path}
    small = prepare_images(chosen, **given)
    large = prepare_images(chosen, factor=4, **given)
    assert len(list(tmp_path.glob("prepared-*"))) == 2
    assert large.images.shape == large.masks.shape == (len(TEST), 128, 128)
    height, width = 4 * VALID[mode][0], 4 * VALID[mode][1]
    for row, sample in enumerate(chosen):
        image, mask = pictures(sample)
        assert tuple(large.valid_hw[row]) == tuple(small.valid_hw[row]) == VALID[mode]
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(large.images[row][:height, :width], resized)
        assert not large.images[row][height:].any()
        # Of some 250 pixels a handful on the edge.
        assert dice_score(shrink_mask(large.masks[row], 4), small.masks[row]) > 0.97
        assert (
            dice_score(small.masks[row], mask_to_frame(mask, place((54, 80), **FRAME[mode]))) == 1
        )
    # A factor of one is what was prepared before there were factors.
    prepare_images(chosen, factor=1, **given)
    assert len(list(tmp_path.glob("prepared-*"))) == 2


@pytest.mark.parametrize("mode", MODES)
def test_batches_hold_large_images_and_masks_of_the_frame(folder, tmp_path, mode):
    build = builder(folder, tmp_path)
    given = {"size_hw": (32, 32), "resize_mode": mode}
    for batch in all_batches(ready(build(image_factor=4, **given))):
        assert batch["image"].shape[1:] == (1, 128, 128)
        assert batch["mask"].shape[1:] == (1, 32, 32)
        assert batch["valid_hw"].tolist() == [list(VALID[mode])] * len(batch["mask"])
        for item, name in enumerate(batch["sample_id"]):
            image, mask = pictures(build().samples[name])
            frame = place((54, 80), **FRAME[mode])
            expected = image_to_frame(image, enlarge(frame, 4)).astype(np.float32) / 255
            assert np.array_equal(batch["image"][item, 0].numpy(), expected)
            assert np.array_equal(batch["mask"][item, 0].numpy(), mask_to_frame(mask, frame))


def trained_on(datamodule, *, training=True) -> list[dict]:
    """The training's batches as a Trainer hands them over."""
    datamodule.trainer = None
    batches = list(ready(datamodule).train_dataloader())
    datamodule.trainer = SimpleNamespace(training=training, max_epochs=1)
    return [datamodule.on_after_batch_transfer(batch, 0) for batch in batches]


@pytest.mark.parametrize("factor", [1, 4])
def test_fresh_augmentation_moves_image_and_mask_together(folder, tmp_path, factor):
    """Each draw of a train image is another view, whose mask is of its picture."""
    samples = {}
    for name, sample in builder(folder, tmp_path)().samples.items():
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), 255 * pictures(sample)[1])
        samples[name] = replace(sample, image_path=path)
    build = builder(folder, tmp_path)
    given = {"size_hw": (32, 32), "resize_mode": "pad", "image_factor": factor}
    plain, moved, again, evaluated = (
        trained_on(build(samples=samples, augment=augment, **given), training=training)
        for augment, training in ((None, True), ("weak", True), ("weak", True), ("weak", False))
    )
    differ, shown = 0, set()
    for before, after, same, still in zip(plain, moved, again, evaluated, strict=True):
        assert before["sample_id"] == after["sample_id"]
        assert torch.equal(after["image"], same["image"]), "a function of seed and draw"
        assert torch.equal(before["image"], still["image"]), "validation is not augmented"
        assert not after["image"][..., 22 * factor :, :].any(), "the padding stays black"
        for image, mask in zip(after["image"][:, 0], after["mask"][:, 0], strict=True):
            bright = shrink_mask((image > 0.4).numpy().astype(np.uint8), factor)
            assert dice_score(bright, (mask > 0.5).numpy().astype(np.uint8)) > 0.93
            shown.add(mask.numpy().tobytes())
        differ += int((after["mask"] != before["mask"]).flatten(1).any(dim=1).sum())
    assert differ > 0.5 * 9 * 4
    assert len(shown) > len(TRAIN), "views differ from draw to draw"


def test_the_end_of_a_training_under_strong_augmentation_may_be_moderate(folder, tmp_path):
    build = builder(folder, tmp_path)
    strong, ended, moderate, weak = (
        trained_on(build(augment=augment, moderate_end=end))
        for augment, end in (("strong", 0), ("strong", 0.34), ("moderate", 0), ("weak", 0.34))
    )
    for number, batch in enumerate(ended):
        same, other = (strong, moderate) if number < 6 else (moderate, strong)
        assert torch.equal(batch["image"], same[number]["image"])
        assert torch.equal(batch["mask"], same[number]["mask"])
        assert not torch.equal(batch["mask"], other[number]["mask"])
    plain = trained_on(build(augment="weak"))
    for batch, other in zip(weak, plain, strict=True):
        assert torch.equal(batch["image"], other["image"]), "weak stays weak"


# --- stages ---


def scored_alone(stages, ids, **upstream):
    content = {
        "test": stages.contents(ids),
        "cohort": "hc18",
        "evaluation": {"prompt": "whole_image"},
    }
    context, _ = stages.run(run_score, "score", content, **upstream)
    return {
        name: read_prediction(
            context.run_dir, prompt="whole_image", sample_id=name, size_hw=(54, 80)
        )
        for name in ids
    }


def embedded(stages, ids, **more):
    content = {
        "encoder": {"backbone": "vit_tiny", "geometry": stages.config.segmenter.geometry},
        "images": stages.contents(ids),
    }
    context, _ = stages.run(run_embed, "embed", content | more)
    return context, open_embeddings(context.run_dir, store=context.embeddings)


def test_embeddings_and_views_are_of_large_images(stages):
    """What is kept beside a view is of the frame's size."""
    segmenter, ids = stages.config.segmenter, TEST[:2]
    frame = place((54, 80), **FRAME[segmenter.geometry])
    large = enlarge(frame, 4)
    height, width = large.valid_hw
    _, found = embedded(stages, ids, augment={"strength": "strong", "n_views": 3})
    sam = SamModule(segmenter).sam

    def encoded(pixels):
        image = torch.from_numpy(pixels / np.float32(255))[None, None]
        sizes = torch.tensor([frame.valid_hw])
        return encode(sam, image, valid_hw=sizes, precision="fp32")[0].float().numpy()

    for name in ids:
        image, mask = pictures(stages.data.samples[name])
        image, mask = image_to_frame(image, large), mask_to_frame(mask, large)
        assert found[name].shape == (256, 8, 8)
        assert np.abs(found[name] - encoded(image)).max() < 2e-3
        for view in (1, 2):
            seed = keyed_seed("view", "strong", view, stages.data.content[name])
            moved = [np.zeros_like(image), np.zeros_like(mask)]
            for part, seen in zip(
                moved,
                augment_view(
                    image[:height, :width], mask[:height, :width], strength="strong", seed=seed
                ),
                strict=True,
            ):
                part[:height, :width] = seen
            embedding, kept_image, kept_mask = found.view(name, view)
            assert np.abs(embedding - encoded(moved[0])).max() < 2e-3
            assert kept_image.shape == kept_mask.shape == (32, 32)
            assert np.array_equal(kept_mask, shrink_mask(moved[1], 4))
            blocks = moved[0].reshape(32, 4, 32, 4).mean(axis=(1, 3))
            assert np.abs(kept_image - blocks).max() <= 0.5


def test_scores_from_embeddings_from_images_and_predictions_are_one(stages):
    """A stage on cached features, a stage that encodes, and `predict` give the same masks."""
    ids = TEST[:3]
    context, _ = embedded(stages, ids)
    cached = scored_alone(stages, ids, embeddings=context.node.key)
    encoded = scored_alone(stages, ids)
    module = SamModule(stages.config.segmenter).eval()
    paths = {name: stages.data.samples[name].image_path for name in ids}
    predicted = dict(segment_images(module, paths, prompt="whole_image"))
    other = "squash" if stages.config.segmenter.geometry == "pad" else "pad"
    elsewhere = SamModule(replace(stages.config.segmenter, geometry=other)).eval()
    differs = dict(segment_images(elsewhere, paths, prompt="whole_image"))
    assert any(0.02 < mask.mean() < 0.98 for mask in cached.values()), "else nothing is compared"
    for name in ids:
        assert (cached[name] != encoded[name]).mean() < 2e-3
        assert (predicted[name] != encoded[name]).mean() < 2e-3
    # The geometry is read by every one of them.
    assert max((differs[name] != predicted[name]).mean() for name in ids) > 0.01


@pytest.mark.parametrize("mode", MODES)
def test_a_perfect_mask_of_the_frame_scores_at_the_original_size(folder, tmp_path, mode):
    """In a frame of 256 what is lost is the frame's resolution, and all where modes are mixed."""
    datamodule = ready(
        builder(folder, tmp_path)(size_hw=(256, 256), resize_mode=mode, image_factor=2)
    )
    found = {}
    for scored_as in MODES:
        rows = evaluate(
            lambda batch, boxes: batch["mask"] * 2 - 1,
            datamodule.test_dataloader()[0],
            cohort="hc18",
            protocol=Protocol(prompt="whole_image"),
            scorer=Scorer(samples=datamodule.samples, frame_hw=(256, 256), mode=scored_as),
        )
        rows = [row for row in rows if row["output"] == "mask"]
        assert [row["sample_id"] for row in rows] == TEST
        found[scored_as] = [row["dice"] for row in rows]
    assert min(found.pop(mode)) > 0.985
    assert max(*found.popitem()[1]) < 0.9


def test_an_image_is_encoded_once_for_all_its_boxes(stages, monkeypatch):
    module = SamModule(stages.config.segmenter).eval()
    calls = []
    monkeypatch.setattr(
        module.sam.image_encoder,
        "forward",
        lambda x, run=module.sam.image_encoder.forward: calls.append(len(x)) or run(x),
    )
    batch = {"image": torch.rand(2, 1, 128, 128), "valid_hw": torch.tensor([[22, 32]] * 2)}
    boxes = torch.tensor([[2.0, 2, 20, 18], [0, 0, 31, 21]])
    with torch.inference_mode():
        first = module.predict(batch, boxes)
        second = module.predict(batch, boxes.flip(0))
    assert calls == [2]
    assert first.shape == second.shape == (2, 1, 32, 32)
    assert not torch.equal(first, second)
