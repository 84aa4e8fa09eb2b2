"""What a sweep would do, and about how long it would take: nothing is started or written here."""

import dataclasses
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.config.schema import ExperimentConfig
from experiments.plan.grid import make_plan
from experiments.plan.nodes import Node, Plan, TrialSpec
from experiments.runner.costs import MATCHES, Costs, Match, n_slots
from experiments.runner.launchers import threads_of
from experiments.runner.schedule import Task, longest_chain, simulate, waves
from experiments.runner.workload import Work, work_of
from experiments.stages.data import Data, load_data
from experiments.store.guard import check_version
from experiments.store.runs import RunStore

DEVICES = (1, 8, 64)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Trials of one condition and amount."""

    condition: str
    n_real: int
    real_fraction: float | None
    trials: int
    done: int
    supports: int
    seeds: int
    generator_seeds: int
    folds: int


@dataclass(frozen=True, kw_only=True)
class StageSum:
    """Stages of one kind."""

    stage: str
    total: int
    done: int
    to_do: int
    units: int
    """Units of work to do."""
    seconds: float
    """Estimated time on one device."""
    bytes: float | None
    """Estimated size of what it leaves; None where none like it was measured."""
    runs: int
    """Measured runs behind the estimates."""
    match: Match | None
    """How near those are, the farthest counting; None where nothing is to do."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Stages of one label that as many trials need."""

    stage: str
    label: str
    stages: int
    done: int
    trials: int
    """Trials that need each of them."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A stage whose last attempt failed."""

    label: str
    reason: str
    is_retried: bool


@dataclass(frozen=True, kw_only=True)
class Time:
    """The simulated sweep on so many devices."""

    devices: int
    at_once: int
    """Stages that run at the same time; 0 where a training needs more devices than there are."""
    seconds: float | None
    """Until the last stage ends."""
    utilisation: float | None
    """Share of the devices' time in which a stage runs."""
    booked_device_hours: float | None
    """Devices times time."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All that a dry run says."""

    name: str
    cohort: str
    n_train: int
    n_val: int
    n_test: int
    trials: int
    trials_done: int
    controls: int
    cells: list[Cell]
    stages: list[StageSum]
    shared: list[Shared]
    failed: list[Failed]
    blocked: int
    """Stages that are not tried, since they need one that failed and is not tried again."""
    work_device_hours: float
    """Time of all stages to do, times the devices that each takes."""
    now: Time
    """Under the recipe's own settings."""
    times: list[Time]
    waves: int
    """Most stages that have to follow one another."""
    chain: list[str]
    """Labels of the chain of stages that takes the longest."""
    chain_seconds: float
    threads: int
    devices_per_stage: int
    launcher: str
    bytes: float
    """Estimated size of what is written, as far as it is known."""
    bytes_unknown: list[str]
    """Kinds of stages whose size is not known."""
    bytes_free: int | None


def dry_run(config: ExperimentConfig, console: Console, *, retry_failed: bool) -> Forecast:
    """Plan a recipe and estimate it, without a trace in its store.

    Args:
        config: The recipe.
        console: Where reading the data is shown.
        retry_failed: Whether the sweep would try again what failed by an error of its own.

    Raises:
        InputError: For a user's mistake.
    """
    root = Path(config.store.root)
    check_version(root)
    with tempfile.TemporaryDirectory() as scratch, console.status("reading the data") as status:
        # Indexing keeps its result in the store; here in a copy that is thrown away.
        index = root / "store" / "index"
        if index.is_dir():
            shutil.copytree(index, Path(scratch) / "store" / "index")
        store = dataclasses.replace(config.store, root=scratch)
        data = load_data(
            dataclasses.replace(config, store=store),
            progress=lambda done, total: status.update(f"indexing images {done}/{total}"),
        )
        plan = make_plan(config, data.view)
        return forecast(config, data=data, plan=plan, retry_failed=retry_failed)


def forecast(
    config: ExperimentConfig, *, data: Data, plan: Plan, retry_failed: bool = True
) -> Forecast:
    """Estimate what a plan still takes, from the runs in its store.

    Args:
        config: The recipe.
        data: Its images.
        plan: Its stages.
        retry_failed: Whether what failed by an error of its own is tried again.
    """
    root, split = Path(config.store.root), data.view.split
    costs = Costs(root, config=config)
    work = work_of(plan, store=RunStore(root), costs=costs, retry_failed=retry_failed)
    chain = longest_chain(work.tasks)
    grid, each = config.sweep, config.trainer.devices
    per_device = grid.per_device if grid.devices else 1
    share, total_s = each / per_device, sum(task.seconds for task in work.tasks.values())
    return Forecast(
        name=config.name,
        cohort=data.name,
        n_train=len(split.train),
        n_val=len(split.val),
        n_test=len(split.test),
        trials=len(plan.grid),
        trials_done=sum(work.done.issuperset(spec.keys) for spec in plan.grid),
        controls=len(plan.trials) - len(plan.grid),
        cells=_cells(plan.grid, done=work.done),
        stages=_sums(plan.nodes, work=work),
        shared=_shared(plan, done=work.done),
        failed=[
            Failed(
                label=plan.nodes[key].label,
                reason=failure.reason,
                is_retried=key not in work.given_up,
            )
            for key, failure in work.failures.items()
        ],
        blocked=len(work.blocked),
        work_device_hours=total_s * share / 3600,
        now=_time(work.tasks, at_once=n_slots(config), share=share),
        times=[
            _time(work.tasks, at_once=n // each * per_device, share=share, devices=n)
            for n in DEVICES
        ],
        waves=waves(work.tasks),
        chain=[plan.nodes[key].label for key in chain],
        chain_seconds=sum(work.tasks[key].seconds for key in chain),
        threads=threads_of(config),
        devices_per_stage=each,
        launcher=grid.launcher,
        bytes=sum(size for size in work.bytes.values() if size is not None),
        bytes_unknown=sorted(
            {plan.nodes[key].stage for key, size in work.bytes.items() if size is None}
        ),
        bytes_free=_free(root),
    )


def _cells(grid: list[TrialSpec], *, done: Collection[str]) -> list[Cell]:
    groups: dict[tuple[str, int], list[TrialSpec]] = {}
    for spec in grid:
        groups.setdefault((spec.condition, spec.n_real), []).append(spec)
    return [
        Cell(
            condition=condition,
            n_real=n_real,
            real_fraction=specs[0].real_fraction,
            trials=len(specs),
            done=sum(all(key in done for key in spec.keys) for spec in specs),
            supports=len({spec.support for spec in specs}),
            seeds=len({spec.seed for spec in specs}),
            generator_seeds=len({spec.generator_seed for spec in specs}),
            folds=len({spec.fold for spec in specs}),
        )
        for (condition, n_real), specs in groups.items()
    ]


def _sums(nodes: Mapping[str, Node], *, work: Work) -> list[StageSum]:
    by_stage: dict[str, list[str]] = {}
    for key, node in nodes.items():
        by_stage.setdefault(node.stage, []).append(key)
    sums = []
    for stage, keys in by_stage.items():
        left = [key for key in keys if key in work.tasks]
        sizes = [work.bytes[key] for key in left]
        sums.append(
            StageSum(
                stage=stage,
                total=len(keys),
                done=sum(key in work.done for key in keys),
                to_do=len(left),
                units=sum(work.units[key] for key in left),
                seconds=sum(work.tasks[key].seconds for key in left),
                bytes=None if None in sizes else sum(sizes),
                runs=len({run.run_dir for key in left for run in work.costs[key].runs}),
                match=max((work.costs[key].match for key in left), key=MATCHES.index, default=None),
            )
        )
    return sums


def _shared(plan: Plan, *, done: Collection[str]) -> list[Shared]:
    """What more than one trial of the grid needs, alike stages in one entry."""
    trials = Counter(key for spec in plan.grid for key in _needed(plan.nodes, spec.keys))
    alike: dict[tuple[str, str, int], list[str]] = {}
    for key, node in plan.nodes.items():
        if trials[key] > 1:
            alike.setdefault((node.stage, node.label, trials[key]), []).append(key)
    return [
        Shared(
            stage=stage,
            label=label,
            stages=len(keys),
            done=sum(key in done for key in keys),
            trials=n_trials,
        )
        for (stage, label, n_trials), keys in alike.items()
    ]


def _needed(nodes: Mapping[str, Node], keys: Collection[str]) -> set[str]:
    """Some stages and all that they rest on."""
    found: set[str] = set()
    wanted = list(keys)
    while wanted:
        key = wanted.pop()
        if key not in found:
            found.add(key)
            wanted += nodes[key].upstream.values()
    return found


def _time(
    tasks: Mapping[str, Task], *, at_once: int, share: float, devices: int | None = None
) -> Time:
    """Simulate.

    Args:
        tasks: The stages to do.
        at_once: How many run at the same time; with 0 nothing can be said.
        share: Devices that one of them takes.
        devices: Devices in all; None for as many as that makes.
    """
    n_devices = max(1, round(at_once * share)) if devices is None else devices
    if not at_once:
        return Time(
            devices=n_devices,
            at_once=0,
            seconds=None,
            utilisation=None,
            booked_device_hours=None,
        )
    makespan_s = simulate(tasks, devices=at_once).makespan_s
    busy_s = sum(task.seconds for task in tasks.values()) * share
    return Time(
        devices=n_devices,
        at_once=at_once,
        seconds=makespan_s,
        utilisation=busy_s / (makespan_s * n_devices) if makespan_s else None,
        booked_device_hours=makespan_s * n_devices / 3600,
    )


def _free(root: Path) -> int | None:
    """Bytes free where the store is, or will be."""
    for folder in (root, *root.absolute().parents):
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return None
