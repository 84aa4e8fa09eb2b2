"""What the tests of `deliver` share: the command line, fitted runs and masks drawn by hand.

Loaded for all tests: what imports torch is imported where it is used.
"""

import csv
import json
import sys

import cv2
import pytest

from datamodules.ellipse import Ellipse, rasterise
from experiments.store.fitted import described
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.unet.config import UnetConfig

HEAD = Ellipse(
    center_x_px=42.3, center_y_px=25.6, semi_major_px=20.5, semi_minor_px=15.2, theta_rad=2.6
)
UNET = UnetConfig(
    size_hw=(64, 96), decoder_channels=(32, 16, 16, 8, 8), steps=1, margin=0.0, closer_looks=0
)


@pytest.fixture
def sonosweep(monkeypatch, capsys):
    """Run a command in this process; exit code, stdout, stderr."""
    from experiments.__main__ import main

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["sonosweep", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return ended.value.code or 0, out.out, out.err

    return command


@pytest.fixture
def write_fit():
    """Write a run directory as a fit of SAM leaves it; the weights moved by noise of `spread`."""

    import torch
    from safetensors.torch import save_file

    from lightning_modules.segmenters.sam.module import SamModule

    def write(folder, config, *, stage="fit", spread=0.02):
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(0)
        state = {
            name: weight.detach().contiguous()
            + spread * torch.randn(weight.shape, generator=generator)
            for name, weight in SamModule(config).named_parameters()
            if weight.requires_grad
        }
        save_file(state, folder / "segmenter.safetensors")
        manifest = {
            "stage": stage,
            "id": folder.name,
            "sweep": "test",
            "git_sha": "abc",
            "content": {"images": [["001_HC", "x"], ["002_2HC", "y"]]},
            "config": {"data": {"root": None}},
            "segmenter": described(config),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return write


def write_generator(folder, images):
    """Write a run directory as a tiny pixel generator leaves it, fitted on the rows `images`."""
    from lightning_modules.generators.pixel.config import GeneratorConfig
    from lightning_modules.generators.pixel.module import DiffusionModule

    module = DiffusionModule(GeneratorConfig(size_hw=(16, 24), block_out_channels=(8, 16)))
    module.save_generator(folder / "generator")
    (folder / "generator" / "images.json").write_text(json.dumps(images))
    manifest = {
        "stage": "generator",
        "id": f"{folder.name}-0123456789",
        "content": {"images": [["001_HC", "x"]] * len(images)},
        "config": {"data": {"root": None}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def predicted(out):
    """Rows of predictions.csv by file name."""
    with (out / "predictions.csv").open(newline="") as file:
        return {row["filename"]: row for row in csv.DictReader(file)}


def segment_images(module, paths, *, prompt):
    """Name and mask of each image by one segmenter."""
    from experiments.deliver.inference import segment_together

    for name, (mask,), _ in segment_together([module], paths, prompt=prompt):
        yield name, mask


@pytest.fixture
def run_dir(write_fit, tmp_path):
    """A random tiny segmenter's run, of a stage that is called anything."""
    folder = tmp_path / "runs" / "store" / "anything" / "0123"
    return write_fit(folder, SegmenterConfig(backbone="tiny"), stage="anything", spread=0)


@pytest.fixture
def unet_dir(tmp_path):
    """The run of a U-Net with random weights that mark part of every image."""
    from lightning_modules.segmenters.unet.module import UnetModule

    folder = tmp_path / "store" / "fit" / "u"
    folder.mkdir(parents=True)
    UnetModule(UNET, seed=3).eval().save(folder / "segmenter.safetensors")
    content = {"images": [["a", "1"]]}
    manifest = {"stage": "fit", "id": "u", "segmenter": described(UNET), "content": content}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def hand_made(monkeypatch):
    """A head in every image, but for those that the test puts here by stem."""
    masks = {}

    def segment(modules, paths, *, prompt, boxes=None, view_zooms=(1.0,)):
        for name, path in paths.items():
            size_hw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape
            mask = masks.get(name, rasterise(HEAD, size_hw=size_hw))
            yield name, [mask] * len(view_zooms), 1.0

    monkeypatch.setattr("experiments.deliver.inference.segment_together", segment)
    return masks
