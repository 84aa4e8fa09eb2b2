"""From a folder to what a plan needs: what is remembered, and what makes it be read again."""

import json
import re
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_recipe import TOY

from datamodules.annotation import annotation_of
from datamodules.errors import ChangedError, InputError
from datamodules.index import Index
from datamodules.phantom import write_phantom
from datamodules.samples import read_hc18
from datamodules.split_file import read_split_file
from datamodules.synthetic import write_pair
from experiments.__main__ import main
from experiments.config.recipe import load_config
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import DataView
from experiments.stages import data as data_module
from experiments.stages.data import keep_indices, load_data, write_splits

CSV = "training_set_pixel_size_and_HC.csv"


@pytest.fixture
def config(hc18_folder, tmp_path) -> ExperimentConfig:
    changes = ["data.subset.n_images=null", "split.test=4", "split.val=2", "split.train=null"]
    return load_config(
        TOY, [*changes, f"data.root={hc18_folder}", f"store.root={tmp_path / 'runs'}"]
    )


def kept_index(config: ExperimentConfig) -> Path:
    (path,) = (Path(config.store.root) / "store" / "index").iterdir()
    return path


def test_a_corrected_pixel_size_changes_the_reference_and_not_the_content(config, hc18_folder):
    before = load_data(config)
    path = hc18_folder / CSV
    name, pixel_size, _ = path.read_text().splitlines()[1].split(",")
    path.write_text(path.read_text().replace(pixel_size, f"{float(pixel_size) * 1.01:.9f}"))
    after = load_data(config)
    assert after.content == before.content
    changed = {key for key in after.references if after.references[key] != before.references[key]}
    assert changed == {name.removesuffix(".png")}


def test_an_index_is_read_again_only_where_it_can_be(config, monkeypatch):
    first = load_data(config)
    assert not Path(config.store.root).exists()
    keep_indices(first)
    read = []
    from_json = Index.from_json
    monkeypatch.setattr(Index, "from_json", lambda text: read.append(text) or from_json(text))
    assert load_data(config).rows == first.rows
    assert len(read) == 1
    path = kept_index(config)
    kept = path.read_text()
    major = re.search(r'"semi_major_px": [\d.]+', kept)[0]
    # Of another version, changed, and no index.
    for other in (
        re.sub('"version": .', '"version": 0', kept),
        kept.replace(major, major[:-9]),
        "",
    ):
        path.write_text(other)
        again = load_data(config)
        assert again.rows == first.rows
        keep_indices(again)
        assert path.read_text() == kept


def test_an_index_of_files_that_changed_meanwhile_is_not_kept(config, hc18_folder, monkeypatch):
    path = hc18_folder / "training_set" / "001_HC.png"
    build = data_module.build_index

    def late(samples, **more):
        path.write_bytes(path.read_bytes() + b"0")
        return build(samples, **more)

    monkeypatch.setattr(data_module, "build_index", late)
    with pytest.raises(ChangedError, match=r"001_HC\.png, or its annotation"):
        load_data(config)
    assert not (Path(config.store.root) / "store" / "index").exists()


@pytest.mark.parametrize(
    ("name", "keep", "words"),
    [
        ("made-1", 1.0, None),
        ("made-1", 0.5, "made-1.png.*cut short"),
        ("001_HC", 1.0, "synthesis.folder.*001_HC.png.*rename"),
    ],
)
def test_pairs_of_others_are_checked_before_anything_runs(config, tmp_path, name, keep, words):
    folder = tmp_path / "pairs"
    mask = cv2.ellipse(np.zeros((54, 80), np.uint8), (40, 27), (20, 14), 0, 0, 360, 255, -1)
    write_pair(folder, name, image=mask // 2, mask=mask // 255)
    path = folder / "image" / f"{name}.png"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    config.synthesis.folder = str(folder)
    if words is None:
        assert set(load_data(config).foreign_pairs) == {name}
    else:
        with pytest.raises(InputError, match=words):
            load_data(config)


def test_every_exam_is_tested_once_over_the_folds(config, tmp_path):
    single = load_data(config)
    assert len(single.folds) == 1
    assert single.split is single.folds[0]
    config.split.n_folds = 3
    view = load_data(config)
    tested = [sample_id for fold in view.folds for sample_id in fold.test]
    assert sorted(tested) == sorted(view.units)
    exams = [{view.units[i].exam_id for i in fold.test} for fold in view.folds]
    assert sum(map(len, exams)) == len(set().union(*exams)) == 8
    assert view.split is view.folds[0]
    write_splits(single.folds, tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text()) == {
        part: list(getattr(single.split, part)) for part in ("train", "val", "test")
    }
    write_splits(view.folds, tmp_path / "three.json")
    written = json.loads((tmp_path / "three.json").read_text())["folds"]
    assert [tuple(each["test"]) for each in written] == [fold.test for fold in view.folds]


def test_published_folds_are_read_back_the_same(config, tmp_path, monkeypatch, capsys):
    """Written by the command of one recipe, read by a sweep that would deal others."""
    root, path = config.data.root, tmp_path / "folds.json"
    words = ["data", "split", "demo", f"data.root={root}", f"store.root={tmp_path / 'runs'}"]
    words += ["data.subset.n_images=null", "split.val=2", "split.train=null", "split.n_folds=3"]
    words += ["--out", str(path), "--name", "mine", "--version", "1"]
    monkeypatch.setattr("sys.argv", ["sonosweep", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    published = read_split_file(path)
    printed = capsys.readouterr().out
    assert f"mine 1, 3 folds that test 12 images of hc18, sha256 {published.sha256}" in printed
    config.split.n_folds = 3
    dealt = load_data(config).folds
    assert published.folds == dealt
    config.split.seed, config.split.val = 7, 1
    assert load_data(config).folds != dealt
    config.split.file = str(path)
    assert load_data(config).folds == dealt
    config.split.n_folds = 1
    assert load_data(config).folds == dealt[:1]
    config.split.n_folds = 2
    with pytest.raises(InputError, match=r"split\.n_folds=2: .*holds 3 folds"):
        load_data(config)


def test_an_external_copy_of_any_folds_train_image_is_refused(config, hc18_folder, tmp_path):
    """Every fold's models are tested on it, and over the folds every image is trained on."""
    config.split.n_folds = 3
    view = load_data(config)
    copied = view.folds[0].test[0]
    assert copied in view.folds[1].train + view.folds[1].val + view.folds[2].train
    image = cv2.imread(str(hc18_folder / "training_set" / f"{copied}.png"), cv2.IMREAD_GRAYSCALE)
    mask = cv2.ellipse(np.zeros((54, 80), np.uint8), (40, 27), (20, 14), 0, 0, 360, 1, -1)
    write_pair(tmp_path / "clinic", "theirs", image=image, mask=mask)
    config.data.test_cohorts = [str(tmp_path / "clinic")]
    with pytest.raises(InputError, match=f"theirs of clinic is a near-copy of {copied}"):
        load_data(config)


def test_pairs_of_others_may_copy_train_images_but_no_test_image(config, hc18_folder, tmp_path):
    split = load_data(config).split
    mask = cv2.ellipse(np.zeros((54, 80), np.uint8), (40, 27), (20, 14), 0, 0, 360, 1, -1)

    def copy_of(sample_id: str, name: str) -> str:
        path = hc18_folder / "training_set" / f"{sample_id}.png"
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        write_pair(tmp_path / name, "pair-1", image=image, mask=mask)
        return str(tmp_path / name)

    config.synthesis.folder = copy_of(split.train[0], "fair")
    assert set(load_data(config).foreign_pairs) == {"pair-1"}
    config.synthesis.folder = copy_of(split.test[0], "leak")
    with pytest.raises(
        InputError, match=f"pair-1 is a near-copy of the test image {split.test[0]}"
    ):
        load_data(config)


def test_lengths_that_cannot_be_right_are_refused_unless_allowed(config, hc18_folder):
    """What a resize to twice the size without touching the CSV does."""
    for path in (hc18_folder / "training_set").iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path), cv2.resize(image, None, fx=2, fy=2))
    words = r"annotations have another HC.*enlarged to twice.*data\.allow_implausible=true$"
    with pytest.raises(InputError, match=words) as refused:
        load_data(config)
    assert "\n" not in str(refused.value)
    config.data.allow_implausible = True
    assert len(load_data(config).rows) == 12


def test_drawn_pairs_must_lie_or_stand_as_the_images_do(config, tmp_path):
    write_phantom(tmp_path / "set", n_exams=12, seed=0, size_hw=(80, 54))
    config.data.root = str(tmp_path / "set")
    config.synthesis.image_hw = (54, 80)
    words = r"image_hw=\[54,80\] lies, .*of \d+ images stand upright.*54x80 px.*=\[80,54\]$"
    for condition in ("synthetic", "warp"):
        config.sweep.condition = ["real", condition]
        with pytest.raises(InputError, match=words):
            load_data(config)
    for side in ((80, 54), (64, 64)):
        config.synthesis.image_hw = side
        assert load_data(config).rows
    # Nothing is drawn: no pairs, real images at their own size, or pairs made elsewhere.
    config.synthesis.image_hw = (54, 80)
    config.sweep.condition = ["real", "real_resized", "self_training"]
    assert load_data(config).rows
    config.sweep.condition = ["synthetic"]
    mask = cv2.ellipse(np.zeros((54, 80), np.uint8), (40, 27), (20, 14), 0, 0, 360, 255, -1)
    write_pair(tmp_path / "pairs", "made-1", image=mask // 2, mask=mask // 255)
    config.synthesis.folder = str(tmp_path / "pairs")
    assert load_data(config).rows


def test_masks_that_are_read_otherwise_have_other_hashes(config, tmp_path):
    """Of the data, so that nothing fitted on other masks is taken for done; else the same ones."""
    write_phantom(tmp_path / "set", n_exams=12, seed=0, size_hw=(54, 80), outlines="mixed")
    config.data.root = str(tmp_path / "set")
    usual = load_data(config)
    filled = {key for key, row in usual.rows.items() if row.kind == "filled"}
    assert filled
    assert {usual.samples[key].filled_bias_px for key in filled} == {1.4}
    config.data.filled_bias_px = 1.4
    said = load_data(config)
    for name in (field.name for field in fields(DataView)):
        assert getattr(said, name) == getattr(usual, name)
    config.data.filled_bias_px = 0.0
    config.data.allow_implausible = True  # A pixel of bias is much at this size.
    other = load_data(config)
    assert all(other.content[key] != usual.content[key] for key in filled)
    assert {other.samples[key].filled_bias_px for key in filled} == {0.0}
    config.data.filled_bias_px, config.data.label = None, 255
    assert all(load_data(config).content[key] != usual.content[key] for key in filled)


def test_masks_without_a_bias_are_not_made_smaller_by_a_sweep(config, hc18_folder):
    """HC18 whose outlines were filled up to the line's centre."""
    for sample in read_hc18(hc18_folder):
        mask = annotation_of(sample).mask
        cv2.imwrite(str(sample.annotation_path), mask * 255)
    data = load_data(config)
    assert {sample.filled_bias_px for sample in data.samples.values()} == {0.0}
    assert "12 of 12 annotations are filled masks, taken as they are" in data.notes


@pytest.fixture
def cohort(hc18_folder, tmp_path) -> Path:
    """Other heads as a cohort of filled masks, 2 px too large."""
    write_phantom(tmp_path / "set", n_exams=6, seed=7, size_hw=(270, 400))
    root = tmp_path / "es"
    (root / "mask").mkdir(parents=True)
    (root / "image").mkdir()
    rows = ["filename,pixel size(mm),head circumference (mm)"]
    for sample in read_hc18(tmp_path / "set"):
        image = root / "image" / f"es{sample.image_path.name}"
        image.write_bytes(sample.image_path.read_bytes())
        grown = cv2.dilate(
            annotation_of(sample).mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
        )
        cv2.imwrite(str(root / "mask" / f"{image.stem}_Annotation.png"), grown)
        rows.append(f"{image.name},{sample.pixel_size_mm},{sample.hc_mm}")
    (root / "sizes.csv").write_text("\n".join(rows))
    return root


def test_masks_of_a_test_cohort_are_read_as_is_said_of_it(config, cohort):
    config.data.test_cohorts = [str(cohort)]
    config.data.allow_implausible = True
    usual = load_data(config)
    (note,) = [note for note in usual.notes if note.startswith("es: ")]
    found = re.search(r"data\.cohort_filled_bias_px\.NAME=([\d.]+)", note)
    assert float(found[1]) == pytest.approx(2, abs=0.3)
    config.data.cohort_filled_bias_px = {"es": 2.0}
    corrected = load_data(config)
    assert not [note for note in corrected.notes if note.startswith("es: ")]
    for name, sample in corrected.samples.items():
        assert sample.filled_bias_px == (2.0 if sample.cohort == "es" else 1.4)
        is_same = corrected.content[name] == usual.content[name]
        assert is_same == (sample.cohort != "es")
    config.data.cohort_filled_bias_px = {"se": 2.0}
    with pytest.raises(InputError, match=r"no test cohort is called se; those of .*: es"):
        load_data(config)


def test_maps_of_labels_of_a_test_cohort_need_their_own_label(config, cohort):
    for path in (cohort / "mask").iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        labels[:20, :20] = 2
        cv2.imwrite(str(path), labels)
    config.data.test_cohorts, config.data.allow_implausible = [str(cohort)], True
    with pytest.raises(InputError, match=r"the values 0, 1, 2; .*data\.cohort_labels\.NAME"):
        load_data(config)
    config.data.cohort_labels = {"es": 1}
    data = load_data(config)
    assert all(s.label == (1 if s.cohort == "es" else None) for s in data.samples.values())


def test_images_without_annotations_join_on_request_but_for_copies_of_annotated_ones(
    config, hc18_folder
):
    assert load_data(config).unlabelled == {}
    config.data.use_unlabelled = True
    data = load_data(config)
    assert [*data.unlabelled] == ["unlabelled-000_HC", "unlabelled-001_HC"]
    # Two images of one name stay two, and no stage that reads masks gets these.
    own = data.unlabelled["unlabelled-001_HC"].image_path
    assert data.samples["001_HC"].image_path != own
    assert not set(data.unlabelled) & set(data.samples)
    assert data.rows["unlabelled-001_HC"].ellipse is None
    # An exam of its own, though HC18 calls one of its training exams so too.
    assert data.rows["unlabelled-001_HC"].group_id == "unlabelled-001"
    own.write_bytes((hc18_folder / "training_set" / "001_HC.png").read_bytes())
    assert [*load_data(config).unlabelled] == ["unlabelled-000_HC"]
    for path in [*own.parent.iterdir(), own.parent]:
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=r"data\.use_unlabelled: .*no image without an annotation"):
        load_data(config)
