"""Segmenters under a Trainer of the user's own: several test cohorts, predictions."""

import pytest
import torch
from torch.utils.data import DataLoader
from trainer_parts import make_trainer
from unet_parts import Heads, make_config

from lightning_modules.segmenters.unet.module import UnetModule


def test_cohorts_are_scored_by_themselves(tmp_path):
    module, trainer = UnetModule(make_config()), make_trainer(tmp_path)
    loaders = [DataLoader(Heads(first, 3), batch_size=2) for first in (0, 50)]
    (first, second) = trainer.test(module, loaders, verbose=False)
    for number, found in enumerate((first, second)):
        (alone,) = trainer.test(module, loaders[number], verbose=False)
        for name, value in alone.items():
            assert found[f"{name}/dataloader_idx_{number}"] == pytest.approx(value, abs=1e-6)
    assert first["test/dice/dataloader_idx_0"] != second["test/dice/dataloader_idx_1"]


def test_the_trainer_predicts_as_the_module_does(tmp_path):
    module, loader = UnetModule(make_config()), DataLoader(Heads(0, 3), batch_size=2)
    found = make_trainer(tmp_path).predict(module, loader)
    expected = [module.eval().predict(batch) for batch in loader]
    assert [tuple(one.shape) for one in found] == [(2, 1, 32, 64), (1, 1, 32, 64)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
