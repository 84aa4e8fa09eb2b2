"""Damage in the files of a finished store: the same command gives the same numbers, or a line."""

import shutil

import cv2
import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from sweep_parts import LEAN, run, scores

from experiments.commands import run as commands
from experiments.plan.record import record_plan

CHANGES = ["sweep.condition=[real]", "sweep.real_fraction=[1.0]", *LEAN]


def flip(path):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "empty": lambda path: path.write_bytes(b""),
    "flip": flip,
    "missing": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The smallest sweep: its data and its store."""
    folder = tmp_path_factory.mktemp("damage")
    data = write_hc18_folder(folder / "hc18")
    ended = run(data, folder / "runs", *CHANGES)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return data, folder / "runs"


def one_of_each(store, part):
    """A file of each kind: of each name, the first; below `store` by its stage too."""
    kinds = {}
    for path in sorted((store / part).rglob("*")):
        parts = path.relative_to(store).parts
        if path.is_file() and not {"wandb", ".lock"} & set(parts):
            # A key stands in the name of shared files.
            name = path.suffix if parts[1] in ("embeddings", "index") else path.name
            kinds.setdefault((*parts[: 1 + (part == "store")], parts[1], name), path)
    return list(kinds.values())


@pytest.mark.long
@pytest.mark.parametrize("part", ["toy", "store"])
@pytest.mark.parametrize("how", DAMAGES)
def test_the_same_command_after_damage(finished, tmp_path, part, how):
    data, whole = finished
    expected = scores(whole)
    store = shutil.copytree(whole, tmp_path / "runs", copy_function=shutil.copy2)
    paths = one_of_each(store, part)
    assert len(paths) >= 8
    for path in paths:
        DAMAGES[how](path)
    ended = run(data, store, *CHANGES)
    if ended.returncode == 2:
        # The file that says which version made a store is not guessed.
        assert ended.stderr.count("\n") <= 2
        assert "VERSION.json" in ended.stderr
        (store / "store" / "VERSION.json").unlink()
        ended = run(data, store, *CHANGES)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    pd.testing.assert_frame_equal(scores(store), expected, check_exact=True)
    # It is whole again: another start finds nothing to do.
    again = run(data, store, *CHANGES)
    assert "nothing was left to do" in again.stdout
    assert "again" not in again.stdout


def test_data_that_change_during_a_sweep_are_not_scored(finished, tmp_path, monkeypatch):
    data, whole = finished
    data = shutil.copytree(data, tmp_path / "hc18")
    store = tmp_path / "runs"
    changed, kept = data / "training_set", []

    def record(folder, plan):
        """All annotations that are tested on are others from here on."""
        found = record_plan(folder, plan)
        for path in sorted(changed.glob("*_Annotation.png")) if not kept else []:
            kept.append((path, path.read_bytes()))
            cv2.imwrite(str(path), cv2.imread(str(path), 0)[::-1, ::-1])
        return found

    monkeypatch.setattr(commands, "record_plan", record)
    ended = run(data, store, *CHANGES)
    assert ended.returncode == 1
    said = "changed since the sweep began; put it back, or start the sweep again"
    assert said in " ".join(ended.stdout.split())
    for folder in ("prepared", "embeddings"):
        assert not list((store / "store" / folder).rglob("*.npy"))
    for path, content in kept:
        path.write_bytes(content)
    ended = run(data, store, *CHANGES)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "--retry-failed" not in ended.stdout
    pd.testing.assert_frame_equal(scores(store), scores(whole), check_exact=True)
