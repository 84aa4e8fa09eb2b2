"""A finished sweep by its name: without its recipe, its data folder, or running anything."""

import pytest
import yaml
from results_parts import write_finished
from store_parts import small_plan
from toy_recipe import TOY

from datamodules.errors import InputError
from datamodules.integrity import file_facts, sealed
from datamodules.storage import write_json
from experiments.commands.finished import refuse_changes
from experiments.config.recipe import load_config
from experiments.config.schema import resolved
from experiments.store.plan_file import write_plan


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A sweep `demo-phantom` in `runs`, whose data are gone; its folder."""
    monkeypatch.delenv("HC18_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = write_finished(tmp_path / "runs", "demo-phantom")
    words = ["name=demo-phantom", "data.root=gone", "evaluation.output=mask"]
    kept = resolved(load_config(TOY, words)) | {"store": {"root": "runs"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(kept))
    (folder / "report.html").write_text("as it was")
    return folder


CELL = "hc18/whole_image/5/real"


def test_a_cell_is_explained_by_the_sweeps_name_alone(finished, tmp_path, monkeypatch, sonosweep):
    code, out, _ = sonosweep("report", "demo-phantom", "--explain", CELL)
    assert code == 0
    assert "dice_mean 85.00 %" in out
    assert "label of score/a" in out
    code, _, err = sonosweep("report", "demo", "--explain", CELL)
    assert code == 2
    assert "runs/demo/results.csv: no results yet" in err
    assert "demo-phantom" in err
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    code, out, _ = sonosweep("report", finished, "--explain", CELL)
    assert (code, "label of score/a" in out) == (0, True)
    assert not list((tmp_path / "x").iterdir()), "nothing is written where one looks from"


def test_table_and_figure_are_those_of_the_folder(finished, sonosweep):
    code, out, _ = sonosweep("table", "demo-phantom")
    assert code == 0
    assert "| real only |" in out
    assert "85.0" in out
    code, out, _ = sonosweep("figure", "demo-phantom")
    assert code == 2, "there is none yet"
    code, out, _ = sonosweep("figure", finished, "--kind", "ledger")
    assert (code, out) == (
        0,
        "runs/demo-phantom/figure_ledger.pdf\nruns/demo-phantom/figure_ledger.png\n",
    )
    code, _, err = sonosweep("figure", finished, "--kind", "box")
    assert (code, "no box figure" in err) == (2, True)
    # A changed sweep would take the place of what the folder holds.
    write_plan(finished, small_plan())
    for command in ("table", "figure", "report"):
        for source in ("demo-phantom", finished / "config.yaml"):
            for words in (["unet.steps=3"], ["sweep.support=[9]", "name=demo-phantom"]):
                code, _, err = sonosweep(command, source, *words)
                assert (code, err.count("\n")) == (2, 1)
                assert "demo-phantom is a sweep that has run" in err
    # Under another name it is a sweep of its own, whose images are needed.
    code, _, err = sonosweep("table", "demo-phantom", "unet.steps=3", "name=other")
    assert code == 2
    assert "gone" in err


def test_changes_are_refused_from_within_the_folder_too(finished, monkeypatch):
    write_plan(finished, small_plan())
    monkeypatch.chdir(finished)
    for words in (["unet.steps=3"], ["unet.steps=3", "name=demo-phantom"]):
        with pytest.raises(InputError, match=r"^\. unet\.steps=3: demo-phantom is a sweep"):
            refuse_changes(".", words)
    refuse_changes(".", ["unet.steps=3", "name=other"])


def test_report_writes_table_and_figure_without_the_data(
    finished, tmp_path, monkeypatch, sonosweep
):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    code, out, _ = sonosweep("report", finished / "config.yaml")
    assert code == 0
    assert "the data folder is not there" in out
    assert "| real only |" in (finished / "table.md").read_text()
    assert (finished / "figure.png").stat().st_size > 1000
    assert (finished / "report.html").read_text() == "as it was"
    assert not list((tmp_path / "x").iterdir())


def test_a_recipe_without_data_names_the_sweeps_that_there_are(finished, sonosweep):
    for words in (("report", "demo"), ("table", "demo"), ("figure", "demo")):
        code, _, err = sonosweep(*words)
        assert code == 2
        assert "demo-phantom" in err
        assert "HC18_ROOT" in err


def test_status_takes_the_folder_the_name_or_the_kept_recipe(finished, sonosweep):
    write_plan(finished, small_plan())
    for name in ("demo-phantom", finished, finished / "config.yaml"):
        code, out, _ = sonosweep("status", name)
        assert code == 0
        assert "demo-phantom" in out


@pytest.mark.parametrize("name", ["demo-phantom/plan.json", "store/VERSION.json"])
@pytest.mark.parametrize(
    "words",
    [
        "table demo-phantom",
        "table runs/demo-phantom/results.csv",
        "figure demo-phantom --kind ledger",
        "report demo-phantom",
        f"report demo-phantom --explain {CELL}",
    ],
)
def test_results_of_a_newer_version_are_not_read(finished, sonosweep, words, name):
    (finished.parent / name).write_text('{"layout": 2}')
    code, out, err = sonosweep(*words.split())
    assert (code, out) == (2, "")
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert f"{name}: written by a newer sonosweep (layout 2, here 1); update" in said[0]


@pytest.mark.parametrize("words", [["table", "demo-phantom"], ["report", "demo-phantom"]])
@pytest.mark.parametrize("name", ["results.csv", "per_image.csv"])
def test_numbers_that_are_not_those_written_are_not_shown(finished, sonosweep, words, name):
    facts = file_facts(finished, ["results.csv", "per_image.csv"])
    write_json(finished / "outputs.json", sealed({"key": "k", "finding": "", "files": facts}))
    assert sonosweep(*words)[0] == 0
    path, before = finished / name, sorted(finished.iterdir())
    path.write_text(path.read_text().replace("0.8", "0.9", 1))
    code, _, err = sonosweep(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{name} is not what was written; `sonosweep report`" in err
    assert sorted(finished.iterdir()) == before
