"""Segmenters under a Trainer of the user's own: several test cohorts, predictions."""

import pytest
import sam_parts
import torch
from torch.utils.data import DataLoader
from trainer_parts import make_trainer
from unet_parts import Heads, make_config

from lightning_modules.segmenters.sam.module import SamModule
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


def test_the_trainer_predicts_with_sam_from_the_whole_image(tmp_path):
    module = SamModule(sam_parts.make_config())
    loader = DataLoader(sam_parts.Heads(3), batch_size=2)
    found = make_trainer(tmp_path).predict(module, loader)
    assert [tuple(one.shape) for one in found] == [(2, 1, 64, 64), (1, 1, 64, 64)]
    module.eval()
    for one, batch in zip(found, loader, strict=True):
        valid_h, valid_w = batch["valid_hw"].unbind(dim=1)
        ends = torch.stack([valid_w - 1, valid_h - 1], dim=1).float()
        whole, inner = torch.cat([0 * ends, ends], dim=1), torch.cat([ends / 4, ends / 2], dim=1)
        with torch.no_grad():
            assert torch.allclose(one, module.predict(batch, whole), atol=1e-5)
            assert not torch.allclose(one, module.predict(batch, inner), atol=1e-3)
