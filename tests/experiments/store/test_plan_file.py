"""plan.json: what a sweep refers to, what a changed recipe does to it, and newer versions."""

import dataclasses
import functools
import json
import re
import secrets
import threading
import time

import pytest
from plan_parts import make_data
from store_parts import plan_sweep, run_command, small_plan
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.plan.grid import box_plan, make_plan
from experiments.plan.nodes import Plan
from experiments.plan.record import planned, record_plan, refuse_another
from experiments.store.guard import claim_store, use_sweep
from experiments.store.layout import NewerLayoutError, check_version, store_mark
from experiments.store.plan_file import PlanFile, read_plan, write_plan


@functools.cache
def plan(*overrides: str) -> Plan:
    return make_plan(load_config(TOY, list(overrides)), make_data())


def test_a_plan_is_read_as_it_was_written(tmp_path):
    made = plan()
    write_plan(tmp_path, planned(made))
    found = read_plan(tmp_path)
    assert found == planned(made)
    assert [stage.key for stage in found.stages] == list(made.nodes)
    assert [trial.id for trial in found.trials] == [spec.id for spec in made.trials]
    for stage in found.stages:
        node = made.nodes[stage.key]
        assert (stage.label, stage.stage, stage.steps) == (node.label, node.stage, node.steps)
        assert set(stage.upstream) == set(node.upstream.values())
    trial, spec = found.trials[0], made.trials[0]
    assert (trial.condition, trial.n_real, trial.seed) == (spec.condition, spec.n_real, spec.seed)
    assert trial.keys == tuple(spec.keys)
    assert {t.is_control for t in found.trials} == {True, False}
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["layout"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


GONE = "; what is done of them stays in the store"


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("sweep.seed=[0]", "sweep.seed=[0]", None),
        # There are three amounts, of which each has a seed more, less or another.
        ("sweep.seed=[0]", "sweep.seed=[0,1]", "new trials: 3"),
        ("sweep.seed=[0,1]", "sweep.seed=[0]", f"trials no longer in the recipe: 3{GONE}"),
        (
            "sweep.seed=[0,1]",
            "sweep.seed=[1,2]",
            f"new trials: 3, trials no longer in the recipe: 3{GONE}",
        ),
        # A jittered score for each amount.
        (
            "evaluation.jitter_draws=8",
            "evaluation.jitter_draws=7",
            f"new stages: 3, stages no longer in the recipe: 3{GONE}",
        ),
    ],
)
def test_a_changed_recipe_says_what_is_new_and_what_is_gone(tmp_path, old, new, change):
    of = functools.partial(plan, "sweep.condition=[real]", "evaluation.controls=[]")
    assert record_plan(tmp_path, of(old)) is None
    said = record_plan(tmp_path, of(new))
    assert said == (change and f"the recipe or its data changed: {change}")
    assert read_plan(tmp_path) == planned(of(new))


def test_only_the_plan_of_a_running_sweep_may_be_written_again(tmp_path):
    folder, other = tmp_path / "toy", plan("sweep.condition=[real]", "sweep.seed=[7]")
    folder.mkdir()
    grid = plan("sweep.condition=[real]", "sweep.seed=[0]")
    record_plan(folder, grid)
    refuse_another(folder, other)
    with use_sweep(folder):
        refuse_another(folder, grid)
        with pytest.raises(InputError, match=r"toy runs now with another .*\(name=\.\.\.\)"):
            refuse_another(folder, other)
    refuse_another(folder, other)


def test_a_box_figure_stays_a_part_of_its_sweep(tmp_path):
    config, data = load_config(TOY, []), make_data()
    grid = make_plan(config, data)
    box, key = box_plan(config, data)
    whole = dataclasses.replace(grid, nodes=grid.nodes | box.nodes)
    record_plan(tmp_path, grid)
    assert record_plan(tmp_path, whole) is None, "a figure is no change of the recipe"
    assert record_plan(tmp_path, grid) is None
    assert key in read_plan(tmp_path).keys
    # Its model is another one now.
    record_plan(tmp_path, plan("segmenter.steps=7"))
    assert key not in read_plan(tmp_path).keys


@pytest.mark.parametrize(
    "text",
    ['{"layout": 1, "nod', "[]", '{"layout": 1}', '{"layout": "one"}', '{"layout": true}', ""],
)
def test_a_damaged_plan_is_one_line_and_does_not_stop_the_next_start(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_plan(tmp_path)
    assert "plan.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert record_plan(tmp_path, plan()) is None
    assert read_plan(tmp_path) == planned(plan())


@pytest.mark.parametrize("key", ["../fit", "fit/..", "fit/a0/x", "/fit/a0", "fit", 7, None])
def test_a_stage_of_another_shape_is_damage(tmp_path, key):
    folder = plan_sweep(tmp_path, "a", small_plan())
    content = json.loads((folder / "plan.json").read_text())
    if key is None:
        del content["nodes"][0]["label"]
    else:
        content["nodes"][0]["key"] = key
    (folder / "plan.json").write_text(json.dumps(content))
    what = "'label'" if key is None else "is no stage/id"
    with pytest.raises(InputError, match=rf"plan.json: damaged \(.*{what}\); .*report"):
        read_plan(folder)


def test_a_plan_that_lost_its_stages_is_damage(tmp_path):
    folder = plan_sweep(tmp_path, "a", dataclasses.replace(small_plan(), stages=()))
    with pytest.raises(InputError, match=r"damaged \('fit/b0' of a trial is none of its stages"):
        read_plan(folder)
    write_plan(folder, PlanFile(stages=(), trials=()))
    (folder / "results.csv").write_text("trial_id,fit_id\n")
    assert read_plan(folder) == PlanFile(stages=(), trials=())
    (folder / "results.csv").write_text("trial_id,fit_id\nt,fit/b0\n")
    with pytest.raises(InputError, match=r"damaged \(it names nothing, and results.csv has rows"):
        read_plan(folder)


def test_no_plan_names_the_way_to_one(tmp_path):
    with pytest.raises(InputError, match=r"no such file; `sonosweep report .*config.yaml` writes"):
        read_plan(tmp_path / "old")


def test_a_newer_plan_is_neither_read_nor_written_over(tmp_path):
    text = json.dumps({"layout": 2, "graph": {}})
    (tmp_path / "plan.json").write_text(text)
    for action in (lambda: read_plan(tmp_path), lambda: record_plan(tmp_path, plan())):
        with pytest.raises(NewerLayoutError, match=r"newer sonosweep \(layout 2, here 1\)"):
            action()
    assert (tmp_path / "plan.json").read_text() == text


@pytest.mark.parametrize("is_old", [False, True])
def test_a_store_is_marked_once(tmp_path, is_old):
    """One that was made before there were versions is taken."""
    if is_old:
        (tmp_path / "store" / "fit" / "0123").mkdir(parents=True)
    check_version(tmp_path)
    assert (tmp_path / "store").exists() == is_old
    claim_store(tmp_path)
    path = tmp_path / "store" / "VERSION.json"
    content = json.loads(path.read_text())
    assert content == {"layout": 1, "mark": store_mark(tmp_path)}
    assert re.fullmatch("[0-9a-f]{4}", content["mark"])
    written = path.stat().st_mtime_ns
    claim_store(tmp_path)
    assert path.stat().st_mtime_ns == written


def test_two_first_sweeps_draw_one_mark(tmp_path, monkeypatch):
    token_hex, marks = secrets.token_hex, []

    def slow(n):
        time.sleep(0.2)
        return token_hex(n)

    def claim():
        claim_store(tmp_path)
        marks.append(store_mark(tmp_path))

    monkeypatch.setattr(secrets, "token_hex", slow)
    threads = [threading.Thread(target=claim) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert marks == [store_mark(tmp_path)] * 3
    assert marks[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"layout": 9}', "layout 9, here 1"), ("{", "damaged"), ('{"layout": null}', "no layout")],
)
def test_a_store_of_a_newer_version_is_refused_untouched(tmp_path, text, words):
    path = tmp_path / "store" / "VERSION.json"
    path.parent.mkdir()
    path.write_text(text)
    for action in (check_version, claim_store):
        with pytest.raises(InputError, match=words):
            action(tmp_path)
    assert path.read_text() == text


def test_a_newer_store_ends_the_command_with_one_line(tmp_path, hc18_folder, monkeypatch, capsys):
    runs = tmp_path / "runs"
    (runs / "store").mkdir(parents=True)
    (runs / "store" / "VERSION.json").write_text('{"layout": 2}')
    words = [f"data.root={hc18_folder}", f"store.root={runs}", "segmenter.backbone=tiny"]
    code, _, err = run_command(monkeypatch, capsys, "sweep", "demo", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {runs / 'store' / 'VERSION.json'}: written by a newer sonosweep")
    assert [path.name for path in runs.iterdir()] == ["store"]
