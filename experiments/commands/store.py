"""The commands that look at a store: `status`, `clean` and `dashboard`. Torch-free."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.arguments import (
    AsJson,
    StoreRoot,
    SweepName,
    print_json,
    stdout_console,
)

RUNS = Path("runs")


def status(
    sweep: SweepName,
    root: StoreRoot = RUNS,
    lines: Annotated[int, typer.Option(min=0, help="Lines of each failed stage's log.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Say what of a sweep is done, running or failed and why, whether it runs or not."""
    from experiments.store.status import as_json as plain
    from experiments.store.status import find_sweep, print_status, read_sweep

    found = read_sweep(find_sweep(sweep, root=root), log_lines=lines)
    if as_json:
        print_json(plain(found))
    else:
        print_status(found, stdout_console())


def clean(
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Select what no sweep refers to.")
    ] = False,
    stage: Annotated[
        list[str] | None, typer.Option(help="Select of this stage only, as fit or embeddings.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Select what no sweep but this one refers to."),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Select what was last used before 30d.")
    ] = None,
    root: StoreRoot = RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is selected.")] = False,
) -> None:
    """List what the store costs; with --yes remove what is selected, and nothing else.

    --orphans and --sweep add up; --stage and --older-than narrow what they select. What another
    sweep refers to, or a process holds, is never removed.
    """
    from experiments.runner.slurm_job import refuse_queued
    from experiments.store.clean import Selection, clean_command, parse_age

    # By its folder too, as elsewhere.
    folders = [Path(name).resolve() for name in sweep or ()]
    names = [
        path.name if path.parent == root.resolve() and path.is_dir() else name
        for path, name in zip(folders, sweep or (), strict=True)
    ]
    for name in names:
        refuse_queued(root / name)
    chosen = Selection(
        orphans=orphans,
        stages=tuple(stage or ()),
        sweeps=tuple(names),
        older_than_s=None if older_than is None else parse_age(older_than),
    )
    clean_command(root, chosen, yes=yes, console=stdout_console())


def dashboard(
    sweep: SweepName,
    root: StoreRoot = RUNS,
    push: Annotated[
        str | None,
        typer.Option(metavar="ENTITY/PROJECT", help="Sync to W&B, with a workspace and a report."),
    ] = None,
) -> None:
    """Look at a sweep's W&B runs in the terminal, or push them to a project."""
    from experiments.tracking.dashboard import dashboard_command

    dashboard_command(sweep, root=root, push=push, console=stdout_console())
