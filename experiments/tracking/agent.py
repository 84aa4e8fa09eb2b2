"""W&B's own sweeps: the file of a grid, and the run that their agent waits for.

Free of wandb until a run reports: the file is written for `wandb sweep`, which needs a server.
"""

import math
import os
import shlex
from collections.abc import Mapping, Sequence

import pandas as pd
import yaml

from datamodules.errors import InputError
from experiments.config.grid import AXES
from experiments.config.recipe import load_config
from experiments.config.schema import ExperimentConfig
from experiments.config.wandb_mode import resolve_mode

AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""What an agent sets for its command. The stages' own runs must not read them."""

FINISH_TIMEOUT_S = 30


def log_to_agent(
    config: ExperimentConfig, scores: pd.DataFrame, *, variables: Mapping[str, str]
) -> None:
    """Report a trial's scores as the summary of the agent's run; W&B never fails a trial."""
    if resolve_mode(config.wandb) == "disabled":
        return
    import wandb

    from experiments.stages.wandb_run import INIT_TIMEOUT_S, harmless, usable_mode

    # W&B refuses its own modes in another case, before it looks at the argument.
    os.environ.update(variables, WANDB_MODE=usable_mode(config.wandb))
    settings = wandb.Settings(init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S)
    place = {"project": config.wandb.project, "entity": config.wandb.entity}
    with harmless("the agent's run got no scores"), wandb.init(**place, settings=settings) as run:
        run.summary.update(summary_of(scores))


def summary_of(scores: pd.DataFrame) -> dict[str, float]:
    """Means over a command's trials: `measure/prompt`, of all but the first cohort
    `measure/prompt/name`."""
    found: dict[str, float] = {}
    main = scores["test_cohort"].iloc[0] if len(scores) else None
    for (cohort, prompt), rows in scores.groupby(["test_cohort", "prompt"], sort=False):
        place = prompt if cohort == main else f"{prompt}/{cohort}"
        for measure in ("dice", "hc_abs_err_mm"):
            if rows[measure].notna().any():
                found[f"{measure}/{place}"] = float(rows[measure].mean())
    return found


def sweep_file(recipe: str, overrides: Sequence[str]) -> str:
    """The text of a sweep's YAML: a parameter an axis, and the command of one trial.

    The recipe is named as the agents' machines find it; other words than axes stay in the command.

    Raises:
        InputError: For a wrong word, or a grid that is no cross of axes: with both counts and
            fractions, or single pairs beside.
    """
    config = load_config(recipe, list(overrides))
    grid = config.sweep
    if grid.real_count and grid.real_fraction:
        raise InputError(
            "sweep: real_count and real_fraction are both given, and a W&B sweep has one amount a "
            "trial; empty one of them, as in sweep.real_fraction=[]"
        )
    if grid.also:
        raise InputError(
            "sweep.also: each run of a W&B sweep would make these trials too, as its grid has no "
            "single pairs; give sweep.also=[], and write a sweep for them"
        )
    values = {axis: {"values": list(v)} for axis in AXES if (v := getattr(grid, axis))}
    axes = {f"sweep.{axis}" for axis in AXES}
    fixed = [word for word in overrides if word.partition("=")[0] not in axes]
    content = {
        "name": config.name,
        "project": config.wandb.project,
        **({} if config.wandb.entity is None else {"entity": config.wandb.entity}),
        # W&B's agent asks for it; the command below is what it starts.
        "program": "sonosweep",
        "method": "grid",
        "metric": {"name": f"dice/{config.evaluation.prompts[0]}", "goal": "maximize"},
        "parameters": values,
        # Its arguments name the axes, so no other word may.
        "command": ["sonosweep", "trial", recipe, *fixed, "${args_no_hyphens}"],
    }
    n = math.prod(len(each["values"]) for each in values.values())
    return (
        f"# {n} runs. Start: wandb sweep FILE, then on each machine the agent that it names.\n"
        "# Trials share one store: what is done is not done again. No controls, table or report:\n"
        f"# {shlex.join(['sonosweep', 'sweep', recipe, *overrides])}\n"
    ) + yaml.safe_dump(content, sort_keys=False, width=1000)
