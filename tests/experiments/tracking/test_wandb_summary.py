"""A sweep's summary in W&B: runs of its trials and of its outcome, logged once."""

import json
import os
import sys
import time

import numpy as np
import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from wandb_parts import clean_environment, finished_sweep, history, inspect, offline_runs
from wandb_server import WandbServer

from datamodules.storage import write_json
from experiments.plan.nodes import Node
from experiments.stages.wandb_run import clean_id, sweep_run_id
from experiments.store.guard import claim_store
from experiments.store.layout import VERSION_NAME, store_mark
from experiments.tracking.summary import fixed_images, log_sweep


@pytest.fixture(scope="module")
def logged_sweep(tmp_path_factory):
    """A sweep that was logged offline: the sweep, its folder, and its runs by id."""
    root = tmp_path_factory.mktemp("summary")
    sweep = finished_sweep(write_hc18_folder(root / "hc18"), root / "runs")
    assert log_sweep(sweep, key="k1", finding="Nothing was found.") is None
    folder = sweep.store.sweep_dir("shown")
    return sweep, folder, offline_runs(folder)


def _of(runs, word):
    (name,) = [name for name in runs if word in name]
    return inspect(runs[name])


def test_a_trial_that_is_not_done_has_no_run(logged_sweep):
    _, _, runs = logged_sweep
    assert len(runs) == 4
    assert not [name for name in runs if "warp" in name]


def test_trials_have_axes_and_scores_of_their_own(logged_sweep):
    _, _, runs = logged_sweep
    real = _of(runs, "shown-real-n4-")
    assert real["config"]["condition"] == "real"
    assert real["config"]["n_real"] == 4
    assert real["config"]["segmenter"] == "sam"
    settings = real["config"]["segmenter_settings"]
    assert settings["backbone"] == "lite", "the resolved config is there too"
    assert real["summary"]["dice/whole_image"] == pytest.approx(0.5)
    assert real["summary"]["hc_abs_err_mm/whole_image"] == pytest.approx(2.0)
    assert real["state"] == "finished"


def test_a_trial_of_another_sweep_says_whose_it_was(logged_sweep):
    _, _, runs = logged_sweep
    synthetic = _of(runs, "shown-synthetic-")
    assert synthetic["config"]["job"] == "reused"
    assert synthetic["config"]["made_by"] == "older"
    assert synthetic["summary"]["dice/whole_image"] == pytest.approx(0.75)
    assert _of(runs, "shown-real-")["config"]["job"] == "trial"
    assert _of(runs, "shown-mean_mask-")["config"]["job"] == "control"


def test_overlays_show_prediction_and_reference_of_fixed_images(logged_sweep):
    _, _, runs = logged_sweep
    shown = _of(runs, "shown-real-")["summary"]["overlays"]
    # Four of six images, evenly spaced; 004_HC would be one, but its mask was not kept.
    assert shown["captions"] == [f"{name}, whole_image" for name in ("001_HC", "002_2HC", "003_HC")]
    assert (shown["height"], shown["width"]) == (54, 80)
    for masks in shown["all_masks"]:
        assert set(masks) == {"prediction", "reference"}


def test_the_analysis_holds_tables_figure_and_finding(logged_sweep):
    _, _, runs = logged_sweep
    found = _of(runs, "shown-analysis")
    assert found["config"]["job"] == "analysis"
    assert found["summary"]["finding"] == "Nothing was found."
    assert found["summary"]["report"] == "shown/report.html"
    assert found["summary"]["results"]["nrows"] == 4
    assert found["summary"]["n_trials"] == 3
    media = runs["shown-analysis"] / "files"
    (path,) = media.rglob("trials_*.table.json")
    table = json.loads(path.read_text())
    rows = pd.DataFrame(table["data"], columns=table["columns"]).set_index("condition")
    assert rows.loc["synthetic", "job"] == "reused"
    assert rows["dice/whole_image"].to_dict() == pytest.approx(
        {"real": 0.5, "synthetic": 0.75, "mean_mask": 0.25}
    )
    assert [path.name for path in media.rglob("figure*.png")]


def test_the_analysis_draws_curves_and_nothing_else(logged_sweep):
    _, _, runs = logged_sweep
    values, x_of = history(runs["shown-analysis"])
    assert values == {
        "n_real": [4],
        "dice/real/whole_image": [0.5],
        "dice/synthetic/whole_image": [0.75],
        "dice/mean_mask/whole_image": [0.25],
        **{f"hc_mae_mm/{c}/whole_image": [2.0] for c in ("real", "synthetic", "mean_mask")},
    }
    assert x_of == {"dice/*": "n_real", "hc_mae_mm/*": "n_real"}


def test_nothing_is_logged_twice_and_new_outputs_only_once_more(logged_sweep):
    sweep, folder, runs = logged_sweep
    assert log_sweep(sweep, key="k1", finding="") is None
    assert offline_runs(folder) == runs
    first = {path.name for path in (folder / "wandb").glob("offline-run-*")}
    assert log_sweep(sweep, key="k2", finding="Now there is.") is None
    (new,) = {path.name for path in (folder / "wandb").glob("offline-run-*")} - first
    assert new.endswith("-shown-analysis"), "the same id: it is written over"
    assert not (folder / "wandb-request.json").exists()


def test_switched_off_it_writes_nothing(tmp_path, hc18_folder):
    sweep = finished_sweep(hc18_folder, tmp_path / "runs", mode="disabled")
    assert log_sweep(sweep, key="k", finding="") is None
    assert not (sweep.store.sweep_dir("shown") / "wandb").exists()


def test_what_cannot_be_logged_is_said_in_one_line_and_tried_again(tmp_path, hc18_folder):
    sweep = finished_sweep(hc18_folder, tmp_path / "runs")
    folder = sweep.store.sweep_dir("shown")
    figure = (folder / "figure.png").read_bytes()
    (folder / "figure.png").unlink()
    line = log_sweep(sweep, key="k", finding="")
    assert line.startswith("W&B did not take all of it")
    assert "\n" not in line
    known = json.loads((folder / "wandb.json").read_text())
    assert len(known) == 3, "the trials"
    assert "analysis" not in known
    (folder / "figure.png").write_bytes(figure)
    assert log_sweep(sweep, key="k", finding="") is None
    assert json.loads((folder / "wandb.json").read_text()).keys() == {*known, "analysis"}


def test_without_a_key_what_is_to_be_online_is_logged_offline(tmp_path, hc18_folder, monkeypatch):
    sweep = finished_sweep(hc18_folder, tmp_path / "runs", mode="online")
    with WandbServer() as server:
        given = clean_environment(WANDB_BASE_URL=server.url)
        monkeypatch.setattr(os, "environ", given)
        assert log_sweep(sweep, key="k", finding="") is None
    folder = sweep.store.sweep_dir("shown")
    assert len(offline_runs(folder)) == 4
    assert f"no key for {server.url}" in (folder / "wandb.log").read_text()


def test_a_process_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    from experiments.tracking import summary as wandb_summary

    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 600 & sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    started = time.monotonic()
    line = wandb_summary._in_child(tmp_path, {}, timeout_s=0.5)
    assert time.monotonic() - started < 300
    assert line.startswith("W&B took too long")
    assert os.path.relpath(tmp_path / "wandb.log") in line


@pytest.mark.parametrize(("n", "shown"), [(0, []), (1, [0]), (4, [0, 1, 2, 3]), (9, [0, 2, 4, 6])])
def test_fixed_images_are_evenly_spaced(n, shown):
    names = [f"{number:03d}_HC" for number in range(n)]
    order = np.random.default_rng(0).permutation(n).tolist()
    node = Node(stage="score", content={"test": [[names[k], "hash"] for k in order]})
    assert fixed_images(node) == [names[k] for k in shown]


def test_ids_of_two_stores_differ_and_those_of_one_stay(tmp_path):
    roots = [tmp_path / name for name in ("mine", "yours", "old")]
    for root in roots[:2]:
        claim_store(root)
    # Given, as two drawn ones may be the same.
    write_json(roots[1] / VERSION_NAME, {"layout": 1, "mark": "0bad"})
    mine, yours, old = ids = [sweep_run_id(root, "demo", "analysis") for root in roots]
    assert ids == [sweep_run_id(root, "demo", "analysis") for root in roots]
    assert mine == f"demo-analysis-{store_mark(roots[0])}"
    assert (yours, old) == ("demo-analysis-0bad", "demo-analysis")


def test_an_id_has_no_character_that_wandb_refuses():
    assert clean_id("a:b;c,d#e?f/g'h i") == "a-b-c-d-e-f-g-h-i"
    assert clean_id("x" * 128) == "x" * 128
    long = {clean_id("x" * 300 + end) for end in ("0", "1")}
    assert [len(each) for each in long] == [128, 128]
