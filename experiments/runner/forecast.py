"""What a sweep would do, and about how long it would take: nothing is started or written here."""

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from experiments.config.schema import ExperimentConfig
from experiments.config.words import counted
from experiments.plan.bases import pin_bases
from experiments.plan.grid import make_plan
from experiments.plan.nodes import Plan
from experiments.runner.costs import SOURCES, Source, gpus, n_slots
from experiments.runner.gpus import device_kind
from experiments.runner.progress import clock
from experiments.runner.sweep import Sweep
from experiments.runner.workload import Workload, makespan_s
from experiments.stages.data import Data, load_data
from experiments.store.disk import disk_need_gib
from experiments.store.layout import check_version
from lightning_modules.generators.stable_diffusion.weights import (
    find_in_hub_cache,
    is_hub_name,
    resolve_base,
)
from lightning_modules.segmenters.sam.weights import missing_weights_named
from lightning_modules.weights_table import WEIGHTS

WIDTH = 80
MOST_LINES = 14
"""Lines that a list shows before it says how many more there are."""


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
    """Estimated time, one after the other."""
    source: Source | None
    """What the estimate rests on, the least sure counting; None where nothing is to do."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Stages of one label, each of which as many trials need."""

    label: str
    stages: int
    trials: int


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A sweep's time on one GPU of the table of measured steps."""

    gpu: str
    seconds: float
    """One stage at a time."""
    how: str
    """What the time rests on."""
    guessed: list[str]
    """Stages that it takes from first guesses."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All that a dry run says."""

    name: str
    cohort: str
    n_train: int
    n_val: int
    n_test: int
    trials: dict[str, int]
    """Trials by segmenter, condition, generator and choice."""
    trials_done: int
    controls: int
    stages: list[StageSum]
    left_out: int
    """Stages that failed and are not tried again, or that need one of those."""
    shared: list[Shared]
    at_once: int
    """Stages that run at the same time under the recipe's settings."""
    seconds: float
    """Until the last stage ends."""
    elsewhere: list[Elsewhere]
    """The same on GPUs that are not here, where its models were measured on one."""
    disk_gib: float
    """Rough size of the store after the sweep, were it empty before."""
    free_gib: float


def print_dry_run(config: ExperimentConfig, *, retry_failed: bool, as_json: bool) -> None:
    """Print what a sweep would do, as text or as JSON, without a trace in its store."""
    root, console = Path(config.store.root), Console(stderr=True, highlight=False)
    check_version(root)
    pinned = pin_bases(config, asks_hub=False)
    with console.status("reading the data") as status:
        show = lambda done, total: status.update(f"indexing images {done}/{total}")  # noqa: E731
        data = load_data(config, progress=show, keeps=False)
        with missing_weights_named() as missing:
            plan = make_plan(config, data.view)
    notes = [
        f"{WEIGHTS[name].file} ({WEIGHTS[name].size_text}) is not here yet: the sweep fetches it "
        "when it starts"
        for name in dict.fromkeys(missing)
    ]
    notes += _absent_bases(config, plan)
    for note in (*data.notes, *plan.notes, *pinned, *notes):
        console.print(note, markup=False, soft_wrap=True)
    found = forecast(config, data=data, plan=plan, retry_failed=retry_failed)
    if as_json:
        print(json.dumps(asdict(found), indent=1, allow_nan=False))
    else:
        print(forecast_text(found), end="")


def _absent_bases(config: ExperimentConfig, plan: Plan) -> list[str]:
    """Models of the hub that the plan starts from and that are not in the hub's cache."""
    named = {n.generator for n in plan.nodes.values() if "base_id" in n.content}
    settings = [config.generator_named(name) for name in sorted(named)]
    bases = {resolve_base(each.base_model, revision=each.revision) for each in settings}
    return [
        f"{model} is not in the hub's cache yet: the sweep fetches it when it starts"
        for model, revision in bases
        if is_hub_name(model) and find_in_hub_cache(model, revision=revision) is None
    ]


def forecast(
    config: ExperimentConfig, *, data: Data, plan: Plan, retry_failed: bool = True
) -> Forecast:
    """Estimate what a plan still takes, from the runs in its store; `retry_failed` tells whether
    what failed by an error of its own is tried again.
    """
    sweep, split = Sweep(config, data=data, plan=plan), data.view.split
    if not retry_failed:
        sweep.recall_failures(kinds=["error"])
    done = {key for key, run in sweep.runs.items() if run.state == "reused"}
    work, root = Workload(sweep), sweep.store.root
    return Forecast(
        name=config.name,
        cohort=data.name,
        n_train=len(split.train),
        n_val=len(split.val),
        n_test=len(split.test),
        trials=dict(Counter(spec.arm for spec in plan.grid)),
        trials_done=sum(done.issuperset(spec.keys) for spec in plan.grid),
        controls=len(plan.trials) - len(plan.grid),
        stages=_sums(plan, done=done, work=work),
        left_out=sum(run.state in ("failed", "blocked") for run in sweep.runs.values()),
        shared=_shared(plan),
        at_once=n_slots(config),
        seconds=work.seconds_left(),
        elsewhere=_elsewhere(sweep),
        disk_gib=disk_need_gib(config),
        free_gib=shutil.disk_usage(next(filter(Path.is_dir, (root, *root.parents)))).free / 2**30,
    )


def _elsewhere(sweep: Sweep) -> list[Elsewhere]:
    """One GPU of each kind in the table; none where no stage is in it, or a GPU is here."""
    found = []
    if device_kind(sweep.config) == "cuda":
        return []
    for gpu in gpus().values():
        work = Workload(sweep, gpu=gpu.name)
        tasks = work.tasks()
        by = [(work.cost(key).source, sweep.runs[key].node.stage) for key in tasks]
        if not any(source == "table" for source, _ in by):
            return []
        guessed = list(dict.fromkeys(stage for source, stage in by if source == "first guess"))
        seconds = makespan_s(tasks, devices=1)
        found.append(Elsewhere(gpu=gpu.name, seconds=seconds, how=gpu.how, guessed=guessed))
    return found


def _sums(plan: Plan, *, done: Collection[str], work: Workload) -> list[StageSum]:
    tasks, sums, sureness = work.tasks(), [], list(SOURCES)
    for stage in dict.fromkeys(node.stage for node in plan.nodes.values()):
        keys = [key for key, node in plan.nodes.items() if node.stage == stage]
        left = [key for key in keys if key in tasks]
        sums.append(
            StageSum(
                stage=stage,
                total=len(keys),
                done=sum(key in done for key in keys),
                to_do=len(left),
                units=sum(work.units[key] for key in left),
                seconds=sum(tasks[key].seconds for key in left),
                source=max((work.cost(k).source for k in left), key=sureness.index, default=None),
            )
        )
    return sums


def _shared(plan: Plan) -> list[Shared]:
    """What others read and more than one trial needs, alike stages in one entry."""
    needed: dict[str, set[str]] = {}
    for key, node in plan.nodes.items():
        needed[key] = {key}.union(*map(needed.get, node.upstream.values()))
    trials = Counter(k for spec in plan.grid for k in set().union(*map(needed.get, spec.keys)))
    inputs = {key for node in plan.nodes.values() for key in node.upstream.values()}
    alike = Counter((plan.nodes[key].label, trials[key]) for key in plan.nodes if key in inputs)
    return [Shared(label=label, stages=n, trials=t) for (label, t), n in alike.items() if t > 1]


def forecast_text(found: Forecast) -> str:
    """Write a forecast for people; `asdict` gives it to programs."""
    lines = [
        *_wrapped(
            f"{found.name}: {found.cohort}, {found.n_train} train, {found.n_val} validation and "
            f"{found.n_test} test images. A dry run: nothing is started or written."
        ),
        *_wrapped(
            f"{counted(sum(found.trials.values()), 'trial')}, {found.trials_done} done"
            + "".join(f", {name} {n}" for name, n in found.trials.items())
            + (f"; {counted(found.controls, 'control')}" if found.controls else "")
        ),
        f"{'stage':14}{'all':>5}{'done':>6}{'to do':>7}{'units':>8}{'about':>10}  estimate",
    ]
    for each in found.stages:
        row = f"{each.stage:14}{each.total:5}{each.done:6}{each.to_do:7}"
        cost = f"{each.units:8}{clock(each.seconds):>10}  {each.source}" if each.to_do else ""
        lines.append(row + cost)
    if found.left_out:
        stages = counted(found.left_out, "stage")
        lines.append(f"{stages} left out: they failed, or need one that did (--retry-failed)")
    if found.shared:
        lines.append("made once for several:")
    for each in found.shared[:MOST_LINES]:
        text = f"{each.trials} trials: {f'{each.stages} x ' * (each.stages > 1)}{each.label}"
        lines.append("  " + textwrap.shorten(text, WIDTH - 2, placeholder="..."))
    if len(found.shared) > MOST_LINES:
        lines.append(f"  and {len(found.shared) - MOST_LINES} more")
    lines += _wrapped(_time(found))
    for each in found.elsewhere:
        guessed = f"; first guesses of {', '.join(each.guessed)}" if each.guessed else ""
        told = f"on one {each.gpu} about {clock(each.seconds)}: {each.how}{guessed}"
        lines += _wrapped(told)
    lines.append(f"disk: about {found.disk_gib:.1f} GiB in all; {found.free_gib:.1f} GiB free")
    return "\n".join(lines) + "\n"


def _time(found: Forecast) -> str:
    how = []
    for source, words in SOURCES.items():
        stages = [each.stage for each in found.stages if each.source == source]
        if stages:
            how.append(f"{words} ({', '.join(stages)})")
    if not how:
        return "nothing is left to do"
    at_once = counted(found.at_once, "stage")
    return f"about {clock(found.seconds)} with {at_once} at once; by {', '.join(how)}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
