"""The machine's lines of `sonosweep doctor`: GPUs, torch, versions, cores and memory."""

import collections
import json
import os
import sys

import pytest
from doctor_parts import bare_machine, config

from experiments.doctor import machine as checks_machine
from experiments.doctor.checks import Answer, ask

GIB = 2**30


@pytest.fixture
def bare(tmp_path, monkeypatch):
    return bare_machine(tmp_path, monkeypatch)


def probe(monkeypatch, **found) -> None:
    """Let torch's probe say this."""
    base = {"torch": "2.15.0+cu128", "torchvision": "0.29.2", "cuda": "12.8", "hip": None}
    base |= {"is_available": False, "warning": None, "devices": []}
    answer = Answer(code=0, out=json.dumps(base | found))

    def fake(*command, **options):
        return answer if command[0] == sys.executable else ask(*command, **options)

    monkeypatch.setattr(checks_machine, "ask", fake)


SMI = 'echo "NVIDIA H200, 143771, {used}, 570.86.15, 9.0"\necho "NVIDIA H200, 143771, 4, 570, 9.0"'


def test_gpus_are_counted_by_kind(bare):
    bare("nvidia-smi", SMI.format(used=12))
    found = checks_machine.check_gpus(config())
    assert found.mark == "ok"
    assert found.text == "2 x NVIDIA H200 (140 GiB, capability 9.0), driver 570.86.15"
    assert found.facts["gpus"][0] == {
        "name": "NVIDIA H200",
        "memory_gib": 140.4,
        "used_gib": 0.0,
        "driver": "570.86.15",
        "compute_capability": "9.0",
    }


def test_a_gpu_that_others_fill_is_named(bare, monkeypatch):
    bare("nvidia-smi", SMI.format(used=102400))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = checks_machine.check_gpus(config())
    assert found.mark == "warn"
    assert "CUDA_VISIBLE_DEVICES=0,1; GPU 0: 100 GiB are taken" in found.text
    assert "GPU 1" not in found.text


def test_an_old_driver_without_compute_capability_and_a_gpu_without_memory(bare):
    bare(
        "nvidia-smi",
        'case "$1" in *compute_cap*) echo not a valid field; exit 2;; esac\n'
        'echo "GB10, [N/A], [N/A], 470.1"',
    )
    found = checks_machine.check_gpus(config())
    assert found.text == "1 x GB10 (unknown GiB, capability unknown), driver 470.1"


def test_a_broken_driver_warns_and_no_driver_is_fine(bare):
    found = checks_machine.check_gpus(config())
    assert (found.mark, found.text) == ("ok", "no NVIDIA GPU; runs use the CPU")
    bare("nvidia-smi", "echo Driver/library version mismatch; exit 18")
    found = checks_machine.check_gpus(config())
    assert found.mark == "warn"
    assert "Driver/library version mismatch" in found.text
    assert "driver" in found.remedy


def test_a_device_that_is_not_there_is_missing(bare):
    found = checks_machine.check_gpus(config("sweep.devices=[0]"))
    assert found.mark == "missing"
    assert "sweep.devices=[0]" in found.text
    bare("nvidia-smi", SMI.format(used=1))
    assert checks_machine.check_gpus(config("sweep.devices=[0,1]")).mark == "ok"
    found = checks_machine.check_gpus(config("sweep.devices=[2]"))
    assert (found.mark, found.remedy) == ("missing", "this machine has 2, use 0 to 1")


def test_torch_with_and_without_the_gpu(bare, monkeypatch):
    probe(monkeypatch)
    assert checks_machine.check_torch(config()).text == "2.15.0+cu128, CUDA 12.8; runs use the CPU"
    bare("nvidia-smi", SMI.format(used=1))
    probe(monkeypatch, warning="The NVIDIA driver on your system is too old")
    found = checks_machine.check_torch(config())
    assert found.mark == "warn"
    assert "too old" in found.text
    assert checks_machine.check_torch(config("trainer.accelerator=gpu")).mark == "missing"
    device = {"name": "NVIDIA H200", "memory_gib": 140.0, "compute_capability": "9.0"}
    probe(monkeypatch, is_available=True, devices=[device | {"has_code": True}])
    found = checks_machine.check_torch(config("sweep.devices=[0]"))
    assert (found.mark, found.text) == ("ok", "2.15.0+cu128, CUDA 12.8; uses 1 GPU")
    probe(monkeypatch, is_available=True, devices=[device | {"has_code": False}])
    found = checks_machine.check_torch(config("sweep.devices=[0]"))
    assert found.mark == "missing"
    assert "no code for NVIDIA H200" in found.text


@pytest.mark.parametrize(
    "answer",
    [
        Answer(code=0, out='{"error": "RuntimeError: operator torchvision::nms does not exist"}'),
        Answer(code=-11, err="Segmentation fault (operator torchvision::nms does not exist)"),
    ],
)
def test_a_torch_that_fails_or_crashes_is_missing(bare, monkeypatch, answer):
    monkeypatch.setattr(checks_machine, "ask", lambda *_, **__: answer)
    found = checks_machine.check_torch(config())
    assert found.mark == "missing"
    assert "torchvision::nms does not exist" in found.text
    assert "make setup" in found.remedy


def test_a_torch_that_is_slow_to_import_is_not_called_missing(bare, monkeypatch):
    monkeypatch.setattr(checks_machine, "PROBE_TIMEOUT_S", 0.01)
    found = checks_machine.check_torch(config())
    assert found.mark == "warn"
    assert "no answer within" in found.text


def test_libraries_are_held_against_ranges_and_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(checks_machine, "ROOT", tmp_path)
    ranges = ["torch>=2.11", "lightning>=2.6.6,<2.7", "numpy>=2.2", 'gone>=1; extra == "dev"']
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "sonosweep"\nrequires-python = ">=3.11"\n'
        f"dependencies = {json.dumps(ranges)}\n"
    )
    (tmp_path / "requirements.lock").write_text(
        "torch==2.15.0 \\\n    --hash=sha256:00\n"
        "numpy==2.3.0 ; python_full_version < '3' \\\n"
        "numpy==2.4.6 ; python_full_version >= '3' \\\n"
    )
    versions = {"torch": "2.15.0+cu128", "lightning": "2.6.6", "numpy": "2.4.6"}
    monkeypatch.setattr(checks_machine, "_version", versions.get)
    found = checks_machine.check_libraries(config())
    expected = "torch 2.15.0+cu128, lightning 2.6.6, numpy 2.4.6; in range, as locked"
    assert (found.mark, found.text) == ("ok", expected)
    versions["torch"] = "2.11.0"
    found = checks_machine.check_libraries(config())
    assert found.mark == "warn"
    assert "torch 2.11.0 (locked: 2.15.0)" in found.text
    assert found.facts["differ_from_lock"] == {"torch": "2.15.0"}
    versions |= {"torch": None, "lightning": "2.6.3"}
    found = checks_machine.check_libraries(config())
    assert found.mark == "missing"
    assert found.text == "torch is not installed, lightning is 2.6.3, not <2.7,>=2.6.6"
    assert "make setup" in found.remedy


def test_an_old_python_is_missing(monkeypatch):
    assert checks_machine.check_python(config()).mark == "ok"
    monkeypatch.setattr("platform.python_version", lambda: "3.10.4")
    found = checks_machine.check_python(config())
    assert (found.mark, found.text) == ("missing", "3.10.4, but >=3.11 is needed")


def test_cores_that_a_control_group_takes_away(monkeypatch):
    monkeypatch.setattr(checks_machine, "usable_cores", lambda: 16)
    monkeypatch.setattr(checks_machine, "cgroup_limit", lambda _: 4.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    found = checks_machine.check_cores(config("sweep.workers=2"))
    assert found.mark == "warn"
    assert found.text.startswith("16 cores of 64 by affinity, 4 by the control group; 2 stages")
    assert found.remedy == "trainer.threads=2"
    assert checks_machine.check_cores(config("sweep.workers=2", "trainer.threads=2")).mark == "ok"
    found = checks_machine.check_cores(config("sweep.workers=5"))
    assert found.remedy == "sweep.workers=4 trainer.threads=1"
    assert checks_machine.check_cores(config("sweep.launcher=slurm")).mark == "ok"


def test_memory_within_a_control_group(monkeypatch):
    memory = collections.namedtuple("Memory", "total available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(64 * GIB, 60 * GIB))
    limits = {"memory": None, "memory_used": None}
    monkeypatch.setattr(checks_machine, "cgroup_limit", limits.get)
    found = checks_machine.check_memory(config("sweep.workers=4"))
    assert (found.mark, found.text) == ("ok", "60.0 GiB free of 64.0; stages take up to 8")
    limits |= {"memory": 8 * GIB, "memory_used": 1 * GIB}
    found = checks_machine.check_memory(config("sweep.workers=4"))
    assert (found.mark, found.facts) == ("warn", {"total_gib": 8, "free_gib": 7})
    assert "sweep.workers" in found.remedy
