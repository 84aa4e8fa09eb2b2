"""What a stage's process writes down: which code ran, and that its images were what was planned."""

import json
from dataclasses import replace
from unittest import mock

import cv2
import numpy as np
import pytest
from folder_parts import write_hc18_folder
from runner_parts import make_sweep, node
from stage_parts import Stages

from datamodules.samples import content_hash_of
from datamodules.synthetic import SyntheticPair, read_synthetic, write_metadata, write_pair
from experiments.plan.stage_table import STAGES
from experiments.runner import sweep as sweep_module
from experiments.runner import worker
from experiments.runner.worker import run_held
from experiments.store import provenance
from experiments.store.provenance import code_state
from experiments.store.runs import read_failure
from lightning_modules.errors import NonFiniteLossError

OLD = {"git_sha": "a" * 40, "git_dirty_sha256": None, "lock_sha256": "b"}
NEW = {"git_sha": "c" * 40, "git_dirty_sha256": "d", "lock_sha256": "b"}


@pytest.fixture
def stages(tmp_path):
    return Stages(write_hc18_folder(tmp_path / "hc18"), tmp_path / "runs")


def resize(stages):
    """The context of a stage that opens images and annotations, and no network."""
    ids = list(stages.data.split.train)
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


def alter(path):
    """Another picture than it was; gives what it was."""
    whole = path.read_bytes()
    picture = cv2.imread(str(path), 0)
    picture[0, 0] ^= 1
    cv2.imwrite(str(path), picture)
    return whole


@pytest.mark.parametrize("what", ["image_path", "annotation_path"])
def test_a_stage_whose_images_changed_is_not_done(stages, what):
    context = resize(stages)
    path = getattr(stages.data.samples[stages.data.split.train[1]], what)
    whole = alter(path)
    assert run_held(context, threads=1) == 1
    failure = read_failure(context.run_dir)
    # Another attempt may succeed, so it is not kept as the recipe's own failure.
    assert failure.kind == "data_changed"
    assert path.name in failure.reason
    assert "changed since the sweep began; put it back, or start the sweep again" in failure.reason
    # Nothing of it is found by the next attempt.
    left = {each.name for each in context.run_dir.iterdir()}
    assert left <= {".lock", "manifest.json", "FAILED.json", "status.json", "log.txt"}
    path.write_bytes(whole)
    assert run_held(context, threads=1) == 0
    assert read_failure(context.run_dir) is None


def test_an_image_that_is_gone_is_a_change_too(stages, monkeypatch):
    context = resize(stages)
    path = stages.data.samples[stages.data.split.train[0]].image_path
    load = STAGES["resize"].load()

    def losing(context):
        result = load(context)
        path.unlink()
        return result

    monkeypatch.setattr(type(STAGES["resize"]), "load", lambda _: losing)
    assert run_held(context, threads=1) == 1
    failure = read_failure(context.run_dir)
    assert failure.kind == "data_changed"
    assert f"{path}: gone since the sweep began" in failure.reason


def test_images_that_a_stage_does_not_name_may_change(stages):
    alter(stages.data.samples[stages.data.split.test[0]].image_path)
    assert run_held(resize(stages), threads=1) == 0


@pytest.mark.parametrize("reads", [True, False])
def test_images_that_an_input_labels_are_compared(stages, reads):
    """A teacher's label stands beside the real image, which the content does not name."""
    name, other = stages.data.split.train[:2]
    source = stages.context("pseudo", {"images": stages.contents([name])}).run_dir
    write_metadata(source / "metadata.jsonl", [SyntheticPair(sample_id="p", image_of=name)])
    context = stages.context(
        "resize", {"images": [], "native_hw": [32, 48]}, pseudo=f"pseudo/{source.name}"
    )
    alter(stages.data.samples[name if reads else other].annotation_path)
    assert run_held(context, threads=1) == (1 if reads else 0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA out of memory"), "out_of_memory"),
        (NonFiniteLossError("loss is nan at step 3"), "error"),
        (RuntimeError("closed by peer"), None),
    ],
)
def test_a_process_that_shares_a_training_says_what_went_wrong(stages, monkeypatch, error, kind):
    """The first one is killed for it; another error may come of the first one's end."""
    context = resize(stages)
    monkeypatch.setattr(type(STAGES["resize"]), "load", lambda _: mock.Mock(side_effect=error))
    assert worker._share(context, threads=1) == 1
    failure = read_failure(context.run_dir)
    assert (None if failure is None else failure.kind) == kind


@pytest.mark.parametrize("how", ["none", "altered", "added"])
def test_imported_pairs_are_those_that_were_planned(stages, tmp_path, monkeypatch, how):
    folder = tmp_path / "pairs"
    picture, mask = np.full((54, 80), 99, np.uint8), np.zeros((54, 80), np.uint8)
    mask[20:40, 20:60] = 1
    write_pair(folder, "a", image=picture, mask=mask)
    (sample,) = read_synthetic(folder).samples
    monkeypatch.setattr(stages.config.synthesis, "folder", str(folder))
    context = stages.context("import_pairs", {"pairs": [["a", content_hash_of(sample)]]})
    if how == "altered":
        alter(sample.image_path)
    if how == "added":
        write_pair(folder, "b", image=picture, mask=mask)
    assert run_held(context, threads=1) == (0 if how == "none" else 1)
    failure = read_failure(context.run_dir)
    assert failure is None if how == "none" else failure.kind == "data_changed"
