"""What a stage's process writes down: which code ran, and that its images were what was planned."""

import json
from dataclasses import replace

import pytest
from folder_parts import write_hc18_folder
from runner_parts import make_sweep, node
from stage_parts import Stages

from experiments.runner import sweep as sweep_module
from experiments.runner.worker import run_held
from experiments.store import provenance
from experiments.store.provenance import code_state

OLD = {"git_sha": "a" * 40, "git_dirty_sha256": None, "lock_sha256": "b"}
NEW = {"git_sha": "c" * 40, "git_dirty_sha256": "d", "lock_sha256": "b"}


@pytest.fixture
def stages(tmp_path):
    return Stages(write_hc18_folder(tmp_path / "hc18"), tmp_path / "runs")


def resize(stages):
    """The context of a stage that opens images and annotations, and no network."""
    ids = list(stages.data.view.split.train)
    return stages.context("resize", {"images": stages.contents(ids), "native_hw": [32, 48]})


def manifest_of(context):
    return json.loads((context.run_dir / "manifest.json").read_text())


def test_a_sweep_asks_once_for_its_code_and_hands_it_to_all_stages(tmp_path, monkeypatch):
    found = iter([OLD, NEW])
    monkeypatch.setattr(sweep_module, "code_state", lambda: next(found))
    handed = []

    def act(context):
        handed.append(context.code)
        return "done"

    sweep, _, _ = make_sweep(tmp_path, [node("a"), node("b")], act)
    sweep.run(lambda: None)
    assert handed == [OLD, OLD]


def test_a_commit_during_a_sweep_is_not_what_made_the_stage(stages, monkeypatch, capsys):
    monkeypatch.setattr(provenance, "code_state", lambda: NEW)
    context = replace(resize(stages), code=OLD)
    assert run_held(context, threads=1) == 0
    manifest = manifest_of(context)
    assert {key: manifest[key] for key in OLD} == OLD
    assert manifest["code_on_disk"] == NEW
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "code" in line]
    assert line == (
        "the code has changed since the sweep began: this stage runs aaaaaaaaaa, on the disk is "
        "cccccccccc with changes d"
    )


@pytest.mark.parametrize("is_handed", [True, False])
def test_code_that_did_not_change_is_named_once(stages, capsys, is_handed):
    context = replace(resize(stages), code=code_state() if is_handed else None)
    assert run_held(context, threads=1) == 0
    manifest = manifest_of(context)
    assert manifest["git_sha"] == code_state()["git_sha"]
    assert "code_on_disk" not in manifest
    assert "the code has changed" not in capsys.readouterr().out
