"""The command `score`. Torch-free."""

from pathlib import Path
from typing import Annotated

import typer

from datamodules.layouts import layout_help
from experiments.commands.arguments import (
    AsJson,
    Extensions,
    FilledBias,
    HeadLabel,
    print_json,
    stderr_console,
    stdout_console,
)


def score(
    predictions: Annotated[Path, typer.Argument(help="Folder of PNG masks named by image.")],
    root: Annotated[Path, typer.Option(help="Folder of images and reference masks.")],
    split: Annotated[Path | None, typer.Option(help="Published split; its test part.")] = None,
    layout: Annotated[str, typer.Option(help=layout_help())] = "auto",
    label: HeadLabel = None,
    filled_bias_px: FilledBias = None,
    extension: Extensions = None,
    missing: Annotated[str, typer.Option(help="refuse, or empty (counts as Dice 0).")] = "refuse",
    name: Annotated[str | None, typer.Option(help="Name of the row; else the folder's.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for CSV and summary.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score masks made elsewhere at the original size, under our own protocol."""
    from experiments.config.extensions import import_extensions
    from experiments.deliver.score import as_dict, print_score, score_command

    import_extensions(extension or [])
    found = score_command(
        predictions,
        root=root,
        split=split,
        layout=layout,
        missing=missing,
        name=name,
        out=out,
        console=stderr_console(),
        label=label,
        filled_bias_px=filled_bias_px,
    )
    if as_json:
        print_json(as_dict(found))
    else:
        print_score(found, stdout_console())
