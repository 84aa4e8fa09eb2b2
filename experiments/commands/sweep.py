"""The command `sweep`, and those that run a part of one. Torch-free."""

from typing import Annotated

import typer

from datamodules.errors import InputError
from experiments.commands.arguments import Overrides, Recipe, stdout_console


def sweep(
    recipe: Recipe,
    overrides: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed before.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done and how long; start nothing."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the dry run as JSON for a program.")
    ] = False,
) -> None:
    """Run a recipe's trials; write tables, figures and report."""
    from experiments.config.recipe import load_config

    if as_json and not dry_run:
        raise InputError("--json belongs to a dry run; add --dry-run")
    config = load_config(recipe, overrides or [])
    if dry_run:
        from experiments.runner.forecast import print_dry_run

        print_dry_run(config, retry_failed=retry_failed, as_json=as_json)
        return
    from experiments.commands.run import run_sweep

    run_sweep(config, stdout_console(), retry_failed=retry_failed)


def diffusion(recipe: Recipe, overrides: Overrides = None) -> None:
    """Fit the generators of a recipe, and nothing else."""
    _run_stage(recipe, overrides, stage="generator")


def synthesize(recipe: Recipe, overrides: Overrides = None) -> None:
    """Make the synthetic sets of a recipe: generator, candidates, gate."""
    _run_stage(recipe, overrides, stage="gate")


def segment(recipe: Recipe, overrides: Overrides = None) -> None:
    """Fit and score the segmenters of a recipe, without tables and report."""
    _run_stage(recipe, overrides, stage="score")


def _run_stage(recipe: str, overrides: list[str] | None, *, stage: str) -> None:
    from experiments.config.recipe import load_config

    config = load_config(recipe, overrides or [])
    from experiments.commands.run import run_stage

    run_stage(config, stdout_console(), stage=stage)
