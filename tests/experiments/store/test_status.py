"""`sonosweep status`: states from markers and locks, reasons, logs, and files that vanish."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from store_parts import Held, begin, fail, finish, plan_sweep, progress, small_plan, stage, trial

from datamodules.errors import InputError
from experiments.store.guard import is_held, is_used, use_sweep
from experiments.store.plan_file import PlanFile
from experiments.store.status import (
    as_json,
    find_sweep,
    last_lines,
    read_sweep,
    trial_state,
)
from experiments.store.status_view import ago

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    """A sweep of which nothing has begun."""
    return plan_sweep(tmp_path / "runs", "night", small_plan())


@pytest.fixture
def busy(folder):
    """One trial done, one running, one interrupted, one blocked by a generator that failed."""
    root = folder.parent
    finish(root, "embed/e1", "fit/a0", "score/a0", "control/c0")
    log = "loading\nstep 1\x1b[31m red\x1b[0m\nTraceback\n  line 3\nValueError: loss is nan\n\n"
    fail(root, "generator/g1", "ValueError: loss is\n nan", log=log)
    run_dir = begin(root, "fit/a1", status=progress(3, 40, ago_s=7))
    begin(root, "fit/b0", status=progress(12, 40, ago_s=4000))
    with Held(run_dir):
        yield folder


def states(folder: Path) -> dict[str, str]:
    return {stage.key: stage.state for stage in read_sweep(folder).stages}


def command(*words: str, columns: int = 60) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments", "status", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": str(columns)},
        cwd=ROOT,
        check=False,
    )


def test_nothing_has_begun(folder):
    status = read_sweep(folder)
    assert (status.name, status.is_running) == ("night", False)
    assert status.counts == {"waiting": 12}
    assert status.trials == {"waiting": 4}
    assert not (folder.parent / "store").exists(), "looking writes nothing"


def test_every_state_is_told_from_markers_and_locks(busy):
    assert states(busy) == {
        "embed/e1": "done",
        "generator/g1": "failed",
        "gate/p1": "blocked",
        "fit/a0": "done",
        "score/a0": "done",
        "fit/a1": "running",
        "score/a1": "waiting",
        "fit/b0": "interrupted",
        "score/b0": "waiting",
        "fit/s0": "blocked",
        "score/s0": "blocked",
        "control/c0": "done",
    }
    status = read_sweep(busy)
    assert status.trials == {"done": 1, "running": 1, "blocked": 1, "interrupted": 1}
    assert [(cell.condition, cell.n_real, cell.trials) for cell in status.cells] == [
        ("real", 4, {"done": 1, "running": 1}),
        ("real", 8, {"interrupted": 1}),
        ("synthetic", 4, {"blocked": 1}),
        ("mean_mask", 0, {"done": 1}),
    ]
    (failed,) = status.of("failed")
    assert failed.reason == "ValueError: loss is nan"
    assert failed.kind == "error"
    assert failed.log_tail == (
        "loading",
        "step 1 red",
        "Traceback",
        "  line 3",
        "ValueError: loss is nan",
    )
    (running,) = status.of("running")
    assert (running.what, running.done, running.total) == ("steps", 3, 40)
    assert running.age_s == pytest.approx(7, abs=5)
    blocked = status.of("blocked")
    assert [stage.reason for stage in blocked][-1].endswith(
        "fit generator on 4 images: ValueError: loss is nan"
    )


def test_a_stage_that_is_tried_again_is_running_and_not_failed(folder):
    run_dir = fail(folder.parent, "generator/g1", "ValueError: first time")
    with Held(run_dir):
        assert states(folder)["generator/g1"] == "running"
        assert states(folder)["gate/p1"] == "waiting"
    assert states(folder)["generator/g1"] == "failed"


def test_a_folder_in_which_nothing_began_is_waiting(folder):
    run_dir = folder.parent / "store" / "fit" / "a0"
    run_dir.mkdir(parents=True)
    (run_dir / ".lock").touch()
    assert states(folder)["fit/a0"] == "waiting"
    with Held(run_dir):
        assert states(folder)["fit/a0"] == "running"


@pytest.mark.parametrize("text", ["", '{"what": "st', "[]", "null", '{"done": "x", "time": "y"}'])
@pytest.mark.parametrize("name", ["status.json", "manifest.json"])
def test_half_written_files_say_nothing_and_stop_nothing(folder, name, text):
    run_dir = begin(folder.parent, "fit/a0")
    (run_dir / name).write_text(text)
    (found,) = read_sweep(folder).of("interrupted")
    assert (found.key, found.done, found.total, found.age_s) == ("fit/a0", 0, 0, None)


def test_a_half_written_failure_is_an_interruption(folder):
    run_dir = begin(folder.parent, "fit/a0")
    (run_dir / "FAILED.json").write_text('{"rea')
    assert states(folder)["fit/a0"] == "interrupted"
    (run_dir / "FAILED.json").write_text("{}")
    (failed,) = read_sweep(folder).of("failed")
    assert failed.reason == "no reason is known"
    (run_dir / "log.txt").unlink()
    assert read_sweep(folder).of("failed")[0].log_tail == ()


def test_files_that_vanish_while_they_are_read(busy, monkeypatch):
    def gone(self, *_, **__):
        raise FileNotFoundError(2, "gone", str(self))

    read_text = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: (read_text if self.name == "plan.json" else gone)(self, *a, **k),
    )
    monkeypatch.setattr("experiments.store.status.check_version", lambda root: None)
    status = read_sweep(busy)
    assert status.counts["done"] == 4
    assert status.of("running")[0].age_s is None


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["done", "done"], "done"),
        (["done", "waiting"], "waiting"),
        (["done", "running"], "running"),
        (["failed", "blocked"], "failed"),
        (["interrupted", "waiting"], "interrupted"),
        (["running", "interrupted"], "running"),
        (["done"], "waiting"),  # the other stage is not known
    ],
)
def test_a_trial_is_what_its_stages_are(own, expected):
    found = dict(zip(["fit/a", "score/a"], own, strict=False))
    assert trial_state(trial("real", 4, "fit/a", "score/a"), found) == expected


def test_locks_tell_who_is_at_it(tmp_path):
    assert not is_held(tmp_path)
    assert not is_used(tmp_path)
    (tmp_path / ".lock").touch()
    assert not is_held(tmp_path)
    with Held(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with use_sweep(tmp_path), use_sweep(tmp_path):
        assert is_used(tmp_path)
        assert not is_held(tmp_path), "several may lead one sweep"
    assert not is_used(tmp_path)
    with Held(tmp_path, kind=fcntl.LOCK_SH):
        assert not is_held(tmp_path), "somebody else who looks is no holder"


def test_a_lock_that_cannot_be_asked_counts_as_held(tmp_path):
    (tmp_path / ".lock").mkdir()
    assert is_held(tmp_path)


def test_a_running_sweep_is_said_to_run(folder):
    with use_sweep(folder):
        assert read_sweep(folder).is_running
    assert not read_sweep(folder).is_running


def test_the_end_of_a_log(tmp_path):
    path = tmp_path / "log.txt"
    assert last_lines(path, count=3) == ()
    path.write_bytes(b"one\ntwo\r\n10%\r55%\rthree \x1b[1mbold\x1b[0m\x07\n\n   \n\xff four")
    assert last_lines(path, count=3) == ("two", "three bold", "\ufffd four")
    assert last_lines(path, count=9)[0] == "one"
    assert last_lines(path, count=0) == ()
    path.write_text("x" * 100_000 + "\nlast\n")
    assert last_lines(path, count=1) == ("last",)
    path.write_text("")
    assert last_lines(path, count=5) == ()


def test_a_sweep_is_found_by_name_and_by_path(folder, monkeypatch):
    assert find_sweep("night", root=folder.parent) == folder
    assert find_sweep(str(folder), root=Path("/nowhere")) == folder
    monkeypatch.chdir(folder)
    assert read_sweep(find_sweep(".", root=Path("/nowhere"))).name == "night"
    with pytest.raises(InputError, match="nigth: no such sweep; there is night"):
        find_sweep("nigth", root=folder.parent)
    with pytest.raises(InputError, match="holds none; give --root"):
        find_sweep("night", root=folder)


def test_a_sweep_from_before_there_were_plans_names_the_way_out(folder):
    (folder / "plan.json").unlink()
    with pytest.raises(InputError, match=r"plan.json: there is no such file; `sonosweep report "):
        find_sweep("night", root=folder.parent)


def test_a_newer_store_is_refused(folder):
    (folder.parent / "store").mkdir()
    (folder.parent / "store" / "VERSION.json").write_text('{"layout": 2}')
    with pytest.raises(InputError, match="newer"):
        read_sweep(folder)


def test_json_names_every_state(busy):
    ended = command("night", "--root", str(busy.parent), "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found == json.loads(json.dumps(as_json(read_sweep(busy)))) | {
        "running": found["running"],
        "interrupted": found["interrupted"],
    }
    assert found["stages"] == {
        "done": 4,
        "running": 1,
        "failed": 1,
        "blocked": 3,
        "interrupted": 1,
        "waiting": 2,
    }
    assert found["trials"]["failed"] == 0
    assert found["failures"][0]["key"] == "generator/g1"
    assert found["running"][0]["done"] == 3


def test_the_screen_is_whole_at_60_columns(busy):
    ended = command(str(busy))
    assert ended.returncode == 0, ended.stderr
    printed = ended.stdout
    assert "night: its jobs run without it" in printed
    assert "4 trials: 1 done, 1 running, 1 blocked, 1 interrupted" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["real", "4", "1", "done,", "1", "running"] in rows
    assert ["8", "1", "interrupted"] in rows
    assert ["mean_mask", "1", "done"] in rows
    assert "fit real, 4 images, seed 1: steps 3/40" in printed
    assert "fit real, 8 images, seed 0: steps 12/40, 67 min ago" in printed
    assert "ValueError: loss is nan" in printed
    assert "    | Traceback" in printed
    assert "--retry-failed" in printed
    assert "\x1b" not in printed
    long = [line for line in printed.splitlines() if len(line) > 60]
    assert all(line.strip().endswith("log.txt") for line in long), long


def test_a_long_condition_keeps_its_row_within_60_columns(tmp_path):
    name = "synthetic_same_budget_without_anything_else"
    keys = [f"fit/{i}" for i in range(6)]
    plan = PlanFile(
        stages=tuple(stage(key) for key in keys),
        trials=tuple(trial(name, 128, key, seed=i) for i, key in enumerate(keys)),
    )
    folder = plan_sweep(tmp_path, "long", plan)
    finish(tmp_path, *keys[:2])
    fail(tmp_path, keys[2], "boom " * 40)
    begin(tmp_path, keys[3])
    ended = command(str(folder))
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert all(len(line) <= 60 for line in lines if not line.strip().endswith("log.txt"))
    assert "6 trials: 2 done, 1 failed, 1 interrupted, 2 waiting" in ended.stdout


def test_an_unknown_sweep_is_one_line(tmp_path):
    ended = command("nothing", "--root", str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: nothing: no such sweep")
    assert ended.stderr.count("\n") == 1


def test_nothing_heavy_is_imported(folder):
    script = (
        "import sys\n"
        "sys.argv = ['sonosweep', 'status', sys.argv[1]]\n"
        "from experiments.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n"
        "    print(ended.code, {'torch', 'lightning', 'pandas', 'cv2'} & set(sys.modules))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert ended.stdout.splitlines()[-1] == "0 set()", ended.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "2 h"), (172800, "2 d")],
)
def test_spans_of_time(seconds, text):
    assert ago(seconds) == text
