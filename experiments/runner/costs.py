"""What a unit of a stage's work costs: the median of the finished runs of a store. Torch-free.

A run's `DONE.json` has the seconds of its last attempt, so one that was resumed looks faster than
it is; medians are robust to a few of those.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from experiments.config.schema import ExperimentConfig, resolved
from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES
from experiments.runner.gpus import device_kind
from experiments.runner.launchers import slots_of, threads_of
from experiments.store.provenance import machine

Source = Literal["here", "elsewhere", "table", "first guess"]
"""Where runs were measured: on this machine with as many threads and devices, or otherwise; or the
table of steps on GPUs."""
SOURCES: tuple[Source, ...] = get_args(Source)
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
        self._known: dict[tuple[str, str], Cost] = {}

    def traits(self, node: Node) -> str:
        """What the time of one of its units depends on."""
        return STAGES[node.stage].traits_of(
            content=node.content, upstream=node.upstream, config=self._config
        )

    def of(self, stage: str, traits: str) -> Cost:
        """What a unit costs: the median of like runs here, else elsewhere, else a first guess."""
        if (stage, traits) not in self._known:
            self._known[stage, traits] = self._measured(stage, traits)
        return self._known[stage, traits]

    def learn(self, run_dir: Path) -> None:
        """Take a run that has just been finished into account."""
        if (run := _read(run_dir)) is not None:
            stage = run_dir.parent.name
            self._of_stage(stage).append(run)
            self._known = {key: cost for key, cost in self._known.items() if key[0] != stage}

    def _of_stage(self, stage: str) -> list[Measured]:
        if stage not in self._runs:
            markers = (self._store / stage).glob("*/DONE.json")
            latest = sorted((path.stat().st_mtime, path) for path in markers)[-RUNS_READ:]
            self._runs[stage] = [run for _, path in latest if (run := _read(path.parent))]
        return self._runs[stage]

    def _measured(self, stage: str, traits: str) -> Cost:
        alike = [run for run in self._of_stage(stage) if run.traits == traits]
        here = [run for run in alike if run.place == self._place]
        if not alike:
            return Cost(STAGES[stage].first_guess_s, "first guess")
        rate = statistics.median(run.seconds_per_unit for run in here or alike)
        return Cost(rate, "here" if here else "elsewhere")


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
