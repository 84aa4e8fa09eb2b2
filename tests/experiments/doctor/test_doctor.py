"""`sonosweep doctor`: a run's lines on whole, odd and broken machines; the screen; JSON."""

import collections
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doctor_parts import bare_machine, config
from rich.console import Console

from datamodules.errors import InputError
from experiments.doctor import run as checks_run
from experiments.doctor import screen as doctor
from experiments.doctor.checks import Check, ask, run_checks

GIB = 2**30
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    return bare_machine(tmp_path, monkeypatch)


def test_weights_that_are_missing_wrong_or_not_needed(tmp_path):
    assert checks_run.check_weights(config()).mark == "ok"
    assert checks_run.check_weights(config("segmenter.backbone=tiny")).mark == "ok"
    (tmp_path / "other.pth").write_text("no weights")
    for name, word in (("none.pth", "not at"), ("other.pth", "sha256")):
        found = checks_run.check_weights(config(f"segmenter.weights_path={tmp_path / name}"))
        assert found.mark == "missing"
        assert word in found.text + found.remedy
        assert "weights_path" in found.text + found.remedy


def test_data_are_counted_without_decoding(bare, hc18_folder):
    root = f"data.root={hc18_folder}"
    (hc18_folder / "training_set" / "003_HC.png").write_bytes(b"no picture")
    found = checks_run.check_data(config(root, "data.subset.n_images=12"))
    assert found.mark == "ok"
    assert found.text.startswith("12 images with annotations, 8 exams (hc18 in hc18 layout) in ")
    assert found.text.endswith("; 2 unlabelled test images")
    found = checks_run.check_data(config(root))
    assert found.mark == "missing"
    assert found.text == f"data.subset.n_images=80: {hc18_folder} holds 12 images"
    (hc18_folder / "training_set" / "003_HC.png").write_bytes(b"")
    found = checks_run.check_data(config(root, "data.subset.n_images=12"))
    assert found.mark == "missing"
    assert found.text.endswith("003_HC.png is empty, one of 1 such")


def test_data_that_are_not_there(bare, tmp_path, hc18_folder, monkeypatch):
    assert checks_run.check_data(config(), may_draw=True).mark == "warn"
    found = checks_run.check_data(config())
    assert found.mark == "missing"
    assert "HC18_ROOT" in found.remedy
    for change in (f"data.root={tmp_path}/none", f"data.test_cohorts=[{tmp_path}/none]"):
        found = checks_run.check_data(config(f"data.root={hc18_folder}", change), may_draw=True)
        assert (found.mark, f"{tmp_path}/none" in found.text) == ("missing", True)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(hc18_folder))

    monkeypatch.setattr("datamodules.samples.read_hc18", refuse)
    found = checks_run.check_data(config(f"data.root={hc18_folder}"))
    assert (found.mark, found.text) == ("missing", f"{hc18_folder}: permission denied")


def test_a_store_that_can_be_used_is_left_as_it_was(tmp_path):
    root = tmp_path / "runs"
    found = checks_run.check_store(config(f"store.root={root}"))
    assert found.facts["has_locks"] is True
    assert found.facts["exists"] is False
    assert "(made by the first run)" in found.text
    assert list(tmp_path.iterdir()) == []
    root.mkdir()
    assert checks_run.check_store(config(f"store.root={root}")).facts["exists"] is True
    assert list(root.iterdir()) == []


def test_a_disk_that_is_full_or_small(tmp_path, monkeypatch):
    free = [0.1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB, 0, int(free[0] * GIB)))
    monkeypatch.setattr(checks_run, "filesystem", lambda _: ("ext4", []))
    found = checks_run.check_store(config(f"store.root={tmp_path}"))
    assert found.mark == "missing"
    assert found.text == f"0.10 GiB free in {tmp_path}: sweeps pause below 0.5"
    assert "store.root=" in found.remedy
    free[0] = 0.6
    assert checks_run.check_store(config(f"store.root={tmp_path}")).mark == "ok"
    more = config(f"store.root={tmp_path}", "synthesis.n_candidates=400")
    assert checks_run.check_store(more).mark == "warn"
    monkeypatch.setattr(checks_run, "filesystem", lambda _: ("nfs4", ["rw", "local_lock=all"]))
    found = checks_run.check_store(config(f"store.root={tmp_path}"))
    assert (found.mark, "locks end at this machine" in found.text) == ("warn", True)


def test_a_store_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    found = checks_run.check_store(config(f"store.root={tmp_path}/file/runs"))
    assert (found.mark, "is not a folder" in found.text) == ("missing", True)
    (tmp_path / "new" / "store").mkdir(parents=True)
    (tmp_path / "new" / "store" / "VERSION.json").write_text('{"layout": 99}')
    found = checks_run.check_store(config(f"store.root={tmp_path}/new"))
    assert (found.mark, "VERSION.json" in found.text) == ("missing", True)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    found = checks_run.check_store(config(f"store.root={tmp_path}"))
    assert (found.mark, "Read-only file system" in found.text) == ("missing", True)
    assert "store.root=" in found.remedy


def test_a_filesystem_without_locks_warns(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    found = checks_run.check_store(config(f"store.root={tmp_path}"))
    assert (found.mark, found.facts["has_locks"]) == ("warn", False)
    assert "flock does not work" in found.text


def test_wandb_modes(bare, tmp_path, monkeypatch):
    answers = [False]
    monkeypatch.setattr(checks_run, "server_answers", lambda: answers[0])
    assert "wandb login" in checks_run.check_wandb(config()).text
    assert checks_run.check_wandb(config("wandb.mode=disabled")).text == "disabled"
    found = checks_run.check_wandb(config("wandb.mode=online"))
    assert (found.mark, "without a key" in found.text) == ("warn", True)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + 40 * "0")
    (tmp_path / ".netrc").chmod(0o600)
    found = checks_run.check_wandb(config())
    assert (found.mark, "does not answer" in found.text) == ("warn", True)
    answers[0] = True
    found = checks_run.check_wandb(config())
    assert (found.mark, found.facts["mode"]) == ("ok", "online")


def test_slurm_is_needed_where_it_is_asked_for(bare, monkeypatch):
    asked = config("sweep.launcher=slurm", "slurm.partition=gpu")
    assert checks_run.check_slurm(config()).mark == "ok"
    assert checks_run.check_slurm(asked).mark == "missing"
    for name in ("sbatch", "srun"):
        bare(name, "exit 0")
    assert checks_run.check_slurm(config()).text == "squeue, sinfo not on the PATH"
    bare("squeue", "exit 0")
    bare("sinfo", "echo 'sinfo: error: Unable to contact slurm controller' >&2; exit 1")
    found = checks_run.check_slurm(config())
    assert found.mark == "warn"
    assert found.text == "sinfo fails: Unable to contact slurm controller"
    assert checks_run.check_slurm(asked).mark == "missing"
    bare("sinfo", "echo 'cpu|up|1-00:00:00|4|(null)'; echo 'gpu|up|infinite|2|gpu:4'")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    found = checks_run.check_slurm(asked)
    assert (found.mark, found.text) == ("ok", "answers; partitions: cpu, gpu")
    assert found.facts["partitions"][1] == {
        "name": "gpu",
        "state": "up",
        "time_limit": "infinite",
        "nodes": "2",
        "gres": "gpu:4",
    }
    found = checks_run.check_slurm(config("sweep.launcher=slurm", "slurm.partition=big"))
    assert (found.mark, found.remedy) == ("missing", "choose one of cpu, gpu")
    bare("sinfo", "echo 'gpu|down|infinite|2|gpu:4'")
    found = checks_run.check_slurm(asked)
    assert (found.mark, "not up: gpu" in found.text) == ("missing", True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    bare("sinfo", "echo 'gpu|up|infinite|2|gpu:4'")
    assert checks_run.check_slurm(asked).remedy == "pip install submitit"


def test_the_code_without_git_without_a_checkout_and_of_another_user(bare):
    found = checks_run.check_code(config())
    assert (found.mark, "git is not on the PATH" in found.text) == ("warn", True)
    bare("git", "echo 'fatal: not a git repository (or any parent)' >&2; exit 128")
    assert "not a git checkout" in checks_run.check_code(config()).text
    bare("git", "echo \"fatal: detected dubious ownership in repository at '/x'\" >&2; exit 128")
    assert "safe.directory" in checks_run.check_code(config()).remedy
    says = 'case "$*" in *abbrev*) echo main;; *short*) echo abc123;; *) {};; esac'
    bare("git", says.format("printf ' M a.py\\n M b.py\\n'"))
    found = checks_run.check_code(config())
    assert (found.mark, found.text) == ("warn", "abc123 on main, uncommitted changes in 2 files")
    bare("git", says.format("true"))
    assert checks_run.check_code(config()).mark == "ok"


def test_a_command_that_hangs_or_cannot_be_started_is_left(bare, tmp_path):
    bare("slow", "exec /bin/sleep 30")
    started = time.monotonic()
    assert ask("slow", timeout_s=0.2).complaint == "slow gave no answer within 0 s"
    assert time.monotonic() - started < 5
    (tmp_path / "bin" / "odd").write_bytes(b"\x00\x01no program")
    (tmp_path / "bin" / "odd").chmod(0o755)
    assert ask("odd").code is None
    bare("noisy", "printf '\\377\\n'; exit 3")
    assert ask("noisy").code == 3


def test_checkers_that_raise_or_hang_do_not_take_the_others_along():
    def broken(_):
        raise ImportError("libGL.so.1: cannot open\nshared object file")

    def stuck(_):
        time.sleep(20)

    good = Check(name="good", mark="ok", text="fine")
    started = time.monotonic()
    found = list(
        run_checks({"a": broken, "b": stuck, "good": lambda _: good}, config(), timeout_s=0.3)
    )
    assert time.monotonic() - started < 5
    assert [check.mark for check in found] == ["warn", "warn", "ok"]
    assert "ImportError: libGL.so.1: cannot open shared object file" in found[0].text
    assert (found[1].name, found[1].text) == ("b", "no answer within 0 s")
    assert found[2] is good


def test_a_screen_of_80_columns_and_its_last_line(monkeypatch):
    words = "a text of many words that goes on " * 4
    missing = Check(name="data", mark="missing", text=words.strip(), remedy=words.strip())
    fine = Check(name="cpu", mark="ok", text="2 cores", remedy="not shown")
    monkeypatch.setattr(doctor, "run_checks", lambda *_, **__: iter([fine, missing]))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    found = doctor.doctor([], console)
    lines = console.export_text().splitlines()
    assert lines[1] == "ok      cpu         2 cores"
    assert lines[2].startswith("missing data        a text")
    assert all(len(line) <= 80 for line in lines[:-1])
    assert any(line.startswith(" " * 20 + "-> a text") for line in lines)
    assert lines[-1] == f"A run cannot start here: data: {words.strip()}"
    assert doctor.as_dict(found)["reason"] == f"data: {words.strip()}"


def test_a_recipe_or_changes_alone_are_taken(monkeypatch):
    monkeypatch.setattr(doctor, "run_checks", lambda *_, **__: iter([]))
    assert doctor.diagnose([])[0] == "demo"
    assert doctor.diagnose(["sweep.workers=3"])[1].sweep.workers == 3
    recipe, found, _ = doctor.diagnose(["hc18_small", "sweep.workers=3"])
    assert (recipe, found.name, found.sweep.workers) == ("hc18_small", "hc18-small", 3)
    with pytest.raises(InputError, match=r"sweep\.worker: unknown key"):
        doctor.diagnose(["sweep.worker=3"])


def test_the_command_for_programs_and_its_exit_code(tmp_path, hc18_folder):
    words = [
        *(f"data.root={hc18_folder}", "data.subset.n_images=null", "split.train=null"),
        *(f"store.root={tmp_path}/runs", "wandb.mode=disabled", "--json"),
    ]
    environment = {"HOME": str(tmp_path), "PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-m", "experiments", "doctor", "hc18_small", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[3],
        check=False,
    )
    found = json.loads(ended.stdout)
    assert [check["name"] for check in found["checks"]] == list(doctor.CHECKERS)
    # Cores, memory and the checkout are this machine's, whatever it is.
    strange = [c for c in found["checks"] if c["mark"] != "ok"]
    assert [c for c in strange if c["name"] not in ("libraries", "code", "cpu", "memory")] == []
    assert (ended.returncode, found["can_start"], found["reason"]) == (0, True, None)
    assert ended.stderr == ""
    assert not (tmp_path / "runs").exists()


def test_the_command_for_people_ends_with_1_where_data_are_missing(monkeypatch, capsys, tmp_path):
    from experiments.__main__ import main

    look = ["sonosweep", "doctor", f"data.root={tmp_path}/none", "segmenter.backbone=tiny"]
    monkeypatch.setattr(sys, "argv", look)
    light = {name: doctor.CHECKERS[name] for name in ("data", "weights")}
    monkeypatch.setattr(doctor, "CHECKERS", light)
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert f"A run cannot start here: data: {tmp_path}/none: no such folder" in out
