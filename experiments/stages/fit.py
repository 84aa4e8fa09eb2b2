"""The stages that train what is scored: SAM's mask decoder, or a U-Net, on a trial's images."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from safetensors.torch import load_file, save_file

from datamodules.embeddings import EmbeddingSet
from datamodules.hc18 import HC18DataModule
from datamodules.samples import Sample
from datamodules.settings import Cache, Frame, Mixture
from datamodules.synthetic import read_synthetic
from experiments.stages.context import StageContext
from experiments.stages.device import loading_of
from experiments.stages.stage_logger import stage_logger
from experiments.stages.training import best_checkpoint, fit, last_loss, make_trainer
from experiments.stages.wandb_lineage import log_lineage
from lightning_modules.randomness import keyed_seed
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig, image_factor
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.tuning import trainable_summary

WEIGHTS_NAME = "segmenter.safetensors"


def settings_of(config: SegmenterConfig, content: Mapping[str, Any]) -> SegmenterConfig:
    """The settings of one fit: its content says how it was tuned, whatever the recipe's is."""
    settings = content.get("segmenter", {"tuning": config.tuning})
    return replace(config, tuning=settings.get("tuning", "decoder"))


def config_of_fit(context: StageContext, role: str = "fit") -> SegmenterConfig:
    """The settings of an input that was fitted."""
    return settings_of(context.config.segmenter, context.upstream_content(role))


def fitted_segmenter(run_dir: Path, *, config: SegmenterConfig) -> SamModule:
    """The segmenter of a finished fit, in eval mode."""
    module = SamModule(config)
    module.load_state_dict(load_file(run_dir / WEIGHTS_NAME))
    return module.eval()


def run_fit(context: StageContext) -> dict[str, Any]:
    """Fine-tune the mask decoder and keep its weights."""
    content, seed = context.node.content, context.node.content["seed"]
    config = settings_of(context.config.segmenter, content)
    datamodule = _datamodule(context, config)
    config = replace(config, steps=datamodule.n_batches)
    seed_everything(keyed_seed("trial", seed) % 2**32, verbose=False)
    # Graphs of several processes, or over parts of a batch, are more than they save.
    is_whole = context.batch_parts == 1 and context.config.trainer.devices == 1
    module = SamModule(
        config,
        seed=seed,
        captures=is_whole,
        has_encoder=config.tuning != "decoder" or datamodule.embeddings is None,
    )
    summary = trainable_summary(module.sam)
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
        logger=stage_logger(context, job_type="fit"),
        status=context.status(),
        what="steps",
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
    module.cpu()
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    state = {name: t.contiguous() for name, t in module.state_dict().items() if name in trainable}
    save_file(state, context.run_dir / WEIGHTS_NAME)
    log_lineage(context)
    return {
        "n_real": len(datamodule.train_ids),
        "n_synthetic": len(datamodule.synthetic),
        "steps": trainer.global_step,
        "trainable_parameters": summary["trainable"],
        "weights": summary,
        "train_loss": last_loss(trainer),
    }


def _datamodule(context: StageContext, config: SegmenterConfig) -> HC18DataModule:
    content = context.node.content
    side = FRAME_SIDE_PX[config.backbone]
    synthetic: list[Sample] = []
    roles = ["embeddings", "val_embeddings", "pair_embeddings"]
    opened: list[EmbeddingSet] = [
        context.open_embeddings(role) for role in roles if role in context.node.upstream
    ]
    views, n_views = None, 1
    if "views" in context.node.upstream:
        views = context.open_embeddings("views")
        n_views = context.upstream_content("views")["augment"]["n_views"]
    if "pairs" in context.node.upstream:
        synthetic = read_synthetic(context.upstream_dir("pairs")).samples
    ids = context.pick(content["images"])
    steps = config.steps
    if config.epochs is not None:
        n = len(ids) * (2 if content["repeat_real"] else 1) + len(synthetic)
        steps = config.epochs * math.ceil(n / config.batch_size)
    return HC18DataModule(
        samples=context.samples,
        train_ids=ids,
        val_ids=context.pick(content["val"]),
        test_ids={},
        frame=Frame(
            size_hw=(side, side),
            resize_mode=config.geometry,
            image_factor=1 if opened else image_factor(config.backbone),
        ),
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
            synthetic_share=config.synthetic_share,
            repeat_real=content["repeat_real"],
            pool=config.epochs is not None,
            augment=content.get("augment"),
        ),
        loading=loading_of(context),
    )
