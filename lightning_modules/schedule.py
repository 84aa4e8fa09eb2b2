"""The learning rate over a training. Torch-free."""

import math
from typing import Literal

LearningRateSchedule = Literal["cosine", "constant"]


def learning_rate_factor(
    step: int, *, warmup_steps: int, steps: int, schedule: LearningRateSchedule = "cosine"
) -> float:
    """Scale the peak learning rate: linear warm-up, then a cosine that reaches 0 at `steps`.

    Args:
        step: Optimiser steps taken before this one, >= 0.
        warmup_steps: Steps of warm-up, >= 0; the last of them runs at the peak.
        steps: Steps of the whole training.
        schedule: `constant` stays at the peak after the warm-up.

    Returns:
        A factor in [0, 1]; 0 from `steps` on.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= steps:
        return 0.0
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
