"""What the modules' optimisers share."""

from typing import Any

import torch

from lightning_modules.schedule import LearningRateSchedule, learning_rate_factor


def with_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    warmup_steps: int,
    steps: int,
    schedule: LearningRateSchedule = "cosine",
) -> dict[str, Any]:
    """Give what `configure_optimizers` returns: the rate follows `learning_rate_factor`."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            step, warmup_steps=warmup_steps, steps=steps, schedule=schedule
        ),
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def clip_gradients(optimizer: torch.optim.Optimizer, *, max_norm: float) -> None:
    """Clip the norm of all gradients of an optimiser together.

    By a module's own setting, which the run's id covers, and not by a flag of the trainer.
    """
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
