"""A hand-made finished sweep: two scores on two fits, its results.csv and per_image.csv."""

import json
from pathlib import Path

import pandas as pd

from experiments.config.statistics import StatisticsConfig
from experiments.results.contrasts import all_contrasts
from experiments.results.report import render_report
from experiments.results.statistics import aggregate
from experiments.store.runs import RunStore

LONG = "sonosweep sweep hc18_ablation sweep.support=[0,1,2,3,4] split.test=90 trainer.devices=1"
ROW = {
    "status": "done",
    "reason": "",
    "condition": "real",
    "segmenter": "sam",
    "generator": "",
    "pair_labels": "",
    "output": "",
    "real_fraction": None,
    "n_real": 5,
    "n_generator_labels": 0,
    "n_val_labels": 0,
    "n_total_labels": 5,
    "seed": 0,
    "generator_seed": None,
    "fold": 0,
    "test_cohort": "hc18",
    "prompt": "whole_image",
}


def page_of(results, per_image, *, statistics=None, **content):
    """The report of some rows, with nothing beside them but what is given."""
    statistics = StatisticsConfig() if statistics is None else statistics
    return render_report(
        {"title": "t", "data_kind": "other"} | content,
        results=results,
        per_image=per_image,
        contrasts=all_contrasts(per_image, statistics=statistics),
        statistics=statistics,
    )


def write_finished(root: Path, name: str) -> Path:
    """Write the runs of a sweep and its results; all but one run were made by one command."""
    store = RunStore(root)
    for key, upstream, command in (
        ("score/a", {"fit": "fit/f"}, LONG),
        ("fit/f", {}, LONG),
        ("score/b", {"fit": "fit/g"}, LONG),
        ("fit/g", {}, "sonosweep demo"),
    ):
        folder = store.run_dir(*key.split("/"))
        folder.mkdir(parents=True)
        manifest = {"label": f"label of {key}", "git_sha": "0123456789abcdef", "started": 0}
        manifest |= {"upstream": upstream, "command": command}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "DONE.json").write_text(json.dumps({"seconds": 3.0}))
    sweep = store.sweep_dir(name)
    sweep.mkdir(parents=True)
    images, scored = [], ["score/a", "score/b"]
    for support in range(len(scored)):
        keys = ROW | {"trial_id": f"t{support}", "support": support}
        for exam, dice in (("x", 0.8), ("y", 0.9)):
            image = {"sample_id": exam, "exam_id": exam, "trimester": 1, "draw": 0, "dice": dice}
            more = dict.fromkeys(["dice_256", "hausdorff_mm", "hc_err_mm", "hc_abs_err_mm"], 1.0)
            images.append(keys | image | more)
    per_image = pd.DataFrame(images)
    results = aggregate(per_image, n_boot=100).assign(fit_id="fit/f", score_id=scored)
    results.to_csv(sweep / "results.csv", index=False)
    per_image.to_csv(sweep / "per_image.csv", index=False)
    return sweep


def trimester_weighted_mean(values, trimesters) -> float:
    """The mean of trimester means by the shares of HC18, in another way than `weighted_dice`."""
    of = {n: [v for v, t in zip(values, trimesters, strict=True) if t == n] for n in (1, 2, 3)}
    shares = {n: share for n, share in {1: 165, 2: 693, 3: 141}.items() if of[n]}
    total = sum(share * sum(of[n]) / len(of[n]) for n, share in shares.items())
    return total / sum(shares.values())
