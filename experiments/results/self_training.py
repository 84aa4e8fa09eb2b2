"""What self-training kept: the stages that labelled unlabelled images, a row each."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from datamodules.choices import DEFAULT, choice_label
from experiments.plan.nodes import Node, TrialSpec
from experiments.runner.sweep import Sweep

TRUE_DICE = "true Dice (reported, never used)"


def kept_labels(sweep: Sweep) -> pd.DataFrame:
    """A row of text per finished set of pseudo-labels, in the order of the plan."""
    supports: dict[str, list[str]] = {}
    for spec in sweep.plan.trials:
        for key in _behind(sweep, spec.fit_key) if spec.fit_key else ():
            supports.setdefault(key, []).append(_support(spec))
    rows = []
    for key, run in sweep.runs.items():
        if run.node.stage != "pseudo" or not run.is_done:
            continue
        done, teacher = sweep.result(run), sweep.runs[run.node.upstream["teacher"]].node
        dice = done["true_dice"]
        rows.append(
            {
                "teacher": teacher.title,
                "support": ", ".join(dict.fromkeys(supports.get(key, []))) or "–",
                "round": str(_round(sweep, run.node)),
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


def _behind(sweep: Sweep, key: str) -> set[str]:
    """A stage and all that it was made from."""
    below = sweep.runs[key].node.upstream.values()
    return {key}.union(*(_behind(sweep, each) for each in below))


def _round(sweep: Sweep, node: Node) -> int:
    """1 where the teacher saw labels alone, one more than the round that its pairs come from."""
    teacher = sweep.runs[node.upstream["teacher"]].node
    below = [sweep.runs[key].node for key in teacher.upstream.values()]
    return 1 + max((_round(sweep, each) for each in below if each.stage == "pseudo"), default=0)
