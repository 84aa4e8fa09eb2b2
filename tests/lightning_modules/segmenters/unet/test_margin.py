"""The black border around predicted images."""

from dataclasses import replace

import pytest
import torch

from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.segmenters.unet.margin import add_margin, remove_margin
from lightning_modules.segmenters.unet.module import UnetModule

SMALL = UnetConfig(
    encoder_name="resnet18",
    encoder_weights=None,
    decoder_channels=(8, 8, 8, 8),
    size_hw=(64, 96),
)


def _disc() -> torch.Tensor:
    rows = torch.arange(64).view(64, 1) - 30.0
    columns = torch.arange(96).view(1, 96) - 50.0
    return (15.0 - (rows**2 + columns**2).sqrt())[None, None]


def test_the_border_is_black_and_what_it_holds_keeps_its_place() -> None:
    logits = _disc()
    framed = add_margin(torch.ones(1, 1, 64, 96), margin=0.25)
    assert framed.sum() == 48 * 72
    assert framed[..., :8, :].abs().sum() == 0
    back = remove_margin(add_margin(logits, margin=0.25), margin=0.25)
    assert back.shape == logits.shape
    away = (logits.abs() > 1.5) & (logits > -40)
    assert torch.equal((back > 0)[away], (logits > 0)[away])


def test_no_border_is_the_image_itself() -> None:
    image = torch.rand(2, 1, 64, 96)
    assert add_margin(image, margin=0.0) is image
    assert remove_margin(image, margin=0.001) is image


def test_a_prediction_sees_the_border_and_a_fit_does_not_depend_on_it(tmp_path) -> None:
    module = UnetModule(SMALL).eval()
    batch = {"image": torch.rand(1, 1, 64, 96)}
    seen = []
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.predict(batch)
    # Standardised: the border is darker than the mean, and constant.
    assert all(torch.all(image[..., :3, :] == image[0, 0, 0, 0]) for image in seen)
    assert all(image[0, 0, 0, 0] < 0 for image in seen)
    module.save(tmp_path / "unet.safetensors")
    other = replace(SMALL, margin=0.0)
    assert other.hashed() == SMALL.hashed()
    assert UnetModule.load(tmp_path / "unet.safetensors", other).config.margin == 0.0


def test_a_border_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"margin=0\.6"):
        UnetConfig(margin=0.6)
