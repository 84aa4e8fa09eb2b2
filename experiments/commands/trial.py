"""One trial by one command: for an agent, a cluster's job or a user."""

import os
from collections.abc import Sequence

import pandas as pd
from rich.console import Console

from datamodules.errors import InputError
from experiments.commands.run import narrow, prepare, report_failures, say
from experiments.config.grid import AXES
from experiments.config.recipe import load_config
from experiments.plan.nodes import Plan
from experiments.runner.progress import LiveProgress
from experiments.runner.sweep import Sweep, SweepInterruptedError
from experiments.store.guard import use_store
from experiments.tracking.agent import AGENT_VARIABLES, log_to_agent


def trial_command(
    recipe: str, words: Sequence[str], *, stages: Sequence[str], console: Console
) -> None:
    """Run the trials that are left of a recipe when its axes are set, and print their scores.

    Args:
        recipe: Path or shipped name.
        words: `axis=value` for an axis of the grid, `key=value` for anything else.
        stages: Directories `stage/id` to run instead, with what they need.
        console: Where to print.

    Raises:
        InputError: For a wrong word, or a stage that the recipe does not have.
        SystemExit: 1 where a stage failed, 130 after a signal.
    """
    agent = {key: os.environ.pop(key) for key in AGENT_VARIABLES if key in os.environ}
    config = load_config(recipe, trial_overrides(words))
    data, plan = prepare(config, console)
    # Neither controls nor fidelity: they are the sweep's.
    plan = _only(plan, stages or [key for spec in plan.grid for key in spec.keys])
    sweep = Sweep(config, data=data, plan=plan, say=lambda line: say(console, line))
    try:
        with use_store(sweep.store.root), LiveProgress(sweep, console) as progress:
            sweep.run(progress.update)
    except SweepInterruptedError:
        say(console, "stopped; the same command continues from here")
        raise SystemExit(130) from None
    if report_failures(sweep, console):
        raise SystemExit(1)
    scores = trial_scores(sweep)
    for line in scores.to_dict("records"):
        measured = ", ".join(
            f"{name} {line[key]:.{digits}f}"
            for key, name, digits in (("dice", "Dice", 4), ("hc_abs_err_mm", "HC error mm", 2))
            if pd.notna(line[key])
        )
        say(console, f"{line['trial_id']}, {line['test_cohort']}, {line['prompt']}: {measured}")
    if agent:
        log_to_agent(config, scores, variables=agent)


def trial_overrides(words: Sequence[str]) -> list[str]:
    """Turn `condition=real` into `sweep.condition=[real]`; other words stay as they are.

    Raises:
        InputError: If both kinds of amount are given.
    """
    overrides = []
    names = {word.split("=", 1)[0] for word in words}
    if names >= {"real_count", "real_fraction"}:
        raise InputError("real_count and real_fraction are both given; a trial has one amount")
    for word in words:
        name, sign, value = word.partition("=")
        if name not in AXES or not sign:
            overrides.append(word)
            continue
        overrides.append(f"sweep.{name}=[{value}]")
        if name.startswith("real_"):
            other = "real_fraction" if name == "real_count" else "real_count"
            overrides.append(f"sweep.{other}=[]")
    return overrides


def trial_scores(sweep: Sweep) -> pd.DataFrame:
    """Mean scores of each trial, by test cohort and prompt; draws are averaged per image."""
    from experiments.results.outputs import collect_per_image

    keys = ["trial_id", "test_cohort", "prompt"]
    per_image = collect_per_image(sweep)
    if per_image.empty:
        return per_image.reindex(columns=[*keys, "dice", "hc_abs_err_mm"])
    measures = per_image.groupby([*keys, "sample_id"])[["dice", "hc_abs_err_mm"]].mean()
    return measures.groupby(keys).mean().reset_index()


def _only(plan: Plan, stages: Sequence[str]) -> Plan:
    unknown = [key for key in stages if key not in plan.nodes]
    if unknown:
        raise InputError(
            f"--stage {unknown[0]}: the recipe has no such stage; its {len(plan.nodes)} stages are "
            "the folders STAGE/ID that `sonosweep sweep RECIPE --dry-run --json` lists"
        )
    return narrow(plan, keys=stages)
