"""The command `score`. Torch-free."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from datamodules.allowed import one_of
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
from experiments.commands.stopping import ends_by_signal
from experiments.config.extensions import import_extensions


@ends_by_signal()
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
    from datamodules.index import build_index
    from datamodules.mask_folder import require_folder
    from datamodules.plausible import doubts
    from datamodules.reading import reads_as, settled, settled_samples
    from datamodules.split_file import read_split_file
    from datamodules.storage import new_folder
    from experiments.deliver.score import (
        MISSING,
        print_score,
        read_references,
        score_folder,
        write_score,
    )

    import_extensions(extension or [])
    one_of(missing, MISSING, option="--missing")
    # Before the references are read, which takes minutes.
    require_folder(predictions)
    published = None if split is None else read_split_file(split)
    references = read_references(root, layout=layout)
    samples = reads_as(references, label=label, filled_bias_px=filled_bias_px)
    # Made now: an hour is not spent on what cannot be written.
    made = contextlib.nullcontext() if out is None else new_folder(out)
    with made as folder, stderr_console().status("reading the references") as status:
        index = build_index(
            samples,
            progress=lambda done, total: status.update(f"reading references {done}/{total}"),
        )
        index, notes = settled(index, filled_bias_px=filled_bias_px)
        scored = score_folder(
            predictions,
            samples=settled_samples(samples, index),
            name=predictions.resolve().name if name is None else name,
            split=published,
            missing=missing,
            notes=[*doubts(index), *notes],
            progress=lambda done, total: status.update(f"scoring images {done}/{total}"),
        )
        if folder is not None:
            write_score(scored, folder)
    if as_json:
        print_json(scored.found)
    else:
        print_score(scored, stdout_console())
