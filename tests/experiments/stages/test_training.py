"""The Trainer of a stage: what a training that may stop early continues with after a kill."""

import errno
import itertools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from experiments.config.running import TrainerConfig
from experiments.stages import training
from experiments.stages.training import (
    best_checkpoint,
    fit,
    last_checkpoint,
    last_loss,
    make_trainer,
)

STEPS = 20
# Validated after steps 2, 4, 6...: the best is the second, and two worse ones follow it.
VAL_DICE = {2: 0.5, 4: 0.9, 6: 0.8, 8: 0.7}


def test_a_checkpoint_is_written_beside_and_has_its_name_once_it_is_whole(tmp_path, monkeypatch):
    """The temporary folder may be full, or on another disk than the store."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    path = tmp_path / "checkpoints" / "step=1.ckpt"
    saver = training.DurableCheckpointIO()
    saver.save_checkpoint({"weight": torch.ones(1)}, path)
    first = path.read_bytes()

    def cut(checkpoint, target):
        Path(target).write_bytes(first[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut)
        with pytest.raises(OSError, match="No space"):
            saver.save_checkpoint({"weight": torch.zeros(1)}, path)
    assert path.read_bytes() == first
    assert last_checkpoint(tmp_path) == path
    saver.save_checkpoint({"weight": torch.zeros(1)}, path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert torch.load(path)["weight"] == 0


class Toy(LightningModule):
    """One weight that follows the numbers of its batches, scored by the table above."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.validated: list[int] = []

    def training_step(self, batch):
        return (self.weight - batch.float()).square().sum()

    def validation_step(self, batch):
        pass

    def on_validation_epoch_end(self):
        self.validated.append(self.global_step)
        self.log("val/dice", torch.tensor(VAL_DICE.get(self.global_step, 0.1)))

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


class Numbers(LightningDataModule):
    """Batches 0, 1, 2...; from the first one that an interrupted run has not seen."""

    def train_dataloader(self):
        loop = self.trainer.fit_loop
        first = loop.epoch_loop.batch_progress.current.processed if loop.restarting else 0
        sampler = _From(first)
        return DataLoader(torch.arange(STEPS), batch_size=1, sampler=sampler)

    def val_dataloader(self):
        return DataLoader(torch.arange(2), batch_size=1)


class _From(torch.utils.data.Sampler):
    def __init__(self, first: int) -> None:
        self._first = first

    def __len__(self):
        return STEPS

    def __iter__(self):
        return iter(range(self._first, STEPS))


class Kill(Callback):
    """End the process, as a signal does, before the step after `step`."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self._step:
            raise SystemExit


def trainer_of(folder, *, least_s=0, batch_parts=1, **settings):
    folder.mkdir(exist_ok=True)
    return make_trainer(
        run_dir=folder,
        config=TrainerConfig(accelerator="cpu", checkpoint_every=2, checkpoint_s=least_s),
        precision="32-true",
        steps=STEPS // batch_parts,
        batch_parts=batch_parts,
        **settings,
    )


def run(folder, *, kill_after: int | None = None) -> tuple[Toy, int]:
    """Train, or continue; the module and its optimiser steps."""
    trainer = trainer_of(folder, patience=2)
    if kill_after is not None:
        trainer.callbacks.append(Kill(kill_after))
    module = Toy()
    try:
        fit(trainer, module, Numbers(), run_dir=folder)
    except SystemExit:
        assert kill_after is not None
    return module, trainer.global_step


def best_weight(folder) -> float:
    state = torch.load(best_checkpoint(folder), weights_only=True)["state_dict"]
    return float(state["weight"])


@pytest.mark.parametrize("kill_after", [1, 3, 4, 5, 6, 7, None])
def test_early_stopping_ends_alike_wherever_it_was_killed(tmp_path, kill_after):
    """None: after its end, before anything says that it is done."""
    whole, steps = run(tmp_path / "whole")
    assert (steps, whole.validated) == (8, [2, 4, 6, 8])
    killed, _ = run(tmp_path / "killed", kill_after=kill_after)
    resumed, found = run(tmp_path / "killed")
    assert found == steps
    assert killed.validated + resumed.validated == whole.validated
    assert torch.equal(resumed.weight, whole.weight)
    assert best_weight(tmp_path / "killed") == best_weight(tmp_path / "whole")


def test_a_short_fit_stops_early_too(tmp_path, monkeypatch):
    """Lightning itself looks at the end of the epoch alone where every step is validated."""
    monkeypatch.setitem(globals(), "STEPS", 10)
    _, steps = run(tmp_path / "short")
    # Best at step 4, then twice no better.
    assert steps == 6
    assert run(tmp_path / "short")[1] == 6
    weight = 0.0
    for number in range(4):
        weight -= 0.1 * 2 * (weight - number)
    assert best_weight(tmp_path / "short") == pytest.approx(weight)


def checkpoints(folder) -> list:
    return sorted((folder / "checkpoints").glob("step=*.ckpt"))


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_checkpoint_that_a_power_cut_left_half_is_not_gone_on_from(tmp_path, left):
    """What was not yet on the disk is gone; the run then starts again, to the same weights."""
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "cut", kill_after=5)
    (path,) = checkpoints(tmp_path / "cut")
    assert last_checkpoint(tmp_path / "cut") == path
    path.write_bytes(path.read_bytes()[:left])
    assert last_checkpoint(tmp_path / "cut") is None
    resumed, steps = run(tmp_path / "cut")
    assert steps == 8
    assert torch.equal(resumed.weight, whole.weight)


def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(tmp_path):
    run(tmp_path / "cut", kill_after=5)
    (path,) = checkpoints(tmp_path / "cut")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (path.parent / "step=7.ckpt").write_bytes(bytes(damaged))
    assert last_checkpoint(tmp_path / "cut") == path


def test_a_checkpoint_is_on_the_disk_before_the_last_one_goes(tmp_path, monkeypatch):
    events = []
    fsync = training.fsync_path

    def recorded(path):
        events.append((path.name, sorted(each.name for each in checkpoints(tmp_path / "run"))))
        fsync(path)

    monkeypatch.setattr(training, "fsync_path", recorded)
    run(tmp_path / "run")
    # Each file, then the folder that has its name.
    synced = [
        (name.removeprefix("."), named)
        for (name, _), (_, named) in itertools.pairwise(events)
        if name.startswith(".step=")
    ]
    assert len(synced) >= 3
    for (before, _), (name, there) in itertools.pairwise(synced):
        assert {before, name} <= {*there}


class Clock(Callback):
    """A second a step, as the checkpoints see it; notes which steps are on the disk."""

    def __init__(self, folder, monkeypatch) -> None:
        self.folder, self.now, self.found = folder, 0.0, []
        monkeypatch.setattr(training.time, "monotonic", lambda: self.now)

    def on_train_batch_start(self, *_):
        self.now += 1.0
        self.found += [path.stem for path in checkpoints(self.folder)]


@pytest.mark.parametrize(
    ("least_s", "batch_parts", "steps"),
    [
        (0, 1, [2, 4, 6, 8, 10, 12, 14, 16, 18]),
        (5, 1, [6, 12, 18]),
        (100, 1, []),
        # Two seconds a step; after the second part of a batch alone, late or not.
        (5, 2, [4, 8]),
    ],
)
def test_checkpoints_are_written_no_sooner_than_asked(
    tmp_path, monkeypatch, least_s, batch_parts, steps
):
    clock = Clock(tmp_path, monkeypatch)
    trainer = trainer_of(tmp_path, least_s=least_s, batch_parts=batch_parts)
    trainer.callbacks.insert(0, clock)
    fit(trainer, Toy(), Numbers(), run_dir=tmp_path)
    assert list(dict.fromkeys(clock.found)) == [f"step={step}" for step in steps]


class Curve(DummyLogger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def log_metrics(self, metrics, step=None):
        self.losses.append(metrics["train/loss"])


@pytest.mark.parametrize("batch_parts", [1, 2, 4])
def test_the_loss_of_a_step_is_the_mean_over_its_parts(tmp_path, batch_parts):
    curve = Curve()
    trainer = trainer_of(tmp_path, batch_parts=batch_parts, logger=curve)
    fit(trainer, Toy(), Numbers(), run_dir=tmp_path)
    weight, expected = 0.0, []
    for first in range(0, STEPS, batch_parts):
        errors = [weight - number for number in range(first, first + batch_parts)]
        expected.append(sum(error**2 for error in errors) / batch_parts)
        weight -= 0.1 * 2 * sum(errors) / batch_parts
    assert curve.losses == pytest.approx(expected, rel=1e-5)
    assert last_loss(trainer) == pytest.approx(expected[-1], rel=1e-5)


def test_a_fit_with_no_step_left_knows_its_loss(tmp_path):
    whole = trainer_of(tmp_path)
    fit(whole, Toy(), Numbers(), run_dir=tmp_path)
    assert last_checkpoint(tmp_path).stem == f"step={STEPS}"
    resumed = trainer_of(tmp_path)
    assert last_loss(resumed) is None
    fit(resumed, Toy(), Numbers(), run_dir=tmp_path)
    assert resumed.global_step == STEPS
    assert last_loss(resumed) == last_loss(whole)


def test_a_signal_that_ends_the_loader_too_is_no_failure(tmp_path):
    """SLURM may signal every process of a job; torch then misses its loader's."""

    def lose_loader(*_, **__):
        raise RuntimeError("DataLoader worker is killed by signal: Terminated")

    trainer = SimpleNamespace(fit=lose_loader, received_sigterm=True)
    with pytest.raises(InterruptedError, match="stopped by a signal"):
        fit(trainer, None, None, run_dir=tmp_path)
    trainer.received_sigterm = False
    with pytest.raises(RuntimeError, match="worker is killed"):
        fit(trainer, None, None, run_dir=tmp_path)


class Normed(Toy):
    """A network with batch statistics, which runs out of memory once, somewhere within a step."""

    def __init__(self, *, fails: str | None = None) -> None:
        super().__init__()
        self.fails, self.norm = fails, torch.nn.BatchNorm1d(1)

    def _fail(self, where):
        if self.fails == where and self.global_step == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def training_step(self, batch):
        self._fail("forward")
        # Statistics move before the error, as those of a network's first layers do.
        seen = self.norm(batch.float() + torch.arange(4.0)[:, None])
        self._fail("backward")
        return (self.weight * seen - 1).square().mean() + seen.mean()

    def optimizer_step(self, *args):
        super().optimizer_step(*args)
        self._fail("optimiser")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.mark.parametrize("where", ["forward", "backward", "optimiser"])
def test_a_step_that_ran_out_of_memory_is_taken_anew_as_a_whole(tmp_path, where):
    whole, cut = Normed(), Normed(fails=where)
    fit(trainer_of(tmp_path / "whole"), whole, Numbers(), run_dir=tmp_path / "whole")
    with pytest.raises(torch.OutOfMemoryError):
        fit(trainer_of(tmp_path / "cut"), cut, Numbers(), run_dir=tmp_path / "cut")
    assert last_checkpoint(tmp_path / "cut").stem == "step=4"
    again = Normed()
    fit(trainer_of(tmp_path / "cut"), again, Numbers(), run_dir=tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_resumed_training_in_parts_is_never_kept_between_two_parts(tmp_path):
    """A checkpoint of the step that it stands at would hold the statistics of half a step more."""

    def train(folder, *, kill_after=None):
        trainer = trainer_of(folder, batch_parts=2)
        trainer.callbacks += [] if kill_after is None else [Kill(kill_after)]
        module = Normed()
        try:
            fit(trainer, module, Numbers(), run_dir=folder)
        except SystemExit:
            assert kill_after is not None
        return module.state_dict()

    whole = train(tmp_path / "whole")
    for kill_after in (5, 5):
        train(tmp_path / "cut", kill_after=kill_after)
        assert last_checkpoint(tmp_path / "cut").stem == "step=4"
    again = train(tmp_path / "cut")
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


class Lost(torch.utils.data.Dataset):
    """Numbers whose loader ends before the sixth batch."""

    def __len__(self):
        return STEPS

    def __getitem__(self, number):
        if number == 5:
            raise RuntimeError("DataLoader worker is killed by signal: Terminated")
        return torch.tensor(number)


def test_an_error_between_two_steps_loses_none(tmp_path):
    loader = DataLoader(Lost(), batch_size=1)
    with pytest.raises(RuntimeError, match="worker is killed"):
        trainer_of(tmp_path).fit(Toy(), train_dataloaders=loader)
    assert last_checkpoint(tmp_path).stem == "step=5"


def test_lightning_does_not_take_a_job_of_slurm_for_its_own(tmp_path, monkeypatch):
    for name, value in (("SLURM_NTASKS", "4"), ("SLURM_PROCID", "3"), ("SLURM_JOB_NAME", "toy")):
        monkeypatch.setenv(name, value)
    trainer = trainer_of(tmp_path)
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, LightningEnvironment)
    assert (trainer.world_size, trainer.global_rank) == (1, 0)
