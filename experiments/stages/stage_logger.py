"""Weights & Biases: a view on the runs that never stops one.

Offline unless the user is logged in. Whatever goes wrong here is printed to the run's log, and the
run continues without it.
"""

from typing import Any

# wandb.init imports this one anyway, for seconds; here the stages' common parent pays once.
import wandb.apis.public
from lightning.pytorch.loggers import WandbLogger

from experiments.config.conditions import CONDITIONS
from experiments.config.schema import resolved
from experiments.stages.context import StageContext
from experiments.stages.wandb_run import (
    clean_id,
    finish,
    harmless,
    open_run,
    run_config,
    usable_mode,
)

__all__ = ["finish", "run_id", "stage_logger", "stage_run"]


def run_id(context: StageContext) -> str:
    """`<sweep>-<kind>-n<images>-<hash>-s<seed>`: the same for a continued run.

    The kind stands in it because viewers of offline runs list directories by their ids.
    """
    node = context.node
    kind = node.slug or node.stage
    n_images, seed = len(node.content.get("images", [])), node.content.get("seed", 0)
    return clean_id(f"{context.sweep[:60]}-{kind}-n{n_images}-{node.id[:8]}-s{seed}")


def stage_logger(context: StageContext, *, job_type: str) -> WandbLogger | None:
    """Start a W&B run for a stage; None where it is switched off or cannot be started."""
    run = stage_run(context, job_type=job_type)
    return None if run is None else WandbLogger(experiment=run)


def stage_run(context: StageContext, *, job_type: str) -> wandb.Run | None:
    """The W&B run of a stage; None where it is switched off or cannot be started."""
    mode = usable_mode(context.config.wandb)
    if mode == "disabled":
        return None
    for attempt in dict.fromkeys((mode, "offline")):
        with harmless(f"could not start {attempt}"):
            run = open_run(
                context.run_dir,
                config=context.config.wandb,
                mode=attempt,
                run_id=run_id(context),
                name=context.node.label,
                group=context.sweep,
                job_type=job_type,
                tags=context.tags,
                content=_config(context),
            )
            run.define_metric("*", step_metric="trainer/global_step")
            return run
    return None


def _config(context: StageContext) -> dict[str, Any]:
    node, known = context.node, {*CONDITIONS, *context.config.conditions}
    shared = [tag for tag in context.tags if tag in known]
    own = {
        "stage": node.stage,
        "store_id": node.id,
        "upstream": node.upstream,
        "seed": node.content.get("seed"),
        "n_images": len(node.content.get("images", [])),
        # What curves are grouped by; several conditions may share a stage.
        "condition": "+".join(shared) or node.stage,
        "segmenter": node.segmenter,
        "generator": node.generator,
    }
    return run_config(resolved(context.config), own)
