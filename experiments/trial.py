"""A trial: fine-tune the segmenter on its images for a fixed number of steps, and score it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning import seed_everything
from lightning.pytorch.loggers import WandbLogger
from safetensors.torch import load_file, save_file

from datamodules.embeddings import EmbeddingSet, open_embeddings
from datamodules.hc18 import HC18DataModule
from datamodules.samples import Sample
from datamodules.storage import write_json
from datamodules.synthetic import read_synthetic
from experiments.columns import PER_IMAGE
from experiments.config import ExperimentConfig
from experiments.context import StageContext
from experiments.dashboards import stage_logger
from experiments.evaluation import Protocol, Scorer, box_only_logits, evaluate
from experiments.predictions import KeptPredictions
from experiments.training import best_checkpoint, fit, last_loss, make_trainer
from lightning_modules.config_sam import FRAME_SIDE_PX, SegmenterConfig
from lightning_modules.randomness import keyed_seed
from lightning_modules.sam import SamModule

WEIGHTS_NAME = "segmenter.safetensors"


def protocol_of(config: ExperimentConfig) -> Protocol:
    """The prompts of an experiment's evaluation."""
    return Protocol(
        prompts=config.evaluation.prompts,
        jitter_draws=config.evaluation.jitter_draws,
        jitter_max_px=config.segmenter.jitter_max_px,
    )


def fitted_segmenter(run_dir: Path, *, config: SegmenterConfig) -> SamModule:
    """The segmenter of a finished trial, in eval mode."""
    module = SamModule(config)
    module.load_state_dict(load_file(run_dir / WEIGHTS_NAME))
    return module.eval()


def run_trial(context: StageContext) -> dict[str, Any]:
    """Fit, keep the weights, score every test image under every prompt."""
    config = context.config.segmenter
    datamodule = _datamodule(context)
    logger = stage_logger(context, job_type="trial")
    fitted = context.run_dir / "fit.json"
    if fitted.exists():
        # Stopped while it was scored: the weights are final.
        module = fitted_segmenter(context.run_dir, config=config)
        result = json.loads(fitted.read_text())
    else:
        module, result = _fit(context, datamodule=datamodule, logger=logger)
        write_json(fitted, result)
    rows = _score(context, module=module, datamodule=datamodule)
    if logger is not None:
        logger.log_metrics(_summary(rows), step=result["steps"])
    return result


def _fit(
    context: StageContext, *, datamodule: HC18DataModule, logger: WandbLogger | None
) -> tuple[SamModule, dict[str, Any]]:
    config, seed = context.config.segmenter, context.node.content["seed"]
    seed_everything(keyed_seed("trial", seed) % 2**32, verbose=False)
    module = SamModule(config, seed=seed)
    trainer = make_trainer(
        run_dir=context.run_dir,
        config=context.config.trainer,
        precision=config.precision,
        steps=config.steps,
        logger=logger,
        status=context.status(),
        what="steps",
        patience=config.early_stopping_patience,
    )
    fit(trainer, module, datamodule, run_dir=context.run_dir)
    best = best_checkpoint(context.run_dir)
    if best is not None:
        checkpoint = torch.load(best, weights_only=True, map_location="cpu")
        module.load_state_dict(checkpoint["state_dict"])
    module.cpu()
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    state = {name: t.contiguous() for name, t in module.state_dict().items() if name in trainable}
    save_file(state, context.run_dir / WEIGHTS_NAME)
    return module, {
        "n_real": len(datamodule.train_ids),
        "n_synthetic": len(datamodule.synthetic),
        "steps": trainer.global_step,
        "trainable_parameters": sum(t.numel() for t in state.values()),
        "train_loss": last_loss(trainer),
    }


def _datamodule(context: StageContext) -> HC18DataModule:
    config, content = context.config.segmenter, context.node.content
    side = FRAME_SIDE_PX[config.backbone]
    synthetic: list[Sample] = []
    embeddings: list[EmbeddingSet] = [
        open_embeddings(context.upstream_dir("embeddings") / "embeddings")
    ]
    if "synthetic" in context.node.upstream:
        synthetic = read_synthetic(context.upstream_dir("synthetic")).samples
        embeddings.append(
            open_embeddings(context.upstream_dir("synthetic_embeddings") / "embeddings")
        )
    return HC18DataModule(
        samples=context.samples,
        train_ids=context.pick(content["images"]),
        val_ids=context.pick(content["val"]),
        test_ids={name: context.pick(part) for name, part in content["test"].items()},
        frame_hw=(side, side),
        resize_mode="pad",
        batch_size=config.batch_size,
        n_batches=config.steps,
        seed=content["seed"],
        cache_dir=context.cache_dir,
        synthetic=synthetic,
        synthetic_share=config.synthetic_share,
        embeddings=embeddings,
        content_hashes=context.content,
        num_workers=context.config.trainer.num_workers,
    )


def _score(
    context: StageContext, *, module: SamModule, datamodule: HC18DataModule
) -> list[dict[str, Any]]:
    module.eval()
    status = context.status()
    kept = KeptPredictions()

    with torch.inference_mode():
        rows = evaluate(
            lambda batch, boxes: module(batch, boxes)[0],
            dict(zip(datamodule.test_ids, datamodule.test_dataloader(), strict=True)),
            protocol=protocol_of(context.config),
            scorer=Scorer(
                samples=context.samples, frame_hw=datamodule.frame_hw, mode=datamodule.resize_mode
            ),
            keep=kept.add,
            progress=lambda done, total: status.update("test images", done=done, total=total),
        )
    _write_rows(context, rows)
    kept.write(context.run_dir)
    return rows


def run_control(context: StageContext) -> dict[str, Any]:
    """Score the ellipse in the prompt's box: what the prompt gives away without an image."""
    content = context.node.content
    side = FRAME_SIDE_PX[context.config.segmenter.backbone]
    tests = {name: context.pick(part) for name, part in content["test"].items()}
    datamodule = HC18DataModule(
        samples=context.samples,
        train_ids=[],
        val_ids=[],
        test_ids=tests,
        frame_hw=(side, side),
        resize_mode="pad",
        batch_size=8,
        n_batches=0,
        seed=0,
        cache_dir=context.cache_dir,
        content_hashes=context.content,
    )
    datamodule.setup()
    scorer = Scorer(samples=context.samples, frame_hw=(side, side), mode="pad")
    rows: list[dict[str, Any]] = []
    for prompt in content["evaluation"]["prompts"]:
        protocol = replace(protocol_of(context.config), prompts=[prompt])
        rows += evaluate(
            box_only_logits(jitter_max_px=protocol.jitter_max_px, prompt=prompt),
            dict(zip(tests, datamodule.test_dataloader(), strict=True)),
            protocol=protocol,
            scorer=scorer,
        )
    _write_rows(context, rows)
    return {"images": sum(map(len, tests.values()))}


def _write_rows(context: StageContext, rows: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(rows, columns=list(PER_IMAGE))
    frame.to_csv(context.run_dir / "per_image.csv", index=False)


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    frame = pd.DataFrame(rows, columns=list(PER_IMAGE))
    means = frame.groupby(["test_cohort", "prompt"])[["dice", "hc_abs_err_mm"]].mean()
    return {
        f"test/{cohort}/{prompt}/{column}": float(value)
        for (cohort, prompt), row in means.iterrows()
        for column, value in row.items()
        if not np.isnan(value)
    }
