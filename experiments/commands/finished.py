"""What a sweep's own folder gives, without its data folder and without running anything."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from datamodules.errors import InputError
from experiments.commands.arguments import say
from experiments.config.recipe import find_recipe
from experiments.config.schema import ExperimentConfig
from experiments.config.stored import STORED_NAME, find_stored, own_folder, root_of
from experiments.results.latex import to_latex
from experiments.results.rows import read_sweep
from experiments.results.tables import blocks, footnotes
from experiments.results.text import to_markdown
from experiments.store.layout import PLAN_NAME
from experiments.store.runs import RunStore, sweeps_with_results

_NAMING = ("store.root=", "evaluation.output=")
"""Words that say where a sweep is and which of its rows to show; any other one changes it."""
_PLACING = ("data.root=", "wandb.", "trainer.", "slurm.", "offline=")
"""Words that change no result."""

ABSENT = "the data folder is not there"


def named_sweep(source: str, overrides: Sequence[str]) -> Path | None:
    """Folder of the sweep that a source names; None for a recipe, or where words change it.

    Raises:
        InputError: See `refuse_changes`.
    """
    refuse_changes(source, overrides)
    if not all(word.startswith(_NAMING) for word in overrides):
        return None
    path = find_recipe(source, root=root_of(overrides))
    is_sweep = path != Path(source) and path == find_stored(source, root=root_of(overrides))
    return path.parent if is_sweep else None


def refuse_changes(source: str, overrides: Sequence[str]) -> None:
    """Refuse (InputError) words that change a sweep that has run, under its own name: what its
    folder holds would be replaced."""
    path = find_recipe(source, root=root_of(overrides))
    if path.name != STORED_NAME or not (path.parent / PLAN_NAME).is_file():
        return
    changes = [word for word in overrides if not word.startswith((*_NAMING, *_PLACING))]
    names = [word.removeprefix("name=") for word in changes if word.startswith("name=")]
    own = own_folder(path.parent).name
    if changes and (names or [own])[-1] == own:
        raise InputError(
            f"{source} {changes[0]}: {own} is a sweep that has run, whose results "
            "this would replace; give its recipe, or name=... for another sweep"
        )


def held_results(config: ExperimentConfig, overrides: Sequence[str]) -> Path | None:
    """Folder of a sweep that has results while its data folder is not there; None where it is, or
    where words change the sweep.

    Raises:
        InputError: There is neither, and no data folder is named: sweeps with results are.
    """
    if not all(word.startswith(_NAMING) for word in overrides):
        return None
    is_named = config.data.root is not None or bool(os.environ.get("HC18_ROOT"))
    if is_named and config.data_root().is_dir():
        return None
    store = RunStore(Path(config.store.root))
    folder = store.sweep_dir(config.name)
    if (folder / "results.csv").is_file():
        return folder
    known = sweeps_with_results(store.root)
    if is_named or not known:
        return None
    raise InputError(
        f"{folder}: no results, and no data folder is given (data.root=, HC18_ROOT); the sweeps "
        f"with results are {', '.join(known)}"
    )


def rewrite(config: ExperimentConfig, folder: Path, console: Console) -> None:
    """Write tables and figure of a sweep from its results.csv and per_image.csv, and say so."""
    from experiments.results.outputs import write_shown
    from experiments.results.verdict import verdict_sentences

    results, per_image = read_sweep(folder, output=config.evaluation.output)
    _, found = write_shown(results, folder, per_image=per_image, statistics=config.statistics)
    say(console, " ".join(verdict_sentences(found, results)))
    say(
        console,
        f"{ABSENT}: table and figure are written from results.csv and per_image.csv, and "
        "report.html stays as it is",
    )
    for name in ("table.md", "figure.png", "report.html"):
        if (folder / name).is_file():
            say(console, os.path.relpath(folder / name))


def complete(config: ExperimentConfig, folder: Path, *, kind: str) -> None:
    """Write the table and figure of a kind in a sweep's own folder, from what it holds."""
    results, per_image = read_sweep(folder, output=config.evaluation.output)
    if kind == "ledger":
        from experiments.results.figure_ledger import write_ledger

        write_ledger(results, folder, per_image=per_image)
    elif kind == "paper":
        from experiments.results.deviations import deviations
        from experiments.results.paper import write_comparison

        # The data that were trained on are tested first.
        cohort, words = results["test_cohort"].dropna().iloc[0], deviations(config)
        if not write_comparison(results, folder, train_cohort=cohort, deviations=words):
            raise InputError(f"{folder}: the paper has no numbers to set beside it")
    elif kind == "box" and not any(folder.glob("figure_box.*")):
        raise InputError(
            f"{folder}: no box figure; `sonosweep figure --kind box` with the recipe and the data "
            "scores what it needs"
        )


def table_text(folder: Path, *, output: str, format_name: str) -> str:
    """The table of a sweep as Markdown or LaTeX."""
    results, per_image = read_sweep(folder, output=output)
    tables, notes = blocks(results, per_image=per_image), footnotes(results)
    return {"markdown": to_markdown, "latex": to_latex}[format_name](tables, notes=notes)
