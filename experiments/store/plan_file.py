"""`plan.json` of a sweep: its stages and trials, for those who look at it without its data.

It is written at every start, so its age is that of the sweep's last use.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.storage import write_json
from experiments.config.grid import Cell
from experiments.store.layout import PLAN_LAYOUT, PLAN_NAME, check_layout
from experiments.store.runs import is_run_key, read_result_rows

OUTSIDE_THE_GRID = "box"
"""A stage that `sonosweep figure --kind box` adds to a sweep: no grid has it."""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage of a sweep; see `Node`."""

    key: str
    label: str
    stage: str
    steps: int
    upstream: tuple[str, ...]
    """Keys of its inputs."""


@dataclass(frozen=True, kw_only=True)
class PlannedTrial(Cell):
    """A trial of a sweep; see `TrialSpec`."""

    id: str
    name: str
    n_unlabelled: int = 0
    """Unlabelled images that anything of it saw."""
    is_control: bool
    keys: tuple[str, ...]
    """Stages that are its own."""


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """What a sweep consists of; each stage follows its inputs."""

    stages: tuple[PlannedStage, ...]
    trials: tuple[PlannedTrial, ...]

    @property
    def keys(self) -> set[str]:
        """Keys of all stages."""
        return {stage.key for stage in self.stages}


def write_plan(folder: Path, plan: PlanFile) -> None:
    """Write `plan.json` into a sweep's folder, whole or not at all."""
    stages, trials = (list(map(asdict, each)) for each in (plan.stages, plan.trials))
    write_json(folder / PLAN_NAME, {"layout": PLAN_LAYOUT, "nodes": stages, "trials": trials})


def read_plan(folder: Path) -> PlanFile:
    """Read a sweep's `plan.json`; InputError if it is missing, damaged or of a newer version."""
    path = folder / PLAN_NAME
    # `report` writes it from the recipe that the sweep keeps, without running anything.
    again = f"`sonosweep report {folder / 'config.yaml'}` writes it again"
    try:
        content = json.loads(path.read_text())
        check_layout(content, path, known=PLAN_LAYOUT)
        stages = [each | {"upstream": tuple(each["upstream"])} for each in content["nodes"]]
        trials = [each | {"keys": tuple(each["keys"])} for each in content["trials"]]
        plan = PlanFile(
            stages=tuple(PlannedStage(**each) for each in stages),
            trials=tuple(PlannedTrial(**each) for each in trials),
        )
        _check(plan, folder)
        return plan
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: there is no such file; {again}") from None
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {again}") from error


def _check(plan: PlanFile, folder: Path) -> None:
    """ValueError for a plan that no program wrote: `clean` removes what no plan names."""
    for key in (stage.key for stage in plan.stages):
        if not is_run_key(key):
            raise ValueError(f"{key!r} is no stage/id")
    known = plan.keys
    for key in (key for trial in plan.trials for key in trial.keys):
        if key not in known:
            raise ValueError(f"{key!r} of a trial is none of its stages")
    if not plan.stages and not plan.trials and read_result_rows(folder):
        raise ValueError("it names nothing, and results.csv has rows")


def plan_changes(old: PlanFile, new: PlanFile) -> str | None:
    """One line on what a changed recipe does to a sweep; None where nothing changed."""
    for what, before, now in (
        ("trials", {t.id for t in old.trials}, {t.id for t in new.trials}),
        ("stages", _grid_keys(old), _grid_keys(new)),
    ):
        n_new, n_gone = len(now - before), len(before - now)
        gone = f"{what} no longer in the recipe: {n_gone}; what is done of them stays in the store"
        parts = [f"new {what}: {n_new}"] * (n_new > 0) + [gone] * (n_gone > 0)
        if parts:
            return f"the recipe or its data changed: {', '.join(parts)}"
    return None


def _grid_keys(plan: PlanFile) -> set[str]:
    return {stage.key for stage in plan.stages if stage.stage != OUTSIDE_THE_GRID}
