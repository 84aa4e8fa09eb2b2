"""Closer looks at a head that a first look found."""

from dataclasses import replace

import pytest
import torch

from lightning_modules.segmenters.unet.closer_look import BORDER, HEAD_SHARE, ZOOM, look_closer
from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.segmenters.unet.module import UnetModule

SMALL = UnetConfig(
    encoder_name="resnet18",
    encoder_weights=None,
    decoder_channels=(8, 8, 8, 8),
    size_hw=(64, 96),
)


def _disc(radius: float, *, x: float = 44.0, y: float = 30.0) -> torch.Tensor:
    """Logits (1, 1, 64, 96): the distance to a circle, px, positive inside."""
    rows = torch.arange(64).view(64, 1) - y
    columns = torch.arange(96).view(1, 96) - x
    return (radius - (rows**2 + columns**2).sqrt())[None, None]


def _image(radius: float, **at: float) -> torch.Tensor:
    """A bright disc on grey tissue."""
    return 0.1 + 0.9 * (_disc(radius, **at) + 0.5).clamp(0, 1)


class Looking:
    """Takes what is bright for the head, and keeps what it was shown."""

    def __init__(self) -> None:
        self.views: list[torch.Tensor] = []

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.views.append(image)
        return 8 * (image - 0.5)


@pytest.mark.parametrize(
    ("radius", "zoom"), [(12, HEAD_SHARE * 64 / 25), (4, ZOOM[1]), (31, HEAD_SHARE)], ids=str
)
def test_the_head_has_a_common_size_and_lies_in_the_middle_of_what_is_shown(radius, zoom):
    look = Looking()
    look_closer(_image(radius), _disc(radius), looks=1, look=look)
    (view,) = look.views
    rows, columns = (view[0, 0] > 0.5).nonzero().unbind(dim=1)
    for along, side in ((rows, 64), (columns, 96)):
        extent = along.max() - along.min() + 1
        assert extent == pytest.approx((1 - BORDER) * zoom * (2 * radius + 1), abs=2.5)
        assert (along.max() + along.min()) / 2 == pytest.approx((side - 1) / 2, abs=1.0)


def test_what_lies_around_the_head_is_black():
    look, beside = Looking(), _image(8, x=70, y=48)
    look_closer(
        torch.maximum(_image(8, x=25, y=18), beside), _disc(8, x=25, y=18), looks=1, look=look
    )
    (view,) = look.views
    rim = torch.ones(64, 96, dtype=torch.bool)
    rim[6:-6, 9:-9] = False
    assert view[0, 0][rim].abs().max() == 0
    # One of the two discs.
    assert view[0, 0, :, :48].max() > 0.9
    assert (view > 0.5).float().mean() < 0.35


def test_a_look_that_differs_much_replaces_the_first_and_keeps_its_place():
    true, first = _disc(10), torch.maximum(_disc(9), _disc(9, x=28))
    closer = look_closer(_image(10), first, looks=2, look=Looking())
    certain = true.abs() > 1.5
    assert torch.equal((closer > 0)[certain], (true > 0)[certain])


def test_looks_that_agree_are_averaged():
    image, first = _image(20), _disc(20.5)
    closer = look_closer(image, first, looks=1, look=Looking())
    # The look has 4 and -3.2 at most, the first look 20 in the middle.
    assert closer[0, 0, 30, 44] == pytest.approx((20.5 + 4) / 2, abs=0.1)


def test_beyond_what_is_shown_the_look_before_stands():
    first = torch.maximum(_disc(6, x=12, y=12), _disc(5, x=80, y=50))
    closer = look_closer(_image(6, x=12, y=12), first, looks=1, look=Looking())
    assert closer[0, 0, 50, 80] == first[0, 0, 50, 80] == 5


def test_a_look_that_shows_no_head_changes_nothing():
    first = _disc(9)
    closer = look_closer(torch.zeros(1, 1, 64, 96), first, looks=2, look=Looking())
    assert torch.equal(closer, first)


def test_an_image_without_a_head_is_not_looked_at_again():
    look = Looking()
    empty = torch.full((1, 1, 64, 96), -3.0)
    image, logits = torch.cat([_image(8), _image(8)]), torch.cat([empty, _disc(8)])
    closer = look_closer(image, logits, looks=1, look=look)
    assert len(look.views[0]) == 1
    assert torch.equal(closer[:1], empty)
    assert torch.equal(closer[1:], look_closer(image[1:], logits[1:], looks=1, look=Looking()))
    assert look_closer(image[:1], empty, looks=1, look=look) is empty


def test_predictions_take_them_and_fits_do_not_depend_on_them():
    batch, seen = {"image": _image(12)}, []
    module = UnetModule(replace(SMALL, closer_looks=3)).eval()
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    # So that an untrained network finds something.
    module.network.segmentation_head[0].bias.data += 1
    module.predict(batch)
    assert len(seen) == 2 * (1 + 3)
    assert module.config.hashed() == SMALL.hashed()


def test_fewer_than_none_are_refused():
    with pytest.raises(ValueError, match=r"closer_looks=-1"):
        UnetConfig(closer_looks=-1)
