"""Losses that are not finite end a training before its weights or checkpoints have them."""

import pytest
import torch

from lightning_modules.errors import NonFiniteLossError
from lightning_modules.loss_watch import LossWatch


def test_finite_losses_pass_and_are_forgotten():
    watch = LossWatch(setting="a.b")
    for step in range(3):
        watch.add(torch.tensor(1.0, requires_grad=True), step=step, learning_rate=0.1)
    watch.check()
    watch.check(all_of_them=True)
    assert not watch._waiting


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_bad_one_is_named_with_its_step(value):
    watch = LossWatch(setting="a.b")
    watch.add(torch.tensor(1.0), step=6, learning_rate=0.1)
    watch.add(torch.tensor(value), step=7, learning_rate=0.2)
    watch.add(torch.tensor(value), step=8, learning_rate=0.3)
    with pytest.raises(NonFiniteLossError, match=r"at step 7 \(learning rate 0.2\); lower a.b"):
        watch.check()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_last_one_waits_until_it_is_asked_for():
    watch = LossWatch(setting="a.b")
    watch.add(torch.tensor(float("nan"), device="cuda"), step=1, learning_rate=0.1)
    watch.check()
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        watch.check(all_of_them=True)
