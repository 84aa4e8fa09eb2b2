"""The dry run: what it counts, times computed by hand, and that it writes nothing."""

import json
import sys
import time
from pathlib import Path

import pytest
from plan_parts import make_data
from sweep_parts import command, run
from test_costs import SETTINGS as COSTED
from test_costs import write_run
from toy_recipe import TOY

from experiments.__main__ import main
from experiments.config.recipe import load_config
from experiments.plan.grid import make_plan
from experiments.plan.nodes import Node, Plan
from experiments.runner.forecast import WIDTH, forecast, forecast_text
from experiments.runner.sweep import Sweep
from experiments.runner.workload import START_S, Workload
from experiments.stages.data import Data
from experiments.store.runs import write_failed


def fit(name: str, *, steps: int, after: tuple[Node, ...] = ()) -> Node:
    """A stage of one second a step in a store with `measured`."""
    return Node(
        stage="fit",
        content={"segmenter": {"steps": steps}, "name": name},
        upstream={str(number): node.key for number, node in enumerate(after)},
        label=name,
        steps=steps,
    )


def plan_of(*nodes: Node) -> Plan:
    return Plan(nodes={node.key: node for node in nodes}, trials=[])


def chain() -> Plan:
    a = fit("a", steps=10)
    b = fit("b", steps=20, after=(a,))
    return plan_of(a, b, fit("c", steps=30, after=(b,)))


def fan_out() -> Plan:
    a = fit("a", steps=20)
    return plan_of(a, *(fit(name, steps=30, after=(a,)) for name in "bcd"))


def config_of(root: Path, *changes: str):
    settings = [*COSTED, f"store.root={root}", "sweep.workers=1"]
    return load_config(TOY, [*settings, *changes])


def data_of() -> Data:
    return Data(**vars(make_data()), samples={}, rows={}, indices={})


def of(root: Path, plan: Plan, *changes: str, retry_failed: bool = True) -> dict:
    config = config_of(root, *changes)
    return forecast(config, data=data_of(), plan=plan, retry_failed=retry_failed)


@pytest.fixture
def measured(tmp_path) -> Path:
    """A store in which a step of a fit took a second."""
    write_run(tmp_path, "before", seconds=40, content={"segmenter": {"steps": 40}})
    return tmp_path


def finish(root: Path, node: Node) -> None:
    write_run(root, node.id, stage=node.stage, seconds=node.steps, content=node.content)


@pytest.mark.parametrize(
    ("workers", "seconds", "starts"),
    # After a: b, c and d one after the other, two of them, or all.
    [(1, 110, 4), (2, 80, 3), (8, 50, 2)],
)
def test_times_by_hand(measured, workers, seconds, starts):
    found = of(measured, fan_out(), f"sweep.workers={workers}")
    assert found["seconds"] == pytest.approx(seconds + starts * START_S)
    assert found["at_once"] == workers
    (fits,) = found["stages"]
    assert (fits["source"], fits["units"]) == ("here", 110)
    assert fits["seconds"] == pytest.approx(110 + 4 * START_S)


def test_what_is_done_costs_nothing(measured):
    made = chain()
    first, *others = made.nodes.values()
    finish(measured, first)
    found = of(measured, made)
    assert found["seconds"] == pytest.approx(50 + 2 * START_S)
    (fits,) = found["stages"]
    assert [fits[key] for key in ("total", "done", "to_do", "units")] == [3, 1, 2, 50]
    for node in others:
        finish(measured, node)
    found = of(measured, made)
    assert (found["seconds"], found["stages"][0]["source"]) == (0, None)
    assert "nothing is left to do" in forecast_text(found)
    assert of(measured, plan_of())["seconds"] == 0


def test_what_failed_counts_as_the_sweep_takes_it(measured):
    made = chain()
    second = list(made.nodes.values())[1]
    run_dir = measured / "store" / second.key
    run_dir.mkdir(parents=True)
    write_failed(run_dir, "ValueError: too bad")
    found = of(measured, made)
    assert (found["left_out"], found["seconds"]) == (0, pytest.approx(60 + 3 * START_S))
    kept = of(measured, made, retry_failed=False)
    assert (kept["left_out"], kept["seconds"]) == (2, pytest.approx(10 + START_S))
    assert "2 stages left out: they failed, or need one that did" in forecast_text(kept)
    # Another attempt may succeed after this kind: the sweep tries it again by itself.
    write_failed(run_dir, "no room", kind="disk_full")
    again = of(measured, made, retry_failed=False)
    assert (again["left_out"], again["seconds"]) == (0, pytest.approx(60 + 3 * START_S))


def test_how_the_estimate_was_made_is_said(measured, tmp_path_factory):
    assert "at once; by medians of runs here (fit)" in forecast_text(of(measured, chain()))
    found = of(tmp_path_factory.mktemp("empty"), chain(), "segmenter.backbone=tiny")
    # 0.8 s a step is the first guess.
    assert found["seconds"] == pytest.approx(48 + 3 * START_S)
    assert "about 0:49 with 1 stage at once; by first guess (fit)" in forecast_text(found)


def test_what_is_shared_by_how_many_trials(tmp_path):
    config = config_of(
        tmp_path,
        "sweep.condition=[real,synthetic]",
        "sweep.real_count=[4,8]",
        "sweep.real_fraction=[]",
        "sweep.support=[0,1,2]",
        "sweep.seed=[0,1]",
        "synthesis.generator_count=20",
        "sweep.generator_seed=[0,1]",
    )
    made = make_plan(config, make_data())
    found = forecast(config, data=data_of(), plan=made)
    # Two amounts, three supports, two seeds; synthetic ones with two generators.
    assert found["trials"] == {"real": 12, "synthetic": 24}
    shared = {each["label"]: (each["stages"], each["trials"]) for each in found["shared"]}
    # Each of two generators, for twelve trials.
    assert shared["fit generator on 20 images"] == (2, 12)
    assert shared["synthesise 40 candidates (generator on 20 images)"] == (2, 12)
    # Real ones of both conditions: two seeds, and two seeds with two generators.
    assert shared["embed 4 train images"] == (3, 6)
    assert shared["embed 22 test images of hc18"] == (1, 36)
    assert not any(label.startswith("score") for label in shared)
    text = forecast_text(found)
    assert "36 trials, 0 done, real 12, synthetic 24" in text
    assert "  12 trials: 2 x fit generator on 20 images" in text


def test_many_conditions_and_long_names_fit_the_width(tmp_path):
    names = "real,real_repeated,weak,strong,warp,phantom,synthetic_same_budget_strong,unet"
    config = config_of(
        tmp_path,
        f"sweep.condition=[{names}]",
        "sweep.real_fraction=[]",
        f"sweep.real_count={list(range(3, 24))}",
        "name=a-name-as-long-as-somebody-may-want-to-give-to-a-sweep-of-his-own",
    )
    made = make_plan(config, make_data())
    text = forecast_text(forecast(config, data=data_of(), plan=made))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "more" in text


def time_left(root: Path, made: Plan, *changes: str, **states: str) -> float:
    """The estimate of a sweep whose stages are in these states, running ones since 10 seconds."""
    sweep = Sweep(config_of(root, *changes), data=data_of(), plan=made)
    left = Workload(sweep)
    for each in sweep.runs.values():
        each.state = states.get(each.node.label, "waiting")
        each.started = time.monotonic() - 10
    return left.seconds_left()


def test_the_time_left_respects_inputs_and_workers(measured):
    s = START_S
    made = fan_out()
    # A chain gets no faster by workers.
    assert time_left(measured, chain(), "sweep.workers=8") == pytest.approx(60 + 3 * s)
    # a has run for 10 of its 20 s.
    found = time_left(measured, made, "sweep.workers=2", a="running")
    assert found == pytest.approx(70 + 3 * s, abs=0.05)
    # What runs has its slot, wherever it stands in the plan: d ends first, c follows it.
    found = time_left(measured, made, "sweep.workers=2", a="done", d="running")
    assert found == pytest.approx(20 + 30 + 2 * s, abs=0.05)
    assert time_left(measured, made, a="failed", b="blocked", c="blocked", d="blocked") == 0
    # Longer than expected: a twentieth is left.
    late = plan_of(fit("a", steps=5))
    assert time_left(measured, late, a="running") == pytest.approx(0.05 * (5 + s))


def test_the_time_left_learns_from_the_sweep_itself(tmp_path):
    made = fan_out()
    sweep = Sweep(config_of(tmp_path), data=data_of(), plan=made)
    left = Workload(sweep)
    first, *others = sweep.runs.values()
    first.state = "done"
    write_run(tmp_path, first.node.id, seconds=100, content=first.node.content)
    # 20 steps took 100 s.
    assert left.seconds_left() == pytest.approx(3 * (150 + START_S))
    for each in others:
        each.state = "failed"
    assert left.seconds_left() == pytest.approx(3 * (150 + START_S)), "not more than once a second"


def words(data: Path, store: Path, *changes: str) -> list[str]:
    return command(data, store, "sweep.condition=[real,strong]", *changes)[3:]


def test_a_dry_run_writes_nothing(hc18_folder, tmp_path, monkeypatch, capsys):
    store = tmp_path / "runs"
    monkeypatch.setenv("COLUMNS", "40")
    printed = dry(monkeypatch, capsys, *words(hc18_folder, store))
    assert not store.exists()
    lines = printed.splitlines()
    assert max(len(line) for line in lines) <= WIDTH
    assert lines[0].startswith("toy: hc18, ")
    assert "4 trials, 0 done, real 2, strong 2; 3 controls" in lines
    assert any(line.split()[:4] == ["fit", "4", "0", "4"] for line in lines)
    assert "by first guess" in printed
    assert "\x1b" not in printed


def dry(monkeypatch, capsys, *given: str) -> str:
    monkeypatch.setattr(sys, "argv", ["sonosweep", *given, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def listing(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.rglob("*")}


@pytest.mark.long
def test_a_dry_run_sees_what_a_sweep_did(hc18_folder, tmp_path, monkeypatch, capsys):
    store = tmp_path / "runs"
    always = ["evaluation.controls=[]", "evaluation.prompts=[whole_image]"]
    changes = [*always, "sweep.condition=[real]", "sweep.real_fraction=[0.5]"]
    # Without its tables and figures.
    ended = run(hc18_folder, store, *changes, name="segment")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    before = listing(store)
    again = json.loads(dry(monkeypatch, capsys, *words(hc18_folder, store, *changes), "--json"))
    assert (again["trials"], again["trials_done"]) == ({"real": 1}, 1)
    assert again["seconds"] == 0
    both = words(hc18_folder, store, "sweep.real_fraction=[0.5,1.0]", *always)
    more = json.loads(dry(monkeypatch, capsys, *both, "--json"))
    assert listing(store) == before
    assert (more["trials"], more["trials_done"]) == ({"real": 2, "strong": 2}, 1)
    stages = {each["stage"]: each for each in more["stages"]}
    images = more["n_train"]
    half = json.loads(next((store / "store" / "fit").glob("*/DONE.json")).read_text())["n_real"]
    # Half of the images are embedded; eight views of each image of `strong` are seven new ones,
    # and the larger amount holds the smaller one.
    assert stages["embed"]["units"] == (images - half) + 7 * images
    assert (stages["fit"]["total"], stages["fit"]["done"]) == (4, 1)
    assert stages["fit"]["source"] == "here"
    assert stages["score"]["source"] == "here"
    assert more["seconds"] > 0
    assert more["free_gib"] > 0
    # What is counted as there is what the stage itself does not embed again.
    changes = [*always, "sweep.condition=[real,strong]", "sweep.real_fraction=[0.5,1.0]"]
    ended = run(hc18_folder, store, *changes, name="segment")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    embedded = sum(
        json.loads((path / "DONE.json").read_text())["embedded"]
        for path in (store / "store" / "embed").iterdir()
        if path / "DONE.json" not in before
    )
    assert embedded == stages["embed"]["units"]


def test_json_without_a_dry_run_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sonosweep", "sweep", "demo", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--dry-run" in capsys.readouterr().err
