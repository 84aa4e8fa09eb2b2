"""The rows of finished stages as outputs read them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from datamodules.integrity import file_facts, sealed
from datamodules.storage import write_json
from experiments.plan.nodes import Node, TrialSpec
from experiments.results.outputs import (
    _known_outputs,
    collect_per_image,
    collect_trials,
)
from experiments.results.report import status_line
from experiments.results.rows import KEYS
from experiments.results.statistics import add_trials, aggregate
from experiments.results.tables import blocks
from experiments.runner.sweep import NodeRun, Sweep
from experiments.store.columns import PER_IMAGE
from experiments.store.runs import RunStore, write_done


def trial(condition, *, fit=None, scores=None, **axes):
    """A trial of the grid, or a control where nothing is fitted."""
    base = {"real_fraction": 0.5, "n_real": 4, "support": 1, "seed": 2, "generator_seed": 0}
    base["fold"] = 0
    return TrialSpec(
        **base | axes,
        condition=condition,
        n_generator_labels=0,
        n_val_labels=0,
        n_total_labels=4,
        fit_key=fit,
        score_keys=scores,
    )


def control(condition, *, scores):
    return trial(condition, scores=scores, real_fraction=None, n_real=0, support=0, seed=0)


class Finished(Sweep):
    """A sweep as the outputs see it: stages in a store, each with its state."""

    def __init__(self, root):
        self.store, self.runs = RunStore(root), {}
        self.plan = SimpleNamespace(trials=[], nodes={})
        self.data = SimpleNamespace(samples={})

    def add(self, key, *, state="done", reason="", rows=None, **result):
        stage, name = key.split("/")
        node = SimpleNamespace(stage=stage, id=name, content={"test": [["x", key]]})
        self.plan.nodes[key] = node
        self.runs[key] = NodeRun(node=node, state=state, reason=reason)
        folder = self.store.run_dir(stage, name)
        folder.mkdir(parents=True)
        if rows is not None:
            empty = dict.fromkeys(PER_IMAGE)
            pd.DataFrame([empty | row for row in rows]).to_csv(
                folder / "per_image.csv", index=False
            )
        if state in ("done", "reused"):
            write_done(folder, {"seconds": 1.5, "peak_memory_mib": 100.0} | result)
        return key


@pytest.fixture
def sweep(tmp_path):
    return Finished(tmp_path)


def image(prompt="whole_image", **changes):
    base = {"test_cohort": "hc18", "prompt": prompt, "draw": 0, "sample_id": "001_HC"}
    return base | {"exam_id": "001", "found": True, "dice": 0.5, "dice_256": 0.5} | changes


def test_names_that_pandas_takes_for_missing_values_stay_names(sweep):
    row = image("tight_box", test_cohort="NA", sample_id="null", exam_id="007")
    key = sweep.add("control/abc", rows=[row])
    sweep.plan.trials = [control("box_only", scores={("NA", "tight_box"): key})]
    (found,) = collect_per_image(sweep).to_dict("records")
    assert (found["test_cohort"], found["sample_id"], found["exam_id"]) == ("NA", "null", "007")
    assert (found["condition"], found["prompt"], found["dice"]) == ("box_only", "tight_box", 0.5)


def test_rows_carry_the_axes_of_their_trial(sweep):
    whole = sweep.add("score/aaaa", rows=[image(), image(sample_id="002_HC", dice=0.7)])
    box = sweep.add("score/bbbb", state="reused", rows=[image("tight_box")])
    alone = sweep.add("control/cccc", rows=[image("tight_box", dice=0.9)])
    fit = sweep.add("fit/0123456789abcdef")
    scores = {("hc18", "whole_image"): whole, ("hc18", "tight_box"): box}
    sweep.plan.trials = [
        trial("real", fit=fit, scores=scores, fold=1),
        control("box_only", scores={("hc18", "tight_box"): alone}),
    ]
    rows = collect_per_image(sweep)
    assert set(rows.columns) == {*KEYS, *PER_IMAGE}
    assert rows["condition"].tolist() == ["real"] * 3 + ["box_only"]
    assert rows["prompt"].tolist() == ["whole_image"] * 2 + ["tight_box"] * 2
    assert rows["dice"].tolist() == [0.5, 0.7, 0.5, 0.9]
    assert set(rows["trial_id"][:3]) == {"real-n4-p1-s2-g0-f1-01234567"}
    assert rows["trial_id"][3] == "box_only-cccc"
    assert rows["fold"].tolist() == [1, 1, 1, 0]
    assert rows["seed"][:3].tolist() == [2, 2, 2]
    # A control has neither a support nor a seed: its rows are not those of seed 0.
    for axis in ("real_fraction", "support", "seed", "generator_seed"):
        assert np.isnan(rows[axis][3])


def test_exams_are_those_of_the_data_as_they_are_now(sweep):
    """A column of the CSV may have joined images since they were scored."""
    key = sweep.add("score/aaaa", rows=[image(), image(sample_id="002_HC", exam_id="002")])
    sweep.plan.trials = [trial("real", fit=key, scores={("hc18", "whole_image"): key})]
    assert collect_per_image(sweep)["exam_id"].tolist() == ["001", "002"]
    sweep.data.samples = {"002_HC": SimpleNamespace(exam_id="001")}
    assert collect_per_image(sweep)["exam_id"].tolist() == ["001", "001"]


def test_what_is_not_done_has_no_rows(sweep):
    done = sweep.add("score/aaaa", rows=[image()])
    failed = sweep.add("score/bbbb", state="failed", reason="no", rows=[image("tight_box")])
    fit = sweep.add("fit/0123456789abcdef")
    scores = {("hc18", "whole_image"): done, ("hc18", "tight_box"): failed}
    sweep.plan.trials = [trial("real", fit=fit, scores=scores)]
    assert collect_per_image(sweep)["prompt"].tolist() == ["whole_image"]
    sweep.plan.trials = [trial("real", fit=fit, scores={("hc18", "tight_box"): failed})]
    rows = collect_per_image(sweep)
    assert rows.empty
    assert set(rows.columns) == {*KEYS, *PER_IMAGE}


def test_a_trials_cost_is_that_of_its_fit_and_its_scores(sweep):
    fit = sweep.add("fit/aaaa", seconds=10.0, peak_memory_mib=900.0, steps=40, n_synthetic=7)
    first = sweep.add("score/bbbb", seconds=2.0, peak_memory_mib=300.0)
    second = sweep.add("score/cccc", seconds=0.5, peak_memory_mib=1000.0)
    alone = sweep.add("control/dddd", seconds=3.0, peak_memory_mib=50.0)
    sweep.plan.trials = [
        trial("warp", fit=fit, scores={("hc18", "a"): first, ("hc18", "b"): second}),
        control("mean_mask", scores={("hc18", "a"): alone}),
    ]
    own, again, beside = collect_trials(sweep).to_dict("records")
    assert (own["status"], own["reason"]) == ("done", "")
    assert (own["seconds"], own["peak_memory_mib"]) == (12.5, 1000.0)
    assert (own["steps"], own["n_synthetic"]) == (40, 7)
    assert (again["prompt"], again["seconds"]) == ("b", 12.5), "of the whole trial"
    assert (beside["status"], beside["seconds"]) == ("done", 3.0)
    assert np.isnan(beside["steps"])


def test_a_trial_that_is_scored_in_part_is_done_there_and_failed_elsewhere(sweep):
    done = sweep.add("score/aaaa", rows=[image()], seconds=2.0, peak_memory_mib=300.0)
    failed = sweep.add("score/bbbb", state="failed", reason="no space")
    waits = sweep.add("score/cccc", state="pending")
    fit = sweep.add("fit/0123456789abcdef", seconds=10.0, peak_memory_mib=900.0, steps=40)
    scores = {("hc18", "whole_image"): done, ("hc18", "tight_box"): failed, ("es", "a"): waits}
    sweep.plan.trials = [trial("real", fit=fit, scores=scores)]
    trials = collect_trials(sweep)
    assert trials["status"].tolist() == ["done", "failed", "pending"]
    found = add_trials(aggregate(collect_per_image(sweep)), trials=trials)
    shown = found[["test_cohort", "prompt", "status", "reason"]].to_numpy().tolist()
    assert shown == [
        ["hc18", "whole_image", "done", ""],
        ["hc18", "tight_box", "failed", "no space"],
        ["es", "a", "pending", ""],
    ]
    assert found["dice_mean"].notna().tolist() == [True, False, False]
    assert "1 trial · 1 failed" in status_line(found)
    notes = {(block.test_cohort, block.prompt): block.notes for block in blocks(found)}
    assert notes == {
        ("hc18", "whole_image"): ("",),
        ("hc18", "tight_box"): ("failed: no space",),
        ("es", "a"): ("pending",),
    }


def test_each_row_names_the_stages_behind_it(sweep):
    fit = sweep.add("fit/aaaa")
    scores = {("hc18", "a"): sweep.add("score/bbbb"), ("hc18", "b"): sweep.add("score/cccc")}
    sweep.plan.trials = [
        trial("real", fit=fit, scores=scores),
        control("mean_mask", scores={("hc18", "a"): sweep.add("control/dddd")}),
    ]
    found = collect_trials(sweep)
    assert found["test_images"].nunique() == 3
    assert found["score_id"].tolist() == ["score/bbbb", "score/cccc", "control/dddd"]
    assert found["fit_id"].tolist()[:2] == ["fit/aaaa"] * 2
    assert found["fit_id"].isna().tolist() == [False, False, True]
    assert found["real_fraction"].dtype == np.float64


@pytest.mark.parametrize("changed", [["a", "1"], ["c", "2"]])
def test_the_hash_is_of_the_images_and_what_they_are_scored_against(sweep, changed):
    key = sweep.add("score/bbbb")
    sweep.plan.trials = [control("mean_mask", scores={("hc18", "a"): key})]

    def hashed(*test):
        sweep.plan.nodes[key].content["test"] = list(test)
        return collect_trials(sweep)["test_images"][0]

    one, two = ["a", "0"], ["b", "2"]
    assert hashed(one, two) == hashed(two, one)
    assert hashed(one, two) != hashed(changed, two)


def written(folder):
    facts = file_facts(folder, [path.name for path in folder.iterdir()])
    content = {"key": "k", "finding": "none", "files": facts}
    write_json(folder / "outputs.json", sealed(content))
    return content


def test_outputs_that_are_what_was_written_are_kept_and_others_are_not(tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n3,4\n")
    content, marker, lines = written(tmp_path), tmp_path / "outputs.json", []

    def known(key="k"):
        lines.clear()
        return _known_outputs(marker, key=key, say=lines.append)

    assert (known(), lines) == (content, [])
    assert (known("other"), lines) == (None, [])
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    words = f"{tmp_path}/results.csv has 8 bytes instead of 12, so the outputs are written anew"
    assert (known(), lines) == (None, [words])
    for damaged in ('{"key": "k", ', "", marker.read_text().replace("none", "nane")):
        marker.write_text(damaged)
        words = f"{marker}: cannot be read, so the outputs are written anew"
        assert (known(), lines) == (None, [words])
    marker.unlink()
    assert (known(), lines) == (None, [])


@pytest.mark.parametrize(
    ("fit_state", "score_state", "status"),
    [
        ("done", "done", "done"),
        ("reused", "reused", "done"),
        ("failed", "blocked", "failed"),
        ("done", "failed", "failed"),
        ("waiting", "waiting", "pending"),
        ("done", "waiting", "pending"),
        ("done", "running", "pending"),
    ],
)
def test_a_trial_is_done_when_all_its_stages_are(sweep, fit_state, score_state, status):
    def reason(state):
        return f"it is {state}" if state in ("failed", "blocked") else ""

    fit = sweep.add("fit/aaaa", state=fit_state, reason=reason(fit_state))
    score = sweep.add("score/bbbb", state=score_state, reason=reason(score_state))
    sweep.plan.trials = [trial("real", fit=fit, scores={("hc18", "a"): score})]
    (found,) = collect_trials(sweep).to_dict("records")
    assert found["status"] == status
    assert found["reason"] == reason(fit_state if fit_state == "failed" else score_state)
    assert np.isnan(found["seconds"]) == (status != "done")


@pytest.mark.parametrize("state", ["waiting", "failed"])
def test_what_is_scored_is_done_though_its_fit_is_to_be_made_again(sweep, state):
    fit = sweep.add("fit/aaaa", state=state)
    scores = [sweep.add("score/bbbb", rows=[image()]), sweep.add("score/cccc", state="waiting")]
    places = {("hc18", "whole_image"): scores[0], ("es", "whole_image"): scores[1]}
    sweep.plan.trials = [trial("real", fit=fit, scores=places)]
    found = add_trials(aggregate(collect_per_image(sweep)), trials=collect_trials(sweep))
    other = "failed" if state == "failed" else "pending"
    assert found["status"].tolist() == ["done", other]
    assert found["dice_mean"].notna().tolist() == [True, False]


def test_a_trial_is_named_by_what_was_fitted_and_a_control_by_its_score():
    node = Node(stage="fit", content={"a": 1})
    spec = trial("real", fit=node.key, scores={("hc18", "a"): "score/ffff"})
    assert spec.id == f"real-n4-p1-s2-g0-{node.id[:8]}"
    assert list(spec.keys) == [node.key, "score/ffff"]
    beside = control("zero_shot", scores={("b", "x"): "score/ffff0000aa", ("a", "x"): "score/0123"})
    assert beside.id == "zero_shot-0123"
    assert beside.is_control
    assert not spec.is_control
