"""What a unit of a stage's work costs, from the runs that a store holds. Torch-free.

A run's `DONE.json` has its seconds, its manifest what it did, where and with how many threads. The
seconds are those of its last attempt, so one that was resumed looks faster than it is; medians
bear a few of those.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.config.schema import ExperimentConfig, resolved
from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES
from experiments.runner.gpus import device_kind
from experiments.runner.launchers import slots_of, threads_of
from experiments.store.provenance import machine

Match = Literal[
    "same",
    "other threads or device",
    "other machine",
    "other settings",
    "other settings and machine",
    "first guess",
]
"""How near the measured runs are to what is asked for, nearest first."""
MATCHES: tuple[Match, ...] = get_args(Match)
START_S = 0.3
"""From the end of one stage to the begin of the next on the same slot: half the poll and a fork.
The median over 21 stages of a sweep on two cores was 0.34 s."""
RUNS_READ = 50
"""Runs of a stage that are read, the latest ones."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One finished run."""

    run_dir: Path
    stage: str
    traits: str
    machine: tuple[Any, ...]
    threads: tuple[Any, ...]
    """Threads, devices that it was spread over, and their kind."""
    units: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a unit of work costs."""

    seconds_per_unit: float
    """The median over the runs."""
    match: Match
    runs: tuple[Measured, ...] = ()
    """What was measured; empty for a first guess."""


def n_slots(config: ExperimentConfig) -> int:
    """Stages that run at the same time under a recipe's settings."""
    if config.sweep.launcher == "slurm":
        return config.slurm.max_jobs
    return len(slots_of(config))


class Costs:
    """Costs under a recipe's settings on this machine.

    Args:
        root: Root of the store; one that is not there has no run.
        config: The recipe.
    """

    def __init__(self, root: Path, *, config: ExperimentConfig) -> None:
        self._root, self._config = Path(root), resolved(config)
        self._machine = _machine(machine())
        self._threads = (threads_of(config), config.trainer.devices, device_kind(config))
        self._runs: dict[str, list[Measured]] = {}
        self._known: dict[tuple[str, str], Cost] = {}

    def traits(self, node: Node) -> str:
        """What the time of one of its units depends on."""
        return STAGES[node.stage].traits_of(
            content=node.content, upstream=node.upstream, config=self._config
        )

    def of(self, stage: str, traits: str) -> Cost:
        """What a unit costs, from the runs that are nearest to it."""
        if (stage, traits) not in self._known:
            self._known[stage, traits] = self._nearest(stage, traits)
        return self._known[stage, traits]

    def learn(self, run_dir: Path) -> None:
        """Take a run that has just been finished into account."""
        stage = run_dir.parent.name
        run = _read(run_dir)
        if run is not None:
            self._of_stage(stage).append(run)
            self._known = {key: cost for key, cost in self._known.items() if key[0] != stage}

    def _of_stage(self, stage: str) -> list[Measured]:
        if stage not in self._runs:
            self._runs[stage] = _latest(self._root / "store" / stage)
        return self._runs[stage]

    def _nearest(self, stage: str, traits: str) -> Cost:
        groups: dict[Match, list[Measured]] = {}
        for run in self._of_stage(stage):
            groups.setdefault(self._match(run, traits), []).append(run)
        for match in MATCHES:
            if runs := groups.get(match):
                rates = [run.seconds / run.units for run in runs]
                return Cost(
                    seconds_per_unit=statistics.median(rates), match=match, runs=tuple(runs)
                )
        return Cost(seconds_per_unit=STAGES[stage].first_guess_s, match="first guess")

    def _match(self, run: Measured, traits: str) -> Match:
        is_here = run.machine == self._machine
        if run.traits != traits:
            return "other settings" if is_here else "other settings and machine"
        if not is_here:
            return "other machine"
        return "same" if run.threads == self._threads else "other threads or device"


def bytes_of(node_units: int, *, cost: Cost, root: Path) -> float | None:
    """Bytes that a stage will leave in the store; None where none like it was measured.

    Args:
        node_units: Its units of work.
        cost: What one costs; sizes come from the same runs, medians over the latest ten.
        root: Root of the store.

    Returns:
        Bytes. Prepared frames, which stages share, are not in it.
    """
    if not cost.runs or cost.match.startswith("other settings"):
        return None
    per_run = STAGES[cost.runs[0].stage].is_training
    sizes = [_size(run, root=root) / (1 if per_run else run.units) for run in cost.runs[-10:]]
    return statistics.median(sizes) * (1 if per_run else node_units)


def _size(run: Measured, *, root: Path) -> float:
    row = STAGES[run.stage]
    files = [path.stat() for path in run.run_dir.rglob("*") if path.is_file()]
    size = float(sum(f.st_size for f in files if not row.is_linking or f.st_nlink == 1))
    if row.is_embedding:
        size += run.units * _embedding_size(run.run_dir, store=root / "store" / "embeddings")
    return size


def _embedding_size(run_dir: Path, *, store: Path) -> float:
    """Bytes of an embedding with its view, the mean over the first image's."""
    keys = next(iter(json.loads((run_dir / "embeddings.json").read_text()).values()), [])
    sizes = [path.stat().st_size for key in keys for path in (store / key[:2]).glob(f"{key}.*")]
    return sum(sizes) / len(keys) if keys else 0.0


def _latest(folder: Path) -> list[Measured]:
    markers = [(path.stat().st_mtime, path) for path in folder.glob("*/DONE.json")]
    found = [_read(path.parent) for _, path in sorted(markers)[-RUNS_READ:]]
    return [run for run in found if run is not None]


def _read(run_dir: Path) -> Measured | None:
    """A finished run; None where its files are not whole, or it did no unit of work."""
    try:
        result = json.loads((run_dir / "DONE.json").read_text())
        manifest = json.loads((run_dir / "manifest.json").read_text())
        stage, content, config = manifest["stage"], manifest["content"], manifest["config"]
        row = STAGES[stage]
        units = row.units_of(content=content, config=config, result=result)
        if units < 1:
            return None
        return Measured(
            run_dir=run_dir,
            stage=stage,
            traits=row.traits_of(content=content, upstream=manifest["upstream"], config=config),
            machine=_machine(manifest["machine"]),
            threads=(
                manifest["threads"],
                manifest.get("devices", 1),
                manifest.get("device", "cpu"),
            ),
            units=units,
            seconds=float(result["seconds"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _machine(found: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(found.get(key) for key in ("host", "cpu", "cores"))
