"""`sonosweep doctor`: a run's lines on whole, odd and broken machines; the screen; JSON."""

import collections
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from toy_recipe import TOY

from datamodules.errors import InputError
from datamodules.layouts import LAYOUTS
from experiments.config.recipe import load_config
from experiments.doctor import needs, screen
from experiments.doctor.checks import Check, ask, run_checks
from lightning_modules.weights_table import DEFAULT_BASE, WEIGHTS

GIB = 2**30


def look(checker, *overrides):
    """What a checker finds for the demo's config with changes."""
    config = load_config(TOY, list(overrides))
    return next(run_checks({"it": checker}, config, timeout_s=60))[1]


def test_weights_that_are_missing_wrong_or_not_needed(tmp_path):
    assert look(needs.check_weights).text == "sam: lite_medsam.pth present"
    assert look(needs.check_weights, "segmenter.backbone=tiny").text == "none needed"
    unet = ["sweep.segmenter=[sam,unet]", "unet.encoder_weights=imagenet"]
    found = look(needs.check_weights, *unet)
    assert (found.mark, "unet: imagenet from the network" in found.text) == ("warn", True)
    blocks = "segmenters={big: {kind: sam, backbone: vit_b, weights_path: /none}}"
    found = look(needs.check_weights, "sweep.segmenter=[big]", blocks)
    assert (found.mark, "/none" in found.text) == ("missing", True)
    (tmp_path / "other.pth").write_text("no weights")
    for name, word in (("none.pth", "not at"), ("other.pth", "sha256")):
        found = look(needs.check_weights, f"segmenter.weights_path={tmp_path / name}")
        assert (found.mark, word in found.text + found.remedy) == ("missing", True)
        assert "weights_path" in found.text + found.remedy


def test_published_weights_are_present_fetchable_or_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = ["segmenter.backbone=vit_b", "sweep.generator=[stable_diffusion]"]
    base = "stable_diffusion: stable-diffusion-v1-5/stable-diffusion-v1-5 (hub)"
    found = look(needs.check_weights, *asked)
    expected = f"sam: sam_vit_b_01ec64.pth (358 MiB) fetchable, {base} fetchable"
    assert (found.mark, found.text) == ("warn", expected)
    assert found.remedy.startswith("sonosweep weights fetch vit_b fetches it beforehand; sonosweep")
    found = look(needs.check_weights, *asked, "offline=true")
    assert (found.mark, found.text.count("missing, offline")) == ("missing", 2)
    row, path = WEIGHTS["vit_b"], tmp_path / "hub" / "checkpoints" / "sam_vit_b_01ec64.pth"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "weights")
    found = look(needs.check_weights, *asked)
    assert (found.mark, "not the published weights of vit_b" in found.text) == ("missing", True)
    begin = hashlib.md5(path.read_bytes()).hexdigest()[:6]
    row = replace(row, size_bytes=path.stat().st_size, md5=begin)
    monkeypatch.setitem(WEIGHTS, "vit_b", row)
    snapshot = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    unet = snapshot / "snapshots" / DEFAULT_BASE.revision / "unet"
    unet.mkdir(parents=True)
    (unet / "diffusion_pytorch_model.safetensors").write_text("x")
    found = look(needs.check_weights, *asked, "offline=true")
    assert (found.mark, found.text.count(" present")) == ("ok", 2)


def test_data_counted_missing_empty_or_unreadable(bare, tmp_path, hc18_folder, monkeypatch):
    root = f"data.root={hc18_folder}"
    found = look(needs.check_data, root, "data.subset.n_images=12")
    counts = "12 annotated images, 8 exams, 2 unlabelled test images"
    assert (found.mark, found.text) == ("ok", f"in {hc18_folder}: {counts}")
    found = look(needs.check_data, root)
    assert (found.mark, "data.subset.n_images=80" in found.text) == ("missing", True)
    (hc18_folder / "training_set" / "003_HC.png").write_bytes(b"")
    found = look(needs.check_data, root, "data.subset.n_images=12")
    assert (found.mark, "003_HC.png is empty, one of 1" in found.text) == ("missing", True)
    assert look(needs.check_demo_data).mark == "warn"
    assert "HC18_ROOT" in look(needs.check_data).remedy
    for change in (f"data.root={tmp_path}/none", f"data.test_cohorts=[{tmp_path}/none]"):
        found = look(needs.check_demo_data, root, change)
        assert (found.mark, f"{tmp_path}/none" in found.text) == ("missing", True)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setitem(LAYOUTS, "hc18", replace(LAYOUTS["hc18"], read=refuse))
    found = look(needs.check_data, root)
    assert (found.mark, found.text) == ("missing", "/x: Permission denied")


def test_a_store_is_tried_and_left_as_it_was(tmp_path):
    root = tmp_path / "runs"
    assert look(needs.check_store, f"store.root={root}").facts["has_locks"] is True
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    found = look(needs.check_store, f"store.root={tmp_path}/file/runs")
    assert (found.mark, "Not a directory" in found.text) == ("missing", True)
    (root / "store").mkdir(parents=True)
    (root / "store" / "VERSION.json").write_text('{"layout": 99}')
    found = look(needs.check_store, f"store.root={root}")
    assert (found.mark, "VERSION.json" in found.text) == ("missing", True)


def test_a_disk_that_is_full_small_in_memory_or_without_locks(tmp_path, monkeypatch):
    usage, free = collections.namedtuple("Usage", "free"), [0.1]
    mount = collections.namedtuple("Mount", "mountpoint fstype opts")
    mounts = [
        mount("/", "ext4", "rw"),
        mount("/none", "x", "rw"),
        mount(str(tmp_path), "xfs", "rw"),
    ]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(int(free[0] * GIB)))
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    store = f"store.root={tmp_path}"
    found = look(needs.check_store, store)
    assert found.mark == "missing"
    assert found.text == f"0.10 GiB free in {tmp_path}: sweeps pause below 0.5"
    free[0] = 0.6
    found = look(needs.check_store, store)
    assert (found.mark, found.facts["filesystem"]) == ("ok", "xfs")
    assert "free some space" in look(needs.check_store, store, "synthesis.n_candidates=400").remedy
    for kind, options, words in (
        ("nfs4", "rw,local_lock=all", "locks end at this machine"),
        ("tmpfs", "rw", "restart"),
    ):
        mounts.append(mount(str(tmp_path), kind, options))
        assert words in look(needs.check_store, store).remedy

    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert "flock does not work" in look(needs.check_store, store).remedy


def test_wandb_modes(bare, tmp_path, monkeypatch):
    answers = [False]
    monkeypatch.setattr(needs, "server_answers", lambda: answers[0])
    assert "wandb login" in look(needs.check_wandb).text
    assert look(needs.check_wandb, "wandb.mode=disabled").text == "disabled"
    found = look(needs.check_wandb, "wandb.mode=online")
    assert (found.mark, "without a key" in found.text) == ("warn", True)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + 40 * "0")
    (tmp_path / ".netrc").chmod(0o600)
    found = look(needs.check_wandb)
    assert (found.mark, "does not answer" in found.text) == ("warn", True)
    answers[0] = True
    assert look(needs.check_wandb).text.startswith("online, logged in")


def test_slurm_is_needed_where_it_is_asked_for(bare):
    asked = ["sweep.launcher=slurm", "slurm.partition=gpu"]
    assert look(needs.check_slurm).mark == "ok"
    assert look(needs.check_slurm, *asked).mark == "missing"
    for name in ("sbatch", "srun", "squeue"):
        bare(name, "exit 0")
    assert look(needs.check_slurm).text == "not on the PATH: sinfo"
    sinfo = {
        "echo 'sinfo: error: no controller' >&2; exit 1": (
            "missing",
            "sinfo: error: no controller",
        ),
        "echo 'cpu|up'; echo 'gpu|up'": ("ok", "answers; partitions: cpu, gpu"),
        "echo 'cpu|up'": ("missing", "slurm.partition=gpu: there is none"),
        "echo 'gpu|down'": ("missing", "not up: gpu"),
    }
    for script, (mark, words) in sinfo.items():
        bare("sinfo", script)
        found = look(needs.check_slurm, *asked)
        assert (found.mark, words in found.text) == (mark, True)


def test_a_command_that_hangs_or_cannot_be_started_is_left(bare, tmp_path):
    bare("slow", "exec /bin/sleep 120")
    started = time.monotonic()
    assert ask("slow", timeout_s=0.2) == (None, "slow gave no answer within 0.2 s")
    assert time.monotonic() - started < 60
    (tmp_path / "bin" / "odd").write_bytes(b"\x00\x01no program")
    (tmp_path / "bin" / "odd").chmod(0o755)
    assert ask("odd") == (None, "odd cannot be started (Exec format error)")
    bare("noisy", "printf '\\377\\n'; exit 3")
    assert ask("noisy")[0] == 3


def test_checkers_that_raise_or_hang_do_not_take_the_others_along():
    def broken(_):
        raise ImportError("libGL.so.1: cannot open\nshared object file")

    good = Check("ok", "fine")
    checkers = {"a": broken, "b": lambda _: time.sleep(120), "good": lambda _: good}
    started = time.monotonic()
    found = dict(run_checks(checkers, load_config(TOY, []), timeout_s=0.3))
    assert time.monotonic() - started < 60
    assert [check.mark for check in found.values()] == ["warn", "warn", "ok"]
    assert "ImportError: libGL.so.1: cannot open shared object file" in found["a"].text
    assert found["b"].text == "no answer within 0.3 s"


def test_a_screen_of_80_columns_and_its_last_line(monkeypatch):
    words = ("a text of many words that goes on " * 4).strip()
    rows = [("cores", Check("ok", "2 cores")), ("data", Check("missing", words, words))]
    monkeypatch.setattr(screen, "run_checks", lambda *_, **__: iter(rows))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    assert screen.doctor([], console)["reason"] == f"data: {words}"
    lines = console.export_text().splitlines()
    assert lines[1] == "ok      cores     2 cores"
    assert lines[2].startswith("missing data      a text")
    assert all(len(line) <= 80 for line in lines[:-1])
    assert any(line.startswith(" " * 15 + "-> a text") for line in lines)
    assert lines[-1] == f"A run cannot start here: data: {words}"


def test_a_recipe_or_changes_alone_are_taken(monkeypatch):
    monkeypatch.setattr(screen, "run_checks", lambda *_, **__: iter([]))
    quiet = Console(quiet=True)
    assert screen.doctor(["sweep.launcher=slurm"], quiet)["launcher"] == "slurm"
    assert screen.doctor(["hc18_small", "sweep.workers=3"], quiet)["recipe"] == "hc18_small"
    with pytest.raises(InputError, match=r"sweep\.worker: unknown key"):
        screen.doctor(["sweep.worker=3"], quiet)


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
    assert [check["name"] for check in found["checks"]] == list(screen.CHECKERS)
    # Versions and cores are this machine's, whatever it is.
    strange = [c for c in found["checks"] if c["mark"] != "ok"]
    assert [c for c in strange if c["name"] not in ("python", "cores")] == []
    assert (ended.returncode, found["can_start"], found["reason"]) == (0, True, None)
    assert ended.stderr == ""
    assert not (tmp_path / "runs").exists()


def test_the_command_for_people_ends_with_1_where_data_are_missing(monkeypatch, capsys, tmp_path):
    from experiments.__main__ import main

    words = ["sonosweep", "doctor", f"data.root={tmp_path}/none", "segmenter.backbone=tiny"]
    monkeypatch.setattr(sys, "argv", words)
    light = {name: screen.CHECKERS[name] for name in ("data", "weights")}
    monkeypatch.setattr(screen, "CHECKERS", light)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    expected = f"A run cannot start here: data: {tmp_path}/none: no such folder"
    assert expected in capsys.readouterr().out
