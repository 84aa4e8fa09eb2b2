"""A sweep that runs, and another start of one of its name."""

import pytest
from sweep_parts import LEAN, run

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
