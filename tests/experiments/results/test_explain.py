"""From a cell to its runs: every command stands once, to be copied."""

import json

import pandas as pd
import pytest
from results_parts import LONG, write_finished
from test_self_training import KEPT
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.results.explain import explain_cell
from experiments.store.runs import RunStore


@pytest.fixture
def config(tmp_path):
    config = load_config(TOY, [f"store.root={tmp_path}"])
    write_finished(tmp_path, config.name)
    return config


def test_each_command_stands_once_on_a_line_of_its_own(config):
    lines = explain_cell(config, "hc18/whole_image/5/real").splitlines()
    assert sum(LONG in line for line in lines) == 1
    assert lines[-4:] == ["command 1:", LONG, "command 2:", "sonosweep demo"]
    made = [line for line in lines if "label of" in line]
    assert [line.rsplit("; ", 1)[1] for line in made] == ["command 1"] * 3 + ["command 2"]
    assert made[0].strip().startswith("label of score/a; commit 0123456789; started 1970-01-01")
    assert any(line.strip() == "dice_mean 85.00 %" for line in lines)
    assert lines[1].startswith("  2 trials, 2 supports, 2 exams, dice 95 % CI [")


def test_one_of_a_kind_is_no_plural(config, tmp_path):
    folder = RunStore(tmp_path).sweep_dir(config.name)
    for name in ("results.csv", "per_image.csv"):
        rows = pd.read_csv(folder / name)
        rows[rows["trial_id"] == "t0"].to_csv(folder / name, index=False)
    lines = explain_cell(config, "hc18/whole_image/5/real").splitlines()
    assert lines[1].startswith("  1 trial, 1 support, 2 exams")


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


def test_rows_that_name_no_runs_are_refused_in_a_line(config, tmp_path):
    path = RunStore(tmp_path).sweep_dir(config.name) / "results.csv"
    rows = pd.read_csv(path).drop(columns="score_id")
    rows.to_csv(path, index=False)
    with pytest.raises(InputError, match="no column score_id; write it again with"):
        explain_cell(config, "hc18/whole_image/5/real")
