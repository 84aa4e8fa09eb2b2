"""Arguments that several commands share, and where they print. Torch-free."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from datamodules.errors import InputError

if TYPE_CHECKING:
    from experiments.config.schema import ExperimentConfig


def each_once(words: list[str] | None) -> list[str]:
    """Give words back, unless (InputError) a key has two values: which is meant is not known."""
    given: dict[str, str] = {}
    for word in words or []:
        key, sign, value = word.partition("=")
        if sign and key in given:
            raise InputError(f"{key}: given twice, as {given[key]} and as {value}; remove one")
        given[key] = value
    return words or []


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.", callback=each_once),
]
Extensions = Annotated[
    list[str] | None,
    typer.Option("--extension", metavar="MODULE", help="Module with layouts of your own."),
]
HeadLabel = Annotated[
    int | None,
    typer.Option("--label", help="Value of the head in maps of labels: data.label."),
]
FilledBias = Annotated[
    float | None,
    typer.Option(
        "--filled-bias-px", help="Taken off filled masks, px; else measured: data.filled_bias_px."
    ),
]
Recipe = Annotated[
    str, typer.Argument(help="Path of a recipe, name of a shipped one, or NAME of a sweep.")
]
SweepName = Annotated[str, typer.Argument(help="Folder of a sweep, runs/NAME, or its NAME.")]
StoreRoot = Annotated[Path, typer.Option("--root", help="Folder of the sweeps: store.root.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
Prompt = Annotated[str, typer.Option(help="whole_image or predicted_box.")]


def load_recipe(recipe: str, overrides: list[str] | None) -> "ExperimentConfig":
    """A recipe's settings; what reads it takes a third of a second to import, and help has none."""
    from experiments.config.recipe import load_config

    return load_config(recipe, overrides or [])


def stdout_console() -> Console:
    """Where results are printed."""
    return Console(highlight=False)


def stderr_console() -> Console:
    """Where progress is shown, so that the results can go into a file."""
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def download_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each download; gives what to tell a file's name, bytes there and size."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=stderr_console()) as bars:
        tasks = {}

        def show(file_name: str, done: int, size: int) -> None:
            if file_name not in tasks:
                tasks[file_name] = bars.add_task(file_name, total=size)
            bars.update(tasks[file_name], completed=done)

        yield show


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print for a program."""
    print(json.dumps(content, indent=1))
