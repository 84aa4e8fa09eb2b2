"""Averaged weights in the place of the last ones, and those back, whatever happens."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from lightning_modules.averaging import averaged


def test_averaged_weights_are_there_for_a_while_and_go_after_an_error_too():
    weight = torch.nn.Parameter(torch.zeros(2))
    ema = EMAModel([torch.nn.Parameter(torch.ones(2))])
    with averaged([weight], ema):
        assert weight.tolist() == [1, 1]
    assert weight.tolist() == [0, 0]
    with pytest.raises(KeyError), averaged([weight], ema):
        raise KeyError
    assert weight.tolist() == [0, 0]
    with averaged([weight], None):
        assert weight.tolist() == [0, 0]
