"""Layouts of data folders: the table, recognising one, and a row from outside."""

import pytest
from toy_recipe import TOY

from datamodules.errors import InputError
from datamodules.layouts import LAYOUTS, Layout, layout_help, layout_of
from datamodules.samples import Sample
from experiments.config.recipe import load_config
from experiments.stages.data import load_data


def test_a_folder_is_recognised(hc18_folder, tmp_path):
    (tmp_path / "ours" / "image").mkdir(parents=True)
    found = {root: layout_of(root, name="auto") for root in (hc18_folder, tmp_path / "ours")}
    assert list(found.values()) == ["hc18", "cohort"]
    assert layout_of(tmp_path / "ours", name="hc18") == "hc18"
    assert layout_of(tmp_path / "none", name="auto") == "hc18"
    with pytest.raises(InputError, match=r"^--layout chort: unknown; did you mean cohort\?$"):
        layout_of(tmp_path, name="chort")


def test_samples_without_annotations(hc18_folder, tmp_path):
    row = LAYOUTS["hc18"]
    assert [s.annotation_path for s in row.unlabelled(hc18_folder)] == [None, None]
    assert row.has_annotations(hc18_folder)
    (hc18_folder / "test_set").rename(tmp_path / "test_set")
    assert row.unlabelled(hc18_folder) == LAYOUTS["cohort"].unlabelled(hc18_folder) == []
    assert row.is_at(tmp_path)
    assert not row.has_annotations(tmp_path)


def test_a_typo_in_a_recipe_is_one_line():
    with pytest.raises(InputError, match=r"^data\.layout chort: unknown; did you mean cohort\?$"):
        load_config(TOY, ["data.layout=chort"])


def test_a_row_from_outside(hc18_folder, tmp_path, monkeypatch):
    """Annotations beside the images under another ending, as another data set may have them."""
    root = tmp_path / "toy"
    root.mkdir()
    for path in (hc18_folder / "training_set").iterdir():
        path.rename(root / path.name.replace("_Annotation", "-outline"))

    def read(folder):
        return [
            Sample(
                sample_id=path.stem,
                image_path=path,
                annotation_path=path.with_name(f"{path.stem}-outline.png"),
                exam_id=path.stem.split("_")[0],
                frame=1,
                pixel_size_mm=None,
                hc_mm=None,
                cohort="toy",
            )
            for path in sorted(folder.glob("*HC.png"))
        ]

    toy = Layout(holds="flat files", folders=(".",), annotations="*-outline.png", read=read)
    monkeypatch.setitem(LAYOUTS, "toy", toy)
    words = [f"data.root={root}", "data.layout=toy", f"store.root={tmp_path / 'runs'}"]
    data = load_data(load_config(None, words))
    assert (data.name, len(data.samples)) == ("toy", 12)
    assert data.rows["001_HC"].sample_id == "001_HC"
    assert "toy (flat files)" in layout_help()
