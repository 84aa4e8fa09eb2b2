"""The machine's lines of `sonosweep doctor`: Python, cores and memory, GPUs, torch."""

import collections
import json
import math
import os
import sys
import tempfile

import pytest
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.doctor import machine
from experiments.doctor.checks import ask
from experiments.runner import server

GIB = 2**30
TWO_GPUS = "echo '0, NVIDIA H200, {}, 143771, 570.86'; echo '1, NVIDIA H200, 4, 143771, 570.86'"


def demo(*overrides):
    return load_config(TOY, list(overrides))


@pytest.mark.parametrize(
    ("versions", "mark", "words"),
    [
        ({}, "ok", "torch 2.15.0+cu128; libraries in range"),
        ({"torch": None}, "missing", "torch is not installed, not >=2.11"),
        ({"python": "3.10.4"}, "missing", "python is 3.10.4, not >=3.11"),
    ],
)
def test_libraries_are_held_against_their_ranges(monkeypatch, versions, mark, words):
    installed = {"torch": "2.15.0+cu128", "lightning": "2.6.6", "python": "3.12.1"} | versions
    monkeypatch.setattr(machine, "_version", installed.get)
    package = collections.UserDict({"Requires-Python": ">=3.11"})
    package.get_all = lambda _: ["torch>=2.11", "lightning>=2.6.6,<2.7", 'gone>=1; extra == "dev"']
    monkeypatch.setattr(machine, "metadata", lambda _: package)
    found = machine.check_python(demo())
    assert (found.mark, words in found.text) == (mark, True)


def test_the_least_limit_of_the_control_groups_above_counts(tmp_path):
    files = {"job/cpu.max": "250000 100000", "cpu.max": "800000 100000", "job/memory.max": "4000"}
    for name, text in (files | {"memory.max": "max", "own": "0::/job/step\n"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cgroup_limits(base=tmp_path, own=tmp_path / "own") == (2.5, 4000)
    assert machine.cgroup_limits(own=tmp_path / "none") == (math.inf, math.inf)


def test_cores_and_memory_that_a_control_group_takes_away(monkeypatch):
    memory = collections.namedtuple("Memory", "available")
    limits = [4.0, math.inf]
    monkeypatch.setattr(machine, "cgroup_limits", lambda: limits)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(60 * GIB))
    found = machine.check_cores(demo("sweep.workers=2"))
    assert (found.mark, found.remedy) == ("warn", "trainer.threads=2")
    assert machine.check_cores(demo("sweep.workers=2", "trainer.threads=2")).mark == "ok"
    remedy = machine.check_cores(demo("sweep.workers=5")).remedy
    assert remedy == "sweep.workers=4 trainer.threads=1"
    limits[:] = [16.0, 7 * GIB]
    found = machine.check_cores(demo("sweep.workers=4"))
    assert (found.mark, found.facts["free_gib"]) == ("warn", 7)


@pytest.mark.parametrize(("mib", "mark"), [(7.9, "missing"), (64, "warn"), (256, "ok")])
def test_shared_memory_is_looked_at_where_loader_processes_are_asked_for(monkeypatch, mib, mark):
    usage = collections.namedtuple("Usage", ["free", "available"])
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(mib * 2**20, 0))
    monkeypatch.setattr("psutil.virtual_memory", lambda: usage(0, 60 * GIB))
    one = ("sweep.workers=1", "trainer.threads=1")
    assert machine.check_cores(demo(*one, "trainer.num_workers=2")).mark == mark
    assert machine.check_cores(demo(*one)).mark == "ok"


def test_a_long_temporary_folder_is_named_and_sockets_go_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "SHORT_FOLDERS", (str(tmp_path),))
    for length, sockets in ((74, "/" + "x" * 74), (75, str(tmp_path))):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * length)
        assert machine.check_temporary(demo()).facts["sockets"] == sockets
    monkeypatch.setattr(server, "SHORT_FOLDERS", ("/nowhere",))
    with pytest.raises(InputError, match="set TMPDIR to a shorter folder"):
        machine.check_temporary(demo())


@pytest.mark.parametrize(
    ("script", "mark", "text"),
    [
        (None, "ok", "no NVIDIA GPU on this machine"),
        (TWO_GPUS.format(12), "ok", "0: NVIDIA H200 (143771 MiB), 1: NVIDIA H200 (143771 MiB)"),
        (TWO_GPUS.format(102400), "warn", "more than half of the memory is taken on 0"),
        ("echo '0, GB10, [N/A], [N/A], 470.1'", "ok", "0: GB10 ([N/A] MiB)"),
        ("echo Driver/library version mismatch; exit 18", "warn", "version mismatch"),
    ],
)
def test_gpus_that_are_there_full_broken_or_missing(bare, script, mark, text):
    if script is not None:
        bare("nvidia-smi", script)
    found = machine.check_gpus(demo())
    assert (found.mark, text in found.text) == (mark, True)


@pytest.mark.parametrize(
    ("gpus", "warning", "word", "mark"),
    [
        ([], "", "trainer.accelerator=auto", "warn"),
        (["H200"], "is not compatible", "trainer.accelerator=gpu", "missing"),
        (["H200"], "", "sweep.devices=[0]", "ok"),
    ],
)
def test_torch_with_and_without_the_gpu(bare, monkeypatch, gpus, warning, word, mark):
    found = {"torch": "2.15.0", "cuda": "12.8", "gpus": gpus, "warning": warning}

    def fake(*command, **options):
        return (0, json.dumps(found)) if command[0] == sys.executable else ask(*command, **options)

    monkeypatch.setattr(machine, "ask", fake)
    bare("nvidia-smi", "echo NVIDIA H200")
    assert machine.check_torch(demo(word)).mark == mark


@pytest.mark.parametrize(
    ("program", "mark", "words"),
    [
        ("raise SystemExit('RuntimeError: no torchvision::nms')", "missing", "no torchvision::nms"),
        ("import time; time.sleep(9)", "warn", "no answer within 2 s"),
    ],
)
def test_a_torch_that_fails_crashes_or_hangs(bare, monkeypatch, program, mark, words):
    monkeypatch.setattr(machine, "PROBE", program)
    monkeypatch.setattr(machine, "PROBE_TIMEOUT_S", 2)
    found = machine.check_torch(demo())
    assert (found.mark, words in found.text) == (mark, True)
