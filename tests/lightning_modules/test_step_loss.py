"""StepLoss beside other callbacks."""

from types import SimpleNamespace
from unittest import mock

import torch

from lightning_modules.step_loss import StepLoss


def test_other_callbacks_read_the_loss_of_their_own_process():
    step_loss, logged = StepLoss(), {}
    trainer = SimpleNamespace(global_step=0, world_size=2, loggers=[True])
    step_loss.on_train_start(trainer)
    outputs, trainer.global_step = {"loss": torch.tensor(1.0)}, 1
    with mock.patch("torch.distributed.all_reduce", lambda loss: loss.add_(3.0)):
        module = SimpleNamespace(log=logged.__setitem__)
        step_loss.on_train_batch_end(trainer, module, outputs)
    assert float(logged["train/loss"]) == step_loss.last == 2.0
    assert float(outputs["loss"]) == 1.0
