"""The command `bench`. Torch-free."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from datamodules.errors import InputError
from experiments.commands.arguments import stdout_console

bench_app = typer.Typer()
IN_CHILD = "SONOSWEEP_BENCH"
"""Set in the process that measures."""


@bench_app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Benchmarks; else all but those of hours."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of bench.json and the table.")] = Path(
        "runs/bench"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest sizes, for tests: the numbers mean nothing.")
    ] = False,
    root: Annotated[
        Path | None, typer.Option(help="HC18's folder; else HC18_ROOT, else phantoms.")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table of an earlier run; measure nothing.")
    ] = False,
    into: Annotated[
        Path | None, typer.Option(help="With --table: Markdown file to put the table into.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """Measure ours against the published way, side by side on this machine."""
    from experiments.bench.context import Bench
    from experiments.bench.run import bench_command, check, insert_table, read_bench
    from experiments.bench.table import bench_table

    if into is not None and not table:
        raise InputError("--into belongs to --table; add it")
    if table and names:
        raise InputError("--table prints all of an earlier run; leave the names out")
    if root is None and os.environ.get("HC18_ROOT"):
        root = Path(os.environ["HC18_ROOT"])
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    bench = Bench(
        names=names or [], out=out, device=device, quick=quick, data_root=root, say=console.print
    )
    check(bench)
    if table:
        content = read_bench(out)
    elif os.environ.get(IN_CHILD):
        bench_command(bench)
        return
    else:
        _measure_in_child()
        content = read_bench(out)
    if into is not None:
        insert_table(into, content)
    elif as_json:
        print(json.dumps(content, indent=1))
    elif table:
        print(bench_table(content), end="")
    else:
        from rich.markdown import Markdown

        stdout_console().print(Markdown(bench_table(content)))


def _measure_in_child() -> None:
    """Run the same command in a process with the environment that a sweep gives its stages."""
    from experiments.bench.child import environment

    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", *sys.argv[1:]],
        env=environment(keeps_memory=True) | {IN_CHILD: "1"},
    )
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            # The terminal told the child too; it writes what it has.
            continue
    if code:
        raise typer.Exit(code)
