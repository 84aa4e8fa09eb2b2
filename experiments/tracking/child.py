"""The process that logs a sweep's outcome to W&B: `python -m experiments.tracking.child REQUEST`.

What it has logged is written down run by run, so that another start continues from there.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import wandb

from datamodules.annotation import annotation_of, image_of
from datamodules.head_ellipse import filled_ellipse
from datamodules.samples import Sample
from datamodules.storage import write_json
from experiments.config.schema import WandbConfig
from experiments.results.rows import read_output
from experiments.stages.wandb_run import finish, open_run, run_config, sweep_run_id, usable_mode
from experiments.store.kept_masks import read_prediction
from experiments.tracking.agent import summary_of
from experiments.tracking.curves import CURVES, X, curves
from experiments.tracking.summary import LOGGED_NAME, logged

OVERLAY_SIDE_PX = 400


def main(path: Path) -> int:
    """Log everything that a request names; 1 where some of it could not be logged."""
    request, folder = json.loads(path.read_text()), path.parent
    recipe, output = request["config"], request["config"]["evaluation"]["output"]
    config = WandbConfig(**recipe["wandb"])
    mode = usable_mode(config)
    per_image = read_output(folder / "per_image.csv", output)
    done, is_complete = logged(folder), True
    for job in request["jobs"]:
        try:
            run = open_run(
                folder,
                config=config,
                mode=mode,
                run_id=sweep_run_id(folder.parent, recipe["name"], job["id"]),
                name=job["name"],
                group=recipe["name"],
                job_type=job["job_type"],
                tags=job["tags"],
                content=run_config(recipe, job["config"] | {"job": job["job_type"]}),
                # Each is logged whole: points of an earlier state would stand among the new ones.
                continues=False,
            )
            if job["job_type"] == "analysis":
                log_analysis(run, request, folder=folder, per_image=per_image)
            else:
                log_trial(run, job, per_image=per_image, output=output)
            ended = finish(exit_code=0)
        except Exception as error:  # W&B raises many kinds; the next run may well work.
            print(f"W&B: {type(error).__name__}: {error}", flush=True)
            finish(exit_code=1)
            ended = False
        if ended:
            done[job["id"]] = job["key"]
            write_json(folder / LOGGED_NAME, done)
        is_complete &= ended
        if wandb.run is not None:
            # It still waits for a server: nothing more can be started beside it.
            return 1
    return 0 if is_complete else 1


def log_trial(
    run: wandb.Run, trial: dict[str, Any], *, per_image: pd.DataFrame, output: str
) -> None:
    """The scores and some predictions of one trial."""
    if shown := overlays(trial["overlays"], output=output):
        run.log({"overlays": shown})
    # Against the amount, so that a plot over many runs is the curve that the study is about.
    run.define_metric("n_real")
    for name in ("dice/*", "hc_abs_err_mm/*"):
        run.define_metric(name, step_metric="n_real")
    n_real = trial["config"]["n_real"]
    run.log({"n_real": n_real, **trial_summary(per_image, trial["id"])})


def trial_summary(per_image: pd.DataFrame, trial_id: str) -> dict[str, float]:
    """Mean scores of a trial as `dice/PROMPT`, its main cohort first; draws averaged by image."""
    rows = per_image[per_image["trial_id"] == trial_id]
    keys = ["test_cohort", "prompt", "sample_id"]
    means = rows.groupby(keys, sort=False)[["dice", "hc_abs_err_mm"]].mean().reset_index()
    return summary_of(means)


def overlays(shown: dict[str, Any], *, output: str) -> list[wandb.Image]:
    """The fixed test images of a trial, with the prediction and the reference as masks."""
    images = []
    for item in shown.get("images", []):
        paths = {name: Path(item[name]) for name in ("image_path", "annotation_path")}
        sample, prompt = Sample(**(item | paths)), shown["prompt"]
        image, reference = image_of(sample), annotation_of(sample).mask
        where = {"prompt": prompt, "sample_id": sample.sample_id, "size_hw": image.shape}
        try:
            predicted = read_prediction(Path(shown["run_dir"]), **where)
        except KeyError:
            continue
        if output == "ellipse":
            _, predicted = filled_ellipse(predicted)
        masks = {
            name: {
                "mask_data": _small(mask.astype(np.uint8), cv2.INTER_NEAREST),
                "class_labels": {0: "background", 1: "head"},
            }
            for name, mask in (("prediction", predicted), ("reference", reference))
        }
        small = _small(image, cv2.INTER_AREA)
        images.append(wandb.Image(small, caption=f"{sample.sample_id}, {prompt}", masks=masks))
    return images


def log_analysis(
    run: wandb.Run, request: dict[str, Any], *, folder: Path, per_image: pd.DataFrame
) -> None:
    """The sweep's own run: its curves, table, a row a trial, its figure, where the report is."""
    rows = [
        {"trial": trial["id"], "job": trial["job_type"]}
        | {k: v for k, v in trial["config"].items() if k != "score_ids"}
        | trial_summary(per_image, trial["id"])
        for trial in request["trials"]
    ]
    output = request["config"]["evaluation"]["output"]
    results = read_output(folder / "results.csv", output)
    run.define_metric(X)
    for name in CURVES:
        run.define_metric(f"{name}/*", step_metric=X)
    for n_real, values in curves(results, per_image=per_image).items():
        run.log({X: n_real, **values})
    run.log({"figure": wandb.Image(str(folder / "figure.png"))})
    # In the summary, not in the history: there their sizes would be taken for curves.
    for name, frame in (("results", results), ("trials", pd.DataFrame(rows))):
        if not frame.empty:
            # None instead of NaN: a column of W&B has one type, or none.
            frame = frame.astype(object).where(frame.notna(), None)
            run.summary[name] = wandb.Table(dataframe=frame, allow_mixed_types=True)
    about = {"finding": request["finding"], "n_trials": len(rows)}
    run.summary.update(about | {"report": f"{folder.name}/report.html"})


def _small(picture: np.ndarray, interpolation: int) -> np.ndarray:
    scale = min(1.0, OVERLAY_SIDE_PX / max(picture.shape))
    size_wh = [max(1, round(side * scale)) for side in reversed(picture.shape)]
    return cv2.resize(picture, size_wh, interpolation=interpolation)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    # Not sys.exit: W&B's exit handlers may wait for a server.
    os._exit(code)
