"""From a plan to the `plan.json` that its sweep keeps."""

from dataclasses import fields, replace
from pathlib import Path

from datamodules.errors import InputError
from experiments.plan.nodes import Plan
from experiments.store.guard import is_used
from experiments.store.layout import NewerLayoutError
from experiments.store.plan_file import (
    OUTSIDE_THE_GRID,
    PlanFile,
    PlannedStage,
    PlannedTrial,
    plan_changes,
    read_plan,
    write_plan,
)


def planned(plan: Plan) -> PlanFile:
    """What `plan.json` holds of a plan."""
    stages = [
        PlannedStage(
            key=key,
            label=node.label,
            stage=node.stage,
            steps=node.steps,
            upstream=tuple(dict.fromkeys(node.upstream.values())),
        )
        for key, node in plan.nodes.items()
    ]
    names = [field.name for field in fields(PlannedTrial)]
    trials = [PlannedTrial(**{name: getattr(spec, name) for name in names}) for spec in plan.trials]
    return PlanFile(stages=tuple(stages), trials=tuple(trials))


def record_plan(folder: Path, plan: Plan) -> str | None:
    """Write a sweep's plan over the one of its last start; one line on what changed, or None.

    Box figures made since are kept: no grid has their stage. NewerLayoutError where a newer version
    wrote the old one.
    """
    new, old = planned(plan), _known_plan(folder)
    if old is not None:
        extra = [s for s in old.stages if s.stage == OUTSIDE_THE_GRID and s.key not in new.keys]
        kept = [stage for stage in extra if new.keys.issuperset(stage.upstream)]
        new = replace(new, stages=(*new.stages, *kept))
    write_plan(folder, new)
    return None if old is None else plan_changes(old, new)


def refuse_another(folder: Path, plan: Plan) -> None:
    """InputError where another process runs this sweep by a plan that differs.

    What it has done would be nobody's once the new plan stands in its place. Both may run one plan.
    """
    known = _known_plan(folder) if is_used(folder) else None
    if known is not None and plan_changes(known, planned(plan)) is not None:
        raise InputError(
            f"{folder.name} runs now with another recipe; wait for it, or give this one a name of "
            "its own (name=...)"
        )


def _known_plan(folder: Path) -> PlanFile | None:
    """The plan of the last start; None where there is none or it cannot be read."""
    try:
        return read_plan(folder)
    except NewerLayoutError:
        raise
    except InputError:
        return None
