"""Exceptions for weights that cannot be used and for trainings that diverged. Torch-free."""

import math


class WeightsError(ValueError):
    """Weights that cannot be used: one line that says which file, why, and what to do."""


class MissingWeightsError(WeightsError):
    """Published weights that are not on this machine yet; `name` is theirs in the table."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class NonFiniteLossError(RuntimeError):
    """A training whose numbers left the finite: one line with its step and learning rate."""


def require_finite(
    value: float, *, what: str = "loss", step: int, learning_rate: float, setting: str
) -> None:
    """Stop a training that can only continue in NaN.

    Args:
        value: The number to judge, such as the batch's loss.
        what: Its name in the message.
        step: Optimiser steps taken so far.
        learning_rate: Learning rate of the step that the number belongs to.
        setting: Configuration key to lower, such as "segmenter.learning_rate".

    Raises:
        NonFiniteLossError: The value is NaN or infinite.
    """
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"{what} is {value} at step {step} (learning rate {learning_rate:.3g}); "
            f"lower {setting}, or look for images that are not finite"
        )
