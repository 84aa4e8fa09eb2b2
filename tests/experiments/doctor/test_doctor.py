"""`sonosweep doctor`: a run's lines on whole, odd and broken machines; the screen; JSON."""

import collections
import json
import shutil
import time
from dataclasses import replace
from unittest import mock

import pytest
from toy_recipe import TOY

from datamodules.layouts import LAYOUTS
from experiments.config.recipe import load_config
from experiments.doctor import needs, screen
from experiments.doctor.checks import Check, ask, run_checks

GIB = 2**30


def look(checker, *overrides):
    """What a checker finds for the demo's config with changes."""
    config = load_config(TOY, list(overrides))
    return next(run_checks({"it": checker}, config, timeout_s=60))[1]


def test_weights_that_are_there_or_damaged():
    found = look(needs.check_weights)
    assert (found.mark, "sam: lite_medsam.pth present" in found.text) == ("ok", True)
    found = look(needs.check_weights, "segmenter.weights_path=pyproject.toml")
    assert (found.mark, "sha256" in found.text) == ("missing", True)


def test_published_weights_are_present_fetchable_or_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = ["segmenter.backbone=vit_b", "sweep.generator=[stable_diffusion]"]
    base = "stable_diffusion: stable-diffusion-v1-5/stable-diffusion-v1-5 (hub)"
    found = look(needs.check_weights, *asked)
    expected = f"sam: sam_vit_b_01ec64.pth (358 MiB) fetchable, {base} fetchable"
    assert (found.mark, found.text) == ("warn", expected)
    found = look(needs.check_weights, *asked, "offline=true")
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


def test_a_store_is_tried_and_left_as_it_was(tmp_path):
    assert look(needs.check_store, f"store.root={tmp_path}/runs").facts["has_locks"] is True
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    found = look(needs.check_store, f"store.root={tmp_path}/file/runs")
    assert (found.mark, "Not a directory" in found.text) == ("missing", True)


def test_a_disk_that_is_full_small_or_without_locks(tmp_path, monkeypatch):
    usage, free = collections.namedtuple("Usage", "free"), [0.1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(int(free[0] * GIB)))
    store = f"store.root={tmp_path}"
    assert look(needs.check_store, store).mark == "missing"
    free[0] = 0.6
    assert look(needs.check_store, store).mark == "ok"
    assert "free some space" in look(needs.check_store, store, "synthesis.n_candidates=400").remedy

    monkeypatch.setattr("fcntl.flock", mock.Mock(side_effect=OSError(38, "not implemented")))
    assert "flock does not work" in look(needs.check_store, store).remedy


def test_wandb_modes(bare, tmp_path, monkeypatch):
    answers = [False]
    monkeypatch.setattr(needs, "server_answers", lambda: answers[0])
    assert look(needs.check_wandb).mark == "ok"
    assert look(needs.check_wandb, "wandb.mode=online").mark == "warn"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + 40 * "0")
    (tmp_path / ".netrc").chmod(0o600)
    assert look(needs.check_wandb).mark == "warn"
    answers[0] = True
    assert look(needs.check_wandb).text.startswith("online, logged in")


@pytest.mark.parametrize(
    ("script", "mark", "words"),
    [
        (None, "missing", "not on the PATH: sinfo"),
        ("echo 'sinfo: error: no controller' >&2; exit 1", "missing", "no controller"),
        ("echo 'cpu|up'; echo 'gpu|up'", "ok", "answers; partitions: cpu, gpu"),
        ("echo 'cpu|up'", "missing", "slurm.partition=gpu: there is none"),
        ("echo 'gpu|down'", "missing", "not up: gpu"),
    ],
)
def test_slurm_is_needed_where_it_is_asked_for(bare, script, mark, words):
    assert look(needs.check_slurm).mark == "ok"
    for name in ("sbatch", "srun", "squeue"):
        bare(name, "exit 0")
    if script is not None:
        bare("sinfo", script)
    found = look(needs.check_slurm, "sweep.launcher=slurm", "slurm.partition=gpu")
    assert (found.mark, words in found.text) == (mark, True)


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


def test_the_command_for_people_ends_with_1_where_data_are_missing(
    sonosweep, monkeypatch, tmp_path
):
    light = {name: screen.CHECKERS[name] for name in ("data", "weights")}
    monkeypatch.setattr(screen, "CHECKERS", light)
    none = tmp_path / "none"
    code, printed, _ = sonosweep("doctor", f"data.root={none}", "segmenter.backbone=tiny")
    assert code == 1
    assert f"A run cannot start here: data: {none}: no such folder" in printed
