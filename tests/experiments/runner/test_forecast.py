"""The dry run: what it counts, times computed by hand, and that it writes nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_costs import SETTINGS as COSTED
from test_costs import write_run
from test_plan import make_data
from test_sweep import SETTINGS, environment, run

from experiments.__main__ import main
from experiments.config.recipe import load_config
from experiments.plan.grid import make_plan
from experiments.plan.nodes import Node, Plan
from experiments.runner.costs import START_S
from experiments.runner.forecast import Forecast, forecast
from experiments.runner.forecast_text import WIDTH, forecast_text
from experiments.runner.progress import TimeLeft
from experiments.runner.sweep import Sweep
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


def diamond() -> Plan:
    a = fit("a", steps=10)
    b, c = fit("b", steps=50, after=(a,)), fit("c", steps=20, after=(a,))
    return plan_of(a, b, c, fit("d", steps=10, after=(b, c)))


def config_of(root: Path, *changes: str):
    settings = [*COSTED, f"store.root={root}", "sweep.workers=1"]
    return load_config("demo", [*settings, *changes])


def data_of() -> Data:
    return Data(name="hc18", samples={}, rows={}, view=make_data(), indices={})


def of(root: Path, plan: Plan, *changes: str, retry_failed: bool = True) -> Forecast:
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
    ("made", "one", "eight", "waves"),
    # Seconds of work and stages one after the other, on one device and on eight.
    [(chain(), (60, 3), (60, 3), 3), (fan_out(), (110, 4), (50, 2), 2),
     (diamond(), (90, 4), (70, 3), 3)],
)  # fmt: skip
def test_times_by_hand(measured, made, one, eight, waves):
    found = of(measured, made)
    alone, many, most = found.times
    assert [time.devices for time in found.times] == [1, 8, 64]
    assert alone.seconds == pytest.approx(one[0] + one[1] * START_S)
    assert many.seconds == most.seconds == pytest.approx(eight[0] + eight[1] * START_S)
    assert alone.utilisation == pytest.approx(1)
    assert many.utilisation == pytest.approx(alone.seconds / many.seconds / 8)
    assert found.work_device_hours == pytest.approx(alone.seconds / 3600)
    assert many.booked_device_hours == pytest.approx(8 * many.seconds / 3600)
    assert found.waves == waves
    assert found.chain_seconds == pytest.approx(eight[0] + eight[1] * START_S)
    (fits,) = found.stages
    assert (fits.runs, fits.match, fits.units) == (1, "same", one[0])


def test_two_workers_take_turns(measured):
    found = of(measured, fan_out(), "sweep.workers=2")
    # After a: b and c, then d.
    assert found.now.seconds == pytest.approx(20 + 30 + 30 + 3 * START_S)
    assert found.now.at_once == 2


def test_a_training_over_several_devices_needs_them_all(measured):
    changes = ["sweep.devices=[0,1,2,3]", "trainer.devices=4"]
    found = of(measured, fan_out(), *changes)
    alone, many, _ = found.times
    assert (alone.at_once, alone.seconds, alone.utilisation) == (0, None, None)
    # Eight devices are two groups.
    assert many.at_once == 2
    assert many.seconds == pytest.approx(80 + 3 * START_S)
    work_s = 110 + 4 * START_S
    assert many.utilisation == pytest.approx(work_s / (2 * many.seconds))
    assert found.work_device_hours == pytest.approx(4 * work_s / 3600)
    assert (found.now.devices, found.now.at_once) == (4, 1)
    assert "too few for one training" in forecast_text(found)
    # Two stages on each GPU take half a device each.
    found = of(measured, fan_out(), "sweep.devices=[0]", "sweep.per_device=2")
    assert found.times[0].at_once == 2
    assert found.work_device_hours == pytest.approx(work_s / 2 / 3600)


def test_what_is_done_costs_nothing(measured):
    made = chain()
    first, second, third = made.nodes.values()
    finish(measured, first)
    found = of(measured, made)
    assert found.times[0].seconds == pytest.approx(50 + 2 * START_S)
    assert found.waves == 2
    assert [(s.total, s.done, s.to_do, s.units) for s in found.stages] == [(3, 1, 2, 50)]
    for node in (second, third):
        finish(measured, node)
    found = of(measured, made)
    assert (found.times[0].seconds, found.times[0].utilisation, found.waves) == (0, None, 0)
    assert (found.chain, found.bytes) == ([], 0)
    assert "nothing is left to do" in forecast_text(found)
    assert "Disk" not in forecast_text(found)


def test_what_failed_is_named_and_counts_as_the_sweep_takes_it(measured):
    made = chain()
    second = list(made.nodes.values())[1]
    run_dir = measured / "store" / second.key
    run_dir.mkdir(parents=True)
    write_failed(run_dir, "ValueError: too\nbad")
    found = of(measured, made)
    assert [(f.label, f.reason, f.is_retried) for f in found.failed] == [
        ("b", "ValueError: too bad", True)
    ]
    assert found.times[0].seconds == pytest.approx(60 + 3 * START_S)
    kept = of(measured, made, retry_failed=False)
    assert not kept.failed[0].is_retried
    assert kept.blocked == 1
    assert kept.times[0].seconds == pytest.approx(10 + START_S)
    text = forecast_text(kept)
    assert "1 failed before, not tried again without --retry-failed:" in text
    assert "  b: ValueError: too bad" in text
    assert "1 stage left out" in text
    # Another attempt can mend this kind: the sweep tries it again by itself.
    write_failed(run_dir, "no room", kind="disk_full")
    again = of(measured, made, retry_failed=False)
    assert again.failed[0].is_retried
    assert again.times[0].seconds == pytest.approx(60 + 3 * START_S)


def test_an_empty_plan_has_nothing_to_do(tmp_path):
    found = of(tmp_path, plan_of())
    assert found.times[0].seconds == 0
    assert forecast_text(found).splitlines()[-1] == "nothing is left to do"


def test_nothing_measured_is_said(tmp_path):
    found = of(tmp_path, chain())
    assert found.stages[0].match == "first guess"
    # 0.8 s a step is the first guess.
    assert found.times[0].seconds == pytest.approx(48 + 3 * START_S)
    assert (found.bytes, found.bytes_unknown) == (0, ["fit"])
    text = forecast_text(found)
    assert "no run: a first guess" in text
    assert "Disk: an unknown amount by fit; prepared images come on top." in text


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
    assert found.trials == 12 + 24
    cells = {(cell.condition, cell.n_real): cell for cell in found.cells}
    assert {key: cell.trials for key, cell in cells.items()} == {
        ("real", 4): 6,
        ("real", 8): 6,
        ("synthetic", 4): 12,
        ("synthetic", 8): 12,
    }
    cell = cells["synthetic", 8]
    assert (cell.supports, cell.seeds, cell.generator_seeds, cell.folds) == (3, 2, 2, 1)
    shared = {(each.stage, each.label): each for each in found.shared}
    for stage, label in (
        ("generator", "fit generator on 20 images"),
        ("synthesize", "synthesise 40 candidates (generator on 20)"),
        ("gate", "gate 40 candidates (generator on 20)"),
        ("embed", "embed 40 candidates (generator on 20)"),
    ):
        assert (shared[stage, label].stages, shared[stage, label].trials) == (2, 12)
    # Real ones of both conditions: two seeds, and two seeds with two generators.
    few = shared["embed", "embed 4 train images"]
    assert (few.stages, few.trials) == (3, 6)
    assert shared["embed", "embed 22 test images of hc18"].trials == 36
    assert not any(each.stage == "score" for each in found.shared)
    text = forecast_text(found)
    assert "  2 x fit generator on 20 images: 12 trials" in text
    assert "real: 3 supports x 2 seeds" in text
    assert "synthetic: 3 supports x 2 seeds x 2 generator seeds" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["images", "4", "8"] in rows
    assert ["synthetic", "12", "12"] in rows


def test_many_amounts_and_long_names_fit_the_width(tmp_path):
    names = "real,real_repeated,weak,strong,warp,phantom,synthetic_same_budget_strong,unet"
    config = config_of(
        tmp_path,
        f"sweep.condition=[{names}]",
        "sweep.real_fraction=[]",
        f"sweep.real_count={list(range(3, 24))}",
        "sweep.support=[0,1,2,3,4,5,6,7,8,9,10,11]",
        "name=a-name-as-long-as-somebody-may-want-to-give-to-a-sweep-of-his-own",
    )
    made = make_plan(config, make_data())
    text = forecast_text(forecast(config, data=data_of(), plan=made))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    # 21 amounts do not stand beside each other.
    assert sum(line.startswith("images ") for line in text.splitlines()) == 3
    assert "more" in text


def time_left(root: Path, made: Plan, *changes: str, **states: str) -> float:
    """The estimate of a sweep whose stages are in these states, running ones since 10 seconds."""
    sweep = Sweep(config_of(root, *changes), data=data_of(), plan=made)
    left = TimeLeft(sweep)
    for each in sweep.runs.values():
        each.state = states.get(each.node.label, "waiting")
        each.started = time.monotonic() - 10
    return left.seconds()


def test_the_time_left_respects_inputs_and_workers(measured):
    s = START_S
    made = fan_out()
    assert time_left(measured, made) == pytest.approx(110 + 4 * s)
    assert time_left(measured, made, "sweep.workers=2") == pytest.approx(80 + 3 * s)
    # A chain gets no faster by workers; the old estimate divided by their number.
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
    left = TimeLeft(sweep)
    first, *others = sweep.runs.values()
    first.state = "done"
    write_run(tmp_path, first.node.id, seconds=100, content=first.node.content)
    # 20 steps took 100 s.
    assert left.seconds() == pytest.approx(3 * (150 + START_S))
    for each in others:
        each.state = "failed"
    assert left.seconds() == pytest.approx(3 * (150 + START_S)), "not more than once a second"


def words(data: Path, store: Path, *changes: str) -> list[str]:
    roots = [f"data.root={data}", f"store.root={store}"]
    return ["sweep", "demo", *SETTINGS, *roots, "sweep.condition=[real,strong]", *changes]


def test_a_dry_run_writes_nothing(hc18_folder, tmp_path):
    store = tmp_path / "runs"
    ended = subprocess.run(
        [sys.executable, "-m", "experiments", *words(hc18_folder, store), "--dry-run"],
        capture_output=True,
        text=True,
        env={**environment(), "COLUMNS": "40"},
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not store.exists()
    lines = ended.stdout.splitlines()
    assert max(len(line) for line in lines) <= WIDTH
    assert lines[0].startswith("toy: hc18, ")
    assert "4 trials, 0 done; 3 controls" in lines
    assert any(line.split()[:4] == ["fit", "4", "0", "4"] for line in lines)
    assert "no run: a first guess" in ended.stdout
    assert "\x1b" not in ended.stdout


def dry(monkeypatch, capsys, *given: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["sonosweep", *given, "--dry-run", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return json.loads(capsys.readouterr().out)


def listing(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.rglob("*")}


def test_a_dry_run_sees_what_a_sweep_did(hc18_folder, tmp_path, monkeypatch, capsys):
    store = tmp_path / "runs"
    always = ["evaluation.controls=[]", "evaluation.prompts=[whole_image]"]
    changes = [*always, "sweep.condition=[real]", "sweep.real_fraction=[0.5]"]
    # Without its tables and figures.
    ended = run(hc18_folder, store, *changes, name="segment")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    before = listing(store)
    again = dry(monkeypatch, capsys, *words(hc18_folder, store, *changes))
    assert (again["trials"], again["trials_done"]) == (1, 1)
    assert again["times"][0]["seconds"] == 0
    more = dry(
        monkeypatch,
        capsys,
        *words(hc18_folder, store, "sweep.real_fraction=[0.5,1.0]", *always),
    )
    assert listing(store) == before
    assert (more["trials"], more["trials_done"]) == (4, 1)
    stages = {each["stage"]: each for each in more["stages"]}
    images = more["n_train"]
    half = next(cell["n_real"] for cell in more["cells"])
    # Half of the images are embedded; eight views of each image of `strong` are seven new ones,
    # and the larger amount holds the smaller one.
    assert stages["embed"]["units"] == (images - half) + 7 * images
    assert (stages["fit"]["total"], stages["fit"]["done"], stages["fit"]["runs"]) == (4, 1, 1)
    assert stages["fit"]["match"] == "same"
    assert stages["score"]["match"] == "same"
    assert more["bytes"] > 0
    assert more["bytes_unknown"] == []
    seconds = {each["devices"]: each["seconds"] for each in more["times"]}
    assert seconds[1] >= seconds[8] >= seconds[64] >= more["chain_seconds"] - 1e-6
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


def test_a_store_of_a_newer_version_is_refused(hc18_folder, tmp_path, monkeypatch, capsys):
    store = tmp_path / "runs"
    (store / "store").mkdir(parents=True)
    (store / "store" / "VERSION.json").write_text('{"layout": 99}')
    monkeypatch.setattr(sys, "argv", ["sonosweep", *words(hc18_folder, store), "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "99" in capsys.readouterr().err
