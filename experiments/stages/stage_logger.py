"""A stage's run on Weights & Biases, and where its result comes from: a view, never in the way.

Whatever goes wrong here is printed to the run's log, and the stage continues without it.

Lineage is generator -> synthetic set -> trial, as artifacts. Online they are uploaded, and taken as
inputs by what uses them. Offline they are references to the store, and the inputs stand in the
run's config, because W&B has no inputs there.
"""

import json
from collections.abc import Iterable

import wandb

# wandb.init imports this one anyway, for seconds; here the stages' common parent pays once.
import wandb.apis.public
from lightning.pytorch.loggers import WandbLogger

from experiments.config.schema import resolved
from experiments.plan.fits import UNNAMED
from experiments.plan.stage_table import STAGES, Artefact
from experiments.stages.context import StageContext
from experiments.stages.wandb_run import (
    ends_within,
    harmless,
    open_run,
    run_config,
    sweep_run_id,
    usable_mode,
)
from experiments.store.runs import RunStore

TIMEOUT_S = 120.0


def run_id(context: StageContext) -> str:
    """`<sweep>-<kind>-n<images>-<hash>-s<seed>-<store>`, the same for a continued run; with the
    kind, as viewers of offline runs list directories by their ids."""
    node = context.node
    kind = node.slug or node.stage
    n_images, seed = len(node.content.get("images", [])), node.content.get("seed", 0)
    name = f"{kind}-n{n_images}-{node.id[:8]}-s{seed}"
    return sweep_run_id(context.store.root, context.config.name, name)


def stage_logger(context: StageContext) -> WandbLogger | None:
    """`stage_run` as Lightning's Trainer takes it."""
    run = stage_run(context)
    return None if run is None else WandbLogger(experiment=run)


def stage_run(context: StageContext) -> wandb.Run | None:
    """Start the W&B run of a stage; None where it is switched off or cannot be started."""
    mode, node, content = usable_mode(context.config.wandb), context.node, context.node.content
    if mode == "disabled":
        return None
    # Not of the tags, where the data may have the name of a condition.
    condition = _all_of(spec.condition for spec in context.trials) or node.stage
    segmenter = "" if node.segmenter in UNNAMED else node.segmenter
    own = {
        "stage": node.stage,
        "store_id": node.id,
        "upstream": node.upstream,
        "seed": content.get("seed"),
        "n_images": len(content.get("images", [])),
        "condition": condition,
        # What curves are grouped by.
        "arm": _all_of(spec.arm for spec in context.trials) or f"{segmenter} {condition}".strip(),
        "segmenter": node.segmenter,
        # A fit has none of its own, but that of its pairs.
        "generator": node.generator or _all_of(spec.generator for spec in context.trials),
    }
    for attempt in dict.fromkeys((mode, "offline")):
        with harmless(f"could not start {attempt}"):
            run = open_run(
                context.run_dir,
                config=context.config.wandb,
                mode=attempt,
                run_id=run_id(context),
                name=node.label,
                group=context.config.name,
                job_type=node.stage,
                tags=context.tags,
                content=run_config(resolved(context.config), own),
            )
            run.define_metric("*", step_metric="trainer/global_step")
            return run
    return None


def _all_of(names: Iterable[str]) -> str:
    """Each name once, as trials may share a stage."""
    return "+".join(sorted({*names} - {""}))


def artifact_name(key: str) -> str:
    """Name of the artifact of a stage `stage/id`: what it is made from names it."""
    return f"{_made(key).kind}-{key.split('/')[1]}"


def _made(key: str) -> Artefact | None:
    return STAGES[key.split("/")[0]].artefact


def input_keys(store: RunStore, upstream: dict[str, str]) -> list[str]:
    """The nearest stages `stage/id` behind inputs by role that made an artifact, which embeddings
    and candidates do not."""
    found: list[str] = []
    for key in upstream.values():
        if _made(key) is not None:
            found.append(key)
        else:
            manifest = json.loads((store.root / "store" / key / "manifest.json").read_text())
            found += input_keys(store, manifest.get("upstream", {}))
    return list(dict.fromkeys(found))


def log_lineage(context: StageContext) -> None:
    """Log what a stage used and made to its W&B run, where it has one; waits a limited time."""
    run = wandb.run
    if run is not None and not ends_within(TIMEOUT_S, lambda: _log(run, context)):
        print(f"W&B: artifacts took more than {TIMEOUT_S:.0f} s; not waited for", flush=True)


def log_pairs(context: StageContext) -> None:
    """Log a finished set of pairs in a run of its own: its stage trains nothing and has none."""
    if stage_run(context) is not None:
        log_lineage(context)


@harmless("lineage is not logged")
def _log(run: wandb.Run, context: StageContext) -> None:
    inputs = input_keys(context.store, context.node.upstream)
    names = [artifact_name(key) for key in inputs]
    made = artifact_name(context.node.key)
    run.config.update({"inputs": names, "output": made}, allow_val_change=True)
    run.log_artifact(_artifact(context.store, context.node.key, is_online=not run.offline))
    if run.offline:
        return
    for key, name in zip(inputs, names, strict=True):
        with harmless(f"{name} is not logged as an input"):
            try:
                run.use_artifact(f"{name}:latest")
            except Exception:  # Made offline, or in another project: its content names it.
                run.use_artifact(_artifact(context.store, key, is_online=True))


def _artifact(store: RunStore, key: str, *, is_online: bool) -> wandb.Artifact:
    made, run_dir = _made(key), (store.root / "store" / key).absolute()
    artifact = wandb.Artifact(artifact_name(key), type=made.type, metadata={"store": key})
    for name in made.files:
        path = run_dir / name
        if not (is_online and made.is_uploaded):
            artifact.add_reference(f"file://{path}", name=name)
            continue
        # A done stage is never written again, so that W&B needs no copy of it.
        add = artifact.add_dir if path.is_dir() else artifact.add_file
        add(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact
