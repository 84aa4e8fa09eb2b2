"""Arguments that several commands share. Torch-free."""

from typing import Annotated

import typer
from rich.console import Console

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
]
Recipe = Annotated[str, typer.Argument(help="Path of a recipe, or the name of a shipped one.")]


def stdout_console() -> Console:
    """Where results are printed."""
    return Console(highlight=False)
