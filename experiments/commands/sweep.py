"""The commands `sweep` and `demo`, and those that run a part of a sweep. Torch-free."""

import os
from pathlib import Path
from typing import Annotated

import typer

from datamodules.errors import InputError
from experiments.commands.arguments import AsJson, Overrides, Recipe, load_recipe, stdout_console


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
    as_json: AsJson = False,
) -> None:
    """Run a recipe's trials; write tables, figures and report."""
    if as_json and not dry_run:
        raise InputError("--json belongs to a dry run; add --dry-run")
    config = load_recipe(recipe, overrides)
    if dry_run:
        from experiments.runner.forecast import print_dry_run

        print_dry_run(config, retry_failed=retry_failed, as_json=as_json)
        return
    from experiments.commands.run import run_sweep

    run_sweep(config, stdout_console(), retry_failed=retry_failed)


def demo(overrides: Overrides = None) -> None:
    """Run the whole job at a small size, on phantoms or on HC18 (HC18_ROOT or data.root=)."""
    config = load_recipe("demo", overrides)
    # After the config is known to be good: decoding and drawing libraries take half a second.
    from experiments.commands.run import run_sweep

    if config.data.root is None and not os.environ.get("HC18_ROOT"):
        config.data.root = str(_phantoms(Path(config.store.root)))
        config.name = f"{config.name}-phantom"
    run_sweep(config, stdout_console(), retry_failed=True)


def _phantoms(store_root: Path) -> Path:
    from datamodules.phantom import write_phantom

    root = store_root / "phantom-data"
    if not root.exists():
        with stdout_console().status("no HC18_ROOT: drawing phantoms"):
            write_phantom(root, n_exams=72, seed=0)
    if not root.is_dir():
        raise InputError(f"{root}: is not a folder; remove it and try again")
    return root


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
    config = load_recipe(recipe, overrides)
    from experiments.commands.run import run_stage

    run_stage(config, stdout_console(), stage=stage)
