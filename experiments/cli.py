"""The command line. Torch-free: a wrong word is refused before anything heavy is imported."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from datamodules.errors import InputError
from datamodules.layouts import layout_help
from experiments.commands.arguments import Overrides, Recipe, stdout_console
from experiments.commands.bench import bench
from experiments.commands.data import data_app
from experiments.commands.models import models_app

app = typer.Typer(
    name="sonosweep",
    help="How much does diffusion-made ultrasound help fetal head segmentation?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(models_app)
app.command()(bench)


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Run the whole job at a small size, on phantoms or on HC18 (HC18_ROOT or data.root=)."""
    from experiments.config.recipe import load_config

    config = load_config("demo", overrides or [])
    # After the config is known to be good: decoding and drawing libraries take half a second.
    from experiments.commands.run import run_sweep

    if config.data.root is None and not os.environ.get("HC18_ROOT"):
        config.data.root = str(_phantom_for_demo(Path(config.store.root)))
        config.name = f"{config.name}-phantom"
    run_sweep(config, stdout_console(), retry_failed=True)


@app.command()
def sweep(
    recipe: Recipe,
    overrides: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed before.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done and how long; start nothing."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the dry run as JSON for a program.")
    ] = False,
) -> None:
    """Run a recipe's trials; write tables, figures and report."""
    from experiments.config.recipe import load_config

    if as_json and not dry_run:
        raise InputError("--json belongs to a dry run; add --dry-run")
    config = load_config(recipe, overrides or [])
    if dry_run:
        from experiments.runner.forecast import print_dry_run

        print_dry_run(config, retry_failed=retry_failed, as_json=as_json)
        return
    from experiments.commands.run import run_sweep

    run_sweep(config, stdout_console(), retry_failed=retry_failed)


@app.command()
def trial(
    recipe: Recipe,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[AXIS=VALUE]... [KEY=VALUE]...",
            help="condition, segmenter, generator, real_count or real_fraction, support, seed, "
            "generator_seed, fold; and changes to the recipe.",
        ),
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(metavar="STAGE/ID", help="Run this stage instead.")
    ] = None,
) -> None:
    """Run one trial of a recipe with all that it needs: for agents and cluster jobs."""
    from experiments.commands.trial import trial_command

    trial_command(recipe, words or [], stages=stage or [], console=stdout_console())


@app.command()
def diffusion(recipe: Recipe, overrides: Overrides = None) -> None:
    """Fit the generators of a recipe, and nothing else."""
    _run_stage(recipe, overrides, stage="generator")


@app.command()
def synthesize(recipe: Recipe, overrides: Overrides = None) -> None:
    """Make the synthetic sets of a recipe: generator, candidates, gate."""
    _run_stage(recipe, overrides, stage="gate")


@app.command()
def segment(recipe: Recipe, overrides: Overrides = None) -> None:
    """Fit and score the segmenters of a recipe, without tables and report."""
    _run_stage(recipe, overrides, stage="score")


@app.command()
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


Sources = Annotated[
    list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...", help="Recipe and its changes.")
]
Kind = Annotated[str, typer.Option(help="fractions, paper, box or ledger.")]


@app.command()
def table(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [KEY=VALUE]... | RESULTS.csv...",
            help="Recipe and its changes, or results.csv of sweeps to put into one table.",
        ),
    ],
    kind: Kind = "fractions",
    format_name: Annotated[str, typer.Option("--format", help="markdown, latex or csv.")] = (
        "markdown"
    ),
    measure: Annotated[
        str, typer.Option(help="Measure of a table of files, as dice or hc_abs_err_mm.")
    ] = "dice_weighted",
) -> None:
    """Run what is missing of a recipe and print its table; or one table of several results."""
    from experiments.commands.outputs import table_command

    progress = Console(stderr=True, highlight=False)
    text = table_command(
        sources, kind=kind, format_name=format_name, measure=measure, console=progress
    )
    print(text, end="")


@app.command()
def figure(sources: Sources, kind: Kind = "fractions") -> None:
    """Run what is missing of a recipe and print the paths of its figure."""
    from experiments.commands.outputs import figure_command

    progress = Console(stderr=True, highlight=False)
    print("\n".join(figure_command(sources, kind=kind, console=progress)))


@app.command()
def status(
    sweep: Annotated[str, typer.Argument(help="Folder of a sweep, runs/NAME, or its NAME.")],
    root: Annotated[Path, typer.Option(help="Folder of the sweeps: store.root.")] = Path("runs"),
    lines: Annotated[int, typer.Option(min=0, help="Lines of each failed stage's log.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """Say what of a sweep is done, running or failed and why, whether it runs or not."""
    from experiments.store.status import as_json as plain
    from experiments.store.status import find_sweep, read_sweep
    from experiments.store.status_view import print_status

    found = read_sweep(find_sweep(sweep, root=root), log_lines=lines)
    if as_json:
        print(json.dumps(plain(found), indent=1))
    else:
        print_status(found, stdout_console())


@app.command()
def clean(
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Select what no sweep refers to.")
    ] = False,
    stage: Annotated[
        list[str] | None, typer.Option(help="Select of this stage only, as fit or embeddings.")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="Select what no sweep but this one refers to.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Select what was last used before 30d.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder of the sweeps: store.root.")] = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is selected.")] = False,
) -> None:
    """List what the store costs; with --yes remove what is selected, and nothing else.

    --orphans and --sweep add up; --stage and --older-than narrow what they select. What another
    sweep refers to, or a process holds, is never removed.
    """
    from experiments.store.clean import Selection, parse_age
    from experiments.store.clean_view import clean_command

    chosen = Selection(
        orphans=orphans,
        stages=tuple(stage or ()),
        sweeps=tuple(sweep or ()),
        older_than_s=None if older_than is None else parse_age(older_than),
    )
    clean_command(root, chosen, yes=yes, console=stdout_console())


@app.command()
def doctor(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="Recipe (or the demo), changes."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """Say what a run would find here, and what to do about what is missing; runs nothing."""
    from experiments.doctor.screen import doctor as look

    found = look(sources or [], Console(quiet=True) if as_json else stdout_console())
    if as_json:
        print(json.dumps(found, indent=1))
    if not found["can_start"]:
        raise typer.Exit(1)


@app.command()
def dashboard(
    sweep: Annotated[str, typer.Argument(help="Folder of a sweep, runs/NAME, or its NAME.")],
    root: Annotated[Path, typer.Option(help="Folder of the sweeps: store.root.")] = Path("runs"),
    push: Annotated[
        str | None,
        typer.Option(metavar="ENTITY/PROJECT", help="Sync to W&B, with a workspace and a report."),
    ] = None,
) -> None:
    """Look at a sweep's W&B runs in the terminal, or push them to a project."""
    from experiments.tracking.dashboard import dashboard_command

    dashboard_command(sweep, root=root, push=push, console=stdout_console())


@app.command("wandb-sweep")
def wandb_sweep(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe's grid as a sweep for W&B's own agents, whose runs are single trials."""
    from experiments.tracking.agent import sweep_file

    print(sweep_file(recipe, overrides or []), end="")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="Folder of PNG masks named by image.")],
    root: Annotated[Path, typer.Option(help="Folder of images and reference masks.")],
    split: Annotated[Path | None, typer.Option(help="Published split; its test part.")] = None,
    layout: Annotated[str, typer.Option(help=layout_help())] = "auto",
    missing: Annotated[str, typer.Option(help="refuse, or empty (counts as Dice 0).")] = "refuse",
    name: Annotated[str | None, typer.Option(help="Name of the row; else the folder's.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for CSV and summary.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """Score masks made elsewhere at the original size, under our own protocol."""
    from experiments.deliver.score import as_dict, print_score, score_command

    found = score_command(
        predictions,
        root=root,
        split=split,
        layout=layout,
        missing=missing,
        name=name,
        out=out,
        console=Console(stderr=True, highlight=False),
    )
    if as_json:
        print(json.dumps(as_dict(found), indent=1))
    else:
        print_score(found, stdout_console())


@app.command()
def submit(
    run: Annotated[
        Path | None, typer.Argument(help="Run of a segmenter: runs/store/fit/ID.")
    ] = None,
    test_root: Annotated[
        Path | None, typer.Option(help="HC18's folder; a cohort's for --masks alone.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Submission to write, CSV.")] = None,
    masks: Annotated[Path | None, typer.Option(help="New folder for the masks, PNG.")] = None,
    prompt: Annotated[str, typer.Option(help="whole_image or predicted_box.")] = "whole_image",
    skip_degenerate: Annotated[
        bool, typer.Option("--skip-degenerate", help="Leave out rows without an ellipse.")
    ] = False,
    check: Annotated[
        Path | None, typer.Option(help="Validate this submission; run nothing.")
    ] = None,
) -> None:
    """Segment unlabelled test images into HC18's submission file, or check such a file."""
    from experiments.deliver.submission import check_command, submit_command

    if test_root is None:
        raise InputError("--test-root is missing; give the folder of the test images")
    if (run is None) == (check is None):
        raise InputError("give either RUN, a fitted segmenter's directory, or --check FILE.csv")
    if check is not None:
        check_command(check, test_root=test_root, console=stdout_console())
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


def _run_stage(recipe: str, overrides: list[str] | None, *, stage: str) -> None:
    from experiments.config.recipe import load_config

    config = load_config(recipe, overrides or [])
    from experiments.commands.run import run_stage

    run_stage(config, stdout_console(), stage=stage)


def _phantom_for_demo(store_root: Path) -> Path:
    from datamodules.phantom import write_phantom

    root = store_root / "phantom-data"
    if not root.exists():
        with stdout_console().status("no HC18_ROOT: drawing phantoms"):
            write_phantom(root, n_exams=72, seed=0)
    if not root.is_dir():
        raise InputError(f"{root}: is not a folder; remove it and try again")
    return root
