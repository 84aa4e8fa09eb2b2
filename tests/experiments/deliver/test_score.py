"""Masks made elsewhere: found by name, checked, and scored as our own predictions are."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from results_parts import trimester_weighted_mean
from rich.console import Console

from datamodules.annotation import annotation_of, read_annotation
from datamodules.cohort import read_cohort
from datamodules.errors import InputError
from datamodules.mask_folder import find_masks, read_mask
from datamodules.samples import read_hc18
from datamodules.split_file import read_split_file, write_split_file
from datamodules.splits import Split
from experiments.deliver.score import print_score, read_references, score_folder
from experiments.results.rows import read_rows
from experiments.results.statistics import SUMMARY
from experiments.stages.evaluation import Scorer

SPLIT = Split(train=("001_HC",), val=("003_HC",), test=("002_HC", "005_HC", "008_HC"))


@pytest.fixture
def samples(hc18_folder):
    return read_hc18(hc18_folder)


@pytest.fixture
def masks(samples, tmp_path):
    """The references, moved to the right by as many pixels as the image has place."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for shift, sample in enumerate(samples):
        mask = np.roll(read_annotation(sample.annotation_path).mask, shift, axis=1)
        cv2.imwrite(str(folder / f"{sample.sample_id}.png"), mask)
    return folder


def images_of(score):
    """Ids of the images, each of which has a row of its mask and then one of its ellipse."""
    rows = score.per_image
    assert rows["output"].tolist() == ["mask", "ellipse"] * (len(rows) // 2)
    return rows["sample_id"].tolist()[::2]


def test_scores_are_those_of_our_own_evaluation(samples, masks):
    score = score_folder(masks, samples=samples, name="theirs")
    scorer = Scorer(samples={s.sample_id: s for s in samples}, frame_hw=(64, 64), mode="pad")
    rows = []
    for sample in samples:
        mask = cv2.imread(str(masks / f"{sample.sample_id}.png"), cv2.IMREAD_GRAYSCALE)
        rows.append(scorer.rows(sample.sample_id, mask))
    expected, ellipses = (pd.DataFrame(each) for each in zip(*rows, strict=True))
    assert images_of(score) == [s.sample_id for s in samples]
    own = score.per_image[score.per_image["output"] == "mask"]
    for column in ("dice", "dice_256", "hausdorff_mm", "hc_err_mm", "hc_abs_err_mm"):
        assert own[column].tolist() == expected[column].tolist()
    found = score.found
    assert found["dice_mean"] == pytest.approx(expected["dice"].mean())
    assert found["dice_median"] == pytest.approx(expected["dice"].median())
    assert found["dice_share_below_090"] == pytest.approx((expected["dice"] < 0.9).mean())
    weighted = trimester_weighted_mean(expected["dice"], expected["trimester"])
    assert found["dice_trimester_weighted_mean"] == pytest.approx(weighted)
    assert found["hc_err_mm_mean"] == pytest.approx(expected["hc_err_mm"].mean())
    assert found["hc_abs_err_mm_p95"] == pytest.approx(expected["hc_abs_err_mm"].quantile(0.95))
    assert 0.4 < found["dice_mean"] < 0.95
    assert found["ellipse"]["dice_mean"] == pytest.approx(ellipses["dice"].mean())
    assert score.results["n_images"].tolist() == [12, 12]
    assert score.results["n_exams"].tolist() == [8, 8]


@pytest.mark.parametrize("suffix", ["", "_Annotation", "_mask"])
@pytest.mark.parametrize("value", [1, 255])
def test_names_and_labels(samples, masks, suffix, value):
    expected = score_folder(masks, samples=samples, name="a").found
    for path in sorted(masks.iterdir()):
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) * value
        path.unlink()
        cv2.imwrite(str(masks / f"{path.stem}{suffix}.png"), np.stack([mask] * 3, axis=2))
    found = score_folder(masks, samples=samples, name="a").found
    assert {**found, "trial_id": None} == {**expected, "trial_id": None}


def test_missing_mask_is_refused_or_counted(samples, masks):
    (masks / "004_2HC.png").unlink()
    with pytest.raises(InputError, match=r"1 of 12 images have no mask \(004_2HC\)"):
        score_folder(masks, samples=samples, name="a")
    score = score_folder(masks, samples=samples, name="a", missing="empty")
    assert score.found["missing"] == ["004_2HC"]
    row = score.per_image.set_index(["sample_id", "output"]).loc["004_2HC", "mask"]
    pixel_size_mm = next(s.pixel_size_mm for s in samples if s.sample_id == "004_2HC")
    assert row["dice"] == 0
    assert row["hc_err_mm"] == -170
    assert row["hausdorff_mm"] == pytest.approx(np.hypot(54, 80) * pixel_size_mm)
    assert score.results["n_images"].tolist() == [12, 12]
    assert score.results["n_not_fitted"].tolist()[1:] == [1]


def test_empty_mask_counts(samples, masks):
    cv2.imwrite(str(masks / "001_HC.png"), np.zeros((54, 80), np.uint8))
    score = score_folder(masks, samples=samples, name="a")
    assert (score.found["empty"], score.found["missing"]) == (["001_HC"], [])
    assert score.per_image["dice"].iloc[0] == 0
    assert len(score.per_image) == 24


def test_a_full_or_tiny_mask_is_named_as_an_empty_one_is(samples, masks):
    dot = np.zeros((54, 80), np.uint8)
    dot[20, 30] = 1
    cv2.imwrite(str(masks / "001_HC.png"), dot)
    cv2.imwrite(str(masks / "003_HC.png"), np.ones((54, 80), np.uint8))
    score = score_folder(masks, samples=samples, name="a")
    assert score.found["no_head"] == ["001_HC (1 px)", "003_HC (the whole image)"]
    hc_mm = score.per_image.set_index(["sample_id", "output"])["hc_pred_mm"]
    assert (hc_mm["001_HC", "mask"], hc_mm["003_HC", "mask"]) == (0, 0)
    console = Console(width=200, record=True)
    print_score(score, console)
    assert "2 masks are no heads: 001_HC (1 px), 003_HC (the whole image)" in console.export_text()


def test_references_are_read_by_the_bias_that_their_csv_shows(
    sonosweep, hc18_folder, samples, masks
):
    """Outlines that were filled up to the line's centre: the same references, the same scores."""
    words = ("score", masks, "--root", hc18_folder, "--json")
    _, expected, _ = sonosweep(*words)
    for sample in samples:
        cv2.imwrite(str(sample.annotation_path), 255 * annotation_of(sample).mask)
    _, printed, _ = sonosweep(*words)
    found = json.loads(printed)
    assert found["dice_mean"] == pytest.approx(json.loads(expected)["dice_mean"], abs=1e-9)
    assert "12 of 12 annotations are filled masks, taken as they are" in found["notes"]


def test_mask_of_another_size_is_named_with_both_sizes(samples, masks):
    cv2.imwrite(str(masks / "003_HC.png"), np.ones((80, 54), np.uint8))
    with pytest.raises(InputError, match=r"003_HC\.png: the mask has 54x80 px, its image 80x54"):
        score_folder(masks, samples=samples, name="a")


def test_reference_of_another_size_is_named(samples, masks):
    path = samples[0].annotation_path
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path), 0), (160, 108)))
    with pytest.raises(InputError, match=r"001_HC_Annotation\.png: 160x108 px.*80x54"):
        score_folder(masks, samples=samples, name="a")


def test_read_mask(tmp_path):
    path, mask = tmp_path / "a.png", np.zeros((5, 7), np.uint8)
    mask[1:3, 2:6] = 1
    for scaled in (mask, mask * 255, mask.astype(np.uint16), mask.astype(np.uint16) * 65535):
        cv2.imwrite(str(path), scaled)
        np.testing.assert_array_equal(read_mask(path, size_hw=(5, 7)), mask)
    cv2.imwrite(str(path), np.ones((5, 7), np.uint8))
    assert read_mask(path, size_hw=(5, 7)).all()
    cv2.imwrite(str(path), np.zeros((5, 7), np.uint8))
    assert not read_mask(path, size_hw=(5, 7)).any()
    for values, shown in (([1, 2], "1, 2"), ([128, 128], "128"), ([1, 255], "1, 255")):
        mask[:] = 0
        mask[1, 2:4] = values
        cv2.imwrite(str(path), mask)
        with pytest.raises(InputError, match=rf"holds the values {shown};"):
            read_mask(path, size_hw=(5, 7))
    path.write_bytes(b"no PNG")
    with pytest.raises(InputError, match=r"a\.png: not a PNG"):
        read_mask(path, size_hw=(5, 7))


def test_folders_without_usable_masks(samples, tmp_path):
    ids, folder = [s.sample_id for s in samples], tmp_path / "p"
    with pytest.raises(InputError, match="p: no such folder"):
        find_masks(folder, sample_ids=ids, known=samples)
    folder.mkdir()
    with pytest.raises(InputError, match="no PNG masks; write one"):
        find_masks(folder, sample_ids=ids, known=samples)
    (folder / "001_HC.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"001_HC\.nii\.gz is of a format that is not read"):
        find_masks(folder, sample_ids=ids, known=samples)
    (folder / "002_HC.BMP").write_bytes(b"")
    (folder / "case_7.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"\(001_HC\.png is expected, case_7\.png was found\)"):
        find_masks(folder, sample_ids=ids, known=samples)
    (folder / "001_HC.png").write_bytes(b"")
    (folder / "._001_HC.png").write_bytes(b"")
    files, notes = find_masks(folder, sample_ids=ids, known=samples)
    assert files == {"001_HC": folder / "001_HC.png"}
    assert notes == [
        "2 files are no PNG and were not read (001_HC.nii.gz, 002_HC.BMP)",
        "1 PNG files of no known image were not read (case_7)",
    ]
    (folder / "001_HC_mask.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"001_HC\.png and 001_HC_mask\.png are both for 001_HC"):
        find_masks(folder, sample_ids=ids, known=samples)


def test_a_mask_in_the_alpha_channel_and_two_of_one_name_are_refused(samples, masks):
    path = masks / "001_HC.png"
    head = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    for colour in (0, 255):
        in_alpha = np.dstack([np.full((*head.shape, 3), colour, np.uint8), 255 * (head > 0)])
        cv2.imwrite(str(path), in_alpha.astype(np.uint8))
        with pytest.raises(
            InputError, match=r"001_HC\.png: the mask is drawn in the alpha channel"
        ):
            read_mask(path, size_hw=head.shape)
    (masks / "001_HC.PNG").write_bytes(path.read_bytes())
    ids = [sample.sample_id for sample in samples]
    with pytest.raises(InputError, match=r"001_HC\.PNG and 001_HC\.png have one name"):
        find_masks(masks, sample_ids=ids, known=samples)


def test_the_ending_of_a_mask_may_be_in_capitals(samples, masks):
    (masks / "001_HC.png").rename(masks / "001_HC.PNG")
    found = score_folder(masks, samples=samples, name="a").found
    assert (found["missing"], found["notes"]) == ([], [])


def test_outlines_given_for_masks_are_told(samples, masks):
    drawn = cv2.imread(str(masks / "001_HC.png"), cv2.IMREAD_UNCHANGED)
    edge = cv2.morphologyEx(drawn, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    cv2.imwrite(str(masks / "001_HC.png"), edge)
    (note,) = score_folder(masks, samples=samples, name="a").found["notes"]
    assert note.startswith("1 masks look like outlines")
    assert "(001_HC)" in note


def test_split_file_chooses_the_images(samples, masks, tmp_path):
    path = tmp_path / "split.json"
    write_split_file(path, name="demo", version="1", split=SPLIT, samples=samples)
    (masks / "001_HC.png").unlink()
    score = score_folder(masks, samples=samples, name="a", split=read_split_file(path))
    assert images_of(score) == list(SPLIT.test)
    assert score.found["notes"] == ["8 masks of images outside the split's test part were not read"]
    second = Split(train=SPLIT.test, val=SPLIT.val, test=SPLIT.train[1:])
    folds = tmp_path / "folds.json"
    write_split_file(
        folds, name="k", version="1", split=SPLIT, samples=samples, folds=[SPLIT, second]
    )
    both = score_folder(masks, samples=samples, name="a", split=read_split_file(folds))
    assert images_of(both) == [*SPLIT.test, *second.test]
    image = samples[0].image_path
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(InputError, match="not the files it was made of"):
        score_folder(masks, samples=samples, name="a", split=read_split_file(path))


def as_cohort(root, samples, *, with_masks):
    """The training part as an external cohort without pixel sizes."""
    for name in ("image", "mask"):
        (root / name).mkdir(parents=True)
    for sample in samples:
        (root / "image" / sample.image_path.name).write_bytes(sample.image_path.read_bytes())
        if with_masks:
            target = root / "mask" / sample.annotation_path.name
            target.write_bytes(sample.annotation_path.read_bytes())
    return root


def test_without_pixel_sizes_there_are_no_mm(sonosweep, samples, masks, tmp_path):
    root = as_cohort(tmp_path / "ours", samples, with_masks=True)
    score = score_folder(masks, samples=read_cohort(root), name="a")
    assert not [name for name in score.found if "mm" in name]
    assert "dice_trimester_weighted_mean" not in score.found
    code, out, _ = sonosweep("score", masks, "--root", root)
    assert code == 0
    assert "(mm)" not in out
    assert "no pixel sizes: measures in mm are absent" in out
    assert f"{100 * score.found['dice_mean']:.2f}" in out


@pytest.mark.parametrize("layout", ["auto", "cohort"])
def test_cohort_without_masks_is_refused(sonosweep, samples, masks, tmp_path, layout):
    root = as_cohort(tmp_path / "ours", samples, with_masks=False)
    words = ("score", masks, "--root", root, "--layout", layout)
    code, _, err = sonosweep(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "no reference masks" in err
    assert "sonosweep submit RUN" in err


def test_references_of_a_bad_root(hc18_folder, tmp_path):
    with pytest.raises(InputError, match="--layout dicom: unknown"):
        read_references(hc18_folder, layout="dicom")
    with pytest.raises(InputError, match="no such folder"):
        read_references(tmp_path / "none", layout="auto")
    (hc18_folder / "training_set").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no reference masks"):
        read_references(hc18_folder, layout="auto")


def test_command_writes_everything_or_nothing(sonosweep, hc18_folder, masks, tmp_path):
    out = tmp_path / "scored"
    words = ("score", masks, "--root", hc18_folder, "--out", out, "--name", "nnunet")
    bad = masks / "008_HC.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:40])
    code, _, err = sonosweep(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "008_HC.png" in err
    assert not out.exists()
    bad.write_bytes(good)
    code, printed, _ = sonosweep(*words, "--json")
    assert code == 0
    found = json.loads(printed)
    assert json.loads((out / "score.json").read_text()) == found
    assert sorted(p.name for p in out.iterdir()) == [
        "per_image.csv",
        "results.csv",
        "score.json",
        "summary.md",
    ]
    results = read_rows(out / "results.csv")
    assert set(SUMMARY) <= set(results.columns)
    assert results["condition"].tolist() == ["nnunet"] * 2
    dice = [found["dice_mean"], found["ellipse"]["dice_mean"]]
    assert results["dice_mean"].tolist() == pytest.approx(dice)
    assert len(read_rows(out / "per_image.csv")) == 24
    text = (out / "summary.md").read_text()
    assert f"| Dice, mean (%) | {100 * dice[0]:.2f} | {100 * dice[1]:.2f} |" in text
    assert found["trial_id"] in text
    code, _, err = sonosweep(*words)
    assert code == 2
    assert "exists; choose another folder" in err
    code, _, err = sonosweep(*words[:-4], "--missing", "drop")
    assert code == 2
    assert "--missing drop: unknown" in err


def test_a_missing_folder_is_told_before_the_references_are_read(
    sonosweep, monkeypatch, hc18_folder, tmp_path
):
    monkeypatch.setattr("datamodules.index.build_index", lambda *_, **__: pytest.fail("was read"))
    code, _, err = sonosweep("score", tmp_path / "no", "--root", hc18_folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "no: no such folder; give a folder of PNG masks" in err


def test_split_of_a_recipe_is_published_and_used(sonosweep, hc18_folder, masks, tmp_path):
    path = tmp_path / "split.json"
    words = ("data", "split", "demo", f"data.root={hc18_folder}", f"store.root={tmp_path}/runs")
    words += ("data.subset.n_images=null", "split.test=3", "split.val=2", "split.train=null")
    words += ("--out", path, "--name", "mine", "--version", "0.1")
    code, printed, err = sonosweep(*words)
    assert (code, err) == (0, "")
    published = read_split_file(path)
    assert published.sha256 in printed
    assert (published.name, published.version) == ("mine", "0.1")
    assert len(published.split.test) == 3
    code, printed, _ = sonosweep("score", masks, "--root", hc18_folder, "--split", path, "--json")
    assert code == 0
    found = json.loads(printed)
    assert found["n_images"] == 3
    assert found["split"] == {"name": "mine", "version": "0.1", "sha256": published.sha256}
    path.write_text(path.read_text().replace('"mine"', '"other"'))
    code, _, err = sonosweep("score", masks, "--root", hc18_folder, "--split", path)
    assert (code, err.count("\n")) == (2, 1)
    assert "edited" in err
