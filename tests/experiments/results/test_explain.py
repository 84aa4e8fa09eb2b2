"""From a cell to its runs: every command stands once, to be copied."""

import json

import pandas as pd
import pytest
from test_self_training import KEPT
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.results.explain import explain_cell
from experiments.store.runs import RunStore

LONG = "sonosweep sweep hc18_ablation sweep.support=[0,1,2,3,4] split.test=90 trainer.devices=1"
ROW = {
    "status": "done",
    "reason": "",
    "condition": "real",
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
    "n_exams": 2,
    "dice_mean": 0.85,
    "trimesters_missing": "",
    "fit_id": "fit/f",
}


@pytest.fixture
def config(tmp_path):
    """A store of two scores on two fits; all but one run were made by one command."""
    config = load_config(TOY, [f"store.root={tmp_path}"])
    store = RunStore(tmp_path)
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
    sweep = store.sweep_dir(config.name)
    sweep.mkdir(parents=True)
    results, images = [], []
    for support, score in enumerate("ab"):
        keys = ROW | {"trial_id": f"t{support}", "support": support}
        results.append(keys | {"score_id": f"score/{score}"})
        for exam, dice in (("x", 0.8), ("y", 0.9)):
            image = {"sample_id": exam, "exam_id": exam, "trimester": 1, "draw": 0, "dice": dice}
            more = dict.fromkeys(["dice_256", "hausdorff_mm", "hc_err_mm", "hc_abs_err_mm"], 1.0)
            images.append(keys | image | more)
    pd.DataFrame(results).to_csv(sweep / "results.csv", index=False)
    pd.DataFrame(images).to_csv(sweep / "per_image.csv", index=False)
    return config


def test_each_command_stands_once_on_a_line_of_its_own(config):
    lines = explain_cell(config, "hc18/whole_image/5/real").splitlines()
    assert sum(LONG in line for line in lines) == 1
    assert lines[-4:] == ["command 1:", LONG, "command 2:", "sonosweep demo"]
    made = [line for line in lines if "label of" in line]
    assert [line.rsplit("; ", 1)[1] for line in made] == ["command 1"] * 3 + ["command 2"]
    assert made[0].strip().startswith("label of score/a; commit 0123456789; started 1970-01-01")
    assert any(line.strip() == "dice_mean 85.00 %" for line in lines)


def test_the_line_of_a_teachers_labels_says_what_was_kept(config, tmp_path):
    store = RunStore(tmp_path)
    manifest = store.run_dir("fit", "f") / "manifest.json"
    found = json.loads(manifest.read_text()) | {"upstream": {"pairs": "pseudo/p"}}
    manifest.write_text(json.dumps(found))
    folder = store.run_dir("pseudo", "p")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(found | {"upstream": {}}))
    (folder / "DONE.json").write_text(json.dumps(KEPT | {"seconds": 3.0}))
    text = explain_cell(config, "hc18/whole_image/5/real")
    assert (
        "kept 30 of 50 unlabelled images (by trimester 1: 2 of 10, 2: 20 of 30, 3: 8 of 10); mean "
        "agreement 0.941; true Dice (reported, never used) 0.968"
    ) in text


def test_a_run_without_a_manifest_is_named(config, tmp_path):
    (RunStore(tmp_path).run_dir("fit", "g") / "manifest.json").unlink()
    text = explain_cell(config, "hc18/whole_image/5/real")
    assert text.count("manifest.json is missing") == 1
    assert text.endswith(f"command 1:\n{LONG}")
