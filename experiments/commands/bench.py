"""The command `bench`. Torch-free."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from datamodules.errors import InputError
from experiments.commands.arguments import stdout_console

IN_CHILD = "SONOSWEEP_BENCH"
"""Set in the process that measures."""


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benchmarks; else all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of bench.json and the table.")] = Path(
        "runs/bench"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest sizes, for tests: the numbers mean nothing.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table of an earlier run; measure nothing.")
    ] = False,
    into: Annotated[
        Path | None, typer.Option(help="Markdown file to put the table into instead.")
    ] = None,
) -> None:
    """Measure ours against the published way, side by side, on HC18_ROOT or on phantoms."""
    from experiments.bench.child import environment
    from experiments.bench.measure import Bench
    from experiments.bench.run import bench_command, check, read_bench
    from experiments.bench.table import bench_table

    if table and names:
        raise InputError("--table prints all of an earlier run; leave the names out")
    root = os.environ.get("HC18_ROOT")
    bench = Bench(
        names=names or [],
        out=out,
        device=device,
        quick=quick,
        data_root=Path(root) if root else None,
        say=Console(stderr=True, highlight=False, soft_wrap=True).print,
    )
    check(bench)
    if into is not None:
        from experiments.results.readme import find_block, replace_block

        # Before an hour is spent on what has no place.
        find_block(into, kind="bench")
    if table:
        content = read_bench(out)
    elif IN_CHILD in os.environ:
        content = bench_command(bench)
    else:
        # The same command with the environment that a sweep gives its stages.
        words = [sys.executable, "-m", "experiments", *sys.argv[1:]]
        os.execve(sys.executable, words, environment(keeps_memory=True) | {IN_CHILD: "1"})
    if into is not None:
        replace_block(into, bench_table(content), kind="bench")
    elif table:
        print(bench_table(content), end="")
    else:
        from rich.markdown import Markdown

        stdout_console().print(Markdown(bench_table(content)))
