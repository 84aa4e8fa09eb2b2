"""What the tests of W&B share: a finished sweep, and a reader of what was logged."""

import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
from toy_recipe import TOY
from wandb.util import get_core_path

from datamodules.samples import read_hc18
from experiments.config.recipe import load_config
from experiments.plan.nodes import Node, TrialSpec
from experiments.runner.sweep import NodeRun
from experiments.store.columns import PER_IMAGE
from experiments.store.kept_masks import pack, write_predictions
from experiments.store.runs import RunStore, write_done, write_started

TEST_IDS = ["001_HC", "002_HC", "002_2HC", "003_HC", "004_HC", "005_HC"]


def spec(condition, *, fit=None, scores, **axes):
    base = {"real_fraction": None, "n_real": 4, "support": 0, "seed": 0, "generator_seed": 0}
    return TrialSpec(
        **base | axes,
        condition=condition,
        n_generator_labels=0,
        n_val_labels=0,
        n_total_labels=4,
        fold=0,
        fit_key=fit,
        score_keys=scores,
    )


def finished_sweep(hc18_folder: Path, root: Path, *, mode: str = "offline") -> SimpleNamespace:
    """A sweep `shown`: a trial of its own, one of sweep `older`, one that waits, and a control.

    Of every trial the mask of 004_HC was not kept.
    """
    config = load_config(TOY, ["name=shown", f"store.root={root}", f"wandb.mode={mode}"])
    samples = {sample.sample_id: sample for sample in read_hc18(hc18_folder)}
    sweep = SimpleNamespace(
        config=config,
        store=RunStore(root),
        runs={},
        data=SimpleNamespace(name="hc18", samples=samples),
        plan=SimpleNamespace(nodes={}, trials=[]),
    )
    rows, results = [], []
    for condition, made_by, dice in (
        ("real", "shown", 0.5),
        ("synthetic", "older", 0.75),
        ("warp", "shown", None),
        ("mean_mask", "shown", 0.25),
    ):
        is_control = condition == "mean_mask"
        fit = None if is_control else _stage(sweep, "fit", condition, made_by=made_by)
        score = _stage(sweep, "score", condition, made_by=made_by)
        trial = spec(condition, fit=fit, scores={("hc18", "whole_image"): score})
        sweep.plan.trials.append(trial)
        place = {"test_cohort": "hc18", "prompt": "whole_image"}
        means = {"dice_mean": dice, "hc_abs_err_mm_mean": 2.0, "n_exams": 5, "status": "done"}
        results.append(trial.axes | place | (means if dice is not None else {"status": "pending"}))
        if dice is None:
            sweep.runs[score].state = "waiting"
            continue
        rows += _score_rows(trial, dice=dice)
        _keep(sweep.store.root / "store" / score)
    folder = sweep.store.sweep_dir("shown")
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "per_image.csv", index=False)
    pd.DataFrame(results).to_csv(folder / "results.csv", index=False)
    cv2.imwrite(str(folder / "figure.png"), np.full((30, 40, 3), 200, np.uint8))
    return sweep


def _stage(sweep, stage, condition, *, made_by):
    content = {"label": condition, "test": [[name, "hash"] for name in TEST_IDS]}
    node = Node(stage=stage, content=content, label=f"{stage} {condition}")
    sweep.plan.nodes[node.key] = node
    sweep.runs[node.key] = NodeRun(node=node, state="reused")
    run_dir = sweep.store.run_dir(stage, node.id)
    run_dir.mkdir(parents=True)
    write_started(run_dir, {"sweep": made_by, "content": content, "upstream": {}})
    write_done(run_dir, {"seconds": 1.0})
    return node.key


def _score_rows(trial, *, dice):
    place = trial.axes | {"test_cohort": "hc18"}
    empty = dict.fromkeys(PER_IMAGE)
    return [
        # Two draws an image, which differ by 0.2, and an error of 2 mm.
        empty
        | place
        | {"prompt": "whole_image", "sample_id": name, "draw": draw}
        | {"dice": dice + (0.1 if draw else -0.1), "hc_abs_err_mm": 2.0}
        for name in TEST_IDS
        for draw in (0, 1)
    ]


def _keep(run_dir: Path) -> None:
    kept = {}
    for name in TEST_IDS:
        if name == "004_HC":
            continue
        mask = np.zeros((54, 80), np.uint8)
        mask[10:40, 20:60] = 1
        kept[name] = pack(mask)
    write_predictions(run_dir, kept, prompt="whole_image")


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment without anything of W&B's, and with a home that is nobody's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return {**kept, "HOME": "/nonexistent", **changes}


def read_offline(run_dir: Path, *options: str) -> str:
    """An offline run as JSON lines: what `wandb leet inspect --json` prints.

    Its program itself, because the command before it takes a second to import.
    """
    (file,) = run_dir.glob("*.wandb")
    words = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options]
    ends = time.monotonic() + 20
    while True:
        found = subprocess.run(
            [*words, "--run-file", str(file), str(run_dir)],
            capture_output=True,
            text=True,
            check=True,
            env=clean_environment(),
            timeout=120,
        )
        # Seen empty once, on a busy machine, just after the run had ended.
        if found.stdout.strip() or time.monotonic() > ends:
            return found.stdout
        time.sleep(0.2)


def inspect(run_dir: Path) -> dict:
    """State, config and summary of an offline run, as W&B's own reader gives them."""
    return json.loads(read_offline(run_dir, "--summary"))


def offline_runs(folder: Path) -> dict[str, Path]:
    """Run directories below a folder's `wandb` by run id; one that was continued is listed once."""
    found = sorted(path for path in (folder / "wandb").glob("offline-run-*") if path.is_dir())
    return {path.name.split("-", 3)[3]: path for path in found}


def history(run_dir: Path) -> tuple[dict[str, list[float]], dict[str, str]]:
    """What W&B's terminal draws of an offline run: the numbers of its history by name, and the x
    axis of each metric that has one of its own. A picture's size is not drawn.
    """
    values, x_of = {}, {}
    for record in map(json.loads, read_offline(run_dir).splitlines()):
        metric = record.get("metric", {})
        if "step_metric" in metric:
            x_of[metric.get("glob_name") or metric["name"]] = metric["step_metric"]
        for name, value in record.get("history", {}).get("item", {}).items():
            is_number = isinstance(value, int | float) and not name.startswith(("_", "figure."))
            if is_number:
                values.setdefault(name, []).append(value)
    return values, x_of
