"""The published way in a process of its own: timed there, errors told, ended with the bench."""

import os
from pathlib import Path

import pytest
from conftest import write_hc18_folder

from datamodules.samples import read_hc18
from experiments.bench.plain import PlainProcess

PLACE = {"backbone": "tiny", "device": "cpu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(write_hc18_folder(tmp_path_factory.mktemp("plain") / "hc18"))


@pytest.fixture(scope="module")
def plain():
    process = PlainProcess()
    yield process
    process.close()


def names(root):
    return sorted(sample.sample_id for sample in read_hc18(Path(root)))


def test_each_thing_takes_time_there(plain, root):
    image = names(root)[0]
    given = {"root": root, **PLACE}
    for seconds in (
        plain.call("build", **PLACE),
        plain.call("step", **given, names=names(root)[:2], draw=0),
        plain.call("score", **given, name=image, draw=1),
        plain.call("encode", **PLACE, library="segment_anything", batch=2),
        plain.call("decode", backbone="vit_tiny", device="cpu"),
    ):
        assert len(seconds) == 2
        assert all(each >= 0 for each in seconds)
        assert seconds[0] > 0


def test_an_error_there_is_told_and_the_next_call_works(plain):
    with pytest.raises(RuntimeError, match="no such folder"):
        plain.call("score", root=os.devnull, name="none", draw=0, **PLACE)
    assert plain.call("build", **PLACE)[0] > 0


def test_a_process_that_ended_is_told_and_started_anew(plain):
    plain.call("build", **PLACE)
    plain._process.kill()
    plain._process.wait()
    with pytest.raises(RuntimeError, match="ended before its answer"):
        plain.call("build", **PLACE)
    assert plain.call("build", **PLACE)[0] > 0


def test_it_runs_without_the_stages_memory_settings(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000")
    process = PlainProcess()
    try:
        # An answer: it has the environment that it runs in.
        process.call("build", **PLACE)
        started = process._started()
        with open(f"/proc/{started.pid}/environ", "rb") as file:  # noqa: PTH123
            environment = file.read()
        assert b"GLIBC_TUNABLES" not in environment
        assert b"PYTHONPATH" in environment
    finally:
        process.close()
    assert started.poll() is not None
