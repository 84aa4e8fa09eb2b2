"""The command `paper`: the paper's experiment with its own models, by one word. Torch-free."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datamodules.errors import InputError
from experiments.commands.arguments import Overrides, load_recipe, say, stderr_console

if TYPE_CHECKING:
    from experiments.config.schema import ExperimentConfig

RECIPE = "paper_hc18"
COHORTS = {"es": "ES_ROOT", "af": "AF_ROOT"}
"""The paper's test cohorts and the variables that say where one has them."""


def paper(
    overrides: Overrides = None,
    figure: Annotated[
        bool, typer.Option("--figure", help="End with the figure's paths instead of the table.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan and estimate; needs no weights and no GPU.")
    ] = False,
    recipe: Annotated[str, typer.Option(help="Recipe of the paper's form.")] = RECIPE,
) -> None:
    """Run the paper's 28 fine-tunes as it did, ViT-B and Stable Diffusion, and set its panel beside
    ours: weights are fetched, every GPU here is used, cohorts come from ES_ROOT and AF_ROOT.
    """
    words = overrides or []
    config = load_recipe(recipe, [*cohort_words(words), *words])
    gpus = _use_gpus(config)
    if dry_run:
        from experiments.runner.forecast import print_dry_run

        print_dry_run(config, retry_failed=True, as_json=False)
        return
    console = stderr_console()
    if not gpus and config.sweep.launcher == "local":
        say(
            console,
            "no NVIDIA GPU is used here: the generator alone takes days on a CPU (--dry-run "
            "estimates, make table-paper is the small form)",
        )
    from experiments.commands.outputs import check_panel
    from experiments.commands.run import run_sweep

    folder = run_sweep(config, console, retry_failed=True, check=check_panel)
    path = folder / "table_paper.md"
    if not path.is_file():
        raise InputError(f"{folder}: nothing of it stands beside the paper's numbers")
    if figure:
        print("\n".join(os.path.relpath(p) for p in sorted(folder.glob("figure_paper.*"))))
        return
    print(path.read_text(), end="")


def cohort_words(words: list[str]) -> list[str]:
    """`data.test_cohorts` from ES_ROOT and AF_ROOT, where they are set and no word names cohorts.

    Raises:
        InputError: A folder without images or masks; the variable is named.
    """
    from datamodules.cohort import read_cohort

    if any(word.startswith("data.test_cohorts=") for word in words):
        return []
    found = []
    for name, variable in COHORTS.items():
        root = os.environ.get(variable)
        if not root:
            continue
        try:
            read_cohort(Path(root), name=name)
        except InputError as error:
            raise InputError(f"{variable}: {error}") from error
        found.append(f"{name}={root}")
    # JSON, which YAML reads: whatever is in a folder's name, it comes back.
    return [f"data.test_cohorts={json.dumps(found, ensure_ascii=False)}"] if found else []


def _use_gpus(config: "ExperimentConfig") -> list[str]:
    """Let the sweep use every GPU of this machine where its recipe names none; their names."""
    from experiments.runner.gpus import gpu_names

    names = gpu_names() if config.trainer.accelerator != "cpu" else []
    if names and not config.sweep.devices and config.sweep.launcher == "local":
        whole = len(names) // config.trainer.devices * config.trainer.devices
        config.sweep.devices = list(range(whole))
    return names
