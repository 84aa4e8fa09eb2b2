"""What a unit of a stage's work costs: the median of the finished runs of a store. Torch-free.

A run's `DONE.json` has the seconds of its last attempt, so one that was resumed looks faster than
it is; medians are robust to a few of those.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.config.schema import ExperimentConfig, resolved
from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES
from experiments.runner.gpus import device_kind
from experiments.runner.launchers import slots_of, threads_of
from experiments.store.provenance import machine

Source = Literal["here", "elsewhere", "table", "first guess"]
SOURCES: dict[Source, str] = {
    "here": "medians of runs here",
    "elsewhere": "medians of runs elsewhere",
    "table": "steps measured on a GPU (experiments/reference/step_costs.csv)",
    "first guess": "first guess",
}
"""What a cost rests on, the surest first. Here: on this machine, by as many threads and devices."""
RUNS_READ = 50
"""Runs of a stage that are read, the latest ones."""


class Measured(NamedTuple):
    """One finished run."""

    traits: str
    place: tuple[Any, ...]
    seconds_per_unit: float


class Cost(NamedTuple):
    """What a unit of work costs."""

    seconds_per_unit: float
    source: Source
    fixed_s: float = 0.0
    """What a stage takes beside its units."""


def n_slots(config: ExperimentConfig) -> int:
    """Stages that run at the same time under a recipe's settings."""
    is_slurm = config.sweep.launcher == "slurm"
    return config.slurm.max_jobs if is_slurm else len(slots_of(config))


class Costs:
    """Costs under a recipe's settings on this machine, from a store that may not be there yet."""

    def __init__(self, root: Path, *, config: ExperimentConfig) -> None:
        self._store, self._config = Path(root) / "store", resolved(config)
        devices = config.trainer.devices, device_kind(config)
        self._place = _place(machine(), threads_of(config), *devices)
        self._runs: dict[str, list[Measured]] = {}

    def of(self, node: Node) -> Cost:
        """What a unit costs: the median of like runs here, else elsewhere, else a first guess."""
        row, stage = STAGES[node.stage], node.stage
        if stage not in self._runs:
            markers = (self._store / stage).glob("*/DONE.json")
            latest = sorted((path.stat().st_mtime, path) for path in markers)[-RUNS_READ:]
            self._runs[stage] = [run for _, path in latest if (run := _read(path.parent))]
        traits = row.traits_of(content=node.content, upstream=node.upstream, config=self._config)
        alike = [run for run in self._runs[stage] if run.traits == traits]
        here = [run for run in alike if run.place == self._place]
        if not alike:
            return Cost(row.first_guess_s, "first guess")
        rate = statistics.median(run.seconds_per_unit for run in here or alike)
        return Cost(rate, "here" if here else "elsewhere")

    def forget(self, stage: str) -> None:
        """Read the runs of a stage again: one more was finished."""
        self._runs.pop(stage, None)


def _read(run_dir: Path) -> Measured | None:
    """A finished run; None where its files are not whole, or it did no unit of work."""
    try:
        result = json.loads((run_dir / "DONE.json").read_text())
        manifest = json.loads((run_dir / "manifest.json").read_text())
        row, content, config = STAGES[manifest["stage"]], manifest["content"], manifest["config"]
        units = row.units_of(content=content, config=config, result=result)
        devices = (manifest["threads"], manifest.get("devices", 1), manifest.get("device", "cpu"))
        return Measured(
            traits=row.traits_of(content=content, upstream=manifest["upstream"], config=config),
            place=_place(manifest["machine"], *devices),
            seconds_per_unit=float(result["seconds"]) / units,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _place(found: Mapping[str, Any], *devices: Any) -> tuple[Any, ...]:
    return (*(found.get(key) for key in ("host", "cpu", "cores")), *devices)
