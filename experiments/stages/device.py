"""Where stages compute, and what of a GPU they may use."""

import torch

from experiments.config.schema import ExperimentConfig
from experiments.stages.context import StageContext


def device_of(config: ExperimentConfig) -> torch.device:
    """Where a stage that needs no Trainer computes: the GPU where one is asked for, or is there
    and not declined; else the CPU."""
    wanted = config.trainer.accelerator
    use_gpu = wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def resident_bytes(context: StageContext) -> int:
    """Memory of a GPU for a stage's training items; none on a CPU, and once memory ran out."""
    if context.shrink > 1 or device_of(context.config).type == "cpu":
        return 0
    return int(context.config.trainer.resident_gib * 2**30)
