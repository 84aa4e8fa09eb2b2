"""A recipe's grid as a sweep of W&B's own, for those who want its agents: a trial is one command.

Free of wandb: the file is written for `wandb sweep`, which needs a server.
"""

from collections.abc import Sequence
from typing import Any

import yaml

from datamodules.errors import InputError
from experiments.config.grid import AXES
from experiments.config.recipe import load_config


def sweep_file(recipe: str, overrides: Sequence[str]) -> str:
    """The text of a sweep's YAML: a parameter an axis, and the command of one trial.

    Args:
        recipe: Path or shipped name, as the agents' machines find it.
        overrides: `key=value` words. An axis becomes a parameter; the rest stands in the command.

    Raises:
        InputError: For a wrong word, or a grid with both counts and fractions.
    """
    config = load_config(recipe, list(overrides))
    grid = config.sweep
    if grid.real_count and grid.real_fraction:
        raise InputError(
            "sweep: real_count and real_fraction are both given, and a W&B sweep has one amount a "
            "trial; empty one of them, as in sweep.real_fraction=[]"
        )
    values = {axis: list(getattr(grid, axis)) for axis in AXES if getattr(grid, axis)}
    axes = {f"sweep.{axis}" for axis in AXES}
    fixed = [word for word in overrides if word.partition("=")[0] not in axes]
    content: dict[str, Any] = {
        "name": config.name,
        "project": config.wandb.project,
        # W&B's agent asks for it; the command below is what it starts.
        "program": "sonosweep",
        "method": "grid",
        "metric": {"name": f"dice/{config.evaluation.prompts[0]}", "goal": "maximize"},
        "parameters": {axis: {"values": listed} for axis, listed in values.items()},
        # Its arguments come last: the later of two words for one key counts.
        "command": ["sonosweep", "trial", recipe, *fixed, "${args_no_hyphens}"],
    }
    if config.wandb.entity is not None:
        content["entity"] = config.wandb.entity
    n = 1
    for listed in values.values():
        n *= len(listed)
    return (
        f"# {n} runs. Start: wandb sweep FILE, then on each machine the agent that it names.\n"
        "# Trials share one store: what is done is not done again. No controls, table or report:\n"
        f"# sonosweep sweep {' '.join([recipe, *overrides])}\n"
    ) + yaml.safe_dump(content, sort_keys=False, width=1000)
