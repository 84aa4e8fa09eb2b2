"""Lightning's Trainer as every stage uses it: fixed steps, one epoch, checkpoints, no surprises."""

import os
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.environments import LightningEnvironment

from datamodules.storage import fsync_path
from experiments.config.running import TrainerConfig
from experiments.store.runs import StatusFile
from lightning_modules.step_loss import StepLoss


class ReportProgress(Callback):
    """Write optimiser steps done to the run's status file."""

    def __init__(self, status: StatusFile, *, steps: int) -> None:
        self._status, self._steps = status, steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Say how many optimiser steps are done."""
        if trainer.is_global_zero:
            self._status.update("steps", done=trainer.global_step, total=self._steps)


class CountInParts(Callback):
    """Go on from a checkpoint whose batches were computed in another number of parts.

    Lightning counts parts, and would continue at another batch.
    """

    def __init__(self, batch_parts: int) -> None:
        self._batch_parts = batch_parts

    def on_load_checkpoint(
        self,
        trainer: Trainer,  # noqa: ARG002 - Lightning's signature
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Set the counters to what they would be, before Lightning's loops read them."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # One that was begun, or is not yet called completed, stays so.
            shift = checkpoint["global_step"] * self._batch_parts - counts["processed"]
            for name in counts:
                counts[name] += shift


class DurableCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are on the disk before the one before them is removed, whole or not at all.

    Lightning writes them into the temporary folder, which may be small, and moves them.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002 - Lightning's signature
    ) -> None:
        """Save beside, wait for the disk, then give it its name."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        torch.save(checkpoint, partial)
        fsync_path(partial)
        partial.replace(path)
        fsync_path(path.parent)


class PacedCheckpoint(ModelCheckpoint):
    """Checkpoints every so many steps, `least_s` seconds after the one before or the start."""

    def __init__(self, *, least_s: float, **settings: Any) -> None:
        super().__init__(**settings)
        self._least_s, self._written = least_s, time.monotonic()
        self._seen_step = 0

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """The step that a resumed training stands at has its checkpoint."""
        super().on_train_start(trainer, *args)
        self._seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **named: Any) -> None:
        """Write one where it is due."""
        step = trainer.global_step
        # Once a step: between two parts of the next batch there is nothing to continue from.
        if step % self._every_n_train_steps or step == self._seen_step:
            return
        self._seen_step = step
        # Processes that share a training must agree: writing waits for all of them.
        is_due = time.monotonic() - self._written >= self._least_s
        if trainer.strategy.reduce_boolean_decision(is_due, all=False):
            super().on_train_batch_end(trainer, *args, **named)
            self._written = time.monotonic()

    def on_exception(self, trainer: Trainer, *args: Any) -> None:
        """Write one where the run stands between two steps, as a signal leaves it."""
        # Within one, batch statistics may be ahead of the weights, or weights of their count: after
        # memory ran out, a step would be continued from its middle.
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        if progress.started == progress.completed:
            super().on_exception(trainer, *args)


def checkpoint_dir(run_dir: Path) -> Path:
    """Where a run keeps what it needs to continue."""
    return run_dir / "checkpoints"


def last_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the most steps that is whole, or None."""
    found = checkpoint_dir(run_dir).glob("step=*.ckpt")
    newest_first = sorted(found, key=lambda path: int(path.stem[len("step=") :]), reverse=True)
    return next(filter(_is_whole, newest_first), None)


def _is_whole(path: Path) -> bool:
    """Whether a power cut or a full disk left all of a file; its own sums tell."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the best validation Dice, where early stopping kept one."""
    path = checkpoint_dir(run_dir) / "best.ckpt"
    return path if path.exists() else None


class StaysStopped(EarlyStopping):
    """Early stopping that holds after a resume too: a trainer's own flag is in no checkpoint."""

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        """Stop at once where the checkpoint was written after the last validation."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def make_trainer(
    *,
    run_dir: Path,
    config: TrainerConfig,
    precision: str,
    steps: int,
    logger: Logger | None = None,
    patience: int | None = None,
    batch_parts: int = 1,
) -> Trainer:
    """Make the Trainer of a stage: one epoch of `steps` optimiser steps.

    Args:
        run_dir: Directory of the run, whose status file says how far it is.
        config: Devices and checkpoints.
        precision: Lightning's precision.
        steps: Optimiser steps.
        logger: W&B, or None.
        patience: Validations without a better val/dice before stopping; None does not validate.
        batch_parts: Parts of a batch that make one optimiser step.
    """
    callbacks: list[Callback] = [
        ReportProgress(StatusFile(run_dir), steps=steps),
        CountInParts(batch_parts),
        StepLoss(),
    ]
    kept = {"dirpath": checkpoint_dir(run_dir), "enable_version_counter": False}
    if patience is None:
        callbacks.append(
            PacedCheckpoint(
                least_s=config.checkpoint_s,
                every_n_train_steps=config.checkpoint_every,
                # Between two parts of a batch there is nothing to continue from, and where several
                # processes share one they end at different times.
                save_on_exception=batch_parts == 1 and config.devices == 1,
                filename="{step}",
                **kept,
            )
        )
    else:
        callbacks += [
            StaysStopped(
                monitor="val/dice",
                mode="max",
                patience=patience,
                # By itself it skips every validation of a short fit, which validates at each step.
                check_on_train_epoch_end=False,
            ),
            ModelCheckpoint(
                filename="best",
                monitor="val/dice",
                mode="max",
                # Likewise: by itself it would look at the last validation of a short fit alone.
                save_on_train_epoch_end=False,
                **kept,
            ),
            # After each validation and at no other time: Lightning skips the validation that is
            # due where a checkpoint was written between it and its step. And after the best one
            # was kept, so that its score is among what is resumed.
            ModelCheckpoint(
                filename="{step}", every_n_epochs=1, save_on_train_epoch_end=False, **kept
            ),
        ]
    return Trainer(
        default_root_dir=run_dir,
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        accumulate_grad_batches=batch_parts,
        # Inside a SLURM job Lightning would count SLURM's tasks as its processes, and queue the
        # job again by itself; both are the sweep's.
        plugins=[LightningEnvironment(), DurableCheckpointIO()],
        precision=precision,
        max_epochs=1,
        logger=logger or False,
        callbacks=callbacks,
        # Ten validations over the training, or a few more where its steps do not divide by ten,
        # where a condition stops early at all.
        val_check_interval=batch_parts * max(1, steps // 10) if patience is not None else None,
        limit_val_batches=None if patience is not None else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def last_loss(trainer: Trainer) -> float | None:
    """Mean loss over all items of the last step; None only where no checkpoint knew it."""
    return next(each.last for each in trainer.callbacks if isinstance(each, StepLoss))


def fit(trainer: Trainer, module: LightningModule, datamodule: Any, *, run_dir: Path) -> None:
    """Fit from the start or from the last checkpoint.

    Raises:
        InterruptedError: Stopped by a signal, with a checkpoint to continue from.
    """
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=last_checkpoint(run_dir))
    except RuntimeError as error:
        # A cluster's SIGTERM may reach the loader's processes too, which the fit then misses.
        if not trainer.received_sigterm:
            raise
        raise InterruptedError("stopped by a signal, and its loader processes too") from error
    if trainer.interrupted:
        raise InterruptedError("stopped by a signal; the same command resumes the training")
    if not trainer.is_global_zero:
        # Weights are the same in every process of a run; the first one keeps them.
        os._exit(0)
