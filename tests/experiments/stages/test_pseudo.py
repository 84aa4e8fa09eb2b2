"""Labels of a teacher on unlabelled images: what is kept, and that no annotation is opened."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from folder_parts import write_hc18_folder
from stage_parts import Stages

from datamodules.annotation import read_image
from datamodules.ellipse import Ellipse, rasterise
from datamodules.samples import content_hash_of, trimester
from datamodules.synthetic import SyntheticPair, SyntheticSet, write_pair
from experiments.config.conditions import share_of_pairs
from experiments.plan.fits import EMBEDDINGS_OF
from experiments.stages import gate_stage, pseudo
from experiments.stages.context import StageError
from experiments.stages.embed import run_embed
from experiments.stages.fit import run_fit, used_pairs
from experiments.stages.labelled import labelled_images
from experiments.stages.make_pairs import outlines_of
from lightning_modules.metrics import dice_score
from lightning_modules.segmenters.sam.module import SamModule

OWN = ["001_HC", "003_HC", "004_HC", "006_HC", "007_HC", "008_HC"]
UNLABELLED = ["002_HC", "002_2HC", "004_2HC", "005_HC"]
RULES = {"min_agreement": 0.6, "view_zoom": 0.8}


class DarkInside:
    """A teacher that takes what is dark, but not black, for the head."""

    def __init__(self, **frame):
        self.config, self.device = SimpleNamespace(**frame), "cpu"

    def to(self, device):
        return self

    def eval(self):
        return self

    def predict(self, batch, boxes):
        smooth = cv2.GaussianBlur(255 * batch["image"].numpy()[0, 0], (0, 0), 4)
        return torch.from_numpy(np.minimum(85 - smooth, smooth - 30))[None, None]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Stages of which the annotations of unlabelled images are gone, and a teacher."""
    folder = tmp_path_factory.mktemp("pseudo")
    stages = Stages(write_hc18_folder(folder / "hc18"), folder / "runs")
    for sample_id in UNLABELLED:
        stages.data.samples[sample_id].annotation_path.unlink()
    teacher = DarkInside(frame_hw=(64, 96), resize_mode="squash", image_factor=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudo, "fitted_segmenter", lambda *_, **__: teacher)
        yield stages, stages.context("fit", {}).node.key


def labelled(taught, **changes):
    stages, teacher = taught
    content = {
        "images": stages.contents(UNLABELLED),
        "self_training": RULES | changes,
        "frame_hw": [64, 96],
    }
    return stages.run(pseudo.run_pseudo, "pseudo", content, of="unet", teacher=teacher)


def test_labels_without_opening_an_annotation(taught):
    stages, _ = taught
    context, result = labelled(taught)
    assert result["n_unlabelled"] == len(UNLABELLED)
    assert 0 < result["n_kept"] < len(UNLABELLED)
    assert result["n_without_ellipse"] == 0
    assert not (context.run_dir / "image").exists()
    pairs = context.store.root / "store" / context.node.key
    reader = stages.context("fit", {}, pairs=context.node.key)
    found, dice = reader.open_pairs("pairs"), []
    assert len(found.samples) == result["n_kept"] == len([*(pairs / "mask").iterdir()])
    for sample in found.samples:
        pair = found.pairs[sample.sample_id]
        assert sample.image_path == stages.data.samples[pair.image_of].image_path
        assert pair.image_of in UNLABELLED
        assert sample.sample_id not in stages.data.samples
        mask = cv2.imread(str(sample.annotation_path), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(mask, 255 * rasterise(pair.ellipse, size_hw=(54, 80)))
        assert pair.gate["agreement"] == min(pair.gate["ellipse"], pair.gate["view"]) >= 0.6
        truth = rasterise(stages.data.rows[pair.image_of].ellipse, size_hw=(54, 80))
        dice.append(dice_score(mask, truth))
    assert result["true_dice"] == pytest.approx(np.mean(dice))
    assert result["true_dice"] > 0.7
    kept = [trimester(stages.data.rows[p.image_of].hc_mm) for p in found.pairs.values()]
    assert result["kept_by_trimester"] == {str(k): kept.count(k) for k in (1, 2, 3)}
    assert result["images_by_trimester"] == {"1": 2, "2": 2, "3": 0}
    # Of all that have an ellipse, also of those that agree less.
    agreed = [pair.gate["agreement"] for pair in found.pairs.values()]
    assert 0 < result["mean_agreement"] < np.mean(agreed)
    # What agrees just as well as is asked for is kept.
    _, again = labelled(taught, min_agreement=min(agreed))
    assert again["n_kept"] == result["n_kept"]


def test_images_that_never_had_an_annotation_are_labelled_too(tmp_path, monkeypatch):
    folder = write_hc18_folder(tmp_path / "hc18")
    stages = Stages(folder, tmp_path / "runs", "data.use_unlabelled=true")
    teacher = DarkInside(frame_hw=(64, 96), resize_mode="squash", image_factor=1)
    monkeypatch.setattr(pseudo, "fitted_segmenter", lambda *_, **__: teacher)
    ids = list(stages.data.unlabelled)
    content = {"images": stages.contents(ids), "self_training": RULES | {"min_agreement": 0.1}}
    upstream = {"teacher": stages.context("fit", {}).node.key}
    context, result = stages.run(pseudo.run_pseudo, "pseudo", content, of="unet", **upstream)
    assert result["n_kept"] == len(ids) == 2
    assert result["true_dice"] is None
    assert result["images_by_trimester"] == {"1": 0, "2": 0, "3": 0}
    pairs = stages.context("fit", {}, pairs=context.node.key).open_pairs("pairs")
    assert {sample.image_path.parent.name for sample in pairs.samples} == {"test_set"}
    # The gate of a generator that saw them compares its candidates, here copies, with them too.
    monkeypatch.setattr(gate_stage, "segmenter_of", lambda *_: teacher)
    inputs = dict.fromkeys(("candidates", "pseudo"), context.node.key)
    inputs |= {"segmenter": upstream["teacher"]}
    own = {"images": stages.contents(OWN)}
    with pytest.raises(StageError, match=r"near-copy of unlabelled-\d{3}_HC"):
        stages.run(gate_stage.run_gate, "gate", own, of="unet", **inputs)


def test_outlines_are_those_of_labels_and_of_the_teacher(taught):
    stages, _ = taught
    made, result = labelled(taught)
    context = stages.context("synthesize", {}, pseudo=made.node.key)
    known = labelled_images(context, OWN)
    assert [each.real_id for each in known[: len(OWN)]] == OWN
    assert {each.real_id for each in known[len(OWN) :]} <= set(UNLABELLED)
    assert len(outlines_of(context, OWN).features) == len(known) == len(OWN) + result["n_kept"]
    assert {each.size_hw for each in known} == {(54, 80)}
    last = known[-1]
    assert last.content_hash == content_hash_of(last.sample) != context.content[last.real_id]
    # The trimester of such an image is that of its label.
    pixel_size_mm = stages.data.samples[known[-1].real_id].pixel_size_mm
    assert known[-1].sample.hc_mm != stages.data.samples[known[-1].real_id].hc_mm
    assert known[-1].sample.hc_mm == pytest.approx(
        2 * np.pi * pixel_size_mm * np.sqrt(
            (known[-1].ellipse.semi_major_px**2 + known[-1].ellipse.semi_minor_px**2) / 2
        ),
        rel=0.05,
    )  # fmt: skip


def test_an_image_is_embedded_once_whatever_its_label(taught, tmp_path):
    # With the annotations, whose bytes are in the hash that embeddings of an image are kept under.
    stages = Stages(write_hc18_folder(tmp_path / "hc18"), tmp_path / "runs")
    taught = stages, taught[1]
    made, result = labelled(taught)
    encoder = {"backbone": "tiny", "weights_sha256": "x", "precision": "fp32"}
    content = {"encoder": encoder}
    _, first = stages.run(run_embed, "embed", content, pairs=made.node.key)
    other, _ = labelled(taught, view_zoom=0.9, min_agreement=0.0)
    _, second = stages.run(run_embed, "embed", content, pairs=other.node.key)
    assert first["embedded"] == result["n_kept"]
    assert second["embedded"] == second["images"] - result["n_kept"]


def test_a_fit_on_embeddings_reads_both_sets_of_pairs(taught, tmp_path):
    stages = Stages(write_hc18_folder(tmp_path / "hc18"), tmp_path / "runs")
    stages.config.segmenter.steps, stages.config.segmenter.batch_size = 3, 6
    made, result = labelled((stages, taught[1]))
    other = stages.context("gate", {})
    for number in range(3):
        image = np.full((54, 80), 60 * number, np.uint8)
        write_pair(
            other.run_dir, f"g-{number}", image=image, mask=rasterise(HEAD, size_hw=(54, 80))
        )
    encoder = {"encoder": {"backbone": "tiny", "weights_sha256": "x", "precision": "fp32"}}
    keys = {"pairs": made.node.key, "more_pairs": other.node.key}
    for role, pairs in list(keys.items()):
        keys[EMBEDDINGS_OF[role]] = stages.run(run_embed, "embed", encoder, pairs=pairs)[0].node.key
    images = {"images": stages.contents(OWN)}
    keys["embeddings"] = stages.run(run_embed, "embed", encoder | images)[0].node.key
    content = images | {"segmenter": {}, "val": [], "seed": 0, "repeat_real": False}
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SamModule, "on_train_batch_start", lambda _, batch, __: seen.append(batch["sample_id"])
        )
        _, fitted = stages.run(run_fit, "fit", content, **keys)
    assert fitted["n_synthetic"] == result["n_kept"] + 3
    made_alone = {"pairs": keys["more_pairs"], "pair_embeddings": keys["more_pair_embeddings"]}
    alone = {"embeddings": keys["embeddings"], **made_alone}
    assert stages.run(run_fit, "fit", content | {"at_most": 2}, **alone)[1]["n_synthetic"] == 2
    prefix = made.node.id[:8]
    for names in seen:
        kinds = [name[:2] == "g-" or 2 * name.startswith(prefix) for name in names]
        assert sorted(map(int, kinds)) == [0, 0, 1, 1, 2, 2]
    assert len(seen) == 3


def test_nothing_kept_and_nothing_found_say_what_to_do(taught, monkeypatch):
    with pytest.raises(StageError, match=r"none of 4 .* is kept, .*lower self_training"):
        labelled(taught, min_agreement=1.0)
    empty = np.zeros((54, 80), np.uint8)
    monkeypatch.setattr(pseudo, "two_views", lambda *_, **__: [empty, empty])
    with pytest.raises(StageError, match="finds no ellipse in any of 4 unlabelled images"):
        labelled(taught)


HEAD = Ellipse(center_x_px=48, center_y_px=30, semi_major_px=22, semi_minor_px=15, theta_rad=0.4)


def bright(**frame):
    """A segmenter that finds what is bright, and remembers how much of each frame was."""
    config = SimpleNamespace(**frame)
    seen = []

    def predict(batch, boxes):
        seen.append(float((batch["image"] > 0.5).float().mean()))
        size_hw = config.frame_hw
        small = torch.nn.functional.interpolate(batch["image"], size_hw, mode="area")
        return 10 * (small - 0.5)

    return SimpleNamespace(config=config, device="cpu", predict=predict), seen


@pytest.mark.parametrize(
    "frame",
    [
        {"frame_hw": (64, 96), "resize_mode": "squash", "image_factor": 1},
        {"frame_hw": (64, 64), "resize_mode": "pad", "image_factor": 4},
    ],
)
def test_the_second_view_is_smaller_and_mapped_back_to_its_place(tmp_path, frame):
    mask = rasterise(HEAD, size_hw=(54, 80))
    cv2.imwrite(str(tmp_path / "head.png"), 200 * mask)
    assert read_image(tmp_path / "head.png").max() == 200
    module, seen = bright(**frame)
    sample = SimpleNamespace(image_path=tmp_path / "head.png", image_frame=None)
    first, second = pseudo.two_views(module, sample, view_zoom=0.7)
    assert seen[1] / seen[0] == pytest.approx(0.7**2, abs=0.03)
    assert first.shape == second.shape == (54, 80)
    assert dice_score(first, mask) > 0.97
    assert dice_score(second, mask) > 0.95


def test_two_sets_of_pairs_and_the_real_images_fill_a_third_each():
    assert share_of_pairs(0.5, n_sets=1) == 0.5
    assert share_of_pairs(0.5, n_sets=0) == 0.5
    assert share_of_pairs(0.5, n_sets=2) == pytest.approx(2 / 3)
    # Of a quarter: three real ones to one of each set.
    assert share_of_pairs(0.25, n_sets=2) == pytest.approx(2 / 5)
    assert share_of_pairs(1.0, n_sets=2) == 1.0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "abc"),
        ({"at_most": 2}, "ab"),
        ({"at_most": 2, "order": "hardest"}, "ca"),
        ({"at_most": 9, "order": "hardest"}, "cab"),
    ],
)
def test_the_first_pairs_are_used_or_those_that_the_judge_finds_hardest(content, expected):
    agreement = {"a": 0.8, "b": 0.9, "c": 0.7}
    found = SyntheticSet(
        root=Path(),
        samples=[SimpleNamespace(sample_id=name) for name in agreement],
        pairs={
            name: SyntheticPair(sample_id=name, gate={"agreement": dice})
            for name, dice in agreement.items()
        },
    )
    assert "".join(sample.sample_id for sample in used_pairs(found, content)) == expected
