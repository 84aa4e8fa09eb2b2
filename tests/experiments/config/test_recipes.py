"""Every shipped recipe takes a real step with both of its networks on a tiny HC18 folder.

Recipes that differ in nothing but the number of steps share one.
"""

import math
from dataclasses import replace

import pytest
import torch
from lightning import Trainer

from datamodules.hc18 import HC18DataModule
from datamodules.samples import read_hc18
from datamodules.settings import Cache, Frame
from experiments.config.recipe import RECIPES, load_config
from experiments.config.schema import ExperimentConfig
from lightning_modules.generators.pixel.module import DiffusionModule
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, image_factor
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.step_loss import StepLoss
from lightning_modules.weights_table import WEIGHTS

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def fast_dev_run(module, folder, *, frame_hw, mode, batch_size, precision, factor=1):
    """One training batch by Lightning's own switch; the weights before and after."""
    samples = {sample.sample_id: sample for sample in read_hc18(folder)}
    ids = sorted(samples)[:5]
    datamodule = HC18DataModule(
        samples=samples,
        train_ids=ids[:3],
        val_ids=ids[3:4],
        test_ids={"hc18": ids[4:]},
        frame=Frame(size_hw=frame_hw, resize_mode=mode, image_factor=factor),
        cache=Cache(folder=folder.parent / "cache"),
        batch_size=batch_size,
        n_batches=1,
        seed=0,
    )
    before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    trainer = Trainer(
        fast_dev_run=True,
        accelerator="cpu",
        precision=precision,
        logger=False,
        callbacks=[step_loss := StepLoss()],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=datamodule)
    assert math.isfinite(step_loss.last)
    after = dict(module.named_parameters())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


def small(name: str) -> ExperimentConfig:
    """A recipe as it is shipped, with a small network where the user provides its own."""
    config = load_config(name, [])
    if config.segmenter.backbone in WEIGHTS:
        config.segmenter = replace(config.segmenter, backbone="vit_tiny")
    return config


def without_steps(name: str, section: str) -> str:
    """A recipe's settings of a network, but for its number of steps."""
    named = getattr(load_config(name, []), f"{section}_named")
    return repr(replace(named(), steps=1000))


def different(section: str) -> list[str]:
    """The first recipe of each kind of settings."""
    firsts: dict[str, str] = {}
    for name in NAMES:
        firsts.setdefault(without_steps(name, section), name)
    return list(firsts.values())


def test_recipes_that_share_a_step_differ_in_the_number_of_steps_alone():
    assert {"hc18_gpu", "paper_es"} < set(different("segmenter")) < set(NAMES)
    assert without_steps("demo", "segmenter") == without_steps("hc18_small", "segmenter")
    assert without_steps("demo", "segmenter") != without_steps("hc18_gpu", "segmenter")


def test_the_papers_recipes_have_28_fine_tunes_each():
    for name in ("paper_hc18", "paper_es"):
        grid = load_config(name, []).sweep
        assert len(grid.condition) * len(grid.real_count) * len(grid.support) == 28


def test_the_papers_values_are_the_papers():
    """As arXiv 2506.23664 and its code state them."""
    config = load_config("paper_hc18", [])
    generator, segmenter = config.stable_diffusion, config.segmenter
    assert (generator.route, generator.size_hw, generator.lora_rank) == (
        *("sd_in_channel", (512, 512), 128),
    )
    assert (generator.learning_rate, generator.lr_schedule, generator.batch_size) == (
        *(1e-4, "constant", 1),
    )
    assert generator.steps == 100 * config.synthesis.generator_count == 6000
    drawn = generator.sampler
    assert (drawn.solver, drawn.num_inference_steps, drawn.lora_scale) == ("unipc", 30, 0.9)
    assert (generator.noise_offset, generator.caption_dropout, generator.ema_decay) == (0, 0, 0)
    assert generator.min_snr_gamma is None
    assert (segmenter.backbone, segmenter.epochs, segmenter.batch_size) == ("vit_b", 20, 5)
    assert (segmenter.learning_rate, segmenter.weight_decay) == (1e-5, 0)
    assert segmenter.train_prompts == ["jittered_box"]
    assert segmenter.jitter_max_px == 19
    assert config.extractor.threshold == 180
    assert config.evaluation.jitter_draws == 5


@pytest.mark.parametrize("name", different("segmenter"))
def test_the_segmenter_of_a_recipe_takes_a_step(name, hc18_folder):
    config = small(name).segmenter
    side = FRAME_SIDE_PX[config.backbone]
    fast_dev_run(
        SamModule(config),
        hc18_folder,
        frame_hw=(side, side),
        mode=config.geometry,
        factor=image_factor(config.backbone),
        batch_size=min(config.batch_size, 2),
        precision=config.precision,
    )


@pytest.mark.parametrize("name", different("generator"))
def test_the_generator_of_a_recipe_takes_a_step(name, hc18_folder, tmp_path):
    config = load_config(name, [])
    generator = config.generator_named()
    if config.synthesis.generator == "stable_diffusion":
        from sd_parts import tiny_pipeline

        from lightning_modules.generators.stable_diffusion.base import load_base
        from lightning_modules.generators.stable_diffusion.module import (
            StableDiffusionModule,
            encode_bank,
        )

        size_hw, draws_outlines = (64, 128), generator.route == "sd_in_channel"
        base = load_base(str(tiny_pipeline(tmp_path / "base")))
        generator = replace(generator, size_hw=size_hw)
        bank = encode_bank(
            base,
            images=torch.rand(12, 1, *size_hw),
            masks=torch.ones(12, 1, *size_hw),
            outlines=torch.zeros(12, 1, *size_hw) if draws_outlines else None,
            prompts=["An ultrasound image of a fetal head."] * 12,
            rows={row: row for row in range(12)},
            route=generator.route,
            batch_size=4,
            device=torch.device("cpu"),
        )
        module = StableDiffusionModule(generator, base=base)
        module.set_bank(bank)
    else:
        module = DiffusionModule(generator)
    fast_dev_run(
        module,
        hc18_folder,
        frame_hw=generator.size_hw,
        mode="squash",
        batch_size=min(generator.batch_size, 2),
        precision=generator.precision,
    )
