"""The command `doctor`. Torch-free."""

from typing import Annotated

import typer
from rich.console import Console

from experiments.commands.arguments import AsJson, each_once, print_json, stdout_console


def doctor(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="Recipe (or the demo), changes.",
            callback=each_once,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would find here, and what to do about what is missing; runs nothing."""
    from experiments.doctor.screen import doctor as look

    found = look(sources or [], Console(quiet=True) if as_json else stdout_console())
    if as_json:
        print_json(found)
    if not found["can_start"]:
        raise typer.Exit(1)
