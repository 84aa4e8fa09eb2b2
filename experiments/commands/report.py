"""The command `report`. Torch-free."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.arguments import Overrides, Recipe, stdout_console


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
            help="Trace COHORT/PROMPT/AMOUNT[/SEGMENTER]/CONDITION[/GENERATOR] to its runs.",
        ),
    ] = None,
) -> None:
    """Write a sweep's outputs again from what is done, or trace one number to its runs."""
    from experiments.config.recipe import load_config

    config = load_config(recipe, overrides or [])
    if explain is not None:
        from experiments.results.explain import explain_cell

        print(explain_cell(config, explain))
        return
    from experiments.commands.run import write_again

    write_again(config, stdout_console(), into=into, command=command or f"sonosweep sweep {recipe}")
