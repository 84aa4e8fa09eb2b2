"""What starts of one sweep after another, or beside it, do to what its folder holds."""

import tempfile

import pytest
from sweep_parts import LEAN, call, run

from experiments.commands import run as run_module
from experiments.config.recipe import load_config
from experiments.store.guard import use_sweep

LIKE_IT = [*LEAN, "wandb.mode=disabled"]
OTHER = "sweep.condition=[real]"


@pytest.mark.parametrize("name", ["report", "sweep", "diffusion"])
def test_a_running_sweeps_plan_stays_as_it_is(hc18_folder, tmp_path, name):
    """Else `clean` would take what it has done for nobody's."""
    store, folder = tmp_path / "st", tmp_path / "st" / "toy"
    ended = run(hc18_folder, store, *LIKE_IT, name="report")
    assert ended.returncode == 0, ended.stderr
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    with use_sweep(folder):
        changed = "generator.steps=5" if name == "diffusion" else OTHER
        ended = run(hc18_folder, store, *LIKE_IT, changed, name=name)
        said = "toy runs now with another recipe; wait for it, or give this one a name of its own"
        assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"} == kept
        # Of the same recipe, a second terminal may look.
        assert run(hc18_folder, store, *LIKE_IT, name="report").returncode == 0
    ended = run(hc18_folder, store, *LIKE_IT, OTHER, name="report")
    assert ended.returncode == 0
    assert "trials no longer in the recipe" in ended.stdout + ended.stderr
    # What the folder keeps is the recipe of what it shows, though nothing of it has run.
    assert load_config("toy", [f"store.root={store}"]).sweep.condition == ["real"]


@pytest.mark.parametrize(
    ("name", "condition", "absent"),
    [("synthesize", "synthetic_no_gate", "gate"), ("diffusion", "real", "generator")],
)
def test_a_recipe_without_the_stage_that_is_asked_for_is_told_which(
    hc18_folder, tmp_path, name, condition, absent
):
    store = tmp_path / "runs"
    ended = run(hc18_folder, store, *LIKE_IT, f"sweep.condition=[{condition}]", name=name)
    assert (ended.returncode, f"need no {absent};" in ended.stderr) == (2, True), ended.stderr
    assert not store.exists()


def test_no_folder_for_temporary_files_is_one_line(hc18_folder, tmp_path, monkeypatch):
    store, none = tmp_path / "runs", tmp_path / "none"
    monkeypatch.setenv("TMPDIR", str(none))
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(none)])
    monkeypatch.setattr(tempfile, "tempdir", None)
    ended = run(hc18_folder, store, *LIKE_IT)
    said = f"error: TMPDIR={none}: No usable temporary directory found in ['{none}']; set it to"
    assert (ended.returncode, ended.stderr.startswith(said)) == (2, True), ended.stderr
    assert not store.exists()


def test_a_cut_recipe_does_not_write_the_outputs_again(hc18_folder, tmp_path, monkeypatch):
    """What it lacks would be the schema's defaults."""
    monkeypatch.setattr(run_module, "run_live", lambda *_: None)
    assert run(hc18_folder, tmp_path, *LIKE_IT).returncode == 0
    again = ["python", "-m", "experiments", "report", "toy", f"store.root={tmp_path}"]
    assert call(again).returncode == 0
    folder = tmp_path / "toy"
    results, recipe = folder / "results.csv", folder / "config.yaml"
    before = results.read_bytes()
    recipe.write_bytes(recipe.read_bytes()[:100])
    ended = call(again)
    assert ended.returncode == 2
    assert "toy/config.yaml: not what the sweep wrote; give the recipe" in ended.stderr
    assert results.read_bytes() == before
    # Given the recipe, it is written anew.
    assert run(hc18_folder, tmp_path, *LIKE_IT).returncode == 0
    assert call(again).returncode == 0
