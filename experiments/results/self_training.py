"""What self-training kept: the stages that labelled unlabelled images, a row each."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd

from datamodules.choices import DEFAULT, choice_label
from experiments.plan.nodes import TrialSpec
from experiments.runner.sweep import Sweep

TRUE_DICE = "true Dice (reported, never used)"


def kept_labels(sweep: Sweep) -> pd.DataFrame:
    """A row of text per finished set of pseudo-labels, in the order of the plan."""
    plan, supports = sweep.plan, defaultdict[str, dict[str, None]](dict)
    for spec in plan.trials:
        for key in plan.behind([spec.fit_key] if spec.fit_key else []):
            supports[key][_support(spec)] = None
    rows = []
    for key, run in sweep.runs.items():
        if run.node.stage != "pseudo" or not run.is_done:
            continue
        done, teacher = sweep.result(run), sweep.runs[run.node.upstream["teacher"]].node
        dice = done["true_dice"]
        rows.append(
            {
                "teacher": teacher.title,
                "support": ", ".join(supports[key]) or "–",
                # Each teacher but the first comes from the labels of the round before.
                "round": str(sum(plan.nodes[k].stage == "pseudo" for k in plan.behind([key]))),
                "unlabelled": str(done["n_unlabelled"]),
                "kept": f"{done['n_kept']} ({100 * done['n_kept'] / done['n_unlabelled']:.0f} %)",
                **{f"kept of trimester {number}": _share(done, number) for number in "123"},
                "mean agreement": f"{done['mean_agreement']:.3f}",
                TRUE_DICE: "–" if dice is None else f"{dice:.3f}",
            }
        )
    return pd.DataFrame(rows)


def kept_sentence(done: Mapping[str, Any]) -> str:
    """Say in one line what a stage kept, from the result in its marker."""
    dice = done["true_dice"]
    known = "no annotation to compare with" if dice is None else f"{TRUE_DICE} {dice:.3f}"
    by_trimester = ", ".join(f"{number}: {_share(done, number)}" for number in "123")
    return (
        f"kept {done['n_kept']} of {done['n_unlabelled']} unlabelled images (by trimester "
        f"{by_trimester}); mean agreement {done['mean_agreement']:.3f}; {known}"
    )


def _share(done: Mapping[str, Any], trimester: str) -> str:
    kept, images = (done[f"{name}_by_trimester"][trimester] for name in ("kept", "images"))
    return f"{kept} of {images}"


def _support(spec: TrialSpec) -> str:
    choice = "" if spec.choice == DEFAULT else f" {choice_label(spec.choice)}"
    return f"{spec.support}{choice}" + (f" fold {spec.fold}" if spec.fold else "")
