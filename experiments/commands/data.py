"""The commands below `sonosweep data`: look at data, fetch it, publish a split, make phantoms."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError
from datamodules.layouts import LAYOUTS, layout_help, layout_of
from experiments.commands.arguments import (
    AsJson,
    Extensions,
    FilledBias,
    HeadLabel,
    Overrides,
    Recipe,
    download_bars,
    load_recipe,
    print_json,
    say,
    stderr_console,
    stdout_console,
)
from experiments.commands.stopping import ends_by_signal
from experiments.config.words import counted

data_app = typer.Typer(no_args_is_help=True, help="Look at data, fetch it, or make some.")


@data_app.command("index")
def data_index(
    root: Annotated[Path, typer.Argument(help="Folder of the data.")],
    as_json: AsJson = False,
    layout: Annotated[str, typer.Option(help=layout_help())] = "auto",
    label: HeadLabel = None,
    filled_bias_px: FilledBias = None,
    extension: Extensions = None,
) -> None:
    """Say what a data folder holds, after reading every image and annotation."""
    from datamodules.index import build_index, data_manifest_sha256
    from datamodules.reading import reads_as, settled
    from datamodules.summary import summary
    from experiments.config.extensions import import_extensions

    import_extensions(extension or [])
    row = LAYOUTS[name := layout_of(root, name=layout)]
    samples = reads_as(row.read(root), label=label, filled_bias_px=filled_bias_px)
    with stderr_console().status("reading") as status:
        index = build_index(
            samples, progress=lambda done, total: status.update(f"images {done}/{total}")
        )
    index, _ = settled(index, filled_bias_px=filled_bias_px)
    found = {
        "root": str(root),
        "layout": name,
        "cohort": samples[0].cohort,
        "manifest_sha256": data_manifest_sha256(index),
        **summary(index),
    }
    try:
        unlabelled = row.unlabelled(root)
    except InputError as error:
        # A sweep reads them on request alone.
        unlabelled = []
        found["findings"].append(f"its images without annotations cannot be read: {error}")
    if unlabelled:
        found["unlabelled_test_images"] = len(unlabelled)
    if as_json:
        print_json(found)
    else:
        _print_summary(found, stdout_console())


@data_app.command("split")
@ends_by_signal()
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
    config = load_recipe(recipe, overrides)
    from datamodules.split_file import write_split_file
    from experiments.stages.data import load_data

    with stderr_console().status("reading the data"):
        data = load_data(config)
        split, folds = data.split, data.folds
        made = write_split_file(
            out,
            name=name,
            version=version,
            split=split,
            samples=list(data.samples.values()),
            folds=folds if len(folds) > 1 else (),
        )
    parts = f"{len(split.train)} train, {len(split.val)} validation and {len(split.test)} test"
    if made.folds:
        parts = f"{len(made.folds)} folds that test {len(made.test_ids)}"
    what = f"{parts} images of {made.dataset.cohort}, sha256 {made.sha256}"
    say(stdout_console(), f"{out}: {name} {version}, {what}")


@data_app.command("phantom")
@ends_by_signal()
def data_phantom(
    root: Annotated[Path, typer.Argument(help="Folder to write; must not hold anything.")],
    n_exams: Annotated[int, typer.Option(min=3, max=5000, help="Number of exams.")] = 66,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other phantoms.")] = 0,
) -> None:
    """Write a procedural fetal-head set in HC18's layout."""
    from datamodules.phantom import write_phantom

    write_phantom(root, n_exams=n_exams, seed=seed)
    look = shlex.join(["sonosweep", "data", "index", str(root)])
    say(stdout_console(), f"wrote {n_exams} exams to {root}; look at them with: {look}")


@data_app.command("fetch")
@ends_by_signal()
def data_fetch(
    name: Annotated[str, typer.Argument(help="hc18.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to fill.")] = Path("hc18"),
    record_url: Annotated[
        str | None, typer.Option(hidden=True, help="Another address of the record.")
    ] = None,
) -> None:
    """Fetch HC18 from its official record, checked and unpacked; continues where it stopped."""
    if name != "hc18":
        raise InputError(f"data fetch {name}: unknown; the one set to fetch is hc18")
    from datamodules.attribution import HC18_LICENCE
    from datamodules.fetch import RECORD_URL, fetch_hc18

    console = stdout_console()
    say(console, HC18_LICENCE)
    with download_bars() as show:
        fetched = fetch_hc18(to, record_url=record_url or RECORD_URL, progress=show)
    what = f"fetched {', '.join(fetched.files)}" if fetched.files else "all there, nothing to fetch"
    counts = f"{fetched.n_training} training and {fetched.n_test} test images"
    say(console, f"{to}: {what}; {counts}")
    say(console, f"next: make demo HC18_ROOT={to.resolve()}")


def _print_summary(found: dict[str, Any], console: Console) -> None:
    """Print what cannot be right, the summary as a table, and the other findings below."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in _lines(found).items():
        table.add_row(name, Text(text))
    doubted = found["implausible"]
    _print_list("Cannot be right; `sonosweep sweep` refuses these data:", doubted, console)
    say(console, f"{found['root']} ({found['layout']} layout)")
    console.print(table)
    _print_list("Findings:", [each for each in found["findings"] if each not in doubted], console)


def _print_list(title: str, sentences: list[str], console: Console) -> None:
    if sentences:
        say(console, "\n- ".join([title, *sentences]))


def _lines(found: dict[str, Any]) -> dict[str, str]:
    frames = ", ".join(
        f"{count} with {counted(int(n), 'frame')}" for n, count in found["frames_per_exam"].items()
    )
    (size, count), *others = found["sizes"].items()
    sizes = f"{size} ({count})"
    if others:
        sizes += f", {sum(n for _, n in others)} in {len(others)} other sizes"
    trimesters = "unknown (no head circumference)"
    if any(found["trimesters"].values()):
        trimesters = f"{_counts(found['trimesters'])} (derived from HC: from 98 and 260 mm)"
    lines = {
        "images": str(found["images"]),
        "exams": f"{found['exams']} ({frames})",
        "groups": f"{found['groups']} (exams joined by near-duplicates; splits keep them whole)",
        "annotations": _counts(found["annotations"]),
        "open outlines": ", ".join(found["open_outlines"]) or "none",
        "at the border": ", ".join(found["touching_border"]) or "none",
        "sizes": sizes,
        "pixel size": _range(found["pixel_size_mm"], digits=4),
        "HC": _range(found["hc_mm"], digits=1),
        "trimesters": trimesters,
    }
    for kind, error in found["hc_error_mm"].items():
        text = f"mean {error['mean']:.4f} mm, max {error['max']:.3f} mm over {error['n']}"
        lines[f"HC fit, {kind.replace('_', ' ')}"] = text
    lines["near-duplicates"] = ", ".join(map(" = ".join, found["duplicates"])) or "none"
    if "unlabelled_test_images" in found:
        lines["unlabelled test"] = f"{found['unlabelled_test_images']} images"
    return lines | {"manifest": f"sha256 {found['manifest_sha256'][:16]}"}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _range(limits: dict[str, float] | None, *, digits: int) -> str:
    if limits is None:
        return "unknown"
    low, high, mean = (f"{limits[name]:.{digits}f}" for name in ("min", "max", "mean"))
    return f"{low} to {high} mm, mean {mean}"
