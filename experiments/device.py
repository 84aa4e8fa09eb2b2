"""Where a stage that needs no Trainer computes."""

import torch

from experiments.config import ExperimentConfig


def device_of(config: ExperimentConfig) -> torch.device:
    """The GPU where one is asked for, or is there and not declined; else the CPU."""
    wanted = config.trainer.accelerator
    use_gpu = wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")
