"""The commands below `sonosweep data`: look at data, publish a split, make a procedural set."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.cli_words import Overrides, Recipe, stdout_console

data_app = typer.Typer(no_args_is_help=True, help="Look at data, or make a procedural set.")


@data_app.command("index")
def data_index(
    root: Annotated[Path, typer.Argument(help="Folder of the data.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
    layout: Annotated[str, typer.Option(help="hc18, cohort, or auto.")] = "auto",
) -> None:
    """Say what a data folder holds, after reading every image and annotation."""
    from experiments.data_report import index_folder, print_summary

    summary = index_folder(root, layout=layout, console=Console(stderr=True, highlight=False))
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        print_summary(summary, stdout_console())


@data_app.command("split")
def data_split(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    name: Annotated[str, typer.Option(help="Name of the split.")],
    version: Annotated[str, typer.Option(help="Version of the split.")],
    overrides: Overrides = None,
) -> None:
    """Publish the split of a recipe: a hashed file that makes others' numbers comparable.

    With split.n_folds from 2 on it holds every fold.
    """
    from experiments.recipe import load_config

    config = load_config(recipe, overrides or [])
    from datamodules.split_file import write_split_file
    from experiments.data import load_data

    with Console(stderr=True, highlight=False).status("reading the data"):
        data = load_data(config)
        split, folds = data.view.split, data.view.folds
        made = write_split_file(
            out,
            name=name,
            version=version,
            split=split,
            samples=list(data.samples.values()),
            folds=folds if len(folds) > 1 else (),
        )
    if made.folds:
        stdout_console().print(
            f"{out}: {name} {version}, {len(made.folds)} folds that test {len(made.test_ids)} "
            f"images of {made.dataset.cohort}, sha256 {made.sha256}",
            soft_wrap=True,
        )
        return
    stdout_console().print(
        f"{out}: {name} {version}, {len(split.train)} train, {len(split.val)} validation and "
        f"{len(split.test)} test images of {made.dataset.cohort}, sha256 {made.sha256}",
        soft_wrap=True,
    )


@data_app.command("phantom")
def data_phantom(
    root: Annotated[Path, typer.Argument(help="Folder to write; must not hold anything.")],
    n_exams: Annotated[int, typer.Option(min=3, max=5000, help="Number of exams.")] = 66,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other phantoms.")] = 0,
) -> None:
    """Write a procedural fetal-head set in HC18's layout."""
    from datamodules.phantom import write_phantom

    write_phantom(root, n_exams=n_exams, seed=seed)
    stdout_console().print(
        f"wrote {n_exams} exams to {root}; look at them with: sonosweep data index"
    )
