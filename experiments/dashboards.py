"""Weights & Biases: a view on the runs, never in their way.

Offline unless the user is logged in. Whatever goes wrong here is printed to the run's log, and the
run goes on without it.
"""

import os
import threading
from typing import Any

import wandb

# wandb.init imports this one anyway, for seconds; here the stages' common parent pays once.
import wandb.apis.public
from lightning.pytorch.loggers import WandbLogger

from experiments.config import resolved
from experiments.context import StageContext
from experiments.wandb_mode import resolve_mode, server_answers, server_url

INIT_TIMEOUT_S = 20


def run_id(context: StageContext) -> str:
    """`<sweep>-<kind>-n<images>-<hash>-s<seed>`: the same for a continued run.

    The kind stands in it because viewers of offline runs list directories by their ids.
    """
    node = context.node
    kind = node.stage
    if node.stage == "fit":
        kind = node.label.split()[1].rstrip(",")
    n_images, seed = len(node.content.get("images", [])), node.content.get("seed", 0)
    return f"{context.sweep[:60]}-{kind}-n{n_images}-{node.id[:8]}-s{seed}"


def stage_logger(context: StageContext, *, job_type: str) -> WandbLogger | None:
    """Start a W&B run for a stage; None where it is switched off or cannot be started."""
    config = context.config.wandb
    mode = resolve_mode(config)
    if mode == "disabled":
        return None
    if mode == "online" and not server_answers():
        print(f"W&B: {server_url()} does not answer; this run is logged offline", flush=True)
        mode = "offline"
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return _start(context, job_type=job_type, mode=attempt)
        except Exception as error:  # W&B raises many kinds, and none may stop a trial.
            print(f"W&B could not start {attempt}: {type(error).__name__}: {error}", flush=True)
    return None


def finish(*, exit_code: int, timeout_s: float = 30.0) -> None:
    """End the process's W&B run, if there is one; a server that does not answer is not waited for.

    The run's own files are complete before this is called. Any code but 0 shows it as failed.
    """
    if wandb.run is None:
        return
    thread = threading.Thread(target=wandb.finish, kwargs={"exit_code": exit_code}, daemon=True)
    thread.start()
    thread.join(timeout_s)


def _start(context: StageContext, *, job_type: str, mode: str) -> WandbLogger:
    folder = context.run_dir / "wandb"
    folder.mkdir(exist_ok=True)
    # Artefacts are otherwise staged in the user's home.
    os.environ["WANDB_DATA_DIR"] = str(folder)
    config = context.config.wandb
    run = wandb.init(
        dir=str(context.run_dir),
        project=config.project,
        entity=config.entity,
        id=run_id(context),
        name=context.node.label,
        group=context.sweep,
        job_type=job_type,
        tags=[tag[:64] for tag in context.tags],
        config=_config(context),
        resume="allow",
        mode=mode,
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT_S, x_disable_meta=True
        ),
    )
    run.define_metric("*", step_metric="trainer/global_step")
    return WandbLogger(experiment=run)


def _config(context: StageContext) -> dict[str, Any]:
    return {
        **resolved(context.config),
        "stage": context.node.stage,
        "store_id": context.node.id,
        "upstream": context.node.upstream,
        "seed": context.node.content.get("seed"),
        "n_images": len(context.node.content.get("images", [])),
    }
