"""HC18DataModule under a Trainer of the user's own: several epochs, processes, overfitting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hc18_parts import VAL, TinyModule, builder, weights
from lightning.pytorch.callbacks import ModelCheckpoint
from trainer_parts import make_trainer

from experiments.config.paths import ROOT


@pytest.fixture
def make(hc18_folder, tmp_path):
    return builder(hc18_folder, tmp_path / "cache")


def fit(module, datamodule, folder, *, checkpoint=None, **flags):
    """Validates after every epoch, unless told otherwise."""
    flags = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 0, **flags}
    trainer = make_trainer(folder, **flags)
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
    return [draw for draw, _ in module.seen]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("reload", [0, 1])
def test_an_epoch_goes_on_where_the_one_before_it_ends(make, tmp_path, num_workers, reload):
    whole, epochs = TinyModule(), TinyModule()
    fit(whole, make(n_batches=6), tmp_path, max_epochs=1)
    datamodule = make(n_batches=2, num_workers=num_workers)
    fit(epochs, datamodule, tmp_path, reload_dataloaders_every_n_epochs=reload)
    assert epochs.seen == whole.seen
    assert torch.equal(weights(epochs), weights(whole))


KEPT = {
    "steps": {"every_n_train_steps": 1},
    "validations": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    "epochs": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("kept", "saved_at"),
    [("steps", 1), ("steps", 2), ("steps", 3), ("validations", 2), ("epochs", 2), ("epochs", 4)],
)
def test_resume_is_exact_in_any_epoch(make, tmp_path, num_workers, kept, saved_at):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, **KEPT[kept])
    whole, resumed = TinyModule(), TinyModule()
    flags = {"enable_checkpointing": True, "callbacks": [saver]}
    drawn = fit(whole, make(n_batches=2), tmp_path, **flags)
    assert drawn == list(range(3 * 2 * 4))
    path = str(tmp_path / f"step={saved_at}.ckpt")
    datamodule = make(n_batches=2, num_workers=num_workers)
    assert fit(resumed, datamodule, tmp_path, checkpoint=path) == drawn[saved_at * 4 :]
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("resident_bytes", [0, 10**9])
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_overfitting_repeats_its_batches(make, tmp_path, resident_bytes, max_epochs):
    datamodule = make(resident_bytes=resident_bytes)
    drawn = fit(TinyModule(), datamodule, tmp_path, max_epochs=max_epochs, overfit_batches=1)
    assert drawn == [0, 1, 2, 3] * max_epochs


def test_items_that_lie_on_the_device_change_nothing_in_later_epochs(make, tmp_path):
    """Two items of six in each epoch, so that every one has others."""
    plain, kept = TinyModule(), TinyModule()
    fit(plain, make(n_batches=1, batch_size=2), tmp_path)
    fit(kept, make(n_batches=1, batch_size=2, resident_bytes=10**9), tmp_path)
    assert kept.seen == plain.seen
    assert kept.masks == plain.masks


class Strengths(TinyModule):
    """Notes how strongly each batch is augmented."""

    def training_step(self, batch, batch_idx):
        self.strengths = [*getattr(self, "strengths", []), self.of(batch["draw"])]
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("flags", "moderate"),
    [({"max_epochs": 3}, [4, 5]), ({"max_epochs": -1, "max_steps": 6}, [])],
)
def test_the_moderate_end_is_that_of_all_epochs(make, tmp_path, flags, moderate):
    module = Strengths()
    datamodule = make(n_batches=2, augment="strong", moderate_end=1 / 3)
    module.of = datamodule._strength
    fit(module, datamodule, tmp_path, **flags)
    assert [n for n, found in enumerate(module.strengths) if found == "moderate"] == moderate
    assert len(module.strengths) == 6


def run_of_a_process(folder: Path) -> None:
    """What each of two processes does: fit, validate, and write down what it saw."""
    folder.mkdir(exist_ok=True)
    datamodule = builder(folder.parent / "hc18", folder.parent / "cache")(n_batches=3, batch_size=2)
    module = Noting()
    trainer = make_trainer(folder, devices=2, strategy="ddp", max_epochs=1)
    trainer.fit(module, datamodule=datamodule)
    found = {"drawn": [draw for draw, _ in module.seen], "validated": module.validated}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


class Noting(TinyModule):
    """Notes what it validates."""

    def validation_step(self, batch, batch_idx):
        self.validated = [*getattr(self, "validated", []), *batch["sample_id"]]


@pytest.mark.usefixtures("hc18_folder")
def test_lightning_divides_nothing_again(tmp_path):
    """By default it would give each process a half of its half, and half of the validation."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys\nsys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
        "from pathlib import Path\nfrom test_hc18_trainer import run_of_a_process\n"
        f"run_of_a_process(Path({str(tmp_path / 'run')!r}))\n"
    )
    subprocess.run([sys.executable, script], check=True, timeout=300, capture_output=True)
    found = [json.loads((tmp_path / "run" / f"{rank}.json").read_text()) for rank in range(2)]
    assert [each["drawn"] for each in found] == [[0, 2, 4], [1, 3, 5]]
    assert [each["validated"] for each in found] == [VAL, VAL]
