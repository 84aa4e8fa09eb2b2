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


def test_libraries_are_held_against_ranges_and_lock(tmp_path, monkeypatch):
    versions = {"torch": "2.15.0+cu128", "lightning": "2.6.6", "python": "3.12.1"}
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "_version", versions.get)
    package = collections.UserDict({"Requires-Python": ">=3.11"})
    package.get_all = lambda _: ["torch>=2.11", "lightning>=2.6.6,<2.7", 'gone>=1; extra == "dev"']
    monkeypatch.setattr(machine, "metadata", lambda _: package)
    lock = (
        "torch==2.15.0 \\\n    --hash=sha256:00\nlightning==2.6.0 ; python_full_version < '3' \\\n"
    )
    (tmp_path / "requirements.lock").write_text(lock)
    found = machine.check_python(demo())
    assert found.mark == "ok"
    assert found.text.endswith("torch 2.15.0+cu128; libraries in range and as locked")
    versions["torch"] = "2.11.0"
    found = machine.check_python(demo())
    assert found.mark == "warn"
    assert found.text.endswith("unlike the lock file: torch is 2.11.0, not ==2.15.0")
    versions |= {"torch": None, "lightning": "2.6.3", "python": "3.10.4"}
    found = machine.check_python(demo())
    assert (found.mark, "make setup" in found.remedy) == ("missing", True)
    expected = "python is 3.10.4, not >=3.11, torch is not installed, not >=2.11, "
    assert found.text == expected + "lightning is 2.6.3, not <2.7,>=2.6.6"


def test_control_groups_of_both_versions(tmp_path):
    def limits(groups, **files):
        for path, text in files.items():
            file = tmp_path / path.replace("__", "/").replace("_X_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        (tmp_path / "own").write_text(groups)
        return machine.cgroup_limits(base=tmp_path, own=tmp_path / "own")

    second = {"job__step__cpu_X_max": "max 100000", "job__cpu_X_max": "250000 100000"}
    second |= {"job__step__memory_X_max": "max", "job__memory_X_max": "4000"}
    second |= {"cpu_X_max": "800000 100000", "memory_X_max": "9000"}
    assert limits("0::/job/step\n", **second) == (2.5, 4000)
    # Version 1; the path is the host's.
    first = {"cpu,a__cpu_X_cfs_quota_us": "150000", "cpu,a__cpu_X_cfs_period_us": "100000"}
    first |= {"memory__memory_X_limit_in_bytes": "5000"}
    groups = "4:memory:/docker/x\n2:cpu,a:/docker/x\n1:name=systemd:/x\n"
    assert limits(groups, **first) == (1.5, 5000)
    first |= {"cpu,a__cpu_X_cfs_quota_us": "-1"}
    first |= {"memory__memory_X_limit_in_bytes": "9223372036854771712"}
    assert limits(groups, **first) == (math.inf, math.inf)
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
    expected = "4 of 64 cores, 60.0 GiB of memory free; stages at once: 2, threads each: 8, "
    assert found.text == expected + "4 GiB for all"
    assert machine.check_cores(demo("sweep.workers=2", "trainer.threads=2")).mark == "ok"
    found = machine.check_cores(demo("sweep.workers=5"))
    assert found.remedy == "sweep.workers=4 trainer.threads=1"
    limits[:] = [16.0, 7 * GIB]
    found = machine.check_cores(demo("sweep.workers=4"))
    assert (found.mark, found.facts["free_gib"]) == ("warn", 7)
    assert "fewer sweep.workers" in found.remedy
    assert machine.check_cores(demo("sweep.launcher=slurm")).mark == "ok"


@pytest.mark.parametrize(
    ("mib", "mark"), [(0.0625, "missing"), (7.9, "missing"), (64, "warn"), (256, "ok")]
)
def test_shared_memory_is_looked_at_where_loader_processes_are_asked_for(monkeypatch, mib, mark):
    usage = collections.namedtuple("Usage", ["free", "available"])
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(mib * 2**20, 0))
    monkeypatch.setattr("psutil.virtual_memory", lambda: usage(0, 60 * GIB))
    one = ("sweep.workers=1", "trainer.threads=1")
    found = machine.check_cores(demo(*one, "trainer.num_workers=2"))
    assert found.mark == mark
    assert ("in /dev/shm for loader processes" in found.text) is (mark != "ok")
    assert machine.check_cores(demo(*one)).mark == "ok"


def test_a_long_temporary_folder_is_named_and_sockets_go_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "SHORT_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 74)
    found = machine.check_temporary(demo())
    assert found.facts == {"folder": tempfile.tempdir, "sockets": tempfile.tempdir}
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 75)
    found = machine.check_temporary(demo())
    assert found.mark == "ok"
    assert found.facts == {"folder": tempfile.tempdir, "sockets": str(tmp_path)}
    assert f"too long for sockets, which go to {tmp_path}" in found.text
    monkeypatch.setattr(server, "SHORT_FOLDERS", ("/nowhere",))
    with pytest.raises(InputError, match=r"75 bytes at most.*set TMPDIR to a shorter folder"):
        machine.check_temporary(demo())


def test_gpus_that_are_there_full_broken_or_missing(bare, monkeypatch):
    found = machine.check_gpus(demo())
    assert (found.mark, found.text) == ("ok", "no NVIDIA GPU on this machine")
    bare("nvidia-smi", TWO_GPUS.format(12))
    found = machine.check_gpus(demo())
    assert found.mark == "ok"
    assert found.text == "0: NVIDIA H200 (143771 MiB), 1: NVIDIA H200 (143771 MiB)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    bare("nvidia-smi", TWO_GPUS.format(102400))
    found = machine.check_gpus(demo())
    assert found.mark == "warn"
    assert "CUDA_VISIBLE_DEVICES=0,1; more than half of the memory is taken on 0" in found.text
    bare("nvidia-smi", "echo '0, GB10, [N/A], [N/A], 470.1'")
    assert machine.check_gpus(demo()).text.startswith("0: GB10 ([N/A] MiB)")
    bare("nvidia-smi", "echo Driver/library version mismatch; exit 18")
    found = machine.check_gpus(demo())
    assert (found.mark, "version mismatch" in found.text) == ("warn", True)


def test_torch_with_and_without_the_gpu(bare, monkeypatch):
    found = {"torch": "2.15.0", "cuda": "12.8", "gpus": [], "warning": ""}

    def fake(*command, **options):
        return (0, json.dumps(found)) if command[0] == sys.executable else ask(*command, **options)

    monkeypatch.setattr(machine, "ask", fake)
    expected = "2.15.0, CUDA 12.8, GPUs: none; runs use the CPU"
    assert machine.check_torch(demo()).text == expected
    bare("nvidia-smi", "echo NVIDIA H200")
    line = machine.check_torch(demo())
    assert (line.mark, "build is without CUDA" in line.text) == ("warn", True)
    found |= {"gpus": ["H200"], "warning": "NVIDIA H200 is not compatible"}
    assert machine.check_torch(demo("trainer.accelerator=gpu")).mark == "missing"
    found["warning"] = ""
    line = machine.check_torch(demo("sweep.devices=[0]"))
    assert (line.mark, line.text) == ("ok", "2.15.0, CUDA 12.8, GPUs: H200")


@pytest.mark.parametrize(
    ("program", "mark", "words"),
    [
        ("raise SystemExit('RuntimeError: no torchvision::nms')", "missing", "no torchvision::nms"),
        ("import os; os.abort()", "missing", "exit code -6"),
        ("import time; time.sleep(9)", "warn", "no answer within 2 s"),
    ],
)
def test_a_torch_that_fails_crashes_or_hangs(bare, monkeypatch, program, mark, words):
    monkeypatch.setattr(machine, "PROBE", program)
    monkeypatch.setattr(machine, "PROBE_TIMEOUT_S", 2)
    found = machine.check_torch(demo())
    assert (found.mark, words in found.text) == (mark, True)
