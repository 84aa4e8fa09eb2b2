"""`sonosweep status`: states from markers and locks, reasons, logs, and files that vanish."""

import fcntl
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from store_parts import (
    Held,
    begin,
    fail,
    finish,
    plan_sweep,
    progress,
    run_command,
    small_plan,
    stage,
    trial,
)

from datamodules.errors import InputError
from experiments.store.guard import is_held, is_used, use_sweep
from experiments.store.plan_file import PlanFile
from experiments.store.screen import format_duration
from experiments.store.status import STATES, find_sweep, last_lines, read_sweep, trial_state

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
    run_dir = begin(root, "fit/a1", status=progress(3, 40, ago_s=200))
    begin(root, "fit/b0", status=progress(12, 40, ago_s=4000))
    with Held(run_dir):
        yield folder


def counts(**states: int) -> dict[str, int]:
    return dict.fromkeys(STATES, 0) | states


def states(folder: Path) -> dict[str, str]:
    return {stage.key: stage.state for stage in read_sweep(folder).stages}


def test_nothing_has_begun(folder):
    status = read_sweep(folder)
    assert (status.name, status.is_running) == ("night", False)
    assert (status.counts, status.trials) == (counts(waiting=12), counts(waiting=4))
    assert not (folder.parent / "store").exists(), "looking writes nothing"


def test_every_state_is_told_from_markers_and_locks(busy):
    assert states(busy) == {
        **{"embed/e1": "done", "generator/g1": "failed", "gate/p1": "blocked"},
        **{"fit/a0": "done", "score/a0": "done", "fit/a1": "running", "score/a1": "waiting"},
        **{"fit/b0": "interrupted", "score/b0": "waiting", "control/c0": "done"},
        **{"fit/s0": "blocked", "score/s0": "blocked"},
    }
    status = read_sweep(busy)
    assert status.of("blocked")[-1].reason == (
        "fit synthetic, 4 images: gate 4 candidates: fit generator on 4 images: ValueError: loss "
        "is nan"
    )


SCREEN = """\
night: its jobs run without it
4 trials: 1 done, 1 running, 1 blocked, 1 interrupted
12 stages: 4 done, 1 running, 1 failed, 3 blocked, 1
interrupted, 2 waiting

condition  images  trials
real            4  1 done, 1 running
                8  1 interrupted
synthetic       4  1 blocked
mean_mask          1 done

running:
  fit real, 4 images, seed 1: steps 3/40, 3 min ago

interrupted:
  fit real, 8 images, seed 0: steps 12/40, 67 min ago

failed:
  fit generator on 4 images
    ValueError: loss is nan
    {log}
    | loading
    | step 1 red
    | Traceback
    |   line 3
    | ValueError: loss is nan

once the cause is fixed: sonosweep sweep ... --retry-failed
"""


def test_the_screen_is_whole_at_60_columns(busy, monkeypatch, capsys):
    monkeypatch.chdir(busy)
    log = "../store/generator/g1/log.txt"
    assert run_command(monkeypatch, capsys, "status", busy) == (0, SCREEN.format(log=log), "")


TABLE = """\
segmenter  condition       generator       images  trials
sam        real                                 4  1 done
           synthetic_same  pixel                4  1 done
           _budget_strong
                           stable_diffusi       4  1 waiting
                           on
unet       real                                 4  1 done
                                                8  1 waiting
           box_only                                1 waiting
"""


@pytest.mark.parametrize("shown", ["segmenter condition generator", "segmenter condition"])
def test_several_segmenters_and_generators_are_named(tmp_path, monkeypatch, capsys, shown):
    trials = [
        replace(trial(condition, n, f"fit/{k}"), segmenter=segmenter, generator=generator)
        for k, (segmenter, generator, condition, n) in enumerate(
            [
                ("sam", "", "real", 4),
                ("sam", "pixel", "synthetic_same_budget_strong", 4),
                ("unet", "", "real", 8),
                ("unet", "", "real", 4),
                ("sam", "stable_diffusion", "synthetic_same_budget_strong", 4),
            ][: 5 if "generator" in shown else 4]
        )
    ]
    trials.append(replace(trial("box_only", 0, "fit/9", is_control=True), segmenter=""))
    plan = PlanFile(stages=tuple(stage(each.keys[0]) for each in trials), trials=tuple(trials))
    folder = plan_sweep(tmp_path, "axes", plan)
    finish(tmp_path, "fit/0", "fit/1", "fit/3")
    table = run_command(monkeypatch, capsys, "status", folder)[1].split("\n\n")[1]
    assert table.splitlines()[0].split() == [*shown.split(), "images", "trials"]
    if "generator" in shown:
        assert table + "\n" == TABLE


def test_several_choices_of_images_are_named(tmp_path, monkeypatch, capsys):
    trials = [replace(trial("real", 4, f"fit/{k}"), choice=choice)
              for k, choice in enumerate(("random", "coverage"))]  # fmt: skip
    plan = PlanFile(stages=tuple(stage(each.keys[0]) for each in trials), trials=tuple(trials))
    folder = plan_sweep(tmp_path, "choices", plan)
    finish(tmp_path, "fit/0")
    table = run_command(monkeypatch, capsys, "status", folder)[1].split("\n\n")[1]
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["condition", "choice", "images", "trials"]
    assert rows[1:] == [["real", "random", "4", "1", "done"], ["coverage", "4", "1", "waiting"]]


def test_json_names_every_state(busy, monkeypatch, capsys):
    words = ("status", "night", "--root", busy.parent, "--json")
    code, out, _ = run_command(monkeypatch, capsys, *words)
    found = json.loads(out)
    assert code == 0
    assert (found["sweep"], found["folder"], found["is_running"]) == ("night", str(busy), False)
    assert found["stages"] == counts(
        done=4, running=1, failed=1, blocked=3, interrupted=1, waiting=2
    )
    assert found["trials"] == counts(done=1, running=1, blocked=1, interrupted=1)
    assert found["cells"][0] == {
        **{"segmenter": "sam", "condition": "real", "generator": "", "n_real": 4},
        "choice": "random",
        **{"is_control": False, "trials": counts(done=1, running=1)},
    }
    stages = [found[name][0] for name in ("running", "interrupted", "failures")]
    assert [(s["key"], s["kind"], s["what"], s["done"], s["total"]) for s in stages] == [
        ("fit/a1", "", "steps", 3, 40),
        ("fit/b0", "", "steps", 12, 40),
        ("generator/g1", "error", "", 0, 0),
    ]
    assert stages[0]["age_s"] == pytest.approx(200, abs=60)


def test_a_result_that_was_deleted_is_not_done(folder, monkeypatch, capsys):
    run_dir = begin(folder.parent, "score/a0")
    (run_dir / "per_image.csv").write_text("dice\n0.9\n")
    finish(folder.parent, "fit/a0", "score/a0")
    assert states(folder)["score/a0"] == "done"
    marker = (run_dir / "DONE.json").read_text()
    (run_dir / "DONE.json").write_text("{")
    (damaged,) = read_sweep(folder).damaged
    assert (damaged.key, damaged.reason) == ("score/a0", "DONE.json cannot be read")
    (run_dir / "DONE.json").write_text(marker)
    (run_dir / "per_image.csv").unlink()
    status = read_sweep(folder)
    assert status.counts == counts(done=1, waiting=11)
    assert [(s.key, s.reason) for s in status.damaged] == [("score/a0", "per_image.csv is missing")]
    code, out, _ = run_command(monkeypatch, capsys, "status", folder)
    assert code == 0
    assert "damaged, to be made again:\n" in out
    assert "store/score/a0: per_image.csv is missing\n" in out
    assert "the same sweep command continues from here" in out
    assert json.loads(run_command(monkeypatch, capsys, "status", folder, "--json")[1])["damaged"]


def test_a_long_condition_keeps_its_row_within_60_columns(tmp_path, monkeypatch, capsys):
    name = "synthetic_same_budget_without_anything_else"
    keys = [f"fit/{i}" for i in range(6)]
    trials = tuple(trial(name, 128, key, seed=i) for i, key in enumerate(keys))
    folder = plan_sweep(tmp_path, "long", PlanFile(stages=tuple(map(stage, keys)), trials=trials))
    finish(tmp_path, *keys[:2])
    fail(tmp_path, keys[2], "boom " * 40)
    begin(tmp_path, keys[3])
    code, out, _ = run_command(monkeypatch, capsys, "status", folder)
    lines = out.splitlines()
    assert code == 0
    assert all(len(line) <= 60 for line in lines if not line.endswith("log.txt"))
    assert lines[1] == "6 trials: 2 done, 1 failed, 1 interrupted, 2 waiting"


def test_an_unknown_sweep_is_one_line(tmp_path, monkeypatch, capsys):
    said = f"error: nothing: no such sweep; {tmp_path} holds none; give --root\n"
    ended = run_command(monkeypatch, capsys, "status", "nothing", "--root", tmp_path)
    assert ended == (2, "", said)


def test_a_stage_that_is_held_is_running_whatever_it_left(folder):
    failed = fail(folder.parent, "generator/g1", "ValueError: first time")
    empty = folder.parent / "store" / "fit" / "a0"
    empty.mkdir(parents=True)
    (empty / ".lock").touch()
    keys = ("generator/g1", "gate/p1", "fit/a0")
    assert [states(folder)[key] for key in keys] == ["failed", "blocked", "waiting"]
    with Held(failed), Held(empty):
        assert [states(folder)[key] for key in keys] == ["running", "waiting", "running"]


@pytest.mark.parametrize("text", ["", '{"what": "st', "[]", "null", '{"done": "x", "time": "y"}'])
@pytest.mark.parametrize("name", ["status.json", "manifest.json", "FAILED.json"])
def test_half_written_files_say_nothing_and_stop_nothing(folder, name, text):
    run_dir = begin(folder.parent, "fit/a0")
    (run_dir / name).write_text(text)
    if name == "FAILED.json" and text.startswith('{"done'):
        (run_dir / "log.txt").unlink()
        (found,) = read_sweep(folder).of("failed")
        assert (found.reason, found.log_tail) == ("no reason is known", ())
    else:
        (found,) = read_sweep(folder).of("interrupted")
        assert (found.key, found.done, found.total, found.age_s) == ("fit/a0", 0, 0, None)


def test_files_that_vanish_while_they_are_read(busy, monkeypatch):
    def read_plan_only(self, *args, **kwargs):
        if self.name != "plan.json":
            raise FileNotFoundError(2, "gone", str(self))
        return read_text(self, *args, **kwargs)

    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", read_plan_only)
    status = read_sweep(busy)
    # A marker that is gone marks nothing.
    assert status.counts["done"] == 0
    assert status.of("running")[0].age_s is None


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("done done", "done"),
        ("done waiting", "waiting"),
        ("done running", "running"),
        ("failed blocked", "failed"),
        ("interrupted waiting", "interrupted"),
        ("running interrupted", "running"),
        ("done", "waiting"),  # the other stage is not known
    ],
)
def test_a_trial_is_what_its_stages_are(own, expected):
    found = dict(zip(["fit/a", "score/a"], own.split(), strict=False))
    assert trial_state(trial("real", 4, "fit/a", "score/a"), found) == expected


def test_locks_tell_who_is_at_it(tmp_path):
    assert not is_held(tmp_path)
    assert not is_used(tmp_path)
    (tmp_path / ".lock").touch()
    assert not is_held(tmp_path)
    with Held(tmp_path):
        assert is_held(tmp_path)
    with Held(tmp_path, kind=fcntl.LOCK_SH):
        assert not is_held(tmp_path), "a process that looks is no holder"
    (tmp_path / "odd" / ".lock").mkdir(parents=True)
    assert is_held(tmp_path / "odd"), "a lock that cannot be asked counts as held"


def test_a_running_sweep_is_said_to_run(folder):
    with use_sweep(folder), use_sweep(folder):
        assert read_sweep(folder).is_running
        assert not is_held(folder), "several may lead one sweep"
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
    root = folder.parent
    assert find_sweep("night", root=root) == folder
    assert find_sweep(str(folder), root=Path("/nowhere")) == folder
    monkeypatch.chdir(folder)
    assert read_sweep(find_sweep(".", root=Path("/nowhere"))).name == "night"
    with pytest.raises(InputError, match="nigth: no such sweep; there is night"):
        find_sweep("nigth", root=root)
    (root / "store").mkdir()
    (root / "store" / "VERSION.json").write_text('{"layout": 2}')
    with pytest.raises(InputError, match="newer"):
        read_sweep(folder)
    # A sweep from before there were plans names the way out.
    (folder / "plan.json").unlink()
    with pytest.raises(InputError, match=r"plan.json: there is no such file; `sonosweep report "):
        read_sweep(find_sweep("night", root=root))


def test_from_within_and_through_a_link_the_stages_are_found(busy, tmp_path, monkeypatch):
    known = find_sweep("night", root=busy.parent)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(busy)
    for folder, name in (
        (busy, "."),
        (busy, "config.yaml"),
        (tmp_path / "elsewhere", "link"),
        (tmp_path, "runs/night"),
    ):
        monkeypatch.chdir(folder)
        (busy / "config.yaml").touch()
        assert states(find_sweep(name, root=Path("/nowhere"))) == states(known)
    assert "done" in states(known).values()


def test_nothing_heavy_is_imported(folder):
    script = (
        "import sys\n"
        f"sys.argv = ['sonosweep', 'status', {str(folder)!r}]\n"
        "from experiments.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n"
        "    print(ended.code, {'torch', 'lightning', 'pandas', 'cv2'} & set(sys.modules))\n"
    )
    words = [sys.executable, "-c", script]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.stdout.splitlines()[-1] == "0 set()", ended.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "2 h"), (172800, "2 d")],
)
def test_spans_of_time(seconds, text):
    assert format_duration(seconds) == text
