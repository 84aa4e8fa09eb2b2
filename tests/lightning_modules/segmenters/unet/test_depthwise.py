"""Depthwise convolutions stay in float32 on a CPU."""

import copy

import pytest
import torch
from unet_parts import make_config

from lightning_modules.segmenters.unet.depthwise import keep_depthwise_in_float32
from lightning_modules.segmenters.unet.module import build_unet


@pytest.mark.parametrize("name", ["mobilenet_v2", "tu-tf_efficientnet_lite0"])
def test_under_autocast_depthwise_convolutions_alone_compute_in_float32(name):
    network, found = build_unet(make_config(encoder_name=name), seed=0), {}

    def keep(module, _inputs, output):
        found.setdefault(module.groups > 1, set()).add(output.dtype)

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(keep)
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.rand(2, 1, 64, 96))
    assert found == {True: {torch.float32}, False: {torch.bfloat16}}


def test_weights_keep_their_names_and_copies_their_own_values():
    plain = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.Conv2d(4, 2, 1))
    changed = copy.deepcopy(plain)
    keep_depthwise_in_float32(changed)
    image = torch.rand(1, 4, 8, 8)
    assert list(changed.state_dict()) == list(plain.state_dict())
    assert torch.equal(changed(image), plain(image))
    other = copy.deepcopy(changed)
    other[0].weight.data.zero_()
    assert not torch.equal(other(image), changed(image))
