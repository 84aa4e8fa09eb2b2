"""SamModule under Lightning's Trainer: a run repeats, resumes, is saved and logged."""

from dataclasses import asdict

import lightning as L
import numpy as np
import pytest
import torch
from sam_parts import Heads, make_config, trainable_names, weights
from torch.utils.data import DataLoader, Dataset
from trainer_parts import make_trainer

from lightning_modules.errors import NonFiniteLossError
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.step_loss import StepLoss


class EpochStream(Dataset):
    """Eight items an epoch whose order and draws depend on the trainer's epoch alone."""

    def __init__(self):
        self.heads, self.epoch = Heads(), 0

    def __len__(self):
        return len(self.heads)

    def __getitem__(self, index):
        draw = self.epoch * len(self) + index
        return {**self.heads.items[(index * 3 + self.epoch) % 8], "draw": torch.tensor(draw)}


class StreamData(L.LightningDataModule):
    def train_dataloader(self):
        stream = EpochStream()
        stream.epoch = self.trainer.current_epoch
        return DataLoader(stream, batch_size=4)

    def val_dataloader(self):
        return DataLoader(Heads(3), batch_size=2)

    test_dataloader = val_dataloader


def test_resume_at_a_boundary_gives_the_same_weights(tmp_path):
    def fit(epochs, ckpt_path=None, global_seed=0):
        torch.manual_seed(global_seed)
        module = SamModule(make_config(), seed=1)
        trainer = make_trainer(tmp_path, max_epochs=epochs)
        trainer.fit(module, datamodule=StreamData(), ckpt_path=ckpt_path)
        assert trainer.global_step == 2 * epochs
        return module, trainer

    straight, _ = fit(4)
    _, half_trainer = fit(2, global_seed=5)
    path = tmp_path / "half.ckpt"
    half_trainer.save_checkpoint(path)
    resumed, _ = fit(4, ckpt_path=path, global_seed=6)
    expected, found = weights(straight), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_checkpoints_hold_trainable_weights_only_and_load(tmp_path):
    config = make_config()
    module = SamModule(config, seed=2)
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(module, datamodule=StreamData())
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert set(content["state_dict"]) == trainable_names(module)
    assert content["hyper_parameters"] == {"config": asdict(config), "seed": 2}
    loaded = SamModule.load_from_checkpoint(path)
    assert loaded.config == config
    assert loaded.seed == 2
    expected, found = weights(module), weights(loaded)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_loss_that_is_not_finite_moves_no_weight(tmp_path):
    class Broken(StreamData):
        def train_dataloader(self):
            loader = super().train_dataloader()
            loader.dataset.heads.items[0]["image"][...] = float("nan")
            return loader

    module = SamModule(make_config())
    before = weights(module)
    # Item 0 is in the first batch.
    with pytest.raises(NonFiniteLossError, match=r"at step 0 .*lower segmenter.learning_rate"):
        make_trainer(tmp_path, max_steps=2).fit(module, datamodule=Broken())
    for name, value in weights(module).items():
        assert torch.equal(value, before[name]), name


def test_weights_that_the_last_step_ruins_are_noticed(tmp_path):
    class Ruined(SamModule):
        def on_train_batch_end(self, *_):
            self.sam.mask_decoder.mask_tokens.weight.data[0, 0] = float("inf")

    with pytest.raises(NonFiniteLossError, match=r"a weight is nan at step 1 .*lower segmenter"):
        make_trainer(tmp_path, max_steps=1).fit(Ruined(make_config()), datamodule=StreamData())


def test_the_training_dice_is_logged_over_all_items(tmp_path):
    module, seen = SamModule(make_config()), []
    update = module.train_dice.update
    module.train_dice.update = lambda dice: (seen.extend(dice.tolist()), update(dice))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=StreamData())
    assert len(seen) == 8
    assert trainer.callback_metrics["train/dice"].item() == pytest.approx(np.mean(seen), abs=1e-6)


def test_bf16_mixed_trains_on_the_cpu(tmp_path):
    module = SamModule(make_config(precision="bf16-mixed"))
    before = weights(module)
    step_loss = StepLoss()
    trainer = make_trainer(
        tmp_path, max_steps=2, precision=module.config.precision, callbacks=[step_loss]
    )
    trainer.fit(module, datamodule=StreamData())
    after = weights(module)
    assert not torch.equal(
        before["sam.mask_decoder.mask_tokens.weight"], after["sam.mask_decoder.mask_tokens.weight"]
    )
    assert all(value.isfinite().all() for value in after.values())
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert np.isfinite(step_loss.last)


def test_validation_and_test_log_the_whole_image_dice_over_items(tmp_path):
    module = SamModule(make_config())
    trainer = make_trainer(tmp_path)
    logged = trainer.validate(module, datamodule=StreamData(), verbose=False)[0]
    dice = []
    for index in range(3):
        batch = {key: value[None] for key, value in Heads(3)[index].items()}
        h, w = batch["valid_hw"][0].tolist()
        with torch.no_grad():
            logits = module(batch, torch.tensor([[0.0, 0, w - 1, h - 1]]))
        predicted = (logits[0, 0, :h, :w] > 0).numpy()
        target = batch["mask"][0, 0, :h, :w].numpy() == 1
        dice.append(2 * (predicted & target).sum() / (predicted.sum() + target.sum()))
    # Batches of 2 and 1: a mean over batches would differ.
    assert logged["val/dice"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert set(logged) == {"val/dice", "val/loss"}
    tested = trainer.test(module, datamodule=StreamData(), verbose=False)[0]
    assert tested["test/dice"] == pytest.approx(logged["val/dice"], abs=1e-6)
