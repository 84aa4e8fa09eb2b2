"""`sonosweep doctor`: a run's lines on whole, odd and broken machines; the screen; JSON."""

import collections
import json
import math
import os
import shutil
import tempfile
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
from toy_recipe import TOY

from datamodules.layouts import LAYOUTS
from experiments.config.recipe import load_config
from experiments.doctor import machine, needs, screen
from experiments.doctor.checks import Check, ask, run_checks
from experiments.runner import server

GIB = 2**30
TWO_GPUS = "echo '0, NVIDIA H200, {}, 143771, 570.86'; echo '1, NVIDIA H200, 4, 143771, 570.86'"


def look(checker, *overrides):
    """What a checker finds for the demo's config with changes."""
    config = load_config(TOY, list(overrides))
    return next(run_checks({"it": checker}, config, timeout_s=60))[1]


def test_weights_that_are_there_damaged_fetchable_or_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = look(needs.check_weights)
    assert (found.mark, "sam: lite_medsam.pth present" in found.text) == ("ok", True)
    found = look(needs.check_weights, "segmenter.weights_path=pyproject.toml")
    assert (found.mark, "sha256" in found.text) == ("missing", True)
    unet, judge = "sweep.segmenter=[unet]", "gate.judge: lite_medsam.pth present"
    found = look(needs.check_weights, unet)
    assert (found.mark, found.text) == (
        "ok",
        f"unet: efficientnet-lite0-57934424.pth present, {judge}",
    )
    found = look(needs.check_weights, unet, "unet.encoder_name=resnet18")
    expected = f"unet: imagenet from the network fetchable, {judge}"
    assert (found.mark, found.text) == ("warn", expected)
    found = look(needs.check_weights, unet, "unet.encoder_name=resnet18", "offline=true")
    assert (found.mark, " fetchable" in found.text) == ("warn", False)
    # Without pairs nothing is judged.
    found = look(needs.check_weights, unet, "sweep.condition=[real]")
    assert judge not in found.text
    published = ("segmenter.backbone=vit_b", "sweep.generator=[stable_diffusion]")
    base = "stable_diffusion: stable-diffusion-v1-5/stable-diffusion-v1-5 (hub)"
    found = look(needs.check_weights, *published)
    expected = f"sam: sam_vit_b_01ec64.pth (358 MiB) fetchable, {base} fetchable"
    assert (found.mark, found.text) == ("warn", expected)
    found = look(needs.check_weights, *published, "offline=true")
    assert (found.mark, found.text.count("missing, offline")) == ("missing", 2)


def test_data_counted_missing_empty_or_unreadable(bare, tmp_path, hc18_folder, monkeypatch):
    words = (f"data.root={hc18_folder}", "data.subset.n_images=12")
    counts = "12 annotated images, 8 exams, 2 unlabelled test images"
    found = look(needs.check_data, *words)
    assert (found.mark, found.text) == ("ok", f"in {hc18_folder}: {counts}")
    assert look(needs.check_data, words[0]).mark == "missing"
    (hc18_folder / "training_set" / "003_HC.png").write_bytes(b"")
    assert "003_HC.png is empty, one of 1" in look(needs.check_data, *words).text
    assert look(needs.check_demo_data).mark == "warn"
    assert "HC18_ROOT" in look(needs.check_data).remedy
    found = look(needs.check_demo_data, words[0], f"data.test_cohorts=[{tmp_path}/none]")
    assert (found.mark, f"{tmp_path}/none" in found.text) == ("missing", True)
    refuse = mock.Mock(side_effect=PermissionError(13, "Permission denied", "/x"))
    monkeypatch.setitem(LAYOUTS, "hc18", replace(LAYOUTS["hc18"], read=refuse))
    assert look(needs.check_data, words[0]).text == "/x: Permission denied"


def test_a_store_is_tried_and_left_as_it_was(tmp_path, monkeypatch):
    store = f"store.root={tmp_path}/runs"
    assert look(needs.check_store, store).facts["has_locks"] is True
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    found = look(needs.check_store, f"store.root={tmp_path}/file/runs")
    assert (found.mark, "Not a directory" in found.text) == ("missing", True)
    free = [0.1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0] * GIB))
    assert look(needs.check_store, store).mark == "missing"
    free[0] = 0.6
    assert look(needs.check_store, store).mark == "ok"
    assert "free some space" in look(needs.check_store, store, "synthesis.n_candidates=400").remedy
    monkeypatch.setattr("fcntl.flock", mock.Mock(side_effect=OSError(38, "not implemented")))
    assert "flock does not work" in look(needs.check_store, store).remedy


def test_wandb_modes(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(needs, "server_answers", mock.Mock(side_effect=[False, True]))
    assert look(needs.check_wandb).mark == "ok"
    assert look(needs.check_wandb, "wandb.mode=online").mark == "warn"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + 40 * "0")
    (tmp_path / ".netrc").chmod(0o600)
    assert look(needs.check_wandb).mark == "warn"
    assert look(needs.check_wandb).text.startswith("online, logged in")


def test_libraries_are_held_against_their_ranges(monkeypatch):
    installed = {"torch": "2.15.0+cu128", "lightning": "2.6.6", "python": "3.12.1"}
    monkeypatch.setattr(machine, "_version", installed.get)
    package = collections.UserDict({"Requires-Python": ">=3.11"})
    package.get_all = lambda _: ["torch>=2.11", "lightning>=2.6.6,<2.7", 'gone>=1; extra == "dev"']
    monkeypatch.setattr(machine, "metadata", lambda _: package)
    found = look(machine.check_python)
    assert (found.mark, "torch 2.15.0+cu128; libraries in range" in found.text) == ("ok", True)
    installed |= {"torch": None, "python": "3.10.4"}
    found = look(machine.check_python)
    wrong = "python is 3.10.4, not >=3.11, torch is not installed, not >=2.11"
    assert (found.mark, found.text) == ("missing", wrong)
    assert found.remedy.startswith("make -B setup"), "what is made by `make setup` is not made anew"


def test_the_least_limit_of_the_control_groups_above_counts(tmp_path):
    files = {"job/cpu.max": "250000 100000", "cpu.max": "800000 100000", "job/memory.max": "4000"}
    for name, text in (files | {"memory.max": "max", "own": "0::/job/step\n"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cgroup_limits(base=tmp_path, own=tmp_path / "own") == (2.5, 4000)
    assert machine.cgroup_limits(own=tmp_path / "none") == (math.inf, math.inf)


def test_cores_and_memory_that_a_control_group_or_a_container_takes_away(monkeypatch):
    limits = [4.0, math.inf]
    monkeypatch.setattr(machine, "cgroup_limits", lambda: limits)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=60 * GIB))
    found = look(machine.check_cores, "sweep.workers=2")
    assert (found.mark, found.remedy) == ("warn", "trainer.threads=2")
    found = look(machine.check_cores, "sweep.workers=5")
    assert found.remedy == "sweep.workers=4 trainer.threads=1"
    fitting = ("sweep.workers=2", "trainer.threads=2")
    # Loader processes hand batches over by shared memory.
    for mib, mark in ((256, "ok"), (64, "warn"), (7.9, "missing")):
        free = SimpleNamespace(free=mib * 2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: free)
        assert look(machine.check_cores, *fitting, "trainer.num_workers=2").mark == mark
    assert look(machine.check_cores, *fitting).mark == "ok"
    limits[:] = [16.0, 7 * GIB]
    found = look(machine.check_cores, "sweep.workers=4")
    assert (found.mark, found.facts["free_gib"]) == ("warn", 7)


def test_a_long_temporary_folder_is_named_and_sockets_go_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "SHORT_FOLDERS", (str(tmp_path),))
    for length, sockets in ((74, "/" + "x" * 74), (75, str(tmp_path))):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * length)
        assert look(machine.check_temporary).facts["sockets"] == sockets
    monkeypatch.setattr(server, "SHORT_FOLDERS", ("/nowhere",))
    assert "set TMPDIR to a shorter folder" in look(machine.check_temporary).remedy


SLURM = (needs.check_slurm, "sinfo", "sweep.launcher=slurm", "slurm.partition=gpu")
NVIDIA = (machine.check_gpus, "nvidia-smi")


@pytest.mark.parametrize(
    ("asked", "script", "mark", "words"),
    [
        (SLURM, None, "missing", "not on the PATH: sinfo"),
        (SLURM, "echo 'sinfo: error: no controller' >&2; exit 1", "missing", "no controller"),
        (SLURM, "echo 'cpu|up'; echo 'gpu|up'", "ok", "answers; partitions: cpu, gpu"),
        (SLURM, "echo 'cpu|up'", "missing", "slurm.partition=gpu: there is none"),
        (SLURM, "echo 'gpu|down'", "missing", "not up: gpu"),
        (NVIDIA, None, "ok", "no NVIDIA GPU on this machine"),
        (NVIDIA, TWO_GPUS.format(12), "ok", "0: NVIDIA H200 (143771 MiB), 1: NVIDIA H200"),
        (NVIDIA, TWO_GPUS.format(102400), "warn", "half of the memory is taken on 0"),
        (NVIDIA, "echo '0, GB10, [N/A], [N/A], 470.1'", "ok", "0: GB10 ([N/A] MiB)"),
        (NVIDIA, "echo Driver/library version mismatch; exit 18", "warn", "version mismatch"),
    ],
)
def test_what_the_commands_of_slurm_and_nvidia_answer(bare, asked, script, mark, words):
    checker, command, *overrides = asked
    assert look(needs.check_slurm).mark == "ok", "nobody asks for SLURM"
    for name in ("sbatch", "srun", "squeue"):
        bare(name, "exit 0")
    if script is not None:
        bare(command, script)
    found = look(checker, *overrides)
    assert (found.mark, words in found.text) == (mark, True)


def seen(*gpus, warning=""):
    """What a process says that imported torch."""
    return 0, json.dumps({"torch": "2.15.0", "cuda": "12.8", "gpus": gpus, "warning": warning})


@pytest.mark.parametrize(
    ("answer", "word", "mark", "words"),
    [
        (seen(), "offline=true", "warn", "its build is without CUDA"),
        (seen("A", warning="is too old"), "trainer.accelerator=gpu", "missing", "is too old"),
        (seen("H200"), "sweep.devices=[0]", "ok", "GPUs: H200"),
        ((1, "no torchvision::nms"), "offline=true", "missing", "no torchvision::nms"),
        ((None, "python gave no answer"), "offline=true", "warn", "gave no answer"),
    ],
)
def test_torch_in_a_process_of_its_own(bare, monkeypatch, answer, word, mark, words):
    asked = mock.Mock(return_value=answer)
    monkeypatch.setattr(machine, "ask", asked)
    bare("nvidia-smi", "echo GPU-8f, NVIDIA H200")
    found = look(machine.check_torch, word)
    assert (found.mark, words in found.text) == (mark, True)
    assert asked.call_args.kwargs == {"timeout_s": machine.PROBE_TIMEOUT_S}


def test_a_command_that_hangs_or_cannot_be_started_is_left(bare, tmp_path):
    bare("slow", "exec /bin/sleep 120")
    assert ask("slow", timeout_s=0.2) == (None, "slow gave no answer within 0.2 s")
    (tmp_path / "bin" / "odd").write_bytes(b"\x00\x01no program")
    (tmp_path / "bin" / "odd").chmod(0o755)
    assert ask("odd") == (None, "odd cannot be started (Exec format error)")


def test_checkers_that_raise_or_hang_do_not_take_the_others_along():
    broken = mock.Mock(side_effect=ImportError("libGL.so.1: cannot open\nshared object file"))
    good = Check("ok", "fine")
    checkers = {"a": broken, "b": lambda _: time.sleep(120), "good": lambda _: good}
    found = dict(run_checks(checkers, load_config(TOY, []), timeout_s=0.3))
    assert [check.mark for check in found.values()] == ["warn", "warn", "ok"]
    assert "ImportError: libGL.so.1: cannot open shared object file" in found["a"].text
    assert found["b"].text == "no answer within 0.3 s"


def test_the_command_for_programs(sonosweep, tmp_path, hc18_folder, monkeypatch):
    for name, value in (("HOME", tmp_path), ("PATH", tmp_path), ("CUDA_VISIBLE_DEVICES", "")):
        monkeypatch.setenv(name, str(value))
    words = [f"data.root={hc18_folder}", "data.subset.n_images=null", "split.train=null"]
    words += [f"store.root={tmp_path}/runs", "wandb.mode=disabled", "--json"]
    code, printed, errors = sonosweep("doctor", "hc18_small", *words)
    found = json.loads(printed)
    assert [check["name"] for check in found["checks"]] == list(screen.CHECKERS)
    assert (code, found["can_start"], found["reason"], errors) == (0, True, None, "")
    assert not (tmp_path / "runs").exists()


def test_the_command_for_people_says_why_a_run_cannot_start(sonosweep, monkeypatch, tmp_path):
    monkeypatch.setattr(screen, "CHECKERS", {"weights": needs.check_weights})
    none = ["segmenter.backbone=tiny", "unet.encoder_weights=null"]
    code, printed, _ = sonosweep("doctor", f"data.root={tmp_path}/none", *none)
    said = f"A run cannot start here: data: {tmp_path}/none: no such folder"
    assert (code, "none needed" in printed, said in printed) == (1, True, True)
