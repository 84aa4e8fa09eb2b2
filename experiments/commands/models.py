"""The commands that use a fitted model: `export`, `predict`, `draw`, `submit`. Torch-free."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from datamodules.errors import InputError
from experiments.commands.arguments import (
    AsJson,
    Prompt,
    print_json,
    say,
    stderr_console,
    stdout_console,
)
from experiments.commands.stopping import ends_by_signal

RUN_HELP = "Run of a segmenter: runs/store/fit/ID."


@ends_by_signal()
def export(
    run: Annotated[Path, typer.Argument(help="Run of a model: runs/store/fit/ID and others.")],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="segment-anything or transformers; lora or pipeline; dataset; compact.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
) -> None:
    """Write a fitted model or a synthetic set in a format that other programs read."""
    from experiments.deliver.export import export_command

    export_command(run, format_name=format_name, out=out, console=stdout_console())


@ends_by_signal()
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="[RUN]... IMAGES...",
            help="Images (DICOM too) and folders of them; before them runs/store/fit/ID of a "
            "fitted segmenter, or of several that predict together, or else the package's own "
            "model is used.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder to write.")] = Path("predictions"),
    pixel_size: Annotated[
        float | None, typer.Option(metavar="MM", help="Side of a pixel of all images, 0.02 to 1.")
    ] = None,
    pixel_sizes: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Pixel size of each image, in HC18's columns."),
    ] = None,
    prompt: Prompt = "whole_image",
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="A box around each head, as the prompt: filename,x0,y0,x1,y1 in pixels, both "
            "corners inclusive.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Segment one's own images: masks, overlays, ellipse, head circumference, and what to doubt."""
    from experiments.deliver.predict import predict_command, print_summary

    summary = predict_command(
        images,
        out=out,
        pixel_size_mm=pixel_size,
        pixel_size_table=pixel_sizes,
        prompt=prompt,
        box_table=boxes,
        console=stderr_console(),
    )
    if as_json:
        print_json(summary)
    else:
        print_summary(summary, stdout_console())


@ends_by_signal()
def draw(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run of a pixel generator, runs/store/generator/ID; the package's own if left out."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=100_000, help="Number of pairs.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other pairs.")] = 0,
    height: Annotated[int, typer.Option(min=32, max=2048, help="Rows of the pictures.")] = 540,
    width: Annotated[int, typer.Option(min=32, max=2048, help="Columns of the pictures.")] = 800,
    out: Annotated[Path, typer.Option(help="New folder to write.")] = Path("pairs"),
    as_json: AsJson = False,
) -> None:
    """Draw synthetic pairs of image and mask, a folder that `synthesis.folder` reads."""
    from experiments.deliver.draw import PACKAGED, draw_command

    found = draw_command(
        run or PACKAGED,
        n=n,
        seed=seed,
        image_hw=(height, width),
        out=out,
        console=stderr_console(),
    )
    if as_json:
        print_json(found)
        return
    say(
        stdout_console(),
        f"{out}: {n} pairs; the generator behind them saw {found['n_labels']} labelled images: "
        f"{shlex.quote(f'synthesis.folder={out}')} synthesis.folder_labels={found['n_labels']}",
    )
    say(stdout_console(), f"generator {found['generator']}, {found['data']}")


@ends_by_signal()
def submit(
    run: Annotated[Path | None, typer.Argument(help=RUN_HELP)] = None,
    test_root: Annotated[
        Path | None, typer.Option(help="HC18's folder; a cohort's for --masks alone.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New submission to write, CSV.")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="New folder of ellipses (or masks), PNG.")
    ] = None,
    prompt: Prompt = "whole_image",
    skip_degenerate: Annotated[
        bool, typer.Option("--skip-degenerate", help="Leave out rows without an ellipse.")
    ] = False,
    check: Annotated[
        Path | None, typer.Option(help="Validate this submission; run nothing.")
    ] = None,
) -> None:
    """Segment unlabelled test images into HC18's submission file, or check such a file."""
    from experiments.deliver.submission import (
        doubt_of,
        print_verdict,
        submit_command,
        validate_submission,
    )

    if test_root is None:
        raise InputError("--test-root is missing; give the folder of the test images")
    if (run is None) == (check is None):
        raise InputError("give either RUN, a fitted segmenter's directory, or --check FILE.csv")
    if check is not None:
        rows = validate_submission(check, test_root)
        print_verdict(check, n_rows=len(rows), console=stdout_console())
        if doubt := doubt_of(rows):
            say(stdout_console(), doubt)
        return
    submit_command(
        run,
        test_root=test_root,
        out=out,
        masks=masks,
        prompt=prompt,
        skip_degenerate=skip_degenerate,
        console=stdout_console(),
    )
