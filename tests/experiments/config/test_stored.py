"""The recipe that a sweep keeps: its relative paths lead where they led when it ran."""

import pytest
import yaml

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.config.schema import resolved
from experiments.config.stored import as_stored, with_seal


def kept(folder, monkeypatch, *words):
    """Run a sweep's writing of its recipe in a folder; gives the recipe's path."""
    monkeypatch.chdir(folder)
    config = load_config("demo", ["name=toy", *words])
    place = folder / config.store.root / "toy"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(with_seal(yaml.safe_dump(as_stored(resolved(config)))))
    return place / "config.yaml"


@pytest.fixture
def elsewhere(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


RELATIVE = (
    *("data.root=hc18", "data.test_cohorts=[es,/data/af]", "split.file=split.json"),
    *("synthesis.folder=pairs", "segmenter.weights_path=lite.pth"),
)


def test_relative_paths_are_relative_to_where_the_sweep_ran(tmp_path, monkeypatch, elsewhere):
    path = kept(tmp_path, monkeypatch, "store.root=out/runs", *RELATIVE)
    assert load_config(str(path), []).store.root == "out/runs", "where it ran nothing changes"
    monkeypatch.chdir(elsewhere)
    for name in (str(path), str(path.parent), "../out/runs/toy"):
        found = load_config(name, [])
        assert (elsewhere / found.store.root).resolve() == tmp_path / "out" / "runs"
        assert found.data.root == str(tmp_path / "hc18")
        assert found.data.test_cohorts == [str(tmp_path / "es"), "/data/af"]
        assert found.split.file == str(tmp_path / "split.json")
        assert found.synthesis.folder == str(tmp_path / "pairs")
        assert found.segmenter.weights_path == str(tmp_path / "lite.pth")
    # What is typed is relative to where it is typed.
    found = load_config(str(path), ["store.root=runs", "data.root=mine"])
    assert (found.store.root, found.data.root) == ("runs", "mine")


@pytest.mark.parametrize("name", [".", "config.yaml", "../toy"])
def test_from_within_a_sweeps_folder_its_store_is_beside_it(tmp_path, monkeypatch, name):
    path = kept(tmp_path, monkeypatch, "store.root=out/runs", *RELATIVE)
    monkeypatch.chdir(path.parent)
    found = load_config(name, [])
    assert (path.parent / found.store.root).resolve() == tmp_path / "out" / "runs"
    assert found.data.root == str(tmp_path / "hc18")


@pytest.mark.parametrize("name", ["toy", "other"])
def test_through_a_link_from_elsewhere_the_store_is_beside_the_sweeps_folder(
    tmp_path, monkeypatch, elsewhere, name
):
    path = kept(tmp_path, monkeypatch, "store.root=out/runs", *RELATIVE)
    (tmp_path / "out" / "runs" / "store").mkdir()
    (elsewhere / name).symlink_to(path.parent)
    monkeypatch.chdir(elsewhere)
    found = load_config(name, [])
    assert (elsewhere / found.store.root).resolve() == tmp_path / "out" / "runs"
    assert found.data.root == str(tmp_path / "hc18")


@pytest.mark.parametrize("root", ["absolute", "above"])
def test_a_store_elsewhere_keeps_absolute_paths(tmp_path, monkeypatch, elsewhere, root):
    work = tmp_path / "work"
    work.mkdir()
    root = {"absolute": str(tmp_path / "runs"), "above": "../runs"}[root]
    path = kept(work, monkeypatch, f"store.root={root}", *RELATIVE)
    monkeypatch.chdir(elsewhere)
    found = load_config(str(path.resolve()), [])
    assert found.data.root == str(work / "hc18")
    assert found.data.test_cohorts == [str(work / "es"), "/data/af"]
    assert (elsewhere / found.store.root).resolve() == tmp_path / "runs"


def test_a_name_on_the_hub_stays_and_a_base_model_on_disk_moves(tmp_path, monkeypatch, elsewhere):
    (tmp_path / "mine").mkdir()
    path = kept(tmp_path, monkeypatch, "stable_diffusion.base_model=mine")
    monkeypatch.chdir(elsewhere)
    assert load_config(str(path), []).stable_diffusion.base_model == str(tmp_path / "mine")
    content = yaml.safe_load(path.read_text())
    content["stable_diffusion"]["base_model"] = "owner/model"
    path.write_text(yaml.safe_dump(content))
    assert load_config(str(path), []).stable_diffusion.base_model == "owner/model"


def test_a_recipe_of_ones_own_is_no_sweeps(tmp_path, monkeypatch, elsewhere):
    path = tmp_path / "toy" / "config.yaml"
    path.parent.mkdir()
    path.write_text("name: toy\ndata: {root: hc18}\n")
    monkeypatch.chdir(elsewhere)
    found = load_config(str(path), [])
    assert (found.store.root, found.data.root) == ("runs", "hc18")
    # A store that was copied under another name is the one that is looked at.
    (path.parent / "plan.json").write_text("{}")
    assert load_config(str(path), []).store.root == str(tmp_path)


def test_an_unknown_name_is_answered_with_sweeps_too(tmp_path, monkeypatch):
    path = kept(tmp_path, monkeypatch)
    assert load_config("toy", []).name == "toy"
    (path.parent / "plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"recipe tou: no such file; .*; sweeps in runs: toy"):
        load_config("tou", [])


@pytest.mark.parametrize("n_bytes", [30, 60, 300, -1])
def test_a_cut_recipe_is_not_taken_for_a_short_one(tmp_path, monkeypatch, n_bytes):
    path = kept(tmp_path, monkeypatch)
    whole = path.read_text()
    assert load_config("toy", []).name == "toy"
    path.write_text(whole[:n_bytes])
    said = "a recipe is a mapping" if n_bytes == 30 else "not what the sweep wrote; give the recipe"
    for name in ("toy", "runs/toy", str(path)):
        with pytest.raises(InputError, match=f"config.yaml: {said}"):
            load_config(name, [])


def test_a_kept_recipe_without_its_first_line_or_name_may_be_changed(tmp_path, monkeypatch):
    path = kept(tmp_path, monkeypatch)
    changed = path.read_text().replace("name: toy", "name: mine")
    (tmp_path / "mine.yaml").write_text(changed)
    assert load_config("mine.yaml", []).name == "mine"
    path.write_text(changed)
    with pytest.raises(InputError, match="where you changed it yourself, remove its first line"):
        load_config("toy", [])
    # So are those that earlier versions wrote.
    path.write_text(changed.partition("\n")[2])
    assert load_config("toy", []).name == "mine"
