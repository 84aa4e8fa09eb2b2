"""Stages that share a GPU, as many as its memory holds. The GPU pretends."""

import json
import os
from types import SimpleNamespace

import pytest
from runner_parts import make_sweep, node, states
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.runner import gpus
from experiments.runner.gpu_room import GpuRoom
from experiments.runner.launchers import LocalLauncher
from experiments.runner.slots import slots_of, threads_of
from experiments.runner.workload import Workload
from experiments.store.runs import write_done, write_failed

MIB_OF_10_GIB = "10240"


def with_cores(monkeypatch, n):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(n)))


@pytest.mark.parametrize(
    ("overrides", "cores", "expected", "threads"),
    [
        # At most four, two cores each.
        ("sweep.devices=[0]", 16, [(0,)] * 4, 4),
        ("sweep.devices=[0]", 4, [(0,)] * 2, 2),
        ("sweep.devices=[0]", 1, [(0,)], 1),
        ("sweep.devices=[0,1]", 8, [(0,), (1,), (0,), (1,)], 2),
        ("sweep.workers=1", 16, [()] * 4, 4),
        ("sweep.workers=6", 16, [()] * 6, 2),
        ("sweep.devices=[0] sweep.per_device=1", 16, [(0,)], 16),
        ("sweep.devices=[0] sweep.per_device=8", 16, [(0,)] * 8, 2),
        ("sweep.devices=[0,1] trainer.devices=2", 16, [(0, 1)], 16),
        ("sweep.workers=1 trainer.accelerator=cpu", 16, [()], 16),
    ],
)
def test_a_gpu_is_shared_by_default(pretend, monkeypatch, overrides, cores, expected, threads):
    pretend("H200", "H200", memory=MIB_OF_10_GIB)
    with_cores(monkeypatch, cores)
    config = load_config(TOY, overrides.split())
    assert slots_of(config) == expected
    assert threads_of(config) == threads


def test_a_gpu_for_one_process_alone_is_not_shared(pretend, monkeypatch):
    pretend("H200", memory=MIB_OF_10_GIB, mode="Exclusive_Process")
    with_cores(monkeypatch, 16)
    assert slots_of(load_config(TOY, ["sweep.devices=[0]"])) == [(0,)]


def finish(root, each, *, peak_gib=None, device="cuda"):
    """Write a run as a stage on such a device leaves it."""
    run_dir = root / "store" / each.key
    run_dir.mkdir(parents=True, exist_ok=True)
    manifest = {key: getattr(each, key) for key in ("stage", "content", "upstream")}
    manifest |= {"config": {}, "machine": {}, "threads": 1, "devices": 1, "device": device}
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    used = {} if peak_gib is None else {"gpu": "H200", "gpu_peak_held_mib": peak_gib * 1024}
    write_done(run_dir, {"seconds": 1, "steps": 1, **used})


def room_of(root, *overrides):
    return GpuRoom(load_config(TOY, [f"store.root={root}", *overrides]))


def test_the_first_of_a_kind_is_alone_and_tells_what_the_next_take(pretend, tmp_path):
    pretend("H200", memory=MIB_OF_10_GIB)
    room, first, second = room_of(tmp_path), node("a"), node("b")
    assert room.fits(first, beside=[], devices=[0])
    assert not room.fits(second, beside=[first], devices=[0])
    finish(tmp_path, first, peak_gib=2)
    assert not room.fits(second, beside=[node("c")], devices=[0]), "what was read is kept"
    room.learn("fit")
    # 2 GiB with a quarter of slack and 1 GiB for the process: 3.5 GiB each, in 10.
    assert room.fits(second, beside=[node("c")], devices=[0])
    assert not room.fits(second, beside=[node("c"), node("d")], devices=[0])
    other = node("other", batch_size=8)
    assert not room.fits(other, beside=[second], devices=[0])
    assert not room.fits(second, beside=[other], devices=[0])


def test_what_runs_beside_counts_by_its_own_kind(pretend, tmp_path):
    pretend("H200", memory=MIB_OF_10_GIB)
    large, small = node("large", batch_size=8), node("small")
    finish(tmp_path, large, peak_gib=6)
    finish(tmp_path, small, peak_gib=0.2)
    room = room_of(tmp_path)
    # 8.5 and 1.25 GiB.
    assert room.fits(small, beside=[large], devices=[])
    assert not room.fits(small, beside=[large, small], devices=[])


def test_a_stage_that_used_no_gpu_takes_nothing_of_it(pretend, tmp_path):
    pretend("H200", memory="1024")
    warp = node("warp", stage="resize")
    manifest = node("warped", stage="resize")
    manifest.content["images"] = ["a"]
    finish(tmp_path, manifest)
    assert room_of(tmp_path).fits(warp, beside=[warp, warp], devices=[0])


@pytest.mark.parametrize(
    "case", ["runs on a CPU", "memory unknown", "no such GPU", "an older version"]
)
def test_what_is_not_known_is_not_shared(pretend, tmp_path, case):
    pretend("H200", memory="[N/A]" if case == "memory unknown" else MIB_OF_10_GIB)
    each = node("a")
    finish(tmp_path, each, peak_gib=1, device="cpu" if case == "runs on a CPU" else "cuda")
    if case == "an older version":
        marker = tmp_path / "store" / each.key / "DONE.json"
        marker.write_text(marker.read_text().replace("held", "memory"))
    devices = [3] if case == "no such GPU" else [0]
    assert not room_of(tmp_path).fits(each, beside=[each], devices=devices)


class Process:
    """Ends at the second look."""

    def __init__(self, context, act):
        self.context, self.act, self.looks = context, act, 0

    @property
    def exitcode(self):
        self.looks += 1
        if self.looks == 2:
            self.context.run_dir.mkdir(parents=True, exist_ok=True)
            self.act(self.context)
        return 0 if self.looks > 1 else None


def shared_sweep(root, monkeypatch, nodes, act):
    """A sweep over one GPU of 10 GiB, with the groups of stages that ran together."""
    with_cores(monkeypatch, 16)
    sweep, _, lines = make_sweep(root, nodes, None, "sweep.devices=[0]")
    launcher = LocalLauncher(sweep.config)
    launcher.poll_s = 0
    monkeypatch.setattr(launcher, "_process", lambda context, _: Process(context, act))
    monkeypatch.setattr(launcher, "leave", lambda jobs: "")
    sweep.launcher, together = launcher, []

    def look():
        running = sorted(job.node.label for job in launcher._busy.values())
        if running and running not in together:
            together.append(running)

    sweep.run(look)
    return SimpleNamespace(sweep=sweep, lines=lines, together=together)


def test_fits_share_a_gpu_after_the_first_of_them(pretend, tmp_path, monkeypatch):
    pretend("H200", memory=MIB_OF_10_GIB)

    def act(context):
        finish(tmp_path, context.node, peak_gib=2)

    made = shared_sweep(tmp_path, monkeypatch, [node(name) for name in "abcde"], act)
    assert made.together == [["a"], ["b", "c"], ["d", "e"]]
    assert set(states(made.sweep).values()) == {"done"}


def test_what_runs_out_of_memory_beside_others_is_tried_alone(pretend, tmp_path, monkeypatch):
    pretend("H200", memory=MIB_OF_10_GIB)
    tries = []

    def act(context):
        label = context.node.label
        tries.append((label, context.batch_parts))
        if label == "c" and tries.count(("c", 1)) == 1:
            write_failed(context.run_dir, "CUDA out of memory", kind="out_of_memory")
        else:
            finish(tmp_path, context.node, peak_gib=2)

    made = shared_sweep(tmp_path, monkeypatch, [node(name) for name in "abcd"], act)
    assert made.lines == ["c: out of memory beside other stages; again, alone on its GPU"]
    # Alone, and with its whole batch.
    assert tries.count(("c", 1)) == 2
    assert ["c"] in made.together
    assert set(states(made.sweep).values()) == {"done"}


def test_the_time_left_is_estimated_without_asking_the_driver_again(pretend, tmp_path, monkeypatch):
    pretend("H200", memory=MIB_OF_10_GIB)
    sweep, *_ = make_sweep(tmp_path, [node(name) for name in "abcde"], None)
    left, asked = Workload(sweep), []
    monkeypatch.setattr(gpus, "_asked", lambda field: asked.append(field) or ["H200"])
    assert left.seconds_left() > 0
    assert asked == []
