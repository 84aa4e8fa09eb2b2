"""The commands `table` and `figure`: run what is missing, then show one output. Torch-free."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from datamodules.allowed import one_of
from datamodules.errors import InputError
from experiments.commands.arguments import each_once, load_recipe, say, stderr_console
from experiments.store.columns import OUTPUTS

if TYPE_CHECKING:
    from experiments.config.schema import ExperimentConfig
    from experiments.stages.data import Data

KINDS = {"fractions": "", "paper": "_paper", "box": "_box", "ledger": "_ledger"}
"""What ends the names of a kind's files, `table` and `figure`."""
FORMATS = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}
TABLES = {
    "fractions": ("markdown", "latex"),
    "paper": ("markdown", "latex", "csv"),
    "box": ("markdown",),
    "ledger": ("markdown",),
}
"""Formats of each kind's table."""
SMALL_FORM = (
    "the small form of the paper's experiment, with another backbone and another generator than "
    "its own; make table-paper-full runs SAM ViT-B and Stable Diffusion as the paper did"
)
Kind = Annotated[str, typer.Option(help=f"{', '.join(KINDS)}.")]


def table(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [KEY=VALUE]... | NAME | RESULTS.csv...",
            help="Recipe and its changes, a sweep's name, or results.csv of sweeps for one table.",
        ),
    ],
    kind: Kind = "fractions",
    format_name: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = (
        "markdown"
    ),
    measure: Annotated[
        str | None,
        typer.Option(
            help="Measure of a table of files, as dice or hc_abs_err_mm; else dice_weighted."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help=f"Whose scores: {' or '.join(OUTPUTS[::-1])}.")
    ] = None,
) -> None:
    """Run what is missing of a recipe and print its table; or one table of several results.

    Of a sweep that is named (runs/NAME, or NAME) it is that of its results, and nothing is run.
    """
    one_of(format_name, FORMATS, option="--format")
    one_of(kind, KINDS, option="--kind")
    if output is not None:
        one_of(output, OUTPUTS, option="--output")
    if sources[0].endswith(".csv"):
        from experiments.results.compact import compact_tables, read_results

        if kind != "fractions":
            raise InputError(f"--kind {kind}: of a recipe or a sweep; leave it out for files")
        results = read_results([Path(source) for source in sources], output=output or "ellipse")
        measure = measure or "dice_weighted"
        print(compact_tables(results, measure=measure, format_name=format_name), end="")
        return
    if measure is not None:
        raise InputError(f"--measure {measure}: for files; give results.csv of the sweep, or none")
    if format_name not in TABLES[kind]:
        known = ", ".join(TABLES[kind])
        raise InputError(f"--kind {kind} --format {format_name}: no such table; use {known}")
    if output is not None:
        sources = [*sources, f"evaluation.output={output}"]
    folder, held = _folder_of(sources, kind=kind)
    if held is not None and kind == "fractions":
        from experiments.commands.finished import table_text

        print(table_text(folder, output=held.evaluation.output, format_name=format_name), end="")
        return
    path = folder / f"table{KINDS[kind]}{FORMATS[format_name]}"
    if not path.is_file():
        raise InputError(f"{path}: not written; use sonosweep figure --kind {kind}")
    print(path.read_text(), end="")


def figure(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [KEY=VALUE]... | NAME",
            help="Recipe and its changes, or a sweep's name.",
        ),
    ],
    kind: Kind = "fractions",
) -> None:
    """Run what is missing of a recipe and print the paths of its figure.

    Of a sweep that is named (runs/NAME, or NAME) it is what its folder holds, and nothing is run.
    """
    one_of(kind, KINDS, option="--kind")
    folder, _ = _folder_of(sources, kind=kind)
    paths = sorted(folder.glob(f"figure{KINDS[kind]}.*"))
    if not paths:
        raise InputError(f"{folder}: no figure of this kind; `sonosweep report` writes figure.png")
    print("\n".join(map(os.path.relpath, paths)))


def _folder_of(sources: list[str], *, kind: str) -> tuple[Path, "ExperimentConfig | None"]:
    """Folder in which an output is; what is missing of a recipe is run.

    A sweep that is named, or whose data folder is not there, gives what its own folder holds: then
    its config comes too.
    """
    config, console = load_recipe(sources[0], each_once(sources[1:])), stderr_console()
    if kind == "paper" and "jittered_box" not in config.evaluation.prompts:
        raise InputError(
            f"evaluation.prompts={config.evaluation.prompts}: the paper's numbers are of "
            "jittered_box; add it, or set compat=paper"
        )
    if kind == "paper" and config.segmenter.backbone != "vit_b":
        say(console, SMALL_FORM)
    from experiments.commands.finished import ABSENT, complete, held_results, named_sweep

    folder = named_sweep(sources[0], sources[1:])
    if folder is None:
        folder = held_results(config, sources[1:])
        if folder is not None:
            say(console, f"{ABSENT}: nothing is run, and this is what {folder} holds")
    if folder is not None:
        complete(config, folder, kind=kind)
        return folder, config
    if kind == "box":
        return _run_box(config, console), None
    from experiments.commands.run import run_sweep

    check = check_panel if kind == "paper" else None
    folder = run_sweep(config, console, retry_failed=True, check=check)
    if kind == "ledger":
        complete(config, folder, kind=kind)
    return folder, None


def check_panel(data: "Data") -> None:
    """Refuse data that the paper did not train on (InputError)."""
    from experiments.results.paper import paper_reference

    known = sorted({panel.split("->")[0] for panel in paper_reference()["panel"]})
    if data.name.upper() not in known:
        raise InputError(
            f"data.root: its cohort is {data.name}, and the paper trained on "
            f"{' and '.join(known)}; give one of these"
        )


def _run_box(config: "ExperimentConfig", console: Console) -> Path:
    from experiments.commands.run import execute, prepare, report_failures
    from experiments.plan.grid import box_plan
    from experiments.results.figure_box import write_box_outputs
    from experiments.results.rows import choose_output, read_csv

    data, grid = prepare(config, console)
    plan, key = box_plan(config, data)
    whole = dataclasses.replace(grid, nodes=grid.nodes | plan.nodes)
    sweep = execute(config, console, data=data, plan=plan.narrowed([key]), whole=whole)
    if report_failures(sweep, console):
        raise SystemExit(1)
    folder = sweep.store.sweep_dir(config.name)
    rows = read_csv(sweep.store.run_dir(*key.split("/")) / "per_image.csv")
    write_box_outputs(choose_output(rows, config.evaluation.output), folder)
    return folder
