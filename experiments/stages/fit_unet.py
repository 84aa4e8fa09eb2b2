"""The stage that fits the honest peer: a U-Net without prompts, on a trial's images."""

from typing import Any

from lightning import seed_everything

from datamodules.hc18 import HC18DataModule
from datamodules.settings import Cache, Frame
from experiments.stages.context import StageContext
from experiments.stages.device import loading_of
from experiments.stages.fit import WEIGHTS_NAME
from experiments.stages.stage_logger import stage_logger
from experiments.stages.training import fit, last_loss, make_trainer
from experiments.stages.wandb_lineage import log_lineage
from lightning_modules.randomness import keyed_seed
from lightning_modules.segmenters.unet.module import UnetModule, save_unet


def run_fit_unet(context: StageContext) -> dict[str, Any]:
    """Fit the U-Net on the trial's images, in its own frame, and keep its weights.

    A batch in several parts takes one optimiser step, but batch normalisation takes its statistics
    over each part: other weights than at once, by more than rounding. The result says how many.
    """
    config, content = context.config.unet, context.node.content
    datamodule = HC18DataModule(
        samples=context.samples,
        train_ids=context.pick(content["images"]),
        val_ids=[],
        test_ids={},
        frame=Frame(size_hw=tuple(config.size_hw), resize_mode="squash"),
        cache=Cache(folder=context.cache_dir, content_hashes=context.content),
        batch_size=config.batch_size,
        n_batches=config.steps,
        seed=content["seed"],
        loading=loading_of(context),
    )
    seed_everything(keyed_seed("unet", content["seed"]) % 2**32, verbose=False)
    module = UnetModule(config, seed=content["seed"])
    trainer = make_trainer(
        run_dir=context.run_dir,
        config=context.config.trainer,
        precision=config.precision,
        steps=config.steps,
        logger=stage_logger(context, job_type="fit"),
        status=context.status(),
        what="steps",
        batch_parts=context.batch_parts,
        # Batch normalisation would take its statistics over each device's share.
        devices=1,
    )
    fit(trainer, module, datamodule, run_dir=context.run_dir)
    save_unet(module.cpu(), context.run_dir / WEIGHTS_NAME)
    log_lineage(context)
    return {
        "n_real": len(datamodule.train_ids),
        "n_synthetic": 0,
        "steps": trainer.global_step,
        "batch_parts": context.batch_parts,
        "trainable_parameters": sum(p.numel() for p in module.parameters()),
        "train_loss": last_loss(trainer),
    }
