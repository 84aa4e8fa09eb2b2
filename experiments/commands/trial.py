"""The command `trial`: for an agent, a cluster's job or a user. Torch-free."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from datamodules.errors import InputError
from experiments.commands.arguments import Recipe, each_once, load_recipe, say, stdout_console

if TYPE_CHECKING:
    import pandas as pd

    from experiments.runner.sweep import Sweep


def trial(
    recipe: Recipe,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[AXIS=VALUE]... [KEY=VALUE]...",
            help="condition, segmenter, generator, real_count or real_fraction, choice, support, "
            "seed, generator_seed, fold; and changes to the recipe.",
            callback=each_once,
        ),
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(metavar="STAGE/ID", help="Run this stage instead.")
    ] = None,
) -> None:
    """Run one trial of a recipe with all that it needs: for agents and cluster jobs."""
    from experiments.tracking.agent import AGENT_VARIABLES, log_to_agent

    agent = {key: os.environ.pop(key) for key in AGENT_VARIABLES if key in os.environ}
    config, console = load_recipe(recipe, trial_overrides(words or [])), stdout_console()
    from experiments.commands.run import begin_writing, prepare, report_failures, run_live
    from experiments.runner.sweep import Sweep
    from experiments.store.guard import use_store

    data, plan = prepare(config, console)
    # Neither controls nor fidelity: they are the sweep's.
    keys = stage or [key for spec in plan.grid for key in spec.keys]
    if unknown := set(keys).difference(plan.nodes):
        raise InputError(
            f"--stage {min(unknown)}: the recipe has no such stage; its {len(plan.nodes)} stages "
            "are the folders STAGE/ID that `sonosweep sweep RECIPE --dry-run --json` lists"
        )
    plan = plan.narrowed(keys)
    begin_writing(config, data)
    sweep = Sweep(config, data=data, plan=plan, say=lambda line: say(console, line))
    with use_store(sweep.store.root):
        run_live(sweep, console)
    if report_failures(sweep, console):
        raise SystemExit(1)
    scores = trial_scores(sweep)
    for line in scores.to_dict("records"):
        measured = ", ".join(
            f"{name} {line[key]:.{digits}f}"
            for key, name, digits in (("dice", "Dice", 4), ("hc_abs_err_mm", "HC error mm", 2))
            if not math.isnan(line[key])
        )
        say(console, f"{line['trial_id']}, {line['test_cohort']}, {line['prompt']}: {measured}")
    if agent:
        log_to_agent(config, scores, variables=agent)


def trial_overrides(words: Sequence[str]) -> list[str]:
    """Turn `condition=real` into `sweep.condition=[real]`; other words stay as they are.

    A condition or a segmenter leaves the recipe's single pairs of the two out.
    """
    from experiments.config.grid import AXES

    overrides, amounts = [], {"real_count", "real_fraction"}
    keys = {word.split("=", 1)[0] for word in words if "=" in word}
    if keys >= amounts:
        raise InputError("real_count and real_fraction are both given; a trial has one amount")
    for word in words:
        name, sign, value = word.partition("=")
        is_axis = name in AXES and bool(sign)
        if is_axis and f"sweep.{name}" in keys:
            raise InputError(f"{name} and sweep.{name} are both given; remove one")
        overrides.append(f"sweep.{name}=[{value}]" if is_axis else word)
        if is_axis and name in amounts:
            overrides += [f"sweep.{other}=[]" for other in amounts - {name}]
    if keys & {"condition", "segmenter"} and "sweep.also" not in keys:
        overrides.append("sweep.also=[]")
    return overrides


def trial_scores(sweep: "Sweep") -> "pd.DataFrame":
    """Mean scores of each trial, by test cohort, the main one first, and prompt; draws are averaged
    per image.
    """
    from experiments.results.outputs import collect_per_image
    from experiments.results.rows import choose_output

    keys = ["trial_id", "test_cohort", "prompt"]
    per_image = choose_output(collect_per_image(sweep), sweep.config.evaluation.output)
    if per_image.empty:
        return per_image.reindex(columns=[*keys, "dice", "hc_abs_err_mm"])
    # In the order of the rows: sorted, an external cohort could come first.
    by_image = per_image.groupby([*keys, "sample_id"], sort=False)
    measures = by_image[["dice", "hc_abs_err_mm"]].mean()
    return measures.groupby(keys, sort=False).mean().reset_index()
