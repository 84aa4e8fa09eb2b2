"""Losses that are not finite end a training before its weights or checkpoints have them."""

import math

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules.errors import NonFiniteLossError
from lightning_modules.loss_watch import LossWatch, all_weights_finite


class Line(L.LightningModule):
    """Brings its own watch; its loss is y = a x + b, and `ruin` is put into b after a step."""

    def __init__(self, *, ruin_after=None):
        super().__init__()
        self.layer, self.ruin_after = torch.nn.Linear(1, 1), ruin_after

    def configure_callbacks(self):
        return [LossWatch(setting="line.learning_rate")]

    def training_step(self, batch):
        return self.layer(batch).mean()

    def on_train_batch_end(self, *_):
        if self.global_step == self.ruin_after:
            self.layer.bias.data.fill_(math.inf)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


def fit(module, *, xs, tmp_path, accumulate=1):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(torch.tensor(xs)[:, None], batch_size=1))
    return trainer


@pytest.mark.parametrize(("accumulate", "step"), [(1, 3), (2, 1)])
def test_a_module_that_brings_it_takes_no_step_of_a_bad_loss(tmp_path, accumulate, step):
    module = Line()
    expected = rf"loss is nan at step {step} \(learning rate 0.25\); lower line.learning_rate"
    with pytest.raises(NonFiniteLossError, match=expected):
        fit(module, xs=[1.0, 2.0, 3.0, math.nan], tmp_path=tmp_path, accumulate=accumulate)
    assert all_weights_finite(module)


def test_weights_that_the_last_step_ruins_are_noticed(tmp_path):
    expected = r"a weight is nan at step 2 \(learning rate 0.25\); lower line.learning_rate"
    with pytest.raises(NonFiniteLossError, match=expected):
        fit(Line(ruin_after=2), xs=[1.0, 2.0], tmp_path=tmp_path)


def test_no_checkpoint_holds_ruined_weights(tmp_path):
    module = Line()
    trainer = fit(module, xs=[1.0, 2.0], tmp_path=tmp_path)
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    module.layer.bias.data.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="a weight is nan at step 2"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["good.ckpt"]


def test_frozen_weights_are_not_judged_and_running_statistics_are():
    norm = torch.nn.BatchNorm1d(2)
    assert all_weights_finite(norm)
    norm.running_var[1] = math.inf
    assert not all_weights_finite(norm)
    frozen = torch.nn.Linear(1, 1).requires_grad_(False)
    frozen.bias.fill_(math.nan)
    assert all_weights_finite(frozen)
    assert not all_weights_finite(frozen.requires_grad_(True))
    assert all_weights_finite(torch.nn.Identity())


def test_finite_losses_pass_and_are_forgotten():
    watch = LossWatch(setting="a.b")
    for step in range(3):
        watch.add(torch.tensor(1.0, requires_grad=True), step=step, learning_rate=0.1)
    watch.check()
    watch.check(all_of_them=True)
    assert not watch._waiting


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_bad_one_is_named_with_its_step(value):
    watch = LossWatch(setting="a.b")
    watch.add(torch.tensor(1.0), step=6, learning_rate=0.1)
    watch.add(torch.tensor(value), step=7, learning_rate=0.2)
    watch.add(torch.tensor(value), step=8, learning_rate=0.3)
    with pytest.raises(NonFiniteLossError, match=r"at step 7 \(learning rate 0.2\); lower a.b"):
        watch.check()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_last_one_waits_until_it_is_asked_for():
    watch = LossWatch(setting="a.b")
    watch.add(torch.tensor(float("nan"), device="cuda"), step=1, learning_rate=0.1)
    watch.check()
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        watch.check(all_of_them=True)
