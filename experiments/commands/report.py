"""The command `report`. Torch-free."""

from pathlib import Path
from typing import Annotated

import typer

from datamodules.errors import InputError
from experiments.commands.arguments import Overrides, Recipe, load_recipe, stdout_console


def report(
    recipe: Recipe,
    overrides: Overrides = None,
    into: Annotated[
        Path | None, typer.Option(help="Markdown file whose results block is replaced.")
    ] = None,
    command: Annotated[str, typer.Option(help="Command that the block names.")] = "",
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="CELL",
            help="Trace COHORT/PROMPT/AMOUNT[/SEGMENTER]/CONDITION[/GENERATOR][/CHOICE].",
        ),
    ] = None,
) -> None:
    """Write a sweep's outputs again from what is done, or trace one number to its runs.

    Without the data folder, table and figure are written from the sweep's results.csv.
    """
    if explain is not None and (into is not None or command):
        raise InputError("--explain prints and writes nothing; leave out --into and --command")
    if command and into is None:
        raise InputError(f"--command {command}: the block of a file names it; add --into FILE.md")
    from experiments.commands.finished import refuse_changes

    refuse_changes(recipe, overrides or [])
    config, console = load_recipe(recipe, overrides), stdout_console()
    if explain is not None:
        from experiments.results.explain import explain_cell

        print(explain_cell(config, explain))
        return
    from experiments.commands.finished import held_results, rewrite

    folder = held_results(config, overrides or [])
    if folder is not None:
        if into is not None:
            raise InputError("--into: the block names the data; give their folder as data.root=")
        rewrite(config, folder, console)
        return
    if into is not None:
        from experiments.results.readme import find_block

        # Before minutes are spent on what has no place.
        find_block(into, kind="results", name=config.name)
    from experiments.commands.run import write_again

    write_again(config, console, into=into, command=command or f"sonosweep sweep {recipe}")
