"""Run directories: markers, locks that end with their holder, status."""

import errno
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from store_parts import Held

from datamodules.embeddings import EmbeddingStore, write_index
from datamodules.errors import InputError
from experiments.store import runs as store_module
from experiments.store.guard import is_held
from experiments.store.runs import (
    RunStore,
    StatusFile,
    damage,
    hold,
    is_done,
    read_failure,
    read_manifest,
    read_result,
    read_status,
    write_done,
    write_failed,
    write_started,
)

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys
from pathlib import Path
from experiments.store.runs import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run_dir(tmp_path):
    folder = RunStore(tmp_path).run_dir("trial", "abc")
    folder.mkdir(parents=True)
    return folder


def test_life_of_a_run(run_dir):
    assert not is_done(run_dir)
    write_started(run_dir, {"stage": "trial", "seed": 3})
    assert json.loads((run_dir / "manifest.json").read_text()) == {"stage": "trial", "seed": 3}
    assert not is_done(run_dir)
    with pytest.raises(FileNotFoundError):
        read_result(run_dir)
    write_done(run_dir, {"dice": 0.875, "steps": 40})
    assert is_done(run_dir)
    assert read_result(run_dir) == {"dice": 0.875, "steps": 40}


def test_a_failure_is_one_line_and_cleared_on_restart(run_dir):
    assert read_failure(run_dir) is None
    write_failed(run_dir, "ValueError: first line\n  second\tline\n")
    assert read_failure(run_dir).reason == "ValueError: first line second line"
    assert json.loads((run_dir / "FAILED.json").read_text())["time"] == pytest.approx(
        time.time(), abs=60
    )
    assert not is_done(run_dir)
    write_started(run_dir, {})
    assert read_failure(run_dir) is None
    write_started(run_dir, {"again": True})
    assert json.loads((run_dir / "manifest.json").read_text()) == {"again": True}


def test_done_is_written_last_and_after_everything_is_on_the_disk(run_dir, monkeypatch):
    write_started(run_dir, {})
    (run_dir / "wandb" / "run").mkdir(parents=True)
    (run_dir / "wandb" / "run" / "log").write_text("x")
    (run_dir / "figures").mkdir()
    (run_dir / "figures" / "a.csv").write_text("x")
    synced = []
    fsync_path = store_module.fsync_path

    def record(path):
        assert not (run_dir / "DONE.json").exists()
        synced.append(path.relative_to(run_dir).as_posix())
        fsync_path(path)

    monkeypatch.setattr(store_module, "fsync_path", record)
    write_done(run_dir, {})
    assert synced == ["figures", "figures/a.csv", "manifest.json"]
    assert (run_dir / "DONE.json").is_file()


def test_a_file_that_vanishes_meanwhile_does_not_matter(run_dir, monkeypatch):
    (run_dir / "a").write_text("x")
    (run_dir / "b").write_text("x")
    fsync_path = store_module.fsync_path

    def remove_first(path):
        path.unlink()
        fsync_path(path)

    monkeypatch.setattr(store_module, "fsync_path", remove_first)
    write_done(run_dir, {"ok": 1})
    assert (run_dir / "DONE.json").is_file()


def test_a_result_that_is_not_json_leaves_no_marker(run_dir):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_done(run_dir, {"dice": float("nan")})
    assert not is_done(run_dir)
    assert list(run_dir.iterdir()) == []


def test_lock_is_released_when_its_holder_is_killed(run_dir):
    words = [sys.executable, "-c", HOLDER, str(run_dir)]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen(words, **pipe, text=True, cwd=ROOT)
    try:
        assert holder.stdout.readline() == "held\n"
        assert is_held(run_dir)
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(timeout=10) == -signal.SIGKILL
        assert not is_held(run_dir)
        with hold(run_dir):
            assert is_held(run_dir)
    finally:
        holder.kill()
        holder.wait()


def test_a_second_holder_waits(run_dir):
    threading.Timer(0.3, Held(run_dir).__exit__).start()
    started = time.monotonic()
    with hold(run_dir):
        assert time.monotonic() - started > 0.25


def test_lock_ends_with_its_block_whatever_happens(tmp_path):
    folder = tmp_path / "store" / "trial" / "new"
    with hold(folder):  # the directory is made
        assert is_held(folder)
    assert not is_held(folder)
    with pytest.raises(KeyError), hold(folder):
        raise KeyError
    assert not is_held(folder)


def test_status_is_written_at_most_twice_a_second(run_dir, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert read_status(run_dir) is None
    status = StatusFile(run_dir)
    for moment, done, shown in [
        (100.0, 1, 1),
        (100.3, 2, 1),
        (100.49, 3, 1),
        (100.5, 4, 4),
        (100.6, 5, 4),
        (100.7, 10, 10),  # the end is always shown
    ]:
        now[0] = moment
        status.update("steps", done=done, total=10)
        assert read_status(run_dir)[:3] == ("steps", shown, 10)
    assert [path.name for path in run_dir.iterdir()] == ["status.json"]


def test_a_status_that_was_cut_off_is_no_result(run_dir, monkeypatch):
    """A file that goes or comes after the marker was written would make a finished run damaged."""
    write_started(run_dir, {"stage": "fit"})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            StatusFile(run_dir).update("steps", done=1, total=2)
    write_done(run_dir, {})
    files = json.loads((run_dir / "DONE.json").read_text())["files"]
    assert list(files) == ["manifest.json"]


def test_a_status_on_a_full_disk_leaves_nothing(run_dir, monkeypatch):
    monkeypatch.setattr(Path, "replace", mock.Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        StatusFile(run_dir).update("steps", done=1, total=2)
    assert not list(run_dir.iterdir())


def finished(run_dir):
    write_started(run_dir, {"stage": "score"})
    (run_dir / "per_image.csv").write_text("sample_id,dice\na,0.5\nb,0.75\n")
    (run_dir / "weights.safetensors").write_bytes(bytes(64))
    (run_dir / "wandb").mkdir()
    for name in ("wandb/log", "log.txt", "status.json"):
        (run_dir / name).write_text("{}")
    write_done(run_dir, {"dice": 0.875, "by_count": {4: 0.5}})


def test_the_marker_names_each_result_by_size_and_hash(run_dir):
    finished(run_dir)
    files = json.loads((run_dir / "DONE.json").read_text())["files"]
    assert sorted(files) == ["manifest.json", "per_image.csv", "weights.safetensors"]
    # sha256sum of 64 zero bytes.
    zeros = "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b"
    assert files["weights.safetensors"] == {"bytes": 64, "sha256": zeros}
    assert damage(run_dir) is None
    assert damage(run_dir, names=None) is None


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "flip": flip,
    "missing": Path.unlink,
}


def test_a_run_of_a_newer_store_is_not_read(tmp_path, run_dir, monkeypatch):
    write_started(run_dir, {"stage": "fit"})
    assert read_manifest(run_dir) == {"stage": "fit"}
    (run_dir.parents[1] / "VERSION.json").write_text('{"layout": 2}')
    monkeypatch.chdir(run_dir)
    for given in (run_dir, Path()):
        with pytest.raises(InputError, match=r"newer sonosweep \(layout 2, here 1\)"):
            read_manifest(given)
    assert read_manifest(run_dir.rename(tmp_path / "copy")) == {"stage": "fit"}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["per_image.csv", "manifest.json", "DONE.json"])
def test_a_damaged_result_is_found(run_dir, name, how):
    finished(run_dir)
    DAMAGES[how](run_dir / name)
    is_whole = is_done(run_dir) and damage(run_dir) is None
    assert not is_whole
    if how != "missing" or name != "DONE.json":
        assert damage(run_dir).startswith(name)


def test_what_only_stages_read_is_compared_when_all_is(run_dir):
    finished(run_dir)
    flip(run_dir / "weights.safetensors")
    assert damage(run_dir) is None
    assert damage(run_dir, names=None) == "weights.safetensors is not what was written"


@pytest.mark.parametrize("how", DAMAGES)
def test_an_index_is_whole_while_its_embeddings_are(tmp_path, run_dir, how):
    shared = EmbeddingStore(tmp_path / "store" / "embeddings")
    shared.write("00ab", np.ones((2, 3, 4)))
    write_index(run_dir, {"a": ["00ab"]})
    write_done(run_dir, {})
    assert damage(run_dir, names=None) is None
    DAMAGES[how](shared.path("00ab"))
    assert "00ab" in damage(run_dir, names=None)
    assert "00ab" not in shared


def test_a_marker_of_before_stays_valid(run_dir):
    write_started(run_dir, {"stage": "score"})
    (run_dir / "DONE.json").write_text('{"dice": 0.5}')
    assert damage(run_dir) is None
    assert read_result(run_dir) == {"dice": 0.5}
    (run_dir / "manifest.json").write_text('{"stage": ')
    assert damage(run_dir) == "manifest.json cannot be read"
