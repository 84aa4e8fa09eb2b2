"""`sonosweep submit` of a U-Net's run: the masks of the evaluation, and no prompt."""

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import torch
from test_submission import run

from datamodules.errors import InputError
from datamodules.hc18 import HC18DataModule
from datamodules.samples import read_hc18, read_hc18_test
from datamodules.settings import Cache, Frame
from experiments.deliver.segment_images import load_run, segment_images
from experiments.deliver.submission import validate_submission
from experiments.stages.evaluation import Protocol, Scorer, evaluate
from lightning_modules.errors import WeightsError
from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.segmenters.unet.module import UnetModule, save_unet

CONFIG = UnetConfig(size_hw=(64, 96), decoder_channels=(32, 16, 16, 8, 8), steps=1)


@pytest.fixture
def module():
    """A U-Net with random weights that marks part of every image."""
    return UnetModule(CONFIG, seed=3).eval()


@pytest.fixture
def run_dir(module, tmp_path):
    """The run directory that its fit leaves."""
    folder = tmp_path / "store" / "fit_unet" / "u"
    folder.mkdir(parents=True)
    save_unet(module, folder / "segmenter.safetensors")
    manifest = {"stage": "fit_unet", "config": {"unet": asdict(CONFIG)}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def evaluated(module, samples, cache_dir):
    """The masks that the sweep's scoring keeps, by image."""
    datamodule = HC18DataModule(
        samples=samples,
        train_ids=[],
        val_ids=[],
        test_ids={"hc18": list(samples)},
        frame=Frame(size_hw=CONFIG.size_hw, resize_mode="squash"),
        cache=Cache(folder=cache_dir),
        batch_size=1,
        n_batches=0,
        seed=0,
    )
    datamodule.setup()
    kept = {}
    with torch.inference_mode():
        evaluate(
            lambda batch, boxes: module(batch["image"]),
            dict(zip(datamodule.test_ids, datamodule.test_dataloader(), strict=True)),
            protocol=Protocol(prompts=["whole_image"], jitter_draws=1, jitter_max_px=0),
            scorer=Scorer(samples=samples, frame_hw=CONFIG.size_hw, mode="squash"),
            keep=lambda prompt, name, mask: kept.update({name: mask}),
        )
    return kept


def test_masks_are_those_of_the_evaluation(run_dir, module, hc18_folder, tmp_path):
    samples = {s.sample_id: s for s in read_hc18(hc18_folder)}
    expected = evaluated(module, samples, tmp_path / "cache")
    paths = {name: s.image_path for name, s in samples.items()}
    found = dict(segment_images(load_run(run_dir), paths, prompt="whole_image"))
    assert list(found) == list(samples)
    for name, mask in found.items():
        assert mask.shape == (54, 80)
        np.testing.assert_array_equal(mask, expected[name])
    # The random network marks a part of the images, so the above compares something.
    assert 0.01 < np.mean([mask.mean() for mask in found.values()]) < 0.99


def marked(image):
    """Logits of an ellipse of 0.3 of the frame's height and width about its centre."""
    height, width = image.shape[2:]
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    inside = 0.3**2 - y[:, None] ** 2 - x[None] ** 2
    return (100 * inside).expand(len(image), 1, height, width)


def test_submit_writes_masks_and_a_file_that_checks(
    monkeypatch, capsys, run_dir, hc18_folder, tmp_path
):
    monkeypatch.setattr(UnetModule, "forward", lambda self, image: marked(image))
    out, masks = tmp_path / "s.csv", tmp_path / "masks"
    words = ["submit", run_dir, "--test-root", hc18_folder, "--out", out, "--masks", masks]
    code, printed, err = run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert "2 rows, valid for these test images" in printed
    rows = validate_submission(out, hc18_folder)
    assert [row.filename for row in rows] == ["000_HC.png", "001_HC.png"]
    sizes = {s.sample_id: s.pixel_size_mm for s in read_hc18_test(hc18_folder)}
    assert rows[0].semi_axes_a_mm == pytest.approx(0.3 * 80 * sizes["000_HC"], rel=0.05)
    assert rows[0].semi_axes_b_mm == pytest.approx(0.3 * 54 * sizes["000_HC"], rel=0.05)
    drawn = cv2.imread(str(masks / "001_HC.png"), cv2.IMREAD_UNCHANGED)
    assert drawn.shape == (54, 80)
    assert set(np.unique(drawn)) == {0, 255}


def test_what_a_unet_refuses(monkeypatch, capsys, run_dir, hc18_folder, tmp_path):
    words = ["submit", run_dir, "--test-root", hc18_folder, "--masks", tmp_path / "m"]
    code, _, err = run(monkeypatch, capsys, *words, "--prompt", "predicted_box")
    assert (code, err.count("\n")) == (2, 1)
    assert "--prompt predicted_box" in err
    assert "a U-Net, which takes no prompt; leave the option out" in err
    assert not (tmp_path / "m").exists()
    manifest = {"stage": "fit_unet", "config": {"unet": {"colour": 3}}}
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="not of this version"):
        load_run(run_dir)
    manifest["config"]["unet"] = asdict(CONFIG) | {"steps": 2}
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="fitted with steps=1, not 2"):
        load_run(run_dir)
