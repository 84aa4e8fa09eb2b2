"""Refuse a training that can only go on in NaN, without letting a GPU wait at every step."""

from collections import deque

import torch

from lightning_modules.errors import require_finite


class LossWatch:
    """Losses on their way from the device, judged once they have arrived.

    On a CPU a loss is judged before the step that it belongs to, on a GPU before the next one, so
    that the next can be launched meanwhile.

    Args:
        setting: Configuration key to lower, such as "segmenter.learning_rate".
    """

    def __init__(self, *, setting: str) -> None:
        self._setting = setting
        self._waiting: deque[tuple[torch.Tensor, torch.cuda.Event | None, int, float]] = deque()

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
