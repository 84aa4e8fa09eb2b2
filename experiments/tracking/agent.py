"""W&B's own sweeps: their agent starts a command and waits for a run to report to."""

import os
from collections.abc import Mapping

import pandas as pd

from experiments.config.schema import ExperimentConfig

AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""What an agent sets for its command. The stages' own runs must not read them."""


def log_to_agent(
    config: ExperimentConfig, scores: pd.DataFrame, *, variables: Mapping[str, str]
) -> None:
    """Report a trial's scores as the summary of the agent's run, as `dice/whole_image`.

    W&B never fails a trial: what goes wrong is printed.
    """
    if config.wandb.mode == "disabled":
        return
    os.environ.update(variables)
    try:
        import wandb

        with wandb.init(project=config.wandb.project, entity=config.wandb.entity) as run:
            run.summary.update(summary_of(scores))
    except Exception as error:  # W&B raises many kinds.
        print(f"W&B: the agent's run got no scores ({type(error).__name__}: {error})", flush=True)


def summary_of(scores: pd.DataFrame) -> dict[str, float]:
    """Means over a command's trials: `measure/prompt`, of external cohorts `measure/prompt/name`.

    The first cohort is the main one.
    """
    found: dict[str, float] = {}
    main = scores["test_cohort"].iloc[0] if len(scores) else None
    for (cohort, prompt), rows in scores.groupby(["test_cohort", "prompt"], sort=False):
        place = prompt if cohort == main else f"{prompt}/{cohort}"
        for measure in ("dice", "hc_abs_err_mm"):
            if rows[measure].notna().any():
                found[f"{measure}/{place}"] = float(rows[measure].mean())
    return found
