"""SIGTERM and SIGHUP leave nothing half-made behind, and other handlers alone."""

import os
import signal
import tempfile
import zipfile

import cv2
import numpy as np
import pytest

from datamodules.fetch import unpack
from experiments.commands.stopping import STOPPED, ends_by_signal
from lightning_modules.segmenters.sam.config import SegmenterConfig

COMMANDS = {
    "predict": (
        ["predict", "RUN", "HC18/test_set", "--out", "made/out"],
        "experiments.deliver.inference.segment_together",
    ),
    "submit": (
        ["submit", "RUN", "--test-root", "HC18", "--out", "s.csv", "--masks", "made/out"],
        "experiments.deliver.inference.segment_together",
    ),
    "draw": (
        ["draw", "--height", "32", "--width", "32", "--out", "made/out"],
        "experiments.stages.generator.draw_pairs",
    ),
    "score": (
        ["score", "masks", "--root", "HC18", "--missing", "empty", "--out", "made/out"],
        "experiments.deliver.score.write_json",
    ),
    "phantom": (
        ["data", "phantom", "made/out", "--n-exams", "3"],
        "datamodules.phantom._write_part",
    ),
    "export": (
        ["export", "RUN", "--format", "segment-anything", "--out", "made/out"],
        "experiments.deliver.export.write_sidecar",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_command_leaves_nothing(
    sonosweep, monkeypatch, write_fit, hc18_folder, tmp_path, name
):
    words, slow = COMMANDS[name]
    (tmp_path / "tmp").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "001_HC.png"), np.full((54, 80), 255, np.uint8))
    there = []

    def stop(*_, **__):
        there.extend((tmp_path / "made").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(slow, stop)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    run_dir = write_fit(tmp_path / "fit" / "a", SegmenterConfig(backbone="tiny"))
    places = {"RUN": str(run_dir), "HC18": str(hc18_folder)}
    words = ["/".join(places.get(part, part) for part in word.split("/")) for word in words]
    code, _, err = sonosweep(*words)
    assert (code, "Traceback" in err) == (STOPPED, False)
    assert [path.name[:4] for path in there] == [".out"]
    assert [*(tmp_path / "made").iterdir(), *(tmp_path / "tmp").iterdir()] == []
    assert not (tmp_path / "s.csv").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stopped_fetch_takes_what_it_unpacks_along(sonosweep, monkeypatch, tmp_path):
    """What is downloaded stays for the next attempt; half a folder would be in its way."""

    def fetch(root, **_):
        root.mkdir()
        with zipfile.ZipFile(root / "set.zip", "w") as archive:
            archive.writestr("a.png", b"png")
        unpack(root / "set.zip", root / "set")

    monkeypatch.setattr("datamodules.fetch.fetch_hc18", fetch)
    monkeypatch.setattr("shutil.copyfileobj", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = sonosweep("data", "fetch", "hc18", "--to", tmp_path / "hc18")
    assert (code, "Traceback" in err) == (STOPPED, False)
    assert [path.name for path in (tmp_path / "hc18").iterdir()] == ["set.zip"]


def test_a_second_one_does_not_cut_the_clearing_up_short():
    cleared = []

    def write():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleared.append(True)

    with pytest.raises(SystemExit) as ended, ends_by_signal():
        write()
    assert (ended.value.code, cleared) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_closed_terminal_ends_it_too():
    # Below `nohup` it is ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(SystemExit) as ended, ends_by_signal():
        os.kill(os.getpid(), signal.SIGHUP)
    assert ended.value.code == 128 + signal.SIGHUP
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_handler_that_is_there_stays(number):
    seen = []
    previous = signal.signal(number, lambda *_: seen.append(True))
    try:
        with ends_by_signal():
            os.kill(os.getpid(), number)
        assert seen == [True]
    finally:
        signal.signal(number, previous)
