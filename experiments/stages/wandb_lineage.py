"""Where a result comes from, on W&B: generator -> synthetic set -> trial, as artifacts.

Online they are uploaded, and taken as inputs by what uses them. Offline they are references to the
store, and the inputs stand in the run's config, because W&B has no inputs there.
"""

import json
import threading

import wandb

from experiments.plan.stage_table import STAGES, Artefact
from experiments.stages.context import StageContext
from experiments.stages.stage_logger import stage_run
from experiments.stages.wandb_run import harmless
from experiments.store.runs import RunStore

TIMEOUT_S = 120.0


def artifact_name(key: str) -> str:
    """Name of the artifact of a stage `stage/id`: what it is made from names it."""
    return f"{_made(key).kind}-{key.split('/')[1]}"


def _made(key: str) -> Artefact | None:
    return STAGES[key.split("/")[0]].artefact


def input_keys(store: RunStore, upstream: dict[str, str]) -> list[str]:
    """Stages `stage/id` behind the inputs of a stage that made an artifact, the nearest of each.

    What makes none, such as embeddings or candidates, is passed through.

    Args:
        store: Where the inputs are.
        upstream: The inputs, by role.
    """
    found: dict[str, None] = {}
    for key in upstream.values():
        if _made(key) is not None:
            found[key] = None
            continue
        manifest = json.loads((store.root / "store" / key / "manifest.json").read_text())
        found |= dict.fromkeys(input_keys(store, manifest.get("upstream", {})))
    return list(found)


def log_lineage(context: StageContext) -> None:
    """Log what a stage used and made to its W&B run, where it has one; waits a limited time."""
    run = wandb.run
    if run is None:
        return

    def log() -> None:
        with harmless("lineage is not logged"):
            _log(run, context)

    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if thread.is_alive():
        print(f"W&B: artifacts took more than {TIMEOUT_S:.0f} s; not waited for", flush=True)


def log_pairs(context: StageContext) -> None:
    """Log a finished set of pairs in a run of its own: its stage trains nothing and has none."""
    if stage_run(context, job_type=context.node.stage) is not None:
        log_lineage(context)


def _log(run: wandb.Run, context: StageContext) -> None:
    is_online = not run.offline
    inputs = input_keys(context.store, context.node.upstream)
    names = [artifact_name(key) for key in inputs]
    made = artifact_name(context.node.key)
    run.config.update({"inputs": names, "output": made}, allow_val_change=True)
    run.log_artifact(_artifact(context.store, context.node.key, is_uploaded=is_online))
    if is_online:
        for key, name in zip(inputs, names, strict=True):
            with harmless(f"{name} is not logged as an input"):
                _use(run, context.store, key, name=name)


def _use(run: wandb.Run, store: RunStore, key: str, *, name: str) -> None:
    try:
        run.use_artifact(f"{name}:latest")
    except Exception:  # Made offline, or in another project: its content names it.
        run.use_artifact(_artifact(store, key, is_uploaded=True))


def _artifact(store: RunStore, key: str, *, is_uploaded: bool) -> wandb.Artifact:
    made, run_dir = _made(key), (store.root / "store" / key).absolute()
    artifact = wandb.Artifact(artifact_name(key), type=made.type, metadata={"store": key})
    for name in made.files:
        path = run_dir / name
        if not (is_uploaded and made.is_uploaded):
            artifact.add_reference(f"file://{path}", name=name)
        elif path.is_dir():
            # A done stage is never written again, so that W&B needs no copy of it.
            artifact.add_dir(str(path), name=name, policy="immutable", skip_cache=True)
        else:
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact
