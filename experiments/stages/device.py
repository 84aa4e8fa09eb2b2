"""Where stages compute, and what of a GPU they may use."""

import torch

from datamodules.settings import Loading
from experiments.config.schema import ExperimentConfig
from experiments.stages.context import StageContext


def device_of(config: ExperimentConfig) -> torch.device:
    """Where a stage that needs no Trainer computes: the GPU where one is asked for, or is there
    and not declined; else the CPU."""
    wanted = config.trainer.accelerator
    use_gpu = wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def loading_of(context: StageContext) -> Loading:
    """How a stage's training batches come to the device: its items stay on a GPU where they fit;
    on a CPU, and once memory ran out, they are loaded batch by batch."""
    trainer = context.config.trainer
    is_kept = context.batch_parts == 1 and device_of(context.config).type != "cpu"
    return Loading(
        num_workers=trainer.num_workers,
        batch_parts=context.batch_parts,
        resident_bytes=int(trainer.resident_gib * 2**30) if is_kept else 0,
    )
