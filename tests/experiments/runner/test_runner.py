"""The runner: what it starts when, what it tries again, and when it stops. No stage is run."""

import os
import shutil
import signal
from types import SimpleNamespace

import pytest
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.plan.nodes import Node, Plan
from experiments.runner.launchers import LocalLauncher, Slot, slots_of
from experiments.runner.sweep import Sweep, SweepInterruptedError, next_batch_parts, parts_within
from experiments.runner.workload import Workload
from experiments.store.runs import read_failure, write_done, write_failed


class FakeJob:
    """Does what the test says when it is first looked at, and has ended at the second look."""

    def __init__(self, contexts, act):
        self.contexts, self.act, self.was_killed = contexts, act, False
        self.words, self.is_over = None, False

    def ended(self):
        if self.words is None:
            self.words = self._act()
            return None
        self.is_over = True
        return self.words

    def _act(self):
        for context in self.contexts:
            context.run_dir.mkdir(parents=True, exist_ok=True)
            outcome = self.act(context)
            if outcome == "done":
                write_done(context.run_dir, {"seconds": 0, "peak_memory_mib": 0})
            elif outcome == "nothing written":
                return "its process ended with 1"
            elif outcome == "killed":
                self.was_killed = True
                return "its process was killed by SIGKILL"
            else:
                write_failed(context.run_dir, outcome[1], kind=outcome[0])
                return "its process ended with 1"
        # The markers tell, so nobody looks at it again.
        self.is_over = True
        return "its process ended with 0"


class FakeLauncher:
    """Room for `capacity` jobs, whose stages do what `act(context)` says."""

    poll_s = 0.0

    def __init__(self, act, *, capacity=1, chains=False):
        self.act, self.capacity, self.chains = act, capacity, chains
        self.started, self.jobs = [], []
        self.left = None

    def free(self):
        return self.capacity - sum(not job.is_over for job in self.jobs)

    def start(self, jobs):
        self.started += [[context.node.label for context in job] for job in jobs]
        started = [FakeJob(job, self.act) for job in jobs]
        self.jobs += started
        return started

    def leave(self, jobs):
        self.left = list(jobs)
        return "two jobs are left" if jobs else ""


def node(label, *upstream, stage="fit", batch_size=4):
    inputs = {f"in{i}": each.key for i, each in enumerate(upstream)}
    batch = {"batch_size": batch_size}
    content = {"label": label, "segmenter": batch, "unet": batch}
    return Node(stage=stage, content=content, upstream=inputs, label=label)


def make_sweep(tmp_path, nodes, act, *overrides, **launcher):
    config = load_config(TOY, [f"store.root={tmp_path}", *overrides])
    view = SimpleNamespace(content={})
    data = SimpleNamespace(name="hc18", samples={}, unlabelled={}, rows={}, view=view)
    plan = Plan(nodes={each.key: each for each in nodes}, trials=[])
    lines = []
    fake = FakeLauncher(act, **launcher)
    return Sweep(config, data=data, plan=plan, launcher=fake, say=lines.append), fake, lines


def states(sweep):
    return {run.node.label: run.state for run in sweep.runs.values()}


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


@pytest.mark.parametrize(("retries", "starts", "state"), [(0, 1, "failed"), (2, 3, "failed")])
def test_a_killed_stage_is_tried_again_but_not_for_ever(tmp_path, retries, starts, state):
    sweep, fake, lines = make_sweep(
        tmp_path, [node("a")], lambda _: "killed", f"sweep.retries={retries}"
    )
    sweep.run(lambda: None)
    assert len(fake.started) == starts
    assert states(sweep) == {"a": state}
    assert len(lines) == retries
    assert all("continues from its checkpoint" in line for line in lines)


def test_a_stage_that_gets_further_before_each_kill_ends_in_the_end(tmp_path):
    """As under a time limit: five kills with one retry."""
    steps = iter(range(1, 6))

    def act(context):
        done = next(steps, None)
        if done is None:
            return "done"
        context.status().update("steps", done=done, total=6)
        return "killed"

    sweep, fake, _ = make_sweep(tmp_path, [node("a")], act, "sweep.retries=1")
    sweep.run(lambda: None)
    assert len(fake.started) == 6
    assert states(sweep) == {"a": "done"}


def test_an_error_is_not_tried_again(tmp_path):
    sweep, fake, _ = make_sweep(
        tmp_path, [node("a")], lambda _: ("error", "ValueError: no"), "sweep.retries=3"
    )
    sweep.run(lambda: None)
    assert len(fake.started) == 1
    assert sweep.runs[next(iter(sweep.runs))].reason == "ValueError: no"


def test_out_of_memory_halves_the_parts_until_each_item_is_alone(tmp_path):
    seen = []

    def act(context):
        seen.append(context.batch_parts)
        return ("out_of_memory", "CUDA out of memory")

    sweep, _, lines = make_sweep(tmp_path, [node("a", batch_size=4)], act)
    sweep.run(lambda: None)
    assert seen == [1, 2, 4]
    assert states(sweep) == {"a": "failed"}
    assert "a batch in 2 parts" in lines[0]
    assert "a batch in 4 parts" in lines[1]


def test_a_job_that_is_a_sweep_itself_has_tried_less_memory(tmp_path):
    sweep, fake, _ = make_sweep(
        tmp_path, [node("a")], lambda _: ("out_of_memory", "CUDA out of memory"), chains=True
    )
    sweep.run(lambda: None)
    assert len(fake.started) == 1
    assert states(sweep) == {"a": "failed"}


def test_out_of_memory_is_tried_again_with_less_memory(tmp_path):
    sweep, _, _ = make_sweep(
        tmp_path,
        [node("a")],
        lambda c: "done" if c.batch_parts == 2 else ("out_of_memory", "CUDA out of memory"),
    )
    sweep.run(lambda: None)
    assert states(sweep) == {"a": "done"}
    assert read_failure(sweep.store.run_dir("fit", sweep.runs[next(iter(sweep.runs))].node.id)) is (
        None
    )


@pytest.mark.parametrize(
    ("current", "limit", "expected"),
    [(1, 4, 2), (2, 4, 4), (4, 4, None), (1, 1, None), (1, 6, 2), (2, 6, 6), (1, 9, 3), (1, 7, 7)],
)
def test_parts_divide_the_batch(current, limit, expected):
    assert next_batch_parts(current, limit=limit) == expected


@pytest.mark.parametrize(
    ("wanted", "limit", "expected"), [(1, 4, 1), (2, 4, 2), (3, 4, 2), (9, 4, 4), (5, 1, 1)]
)
def test_parts_asked_for_divide_the_batch(wanted, limit, expected):
    assert parts_within(wanted, limit=limit) == expected


def test_failures_in_a_row_stop_the_sweep_with_one_summary(tmp_path):
    nodes = [node(f"n{i}") for i in range(10)]
    sweep, fake, _ = make_sweep(
        tmp_path,
        nodes,
        lambda c: ("error", f"reason {int(c.node.label[1:]) % 2}"),
        "sweep.max_failures=3",
    )
    sweep.run(lambda: None)
    assert len(fake.started) == 3
    assert sweep.halted.startswith("3 stages failed in a row, so no more is started: reason 0")
    assert "1 other reason" in sweep.halted
    assert "--retry-failed" in sweep.halted
    assert sum(state == "waiting" for state in states(sweep).values()) == 7


def test_a_success_between_failures_keeps_the_sweep_going(tmp_path):
    nodes = [node(f"n{i}") for i in range(9)]
    sweep, fake, _ = make_sweep(
        tmp_path,
        nodes,
        lambda c: "done" if int(c.node.label[1:]) % 3 == 2 else ("error", "no"),
        "sweep.max_failures=3",
    )
    sweep.run(lambda: None)
    assert len(fake.started) == 9
    assert not sweep.halted


def test_a_full_disk_pauses_until_there_is_room(tmp_path, monkeypatch):
    free = iter([10 * 2**20, 10 * 2**20, 2**40])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    tries = []

    def act(context):
        tries.append(context.node.label)
        return ("disk_full", "OSError: no space") if len(tries) == 1 else "done"

    sweep, fake, lines = make_sweep(tmp_path, [node("a"), node("b")], act)
    sweep.run(lambda: None)
    assert set(states(sweep).values()) == {"done"}
    assert fake.started == [["a"], ["a"], ["b"]]
    assert "the disk is full, the sweep pauses" in lines[0]
    assert "continues" in lines[1]


def test_a_disk_too_full_for_the_reason_pauses_too(tmp_path, monkeypatch):
    free = iter([0, 0, 2**40])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free, 2**40)))
    tries = []

    def act(context):
        tries.append(context.node.label)
        return "nothing written" if len(tries) == 1 else "done"

    sweep, fake, lines = make_sweep(tmp_path, [node("a")], act)
    sweep.run(lambda: None)
    assert states(sweep) == {"a": "done"}
    assert len(fake.started) == 2
    assert "the disk is full, the sweep pauses" in lines[0]


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
    folder = tmp_path / "store" / done.key
    folder.mkdir(parents=True)
    write_done(folder, {"seconds": 1})
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
    assert line == f"cut: {path} has 21 bytes instead of 28, so it is made again"
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
    assert lines == [f"fit: {weights} is not what was written, so it is made again"]


@pytest.mark.parametrize(
    "content", ["", '{"seconds": ', "[]", '{"seconds": 2, "content_key": "a"}']
)
def test_a_marker_that_cannot_be_read_is_a_stage_that_is_not_done(tmp_path, content):
    broken = node("broken")
    marker = finish(tmp_path, broken) / "DONE.json"
    marker.write_text(content)
    sweep, fake, lines = make_sweep(tmp_path, [broken], lambda _: "done")
    assert lines == [f"broken: {marker} cannot be read, so it is made again"]
    sweep.run(lambda: None)
    assert fake.started == [["broken"]]
    assert sweep.store.result("fit", broken.id)["seconds"] == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweep.workers=1"], [Slot()]),
        (["sweep.workers=2"], [Slot(), Slot()]),
        (["sweep.devices=[0,2]"], [Slot(devices=(0,)), Slot(devices=(2,))]),
        (
            ["sweep.devices=[0,1]", "sweep.per_device=2"],
            [Slot(devices=(0,)), Slot(devices=(1,)), Slot(devices=(0,)), Slot(devices=(1,))],
        ),
        (
            ["sweep.devices=[0,1,2,3]", "trainer.devices=2"],
            [Slot(devices=(0, 1)), Slot(devices=(2, 3))],
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
