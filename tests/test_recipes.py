"""Every shipped recipe takes a real step with both of its networks on a tiny HC18 folder."""

import pytest
import torch
from lightning import Trainer

from datamodules.hc18 import HC18DataModule
from datamodules.samples import read_hc18
from experiments.recipe import RECIPES, load_config
from lightning_modules.config_sam import FRAME_SIDE_PX
from lightning_modules.diffusion import DiffusionModule
from lightning_modules.sam import SamModule

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def fast_dev_run(module, folder, *, frame_hw, mode, batch_size, precision):
    """One training batch by Lightning's own switch; the weights before and after."""
    samples = {sample.sample_id: sample for sample in read_hc18(folder)}
    ids = sorted(samples)
    datamodule = HC18DataModule(
        samples=samples,
        train_ids=ids[:6],
        val_ids=ids[6:8],
        test_ids={"hc18": ids[8:]},
        frame_hw=frame_hw,
        resize_mode=mode,
        batch_size=batch_size,
        n_batches=1,
        seed=0,
        cache_dir=folder.parent / "cache",
    )
    before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    trainer = Trainer(
        fast_dev_run=True,
        accelerator="cpu",
        precision=precision,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=datamodule)
    loss = trainer.callback_metrics["train/loss"]
    assert torch.isfinite(loss)
    after = dict(module.named_parameters())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_segmenter_of_a_recipe_takes_a_step(name, hc18_folder):
    config = load_config(name, []).segmenter
    side = FRAME_SIDE_PX[config.backbone]
    fast_dev_run(
        SamModule(config),
        hc18_folder,
        frame_hw=(side, side),
        mode="pad",
        batch_size=config.batch_size,
        precision=config.precision,
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_of_a_recipe_takes_a_step(name, hc18_folder):
    config = load_config(name, []).generator
    fast_dev_run(
        DiffusionModule(config),
        hc18_folder,
        frame_hw=config.size_hw,
        mode="squash",
        batch_size=config.batch_size,
        precision=config.precision,
    )
