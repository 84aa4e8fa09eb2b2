"""Refuse a training that can only continue in NaN, without letting a GPU wait at every step."""

import math
from collections import deque
from typing import Any

import lightning as L
import torch

from lightning_modules.errors import require_finite


class LossWatch(L.Callback):
    """Judges each step's loss, and the weights before a checkpoint and at the end.

    Each of our modules brings one by `configure_callbacks`. Losses are on their way from the
    device, and judged once they have arrived: on a CPU before the step that they belong to, on a
    GPU before the next one, so that the next can be launched meanwhile.

    Args:
        setting: Configuration key to lower, such as "segmenter.learning_rate".
    """

    def __init__(self, *, setting: str) -> None:
        self._setting = setting
        self._waiting: deque[tuple[torch.Tensor, torch.cuda.Event | None, int, float]] = deque()
        self._learning_rate = math.nan

    def add(self, loss: torch.Tensor, *, step: int, learning_rate: float) -> None:
        """Take note of a batch's loss, with the optimiser steps before it and its learning rate."""
        loss, arrived = loss.detach(), None
        if loss.is_cuda:
            arrived = torch.cuda.Event()
            held = torch.empty((), dtype=loss.dtype, pin_memory=True)
            loss = held.copy_(loss, non_blocking=True)
            arrived.record()
        self._waiting.append((loss, arrived, step, learning_rate))

    def check(self, *, all_of_them: bool = False) -> None:
        """Judge the losses so far; of a GPU's all but the last, unless `all_of_them`.

        Raises:
            NonFiniteLossError: One is not finite.
        """
        while self._waiting:
            loss, arrived, step, learning_rate = self._waiting[0]
            if arrived is not None:
                if len(self._waiting) == 1 and not all_of_them:
                    return
                arrived.synchronize()
            self._waiting.popleft()
            require_finite(
                loss.item(), step=step, learning_rate=learning_rate, setting=self._setting
            )

    def on_before_backward(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        loss: torch.Tensor,
    ) -> None:
        """Take note of the loss; of a batch in parts it is the part's share."""
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.add(loss, step=trainer.global_step, learning_rate=self._learning_rate)

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Refuse a loss that is not finite."""
        self.check()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Judge the losses that are left."""
        self.check(all_of_them=True)

    def on_save_checkpoint(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        checkpoint: dict[str, Any],  # noqa: ARG002
    ) -> None:
        """Refuse to keep what a run must not continue from."""
        self.check(all_of_them=True)
        self._check_weights(pl_module, step=trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse weights that the last step made useless: no later loss would show it."""
        self._check_weights(pl_module, step=trainer.global_step)

    def _check_weights(self, module: L.LightningModule, *, step: int) -> None:
        require_finite(
            0.0 if all_weights_finite(module) else math.nan,
            what="a weight",
            step=step,
            learning_rate=self._learning_rate,
            setting=self._setting,
        )


def all_weights_finite(module: torch.nn.Module) -> bool:
    """Whether what training changes is free of NaN and infinity; the device is asked once.

    Args:
        module: Of it the weights that are trained and the buffers, such as running statistics.
    """
    judged = [weight for weight in module.parameters() if weight.requires_grad]
    judged += module.buffers()
    if not judged:
        return True
    return bool(torch.stack([value.detach().isfinite().all() for value in judged]).all())
