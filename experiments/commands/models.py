"""The commands that take a fitted model elsewhere: `export` and `predict`. Torch-free."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.commands.arguments import stdout_console

models_app = typer.Typer()


@models_app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run of a model: runs/store/fit/ID and others.")],
    format_name: Annotated[
        str,
        typer.Option(
            "--format", help="segment-anything or transformers; lora or pipeline; dataset."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
) -> None:
    """Write a fitted model or a synthetic set in a format that other programs read."""
    from experiments.deliver.export import export_command

    export_command(run, format_name=format_name, out=out, console=stdout_console())


@models_app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Run of a segmenter: runs/store/fit/ID.")],
    images: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")] = Path("predictions"),
    pixel_size: Annotated[
        float | None, typer.Option(metavar="MM", help="Side of a pixel of all images.")
    ] = None,
    pixel_sizes: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Pixel size of each image, in HC18's columns."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="whole_image or predicted_box.")] = "whole_image",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """Segment one's own images: masks, overlays, ellipse and head circumference."""
    from experiments.deliver.predict import predict_command, print_summary

    summary = predict_command(
        checkpoint,
        images,
        out=out,
        pixel_size_mm=pixel_size,
        pixel_size_table=pixel_sizes,
        prompt=prompt,
        console=Console(stderr=True, highlight=False),
    )
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        print_summary(summary, stdout_console())
