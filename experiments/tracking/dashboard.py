"""`sonosweep dashboard`: a sweep's runs of W&B in the terminal, or pushed to a project.

Torch-free, and free of wandb until something is pushed.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from datamodules.errors import InputError
from datamodules.integrity import read_object
from datamodules.storage import content_key, write_json
from experiments.config.running import NOT_IN_PROJECTS
from experiments.config.wandb_mode import is_logged_in, server_answers, server_url
from experiments.config.words import counted
from experiments.store.guard import is_held
from experiments.store.plan_file import read_plan
from experiments.store.status import find_sweep

VIEWS_NAME = "wandb-views.json"
PUSHED_NAME = "wandb-pushed.json"
VIEW_NAME = "wandb-view"
_DIRECTORY = re.compile(r"(?:offline-)?run-(\d+_\d+)-(.+)")
_SENT = "*.wandb.synced"
"""W&B's mark of a run that was sent."""
_ID = re.compile(r"(.+?)-(n\d+)-(.+)")
_ID_OF_ANOTHER = re.compile(r"(?:.*-)?([^-]+)-(n\d+)-(.+)")
"""Of a sweep whose name is not known here: how much of the front is that name cannot be told."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A run of W&B on this machine."""

    path: Path
    """Its directory, `offline-run-DATE_TIME-ID`, or without `offline-` where it was online."""
    stage: str
    """The stage that logged it; empty for one of the sweep's summary."""


def find_runs(folder: Path) -> list[LoggedRun]:
    """Runs of a sweep's stages, in the store beside its folder, and those of its summary."""
    stages = [(key.split("/")[0], folder.parent / "store" / key) for key in read_plan(folder).keys]
    return [
        LoggedRun(path=path, stage=stage)
        for stage, parent in [*stages, ("", folder)]
        for kind in ("offline-run-*", "run-*")
        for path in sorted((parent / "wandb").glob(kind))
        if any(path.glob("*.wandb"))
    ]


def make_view(folder: Path, runs: Sequence[LoggedRun]) -> Path:
    """Make the folder that `wandb leet` opens: links, under names that tell the runs apart.

    It lists directories by the first thirty letters of their names or so, and finds a run's file
    by the name of its directory. Of the summary's runs, which are logged whole each time, the
    newest of an id is shown.
    """
    view = folder / VIEW_NAME
    shutil.rmtree(view, ignore_errors=True)
    whole = sorted((r for r in runs if not r.stage), key=lambda r: _date_and_id(r)[0])
    newest = {_date_and_id(run)[1]: run for run in whole}
    for run in [*(run for run in runs if run.stage), *newest.values()]:
        date, name = _date_and_id(run)
        short = short_name(name, sweep=folder.resolve().name, stage=run.stage)
        made = view / f"run-{date}-{short}"
        if made.exists():
            # Blocks of equal settings have equal hashes, and differ in what was cut off in front.
            short = f"{short}-{content_key(name)[:4]}"
            made = view / f"run-{date}-{short}"
        made.mkdir(parents=True)
        (file,) = run.path.glob("*.wandb")
        (made / f"run-{short}.wandb").symlink_to(file.resolve())
        (made / "files").symlink_to((run.path / "files").resolve())
    return view


def _date_and_id(run: LoggedRun) -> tuple[str, str]:
    return _DIRECTORY.fullmatch(run.path.name).groups()


def short_name(run_id: str, *, sweep: str, stage: str) -> str:
    """A run's id, `<sweep>-synthetic-n20-0bc03dd7-s0`, with what tells it from others in front and
    the stage that logged it, if any: `n20-synthetic-fit-0bc03dd7-s0`."""
    # As ids have it: what stands before the amount may be segmenter, condition, generator, choice.
    own = run_id.removeprefix(f"{sweep[:60]}-")
    parts = (_ID_OF_ANOTHER if own == run_id else _ID).fullmatch(own)
    if parts is None:
        return own
    kind, amount, rest = parts.groups()
    words = [amount, kind, rest] if stage in ("", kind) else [amount, kind, stage, rest]
    return "-".join(words)


def dashboard_command(sweep: str, *, root: Path, push: str | None, console: Console) -> None:
    """Open a sweep's runs in the terminal, or push them to `ENTITY/PROJECT`.

    Raises:
        InputError: For an unknown sweep, one without runs, or a server that cannot be used.
        SystemExit: With the exit code of W&B's own command where that fails.
    """
    folder = find_sweep(sweep, root=root)
    runs = find_runs(folder)
    if not runs:
        raise InputError(
            f"{folder}: no runs of W&B; they are written while a sweep runs, unless "
            "wandb.mode=disabled"
        )
    if push is not None:
        push_sweep(folder, runs=runs, to=push, console=console)
        return
    if not sys.stdout.isatty():
        raise InputError(
            f"{folder}: {len(runs)} runs of W&B, but no terminal to show them in; run this in one, "
            "or add --push ENTITY/PROJECT"
        )
    _wandb("leet", str(make_view(folder, runs)))


def push_sweep(folder: Path, *, runs: Sequence[LoggedRun], to: str, console: Console) -> None:
    """Sync what a project does not have of a sweep, and create its workspace and its report; what
    a stage still writes is left for later.

    Raises:
        InputError: For a wrong `to`, a server that cannot be used, or runs that it refused.
    """
    entity, _, project = to.partition("/")
    if not entity or not project or NOT_IN_PROJECTS.intersection(project):
        raise InputError(f"--push {to}: expected ENTITY/PROJECT, as in my-team/sonosweep")
    if not is_logged_in():
        raise InputError("W&B: not logged in; run `wandb login`, or set WANDB_API_KEY")
    if not server_answers():
        raise InputError(f"W&B: {server_url()} does not answer; try again when it does")
    # A server may not have these yet.
    offline = [run for run in runs if run.path.name.startswith("offline-")]
    # Sent now, it would be marked as sent, and its rest never follow.
    live = [run for run in offline if run.stage and is_held(run.path.parents[1])]
    if live:
        left = f"{counted(len(live), 'run')} of stages that are at work: not sent yet, push again"
        console.print(left, markup=False, highlight=False, soft_wrap=True)
    paths = [run.path for run in offline if run not in live]
    _sync(folder, paths, entity=entity, project=project)
    for line in create_views(folder, entity=entity, project=project):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _sync(folder: Path, paths: Sequence[Path], *, entity: str, project: str) -> None:
    """Send the offline runs that a project has not got from here.

    W&B marks what it has sent but not where to, and its command ends well where a server refuses.
    """
    to = f"{entity}/{project}"
    place = f"{server_url()}/{to}"
    pushed, views = (read_object(folder / name) or {} for name in (PUSHED_NAME, VIEWS_NAME))
    sent = set(pushed.get(place, ()))
    named = {str(path.relative_to(folder.parent)): path for path in paths}
    waiting = {name: path for name, path in named.items() if name not in sent}
    if not waiting:
        return
    if {*pushed} - {place} or {*views} - {to}:
        # The marks may be those of another project.
        for path in waiting.values():
            for mark in path.glob(_SENT):
                mark.unlink()
    _wandb("sync", "--yes", "-e", entity, "-p", project, *map(str, waiting.values()))
    taken = {name for name, path in waiting.items() if any(path.glob(_SENT))}
    write_json(folder / PUSHED_NAME, {**pushed, place: sorted(sent | taken)})
    if lost := len(waiting) - len(taken):
        raise InputError(
            f"--push {to}: {lost} of {counted(len(waiting), 'run')} not taken by {server_url()}, "
            "which says why above; the same command sends what is left"
        )


def create_views(folder: Path, *, entity: str, project: str) -> list[str]:
    """Save the workspace and the report of a sweep, unless the same ones are there; their lines."""
    import wandb

    from experiments.tracking.views import make_report, make_workspace

    config, to = yaml.safe_load((folder / "config.yaml").read_text()), f"{entity}/{project}"
    name, prompts = config["name"], config["evaluation"]["prompts"]
    # A change of the views' code changes what is saved.
    views_code = Path(__file__).with_name("views.py").read_text()
    key = content_key([name, prompts, views_code, server_url()])
    known = read_object(folder / VIEWS_NAME) or {}
    found = known.get(to, {})
    if found.get("key") != key:
        os.environ["WANDB_SILENT"] = "true"
        place = {"entity": entity, "project": project, "prompts": prompts}
        try:
            workspace = make_workspace(name, **place).save()
            report = make_report(name, **place).save()
        except (wandb.Error, ValueError, OSError, KeyError, TypeError) as error:
            print(f"W&B refused the views: {type(error).__name__}: {error}", file=sys.stderr)
            raise SystemExit(1) from error
        found = {"key": key, "workspace": workspace.url, "report": report.url}
        write_json(folder / VIEWS_NAME, {**known, to: found})
    return [f"workspace  {found['workspace']}", f"report     {found['report']}"]


def _wandb(*words: str) -> None:
    code = subprocess.run([sys.executable, "-m", "wandb", *words], check=False).returncode
    if code:
        raise SystemExit(code)
