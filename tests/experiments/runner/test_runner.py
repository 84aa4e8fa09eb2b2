"""The runner: what it starts when, and what it takes for done. No stage is run."""

import os
import shutil
import signal
import time
from unittest import mock

import pytest
from runner_parts import make_sweep, node, states
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.runner.launchers import LocalLauncher
from experiments.runner.slots import slots_of
from experiments.runner.sweep import UNSEEN_S, SweepInterruptedError
from experiments.runner.workload import Workload
from experiments.store.runs import write_done


def test_a_stage_starts_when_its_inputs_are_there(tmp_path):
    first, second = node("a"), node("b")
    last = node("c", first, second)
    sweep, fake, _ = make_sweep(tmp_path, [first, second, last], lambda _: "done", capacity=5)
    sweep.run(lambda: None)
    assert fake.started == [["a"], ["b"], ["c"]]
    assert set(states(sweep).values()) == {"done"}


def test_no_more_jobs_than_there_is_room_for(tmp_path):
    at_once = []
    nodes = [node(name) for name in "abcde"]
    sweep, fake, _ = make_sweep(tmp_path, nodes, lambda _: "done", capacity=2)
    sweep.run(lambda: at_once.append(sum(r.state == "running" for r in sweep.runs.values())))
    assert max(at_once) == 2
    assert len(fake.started) == 5


def test_one_failure_blocks_what_needs_it_and_nothing_else(tmp_path):
    bad, good = node("bad"), node("good")
    after = node("after", bad)
    sweep, _, _ = make_sweep(
        tmp_path,
        [bad, after, good],
        lambda context: ("error", "boom") if context.node.label == "bad" else "done",
    )
    sweep.run(lambda: None)
    assert states(sweep) == {"bad": "failed", "after": "blocked", "good": "done"}
    assert sweep.runs[after.key].reason == "bad: boom"
    assert not sweep.halted


@pytest.mark.parametrize(
    ("free_mib", "first"),
    # It may be too full for the reason.
    [(10, ("disk_full", "OSError: no space")), (0, "nothing written")],
)
def test_a_full_disk_pauses_until_there_is_room(tmp_path, monkeypatch, free_mib, first):
    free = iter([free_mib * 2**20] * 2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free, 2**40)))
    tries = []

    def act(context):
        tries.append(context.node.label)
        return first if len(tries) == 1 else "done"

    sweep, fake, lines = make_sweep(tmp_path, [node("a"), node("b")], act)
    sweep.run(lambda: None)
    assert set(states(sweep).values()) == {"done"}
    assert fake.started == [["a"], ["a"], ["b"]]
    assert "the disk is full, the sweep pauses" in lines[0]
    assert "continues" in lines[1]


def test_a_full_disk_that_shows_room_is_not_asked_at_once_again(tmp_path, monkeypatch):
    """A quota is full, or the disk of the temporary folder; each attempt costs a start."""
    now = [100.0]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**40))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def look():
        now[0] += 1

    tries = []

    def act(context):
        tries.append(now[0])
        return ("disk_full", "OSError: quota") if len(tries) < 3 else "done"

    sweep, _, lines = make_sweep(tmp_path, [node("a")], act)
    sweep.run(look)
    assert states(sweep) == {"a": "done"}
    assert tries[1] - tries[0] >= UNSEEN_S
    assert tries[2] - tries[1] >= UNSEEN_S
    assert len(lines) == 4


def test_a_chain_holds_what_follows_but_no_other_training(tmp_path):
    generator = node("generator", stage="generator")
    candidates = node("candidates", generator, stage="synthesize")
    judge = node("judge")
    gate = node("gate", candidates, judge, stage="gate")
    fit = node("fit", gate)
    score = node("score", fit, stage="score")
    nodes = [generator, candidates, judge, gate, fit, score]
    sweep, fake, _ = make_sweep(tmp_path, nodes, lambda _: "done", capacity=9, chains=True)
    sweep.run(lambda: None)
    # The gate waits for two jobs, so it goes with neither; the fit takes its score along.
    assert fake.started == [["generator", "candidates"], ["judge"], ["gate"], ["fit", "score"]]
    assert set(states(sweep).values()) == {"done"}


def test_the_rest_of_a_chain_waits_where_its_head_failed(tmp_path):
    fit = node("fit")
    score = node("score", fit, stage="score")
    tries = []

    def act(context):
        tries.append(context.node.label)
        return "killed" if len(tries) == 1 else "done"

    sweep, fake, _ = make_sweep(tmp_path, [fit, score], act, chains=True)
    sweep.run(lambda: None)
    assert fake.started == [["fit", "score"], ["fit", "score"]]
    assert set(states(sweep).values()) == {"done"}


def test_a_stop_leaves_the_jobs_to_the_launcher(tmp_path):
    sweep, fake, lines = make_sweep(tmp_path, [node("a"), node("b")], lambda _: "done")
    with pytest.raises(SweepInterruptedError):
        sweep.run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert len(fake.left) == 1
    assert lines == ["two jobs are left"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("lost", [EOFError, ConnectionResetError])
def test_a_stop_that_ends_the_server_of_stages_too_is_a_stop(tmp_path, monkeypatch, lost):
    sweep, fake, _ = make_sweep(tmp_path, [node("a")], lambda _: "done")

    def stopped(_):
        os.kill(os.getpid(), signal.SIGINT)
        raise lost

    for start, raised in ((mock.Mock(side_effect=lost), lost), (stopped, SweepInterruptedError)):
        monkeypatch.setattr(fake, "start", start)
        with pytest.raises(raised):
            sweep.run(lambda: None)


@pytest.mark.parametrize("again", [False, True])
def test_a_lost_store_ends_the_sweep_before_anything_is_written_elsewhere(tmp_path, again):
    store = tmp_path / "mounted"
    nodes = [node("a"), node("b"), node("c")]
    sweep, fake, _ = make_sweep(store, nodes, lambda _: "done")

    def lose():
        if len(fake.started) == 2 and store.exists():
            store.rename(tmp_path / "away")
            if again:
                store.mkdir()

    with pytest.raises(InputError, match=r"store.root=.*a lost mount"):
        sweep.run(lose)
    assert len(fake.started) == 2
    assert not list(store.rglob("*"))


def test_what_is_done_is_not_started(tmp_path):
    done, rest = node("done"), node("rest")
    finish(tmp_path, done)
    sweep, fake, _ = make_sweep(tmp_path, [done, rest], lambda _: "done")
    sweep.run(lambda: None)
    assert fake.started == [["rest"]]
    assert states(sweep) == {"done": "reused", "rest": "done"}


def finish(tmp_path, each, **files):
    folder = tmp_path / "store" / each.key
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_csv", ".csv")).write_text(text)
    write_done(folder, {"seconds": 1})
    return folder


def test_a_stage_whose_rows_are_damaged_is_made_again(tmp_path):
    whole, cut = node("whole", stage="score"), node("cut", stage="score")
    rows = "sample_id,dice\na,0.5\nb,0.75\n"
    finish(tmp_path, whole, per_image_csv=rows)
    path = finish(tmp_path, cut, per_image_csv=rows) / "per_image.csv"
    # At a line's end, so that it reads as a table with a row less.
    path.write_text("sample_id,dice\na,0.5\n")
    sweep, fake, lines = make_sweep(tmp_path, [whole, cut], lambda _: "done")
    (line,) = lines
    assert line == f"cut: {path} has 21 bytes instead of 28, so it is to be made again"
    sweep.run(lambda: None)
    assert fake.started == [["cut"]]
    assert states(sweep) == {"whole": "reused", "cut": "done"}


def test_a_damaged_input_is_made_again_before_it_is_used(tmp_path):
    inputs = node("fit")
    user = node("score", inputs, stage="score")
    weights = finish(tmp_path, inputs, weights="0123") / "weights"
    weights.write_text("0124")
    sweep, fake, lines = make_sweep(tmp_path, [inputs, user], lambda _: "done")
    assert states(sweep) == {"fit": "reused", "score": "waiting"}, "all are not read at a start"
    # What is left is counted with it.
    sweep.run(Workload(sweep).seconds_left)
    assert fake.started == [["fit"], ["score"]]
    assert lines == [f"fit: {weights} is not what was written, so it is to be made again"]


@pytest.mark.parametrize(
    "content", ["", '{"seconds": ', "[]", '{"seconds": 2, "content_key": "a"}']
)
def test_a_marker_that_cannot_be_read_is_a_stage_that_is_not_done(tmp_path, content):
    broken = node("broken")
    marker = finish(tmp_path, broken) / "DONE.json"
    marker.write_text(content)
    sweep, fake, lines = make_sweep(tmp_path, [broken], lambda _: "done")
    assert lines == [f"broken: {marker} cannot be read, so it is to be made again"]
    sweep.run(lambda: None)
    assert fake.started == [["broken"]]
    assert sweep.result(sweep.runs[broken.key])["seconds"] == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweep.workers=1"], [()]),
        (["sweep.workers=2"], [(), ()]),
        (["sweep.devices=[0,2]"], [(0,), (2,)]),
        (
            ["sweep.devices=[0,1]", "sweep.per_device=2"],
            [(0,), (1,), (0,), (1,)],
        ),
        (
            ["sweep.devices=[0,1,2,3]", "trainer.devices=2"],
            [(0, 1), (2, 3)],
        ),
    ],
)
def test_slots_of_a_machine(overrides, expected):
    assert slots_of(load_config(TOY, overrides)) == expected


@pytest.mark.parametrize(
    ("workers", "cores", "threads"), [(1, 2, 2), (2, 2, 1), (4, 2, 1), (2, 8, 4)]
)
def test_workers_share_the_cores(monkeypatch, workers, cores, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    config = load_config(TOY, [f"sweep.workers={workers}"])
    assert LocalLauncher(config).threads == threads
