"""The stage that fits a segmenter, of whatever kind, on a trial's images."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, seed_everything

from datamodules.hc18 import HC18DataModule
from datamodules.samples import Sample
from datamodules.settings import Cache, Frame, Mixture
from datamodules.synthetic import SyntheticSet
from experiments.config.conditions import share_of_pairs
from experiments.plan.fits import EMBEDDINGS_OF
from experiments.stages.context import StageContext
from experiments.stages.device import device_of, loading_of
from experiments.stages.stage_logger import log_lineage, stage_logger
from experiments.stages.training import best_checkpoint, fit, last_loss, make_trainer
from experiments.store.fitted import WEIGHTS_NAME
from lightning_modules.randomness import keyed_seed
from lightning_modules.segmenters.table import row_of
from lightning_modules.weight_counts import trainable_summary


def fitted_segmenter(run_dir: Path, *, config: Any) -> LightningModule:
    """The segmenter of a finished fit of these settings, in eval mode, on the CPU."""
    return row_of(config).load_module().load(run_dir / WEIGHTS_NAME, config)


def segmenter_of(context: StageContext, role: str) -> LightningModule:
    """The stage's segmenter as an input fitted it, in eval mode, on the stage's device; without
    that input, a pretrained one as it is before any training."""
    config = context.segmenter
    if role in context.node.upstream:
        module = fitted_segmenter(context.upstream_dir(role), config=config)
    else:
        module = row_of(config).load_module().untrained(config)
    return module.to(device_of(context.config)).eval()


def frame_of(context: StageContext) -> Frame:
    """The frame of the segmenter's batches; what is embedded already needs no larger image."""
    settings = context.segmenter
    return Frame(
        size_hw=settings.frame_hw,
        resize_mode=settings.resize_mode,
        image_factor=1 if "embeddings" in context.node.upstream else settings.image_factor,
    )


def run_fit(context: StageContext) -> dict[str, Any]:
    """Fit the segmenter and keep its trained weights.

    Where batches are computed in parts, a U-Net's batch normalisation takes its statistics from
    each part; the result says in how many.
    """
    seed, config = context.node.content["seed"], context.segmenter
    datamodule = _datamodule(context, config)
    config = replace(config, steps=datamodule.n_batches)
    seed_everything(keyed_seed("trial", seed) % 2**32, verbose=False)
    row = row_of(config)
    # CUDA graphs over several processes or batch parts cost more than they save.
    is_whole = context.batch_parts == 1 and context.config.trainer.devices == 1
    module = row.load_module().start(
        config, seed=seed, cached=datamodule.embeddings is not None, captures=is_whole
    )
    summary = trainable_summary(module.parts())
    held = (summary[f"{part}_bytes"] for part in ("weight", "gradient", "optimizer"))
    print(
        f"trained weights: {summary['trainable']:,} of {summary['all']:,}; weights, gradients and "
        f"the optimiser's state take {sum(held) / 2**20:.0f} MiB, activations come on top"
    )
    trainer = make_trainer(
        run_dir=context.run_dir,
        config=context.config.trainer,
        precision=config.precision,
        steps=config.steps,
        logger=stage_logger(context),
        patience=config.early_stopping_patience,
        batch_parts=context.batch_parts,
    )
    if trainer.logger is not None:
        trainer.logger.log_hyperparams({"weights": summary})
    fit(trainer, module, datamodule, run_dir=context.run_dir)
    best = best_checkpoint(context.run_dir)
    if best is not None:
        checkpoint = torch.load(best, weights_only=True, map_location="cpu")
        module.load_state_dict(checkpoint["state_dict"])
    module.cpu().save(context.run_dir / WEIGHTS_NAME)
    log_lineage(context)
    return {
        "n_real": len(datamodule.train_ids),
        "n_synthetic": len(datamodule.synthetic),
        "steps": trainer.global_step,
        "batch_parts": context.batch_parts,
        "trainable_parameters": summary["trainable"],
        "weights": summary,
        "train_loss": last_loss(trainer),
    }


def used_pairs(found: SyntheticSet, content: Mapping[str, Any]) -> list[Sample]:
    """The pairs of a set that a condition trains on; as a rule all."""
    samples = list(found.samples)
    if content.get("order") == "hardest":
        samples.sort(key=lambda sample: found.pairs[sample.sample_id].gate["agreement"])
    return samples[: content.get("at_most")]


def _datamodule(context: StageContext, config: Any) -> HC18DataModule:
    content, upstream = context.node.content, context.node.upstream
    augment = content.get("augment", {})
    roles = ("embeddings", "val_embeddings", *EMBEDDINGS_OF.values())
    opened = [context.open_embeddings(role) for role in roles if role in upstream]
    views, n_views = None, 1
    if "views" in upstream:
        views = context.open_embeddings("views")
        n_views = context.upstream_content("views")["augment"]["n_views"]
    pairs = [
        used_pairs(context.open_pairs(role), content) for role in EMBEDDINGS_OF if role in upstream
    ]
    synthetic = [sample for each in pairs for sample in each]
    ids = context.pick(content["images"])
    steps = config.steps
    if config.epochs is not None:
        n = len(ids) * (2 if content["repeat_real"] else 1) + len(synthetic)
        steps = config.epochs * math.ceil(n / config.batch_size)
    return HC18DataModule(
        samples=context.samples,
        train_ids=ids,
        val_ids=context.pick(content["val"]),
        frame=frame_of(context),
        cache=Cache(
            folder=context.cache_dir,
            embeddings=opened or None,
            views=views,
            n_views=n_views,
            content_hashes=context.content,
        ),
        batch_size=config.batch_size,
        n_batches=steps,
        seed=content["seed"],
        mixture=Mixture(
            synthetic=synthetic,
            pools=[len(each) for each in pairs],
            synthetic_share=share_of_pairs(config.synthetic_share, n_sets=len(pairs)),
            repeat_real=content["repeat_real"],
            pool=config.epochs is not None,
            augment=augment.get("strength"),
            without=tuple(augment.get("without", ())),
            extra=tuple(augment.get("extra", ())),
            moderate_end=augment.get("moderate_end", 0.0),
        ),
        loading=loading_of(context),
    )
