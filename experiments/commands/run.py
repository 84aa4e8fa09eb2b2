"""Run a recipe from its config to its outputs: what `sweep`, `demo` and the single stages share."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import yaml
from rich.console import Console

from datamodules.errors import InputError
from datamodules.storage import write_atomic
from experiments.commands.arguments import say
from experiments.commands.weights import fetch
from experiments.config.escaping import escaped
from experiments.config.schema import JUDGE, ExperimentConfig, resolved
from experiments.config.stored import STORED_NAME, as_stored, with_seal
from experiments.config.wandb_mode import mode_and_source, resolve_mode
from experiments.config.words import counted
from experiments.plan.bases import pin_bases
from experiments.plan.grid import make_plan
from experiments.plan.nodes import Plan
from experiments.plan.record import record_plan, refuse_another
from experiments.runner.gpus import check_devices
from experiments.runner.memory import check_gpu_memory
from experiments.runner.progress import LiveProgress
from experiments.runner.server import socket_folder
from experiments.runner.slurm import SlurmLauncher
from experiments.runner.sweep import Sweep, SweepInterruptedError
from experiments.stages.data import Data, keep_indices, load_data, write_splits
from experiments.store.guard import claim_store, use_sweep
from experiments.store.layout import check_version
from experiments.store.runs import RunStore, hold, is_done
from lightning_modules.errors import MissingWeightsError
from lightning_modules.generators.table import row_of as generator_row
from lightning_modules.segmenters.table import row_of as segmenter_row


def prepare(
    config: ExperimentConfig, console: Console, *, fetches: bool = True
) -> tuple[Data, Plan]:
    """Check everything that can be checked before torch is imported, then plan.

    Nothing is written into the store: a refused sweep leaves none behind.
    Published weights that the plan's ids name are fetched; with `fetches` false nothing is to run,
    and devices need not be there. A base model's branch on the hub becomes its commit in `config`.

    Raises:
        InputError, WeightsError: For a user's mistake.
    """
    if config.offline:
        # The one place that all processes and libraries look at.
        os.environ["HF_HUB_OFFLINE"] = "1"
    for settings in map(config.segmenter_named, (*config.segmenter_names(), JUDGE)):
        start = segmenter_row(settings).starts_from(settings)
        if start is not None and not start.fetch:
            start.find()
    if fetches:
        check_devices(config)
        socket_folder()
    # A mode that W&B does not have is refused before any work.
    resolve_mode(config.wandb)
    root = Path(config.store.root)
    _check_writable(root.absolute())
    check_version(root)
    for note in pin_bases(config, asks_hub=fetches):
        say(console, note)
    with console.status("reading the data") as status:
        data = load_data(
            config,
            progress=lambda done, total: status.update(f"indexing images {done}/{total}"),
        )
    while True:
        try:
            with console.status("planning"):
                return data, make_plan(config, data)
        except MissingWeightsError as missing:
            if not fetches:
                raise
            fetch(missing.name, console)


def begin_writing(config: ExperimentConfig, data: Data) -> None:
    """Make the store of a sweep that is not refused, and keep what was indexed for it."""
    claim_store(Path(config.store.root))
    keep_indices(data)


def execute(
    config: ExperimentConfig,
    console: Console,
    *,
    data: Data,
    plan: Plan,
    whole: Plan | None = None,
    retry_failed: bool = True,
) -> Sweep:
    """Run a plan's stages with live progress, after writing down what the sweep is.

    `whole` is the sweep that `plan` is a part of, None where it is all of it. A stage whose last
    attempt ended by an error of its own is tried again with `retry_failed` alone; one that ran out
    of memory or disk space always is.

    Raises:
        InputError: `sweep.launcher` is slurm on a machine without it.
        WeightsError: A base model on the hub is needed and not available.
        SystemExit: With code 130 after a signal; everything finished is kept.
    """
    whole = whole or plan
    check_gpu_memory(config, plan)
    launcher = _cluster(config, plan, console)
    _fetch_base(config, plan, console)
    with ExitStack() as in_use:
        sweep = _recorded_sweep(config, console, data=data, plan=plan, whole=whole, in_use=in_use)
        if not retry_failed and (kept := sweep.recall_failures(kinds=["error"])):
            say(
                console,
                f"{counted(kept, 'stage')} failed before, so not tried again; once the cause is "
                "fixed, add --retry-failed",
            )
        if launcher is not None:
            _take_up(sweep, launcher, console, whole=whole)
        split, n = data.split, len(plan.grid)
        say(
            console,
            f"{config.name}: {data.name}, {len(split.train)} train, {len(split.val)} validation "
            f"and {len(split.test)} test images; {counted(n, 'trial')} in "
            f"{counted(len(plan.nodes), 'stage')}, {sweep.pending} to do",
        )
        mode, source = mode_and_source(config.wandb)
        for note in (f"W&B: {mode} ({source})", *data.notes, *whole.notes):
            say(console, note)
        run_live(sweep, console)
    return sweep


def _fetch_base(config: ExperimentConfig, plan: Plan, console: Console) -> None:
    """Bring a base model from the hub before anything runs that would wait for it."""
    store = RunStore(Path(config.store.root))
    asks = [node for node in plan.nodes.values() if "base_id" in node.content]
    wanted = {n.generator for n in asks if not is_done(store.run_dir(n.stage, n.id))}
    for name in sorted(wanted):
        settings = config.generator_named(name)
        start = generator_row(settings).starts_from(settings)
        if start is not None and start.fetch:
            with console.status(f"looking for {start.fetch} in the hub's cache and on the hub"):
                fetch(start.fetch, console)


def _cluster(config: ExperimentConfig, plan: Plan, console: Console) -> SlurmLauncher | None:
    """The launcher of a sweep on a cluster that has something left to do."""
    store = RunStore(Path(config.store.root))
    run_dirs = [store.run_dir(node.stage, node.id) for node in plan.nodes.values()]
    if config.sweep.launcher != "slurm" or all(map(is_done, run_dirs)):
        return None
    return SlurmLauncher(config, say=lambda line: say(console, line))


def _take_up(sweep: Sweep, launcher: SlurmLauncher, console: Console, *, whole: Plan) -> None:
    """Let the sweep wait for the jobs that its last start left in the queue."""
    sweep.launcher = launcher
    jobs = set()
    for key, job in launcher.adopt(whole.nodes).items():
        run = sweep.runs.get(key)
        if run is not None and run.state == "waiting":
            run.job, run.state, run.started = job, "running", time.monotonic()
            jobs.add(job)
    if jobs:
        say(console, f"{counted(len(jobs), 'job')} still in SLURM's queue and not sent again")


def run_live(sweep: Sweep, console: Console) -> None:
    """Run a sweep with live progress; exit code 130 after a signal."""
    try:
        with LiveProgress(sweep, console) as progress:
            sweep.run(progress.update)
    except SweepInterruptedError:
        done = sum(run.is_done for run in sweep.runs.values())
        kept = f"{done} of {len(sweep.runs)} stages are done and kept"
        say(console, f"stopped: {kept}; the same command continues from here")
        raise SystemExit(130) from None
    if sweep.halted:
        say(console, sweep.halted)


def _recorded_sweep(
    config: ExperimentConfig,
    console: Console,
    *,
    data: Data,
    plan: Plan,
    whole: Plan,
    in_use: ExitStack | None = None,
) -> Sweep:
    """Write down what the sweep refers to, then see what of it is done.

    Its recipe is kept too where it is to run, or the one kept is not that of this plan, as after a
    report of done stages under a new name. Where it is to run it is in use until `in_use` ends.

    Raises:
        InputError: It runs already by another plan.
    """
    store = RunStore(Path(config.store.root))
    folder = store.sweep_dir(config.name)
    begin_writing(config, data)
    # `clean` holds this too: it removes nothing that is found done here. So does whoever starts the
    # same sweep: of two at once the later one sees the plan of the other.
    with hold(store.root / "store"):
        refuse_another(folder, whole)
        folder.mkdir(parents=True, exist_ok=True)
        if in_use is not None:
            in_use.enter_context(use_sweep(folder))
        write_splits(data.folds, folder / "split.json")
        change, recipe = record_plan(folder, whole), folder / STORED_NAME
        if in_use is not None or change is not None or not recipe.exists():
            kept = yaml.safe_dump(escaped(as_stored(resolved(config))), sort_keys=False)
            write_atomic(recipe, with_seal(kept))
        sweep = Sweep(config, data=data, plan=plan, say=lambda line: say(console, line))
    if change is not None:
        say(console, change)
    return sweep


def report_failures(sweep: Sweep, console: Console) -> bool:
    """Name what failed; whether anything did."""
    failed = [run for run in sweep.runs.values() if run.state in ("failed", "blocked")]
    for run in failed:
        log = sweep.store.run_dir(run.node.stage, run.node.id) / "log.txt"
        where = f" (log: {os.path.relpath(log)})" if log.exists() else ""
        say(console, f"{run.state}: {run.node.label}: {run.reason}{where}")
    return bool(failed)


def _check_writable(root: Path) -> None:
    there = next(filter(Path.exists, (root, *root.parents)))
    if not there.is_dir():
        raise InputError(f"store.root={root}: {there} is no folder; choose another one")
    if not os.access(there, os.W_OK):
        raise InputError(f"store.root={root}: {there} is not writable; choose another folder")


def run_sweep(
    config: ExperimentConfig,
    console: Console,
    *,
    retry_failed: bool = False,
    check: Callable[[Data], None] | None = None,
) -> Path:
    """Run a recipe to its report, after a check of its images, and give the sweep's folder.

    Raises:
        SystemExit: With code 1 where a stage failed; what there is is written.
    """
    data, plan = prepare(config, console)
    if check is not None:
        check(data)
    sweep = execute(config, console, data=data, plan=plan, retry_failed=retry_failed)
    failed = report_failures(sweep, console)
    write_outputs(sweep, console)
    if failed:
        raise SystemExit(1)
    return sweep.store.sweep_dir(config.name)


def write_again(
    config: ExperimentConfig, console: Console, *, into: Path | None, command: str
) -> None:
    """Write a sweep's outputs from what is done; into a Markdown file's results block too, which
    names a command.
    """
    data, plan = prepare(config, console, fetches=False)
    folder = RunStore(Path(config.store.root)).sweep_dir(config.name)
    sweep = _recorded_sweep(config, console, data=data, plan=plan, whole=plan)
    if sweep.damaged and (folder / "results.csv").is_file():
        raise InputError(
            f"{sweep.damaged[0]}: without it the outputs would lose rows, so they stay as they "
            f"are; {command} makes it again"
        )
    sweep.recall_failures()
    write_outputs(sweep, console)
    if into is not None:
        from experiments.results.readme import replace_block, results_block
        from experiments.results.rows import read_sweep
        from experiments.results.tables import blocks

        results, per_image = read_sweep(folder, output=config.evaluation.output)
        block = results_block(sweep, blocks(results, per_image=per_image), command=command)
        replace_block(into, block, kind="results", name=config.name)


def run_stage(config: ExperimentConfig, console: Console, *, stage: str) -> None:
    """Run what leads to the stages of one kind, and say where they are.

    Raises:
        InputError: If the recipe has no such stage.
    """
    data, plan = prepare(config, console)
    keys = [key for key, node in plan.nodes.items() if node.stage == stage]
    if not keys:
        raise InputError(
            f"sweep.condition={config.sweep.condition}: these conditions need no {stage}; add "
            "sweep.condition=[synthetic]"
        )
    sweep = execute(config, console, data=data, plan=plan.narrowed(keys), whole=plan)
    failed = report_failures(sweep, console)
    for run in map(sweep.runs.get, keys):
        if run.is_done:
            say(console, f"{run.node.label}: {os.path.relpath(sweep.run_dir(run))}")
    if failed:
        raise SystemExit(1)


def write_outputs(sweep: Sweep, console: Console) -> None:
    """Write a sweep's outputs and log them to W&B."""
    from experiments.results import outputs as results
    from experiments.tracking.summary import log_sweep

    results.write_outputs(sweep, console, log=log_sweep)
