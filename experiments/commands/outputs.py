"""What `sonosweep table` and `sonosweep figure` do: run what is missing, then show one output."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from datamodules.allowed import one_of
from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.config.schema import ExperimentConfig

KINDS = ("fractions", "paper", "box", "ledger")
FORMATS = ("markdown", "latex", "csv")
_STEMS = {
    "fractions": ("table", "figure"),
    "paper": ("table_paper", "figure_paper"),
    "box": ("table_box", "figure_box"),
    "ledger": ("table_ledger", "figure_ledger"),
}
"""File names of a kind's table and figure, without their ending."""
_SUFFIXES = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}


def table_command(
    sources: Sequence[str], *, kind: str, format_name: str, measure: str, console: Console
) -> str:
    """Give the text of a table: of a recipe, run as far as it is not, or of results.csv files.

    Args:
        sources: A recipe and `key=value` words, or paths of results.csv files.
        kind: A word of `KINDS`; for a recipe.
        format_name: A word of `FORMATS`.
        measure: A word of `measures.WORDS`; for files.
        console: For progress.

    Raises:
        InputError: For an unknown word.
        SystemExit: With code 1 where a stage failed; what there is is written.
    """
    from experiments.results.compact import compact_tables, read_results

    one_of(kind, KINDS, option="--kind")
    one_of(format_name, FORMATS, option="--format")
    if sources[0].endswith(".csv"):
        results = read_results([Path(source) for source in sources])
        return compact_tables(results, measure=measure, format_name=format_name)
    config = load_config(sources[0], list(sources[1:]))
    folder = run_for(config, console, kind=kind)
    path = folder / (_STEMS[kind][0] + _SUFFIXES[format_name])
    if not path.is_file():
        made = sorted(p.name for p in folder.glob(f"{_STEMS[kind][0]}.*"))
        there = f"there is {', '.join(made)}" if made else f"use sonosweep figure --kind {kind}"
        raise InputError(
            f"--kind {kind} --format {format_name}: a recipe has no such table; {there}"
        )
    return path.read_text()


def figure_command(sources: Sequence[str], *, kind: str, console: Console) -> list[str]:
    """Give the paths of a recipe's figure, run as far as it is not.

    Raises:
        InputError: For an unknown word.
        SystemExit: With code 1 where a stage failed; what there is is written.
    """
    one_of(kind, KINDS, option="--kind")
    config = load_config(sources[0], list(sources[1:]))
    folder = run_for(config, console, kind=kind)
    return [os.path.relpath(path) for path in sorted(folder.glob(f"{_STEMS[kind][1]}.*"))]


def run_for(config: ExperimentConfig, console: Console, *, kind: str) -> Path:
    """Run what an output needs, write it, and give the sweep's folder."""
    if kind == "paper" and "jittered_box" not in config.evaluation.prompts:
        raise InputError(
            f"evaluation.prompts={config.evaluation.prompts}: the paper's numbers are of "
            "jittered_box; add it, or set compat=paper"
        )
    if kind == "box":
        return _run_box(config, console)
    from experiments.commands.run import execute, prepare, report_failures, write_outputs

    data, plan = prepare(config, console)
    if kind == "paper":
        _check_panel(data.name)
    sweep = execute(config, console, data=data, plan=plan)
    failed = report_failures(sweep, console)
    write_outputs(sweep, console)
    folder = sweep.store.sweep_dir(config.name)
    if failed:
        raise SystemExit(1)
    if kind == "ledger":
        _write_ledger(folder)
    return folder


def _check_panel(train_cohort: str) -> None:
    from experiments.results.paper import paper_reference

    known = sorted({panel.split("->")[0] for panel in paper_reference()["panel"]})
    if train_cohort.upper() not in known:
        raise InputError(
            f"data.root: its cohort is {train_cohort}, and the paper trained on "
            f"{' and '.join(known)}; give one of these"
        )


def _write_ledger(folder: Path) -> None:
    from experiments.results.figure_ledger import write_ledger
    from experiments.results.rows import read_rows

    results, per_image = (read_rows(folder / f"{name}.csv") for name in ("results", "per_image"))
    write_ledger(results, folder, per_image=per_image)


def _run_box(config: ExperimentConfig, console: Console) -> Path:
    from experiments.commands.run import execute, narrow, prepare, report_failures
    from experiments.plan.grid import box_plan
    from experiments.results.rows import read_csv

    data, grid = prepare(config, console)
    plan, key = box_plan(config, data.view)
    whole = dataclasses.replace(grid, nodes=grid.nodes | plan.nodes)
    sweep = execute(config, console, data=data, plan=narrow(plan, stage="box"), whole=whole)
    if report_failures(sweep, console):
        raise SystemExit(1)
    from experiments.results.figure_box import write_box_outputs

    rows = read_csv(sweep.store.run_dir(*key.split("/")) / "per_image.csv")
    folder = sweep.store.sweep_dir(config.name)
    write_box_outputs(rows, folder)
    return folder
