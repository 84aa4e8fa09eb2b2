"""What a sweep would do, and about how long it would take: nothing is started or written here."""

import functools
import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.config.schema import ExperimentConfig
from experiments.config.words import counted
from experiments.plan.bases import pin_bases
from experiments.plan.grid import make_plan
from experiments.plan.nodes import Plan
from experiments.runner.costs import SOURCES, gpus, n_slots
from experiments.runner.gpus import device_kind
from experiments.runner.progress import clock
from experiments.runner.sweep import Sweep
from experiments.runner.workload import Workload, makespan_s
from experiments.stages.data import Data, load_data
from experiments.store.disk import disk_need_gib
from experiments.store.layout import check_version
from lightning_modules.generators.table import row_of
from lightning_modules.segmenters.sam.weights import missing_weights_named
from lightning_modules.weights_table import WEIGHTS

WIDTH = 80
_wrapped = functools.partial(textwrap.wrap, width=WIDTH, break_on_hyphens=False)
MOST_LINES = 14
"""Lines that a list shows before it says how many more there are."""


def print_dry_run(config: ExperimentConfig, *, retry_failed: bool, as_json: bool) -> None:
    """Print what a sweep would do, as text or as JSON, without a trace in its store."""
    root, console = Path(config.store.root), Console(stderr=True, highlight=False)
    check_version(root)
    pinned = pin_bases(config, asks_hub=False)
    with console.status("reading the data") as status:
        show = lambda done, total: status.update(f"indexing images {done}/{total}")  # noqa: E731
        data = load_data(config, progress=show)
        with missing_weights_named() as missing:
            plan = make_plan(config, data)
    absent = [*(WEIGHTS[name].what for name in dict.fromkeys(missing)), *_absent(config, plan)]
    notes = [f"{what} is not here yet: the sweep fetches it when it starts" for what in absent]
    for note in (*data.notes, *plan.notes, *pinned, *notes):
        console.print(note, markup=False, soft_wrap=True)
    found = forecast(config, data=data, plan=plan, retry_failed=retry_failed)
    if as_json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print(forecast_text(found), end="")


def _absent(config: ExperimentConfig, plan: Plan) -> list[str]:
    """Models that the plan's generators start from and that are yet to be fetched."""
    named = {n.generator for n in plan.nodes.values() if "base_id" in n.content}
    settings = [config.generator_named(name) for name in sorted(named)]
    starts = [row_of(each).starts_from(each) for each in settings]
    return list(dict.fromkeys(each.what for each in starts if each and each.find() is None))


def forecast(
    config: ExperimentConfig, *, data: Data, plan: Plan, retry_failed: bool = True
) -> dict[str, Any]:
    """All that a dry run says, as JSON: what a plan still takes by the runs in its store.
    `retry_failed` tells whether what failed by an error of its own is tried again.
    """
    sweep, split = Sweep(config, data=data, plan=plan), data.split
    if not retry_failed:
        sweep.recall_failures(kinds=["error"])
    done = {key for key, run in sweep.runs.items() if run.state == "reused"}
    work, root = Workload(sweep), sweep.store.root
    disk = shutil.disk_usage(next(filter(Path.is_dir, (root, *root.parents))))
    return {
        "name": config.name,
        "cohort": data.name,
        "n_train": len(split.train),
        "n_val": len(split.val),
        "n_test": len(split.test),
        # By segmenter, condition, generator and choice.
        "trials": dict(Counter(spec.arm for spec in plan.grid)),
        "trials_done": sum(done.issuperset(spec.keys) for spec in plan.grid),
        "controls": len(plan.trials) - len(plan.grid),
        "stages": _sums(plan, done=done, work=work),
        # They failed and are not tried again, or need one that did.
        "left_out": sum(run.state in ("failed", "blocked") for run in sweep.runs.values()),
        "shared": _shared(plan),
        # Stages that run at the same time, and seconds until the last one ends.
        "at_once": n_slots(config),
        "seconds": work.seconds_left(),
        "elsewhere": _elsewhere(sweep),
        # Roughly what the store takes after the sweep, were it empty before.
        "disk_gib": disk_need_gib(config),
        "free_gib": disk.free / 2**30,
    }


def _sums(plan: Plan, *, done: Collection[str], work: Workload) -> list[dict[str, Any]]:
    """The stages of each kind."""
    tasks, sums, sureness = work.tasks(), [], list(SOURCES)
    for stage in dict.fromkeys(node.stage for node in plan.nodes.values()):
        keys = [key for key, node in plan.nodes.items() if node.stage == stage]
        left = [key for key in keys if key in tasks]
        sources = {work.cost(key).source for key in left}
        sums.append(
            {
                "stage": stage,
                "total": len(keys),
                "done": sum(key in done for key in keys),
                "to_do": len(left),
                # Units of work, and seconds one after the other, of those to do.
                "units": sum(work.units[key] for key in left),
                "seconds": sum(tasks[key].seconds for key in left),
                # The least sure one counts.
                "source": max(sources, key=sureness.index, default=None),
            }
        )
    return sums


def _shared(plan: Plan) -> list[dict[str, Any]]:
    """What others read and more than one trial needs: stages of one label, each of which as many
    trials need, in one entry."""
    trials = Counter(key for spec in plan.grid for key in plan.behind(spec.keys))
    inputs = {key for node in plan.nodes.values() for key in node.upstream.values()}
    alike = Counter((plan.nodes[key].label, trials[key]) for key in plan.nodes if key in inputs)
    return [
        {"label": label, "stages": n, "trials": n_trials}
        for (label, n_trials), n in alike.items()
        if n_trials > 1
    ]


def _elsewhere(sweep: Sweep) -> list[dict[str, Any]]:
    """The time on one GPU of each kind in the table, a stage at a time; none where no stage is in
    it, or a GPU is here."""
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
        found.append({"gpu": gpu.name, "seconds": seconds, "how": gpu.how, "guessed": guessed})
    return found


def forecast_text(found: dict[str, Any]) -> str:
    """Write a forecast for people."""
    controls = f"; {counted(found['controls'], 'control')}" if found["controls"] else ""
    lines = [
        *_wrapped(
            "{name}: {cohort}, {n_train} train, {n_val} validation and {n_test} test images. A dry "
            "run: nothing is started or written.".format(**found)
        ),
        *_wrapped(
            f"{counted(sum(found['trials'].values()), 'trial')}, {found['trials_done']} done"
            + "".join(f", {name} {n}" for name, n in found["trials"].items())
            + controls
        ),
        f"{'stage':14}{'all':>5}{'done':>6}{'to do':>7} {'units':>7} {'about':>9}  estimate",
    ]
    for each in found["stages"]:
        row = "{stage:14}{total:5}{done:6}{to_do:7}".format(**each)
        cost = f" {each['units']:7} {clock(each['seconds']):>9}  {each['source']}"
        lines.append(row + cost if each["to_do"] else row)
    if found["left_out"]:
        stages = counted(found["left_out"], "stage")
        lines.append(f"{stages} left out: they failed, or need one that did (--retry-failed)")
    shared = found["shared"]
    if shared:
        lines.append("made once for several:")
    for each in shared[:MOST_LINES]:
        times = f"{each['stages']} x " if each["stages"] > 1 else ""
        text = f"{each['trials']} trials: {times}{each['label']}"
        lines.append("  " + textwrap.shorten(text, WIDTH - 2, placeholder="..."))
    if len(shared) > MOST_LINES:
        lines.append(f"  and {len(shared) - MOST_LINES} more")
    lines += _wrapped(_time(found))
    for each in found["elsewhere"]:
        guessed = f"; first guesses of {', '.join(each['guessed'])}" if each["guessed"] else ""
        told = f"on one {each['gpu']} about {clock(each['seconds'])}: {each['how']}{guessed}"
        lines += _wrapped(told)
    lines.append("disk: about {disk_gib:.1f} GiB in all; {free_gib:.1f} GiB free".format(**found))
    return "\n".join(lines) + "\n"


def _time(found: dict[str, Any]) -> str:
    stages = {
        words: ", ".join(each["stage"] for each in found["stages"] if each["source"] == source)
        for source, words in SOURCES.items()
    }
    how = ", ".join(f"{words} ({names})" for words, names in stages.items() if names)
    at_once = counted(found["at_once"], "stage")
    told = f"about {clock(found['seconds'])} with {at_once} at once; by {how}"
    return told if how else "nothing is left to do"
