"""The closer look at a head that a first one found."""

from dataclasses import replace

import pytest
import torch

from lightning_modules.segmenters.unet.closer_look import ZOOM, look_closer
from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.segmenters.unet.module import UnetModule

SMALL = UnetConfig(encoder_name="resnet18", decoder_channels=(8, 8, 8, 8), size_hw=(64, 96))


def _disc(radius: float, *, x: float = 40.0, y: float = 30.0) -> torch.Tensor:
    """Logits (1, 1, 64, 96): the distance to a circle, px, positive inside."""
    rows = torch.arange(64).view(64, 1) - y
    columns = torch.arange(96).view(1, 96) - x
    return (radius - (rows**2 + columns**2).sqrt())[None, None]


def _image(radius: float, **at: float) -> torch.Tensor:
    return (_disc(radius, **at) + 0.5).clamp(0, 1)


class Looking:
    """Takes what is bright for the head, and keeps what it was shown."""

    def __init__(self) -> None:
        self.views: list[torch.Tensor] = []

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.views.append(image)
        return 8 * (image - 0.5)


@pytest.mark.parametrize(
    ("radius", "zoom"), [(12, 0.75 * 64 / 25), (4, ZOOM[1]), (31, 0.8)], ids=str
)
def test_the_head_has_a_common_size_and_lies_in_the_middle_of_its_view(radius, zoom):
    look = Looking()
    look_closer(_image(radius, x=44), _disc(radius, x=44), share=0.75, look=look)
    (view,) = look.views
    rows, columns = (view[0, 0] > 0.5).nonzero().unbind(dim=1)
    for along, side in ((rows, 64), (columns, 96)):
        extent = along.max() - along.min() + 1
        assert extent == pytest.approx(zoom * (2 * radius + 1), abs=2.5)
        assert (along.max() + along.min()) / 2 == pytest.approx((side - 1) / 2, abs=1.0)


def test_what_it_sees_keeps_its_place_and_corrects_the_first_look():
    image, first = _image(10), _disc(7, x=43)
    closer = look_closer(image, first.clamp(-2, 2), share=0.7, look=Looking())
    true = _disc(10)
    certain = true.abs() > 1.5
    assert torch.equal((closer > 0)[certain], (true > 0)[certain])


def test_beyond_the_view_the_look_before_stands():
    first = _disc(6, x=10, y=10)
    first[..., 60, 90] = 3.0
    closer = look_closer(_image(6, x=10, y=10), first, share=0.75, look=Looking())
    assert closer[0, 0, 60, 90] == 3.0
    assert closer[0, 0, 63, 0] == first[0, 0, 63, 0]


def test_a_view_that_shows_nothing_changes_nothing():
    first = _disc(9)
    assert torch.equal(
        look_closer(torch.zeros(1, 1, 64, 96), first, share=0.75, look=Looking()), first
    )


def test_an_image_without_a_head_is_not_looked_at_again():
    look = Looking()
    empty = torch.full((1, 1, 64, 96), -3.0)
    image, logits = torch.cat([_image(8), _image(8)]), torch.cat([empty, _disc(8)])
    closer = look_closer(image, logits, share=0.75, look=look)
    assert len(look.views[0]) == 1
    assert torch.equal(closer[:1], empty)
    assert torch.equal(closer[1:], look_closer(image[1:], logits[1:], share=0.75, look=Looking()))
    assert look_closer(image[:1], empty, share=0.75, look=look) is empty


def test_predictions_take_it_and_fits_do_not_depend_on_it():
    module = UnetModule(replace(SMALL, closer_looks=2)).eval()
    batch = {"image": _image(12)}
    seen = []
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    # As an untrained network would: a head somewhere.
    module.network.segmentation_head[0].bias.data += 1
    module.predict(batch)
    assert len(seen) == 6
    assert module.config.hashed() == SMALL.hashed()


@pytest.mark.parametrize(("key", "value"), [("closer_looks", -1), ("head_share", 0.2)])
def test_settings_that_make_no_view_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}"):
        UnetConfig(**{key: value})
