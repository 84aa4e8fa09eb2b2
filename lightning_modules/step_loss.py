"""The loss of an optimiser step, whatever parts and processes its batch was computed in."""

from typing import Any

import lightning as L
import torch


class StepLoss(L.Callback):
    """Logs `train/loss` for any module: the mean of what `training_step` returned for a step.

    Parts of a batch are of one size, and so are the shares of processes, so that the mean of their
    means is the mean over all items. Checkpoints keep it: a run that is continued with no step
    left still knows it.
    """

    def __init__(self) -> None:
        self._parts: torch.Tensor | None = None
        self._mean: torch.Tensor | float | None = None
        self._step = 0

    @property
    def last(self) -> float | None:
        """Loss of the last step; None before any. Reading it waits for the device."""
        return None if self._mean is None else float(self._mean)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count from where a continued run stands."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: dict[str, Any], *_: Any
    ) -> None:
        """Add a part; at the end of a step, log the mean where anything takes logs."""
        part = outputs.get("loss")
        if part is not None:
            # Lightning has divided it by the number of parts.
            self._parts = part if self._parts is None else self._parts + part
        if trainer.global_step == self._step or self._parts is None:
            return
        self._step, mean, self._parts = trainer.global_step, self._parts, None
        if trainer.world_size > 1:
            # Not Lightning's reduce, whose barrier would let a GPU wait at every step.
            # A copy: other callbacks read the process's own loss.
            mean = mean.clone()
            torch.distributed.all_reduce(mean)
            mean = mean / trainer.world_size
        self._mean = mean
        if trainer.loggers:
            pl_module.log("train/loss", mean)

    def state_dict(self) -> dict[str, Any]:
        """The last step's loss, for a checkpoint."""
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._mean = state_dict["last"]
