"""HC18's submission: ellipses in mm, faults named, degenerate predictions never invented."""

import json
import math
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch
from deliver_parts import HEAD, UNET, segment_images
from dicom_parts import write_dicom

from datamodules.annotation import read_image
from datamodules.ellipse import Ellipse, perimeter_px, rasterise
from datamodules.errors import InputError
from datamodules.hc18 import HC18DataModule
from datamodules.head_ellipse import filled_ellipse
from datamodules.samples import HC18_CSV, read_hc18, read_hc18_test
from datamodules.settings import Cache, Frame
from experiments.deliver.inference import load_run
from experiments.deliver.submission import (
    COLUMNS,
    fitted_ellipse,
    row_of_ellipse,
    submission_text,
    validate_submission,
    write_submission,
)
from experiments.stages.evaluation import Protocol, Scorer, evaluate
from lightning_modules.errors import WeightsError
from lightning_modules.metrics import dice_score, head_circumference_mm
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.module import SamModule

PIXEL_SIZE_MM = 1.234567891
"""Of the fixture's test images, 80x54 px."""


@pytest.fixture
def rows(hc18_folder):
    """A valid row for each test image, the second head lying elsewhere."""
    heads = (HEAD, replace(HEAD, center_x_px=37.0, theta_rad=0.0))
    return [
        row_of_ellipse(head, filename=sample.image_path.name, pixel_size_mm=sample.pixel_size_mm)
        for head, sample in zip(heads, read_hc18_test(hc18_folder), strict=True)
    ]


def test_row_of_a_known_ellipse():
    mask = rasterise(HEAD, size_hw=(54, 80))
    row = row_of_ellipse(fitted_ellipse(mask)[0], filename="000_HC.png", pixel_size_mm=0.5)
    assert row.filename == "000_HC.png"
    assert row.center_x_mm == pytest.approx(0.5 * 42.3, abs=0.05)
    assert row.center_y_mm == pytest.approx(0.5 * 25.6, abs=0.05)
    assert row.semi_axes_a_mm == pytest.approx(0.5 * 20.5, abs=0.15)
    assert row.semi_axes_b_mm == pytest.approx(0.5 * 15.2, abs=0.15)
    assert row.angle_rad == pytest.approx(2.6, abs=0.04)
    # Points on the long axis, by the angle from +x towards +y in image rows: inside, then outside.
    for share, inside in ((0.9, 1), (1.1, 0)):
        reach_px = share * row.semi_axes_a_mm / 0.5
        x = row.center_x_mm / 0.5 + reach_px * math.cos(row.angle_rad)
        y = row.center_y_mm / 0.5 + reach_px * math.sin(row.angle_rad)
        assert mask[round(y), round(x)] == inside
    fitted = Ellipse(
        center_x_px=0,
        center_y_px=0,
        semi_major_px=row.semi_axes_a_mm,
        semi_minor_px=row.semi_axes_b_mm,
        theta_rad=0,
    )
    outline_mm = head_circumference_mm(mask, pixel_size_mm=0.5)
    assert perimeter_px(fitted) == pytest.approx(outline_mm, rel=0.015)


def test_file_is_read_back(rows, hc18_folder, tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(path, rows, degenerate=[], skip=False)
    lines = path.read_text().splitlines()
    assert lines[0] == ("filename,center_x_mm,center_y_mm,semi_axes_a_mm,semi_axes_b_mm,angle_rad")
    assert [line.split(",")[0] for line in lines[1:]] == ["000_HC.png", "001_HC.png"]
    found = validate_submission(path, hc18_folder)
    for row, expected in zip(found, rows, strict=True):
        assert list(asdict(row).values())[1:] == pytest.approx(
            list(asdict(expected).values())[1:], abs=1e-8
        )
    assert found[0].center_x_mm == pytest.approx(42.3 * PIXEL_SIZE_MM, abs=0.1)
    nearly_pi = replace(rows[0], angle_rad=math.nextafter(math.pi, 0))
    path.write_text(submission_text([nearly_pi, rows[1]]))
    assert validate_submission(path, hc18_folder)[0].angle_rad < math.pi


def test_order_is_that_of_the_csv(rows, hc18_folder, tmp_path):
    path, listed = tmp_path / "submission.csv", hc18_folder / HC18_CSV["test"]
    header, first, second = listed.read_bytes().splitlines(keepends=True)
    listed.write_bytes(header + second + first)
    path.write_text(submission_text(rows))
    with pytest.raises(InputError, match=r"row 2 is 000_HC\.png, not 001_HC\.png; keep the order"):
        validate_submission(path, hc18_folder)
    path.write_text(submission_text(rows[::-1]))
    assert [row.filename for row in validate_submission(path, hc18_folder)] == [
        "001_HC.png",
        "000_HC.png",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center_x_mm": 400.0}, r"001_HC\.png: center_x_mm=400\.00 lies outside.* 98\.77x66\.67"),
        ({"center_y_mm": -2.0}, "center_y_mm=-2.00 lies outside"),
        ({"semi_axes_a_mm": 130.0}, "semi_axes_a_mm=130.00 exceeds the image"),
        ({"semi_axes_a_mm": 2.0}, "semi_axes_a_mm=2.00 and semi_axes_b_mm=.* not a >= b > 0"),
        ({"semi_axes_b_mm": 0.0}, "not a >= b > 0"),
        ({"semi_axes_b_mm": math.nan}, "a value is not finite"),
        ({"angle_rad": 90.0}, r"angle_rad=90\.0000 is not in \[0, pi\)"),
        ({"angle_rad": -0.1}, r"angle_rad=-0\.1000 is not in \[0, pi\)"),
        ({"angle_rad": math.pi + 1e-6}, r"is not in \[0, pi\)"),
    ],
)
def test_impossible_values_are_named(rows, hc18_folder, tmp_path, change, message):
    path = tmp_path / "submission.csv"
    path.write_text(submission_text([rows[0], replace(rows[1], **change)]))
    with pytest.raises(InputError, match=message):
        validate_submission(path, hc18_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], r"1 rows for 2 test images, no row for 001_HC\.png"),
        (lambda lines: [*lines, lines[-1].replace("001", "777")], r"777_HC\.png unknown"),
        (lambda lines: [*lines, lines[-1]], r"001_HC\.png has two rows"),
        (lambda lines: [lines[0].replace("angle_rad", "angle"), *lines[1:]], "the header is"),
        (lambda lines: [], "the header is ''"),
        (lambda lines: ["x" * 200_000], "cannot be read as CSV"),
        (lambda lines: [lines[0], lines[1] + ",1", lines[2]], "row 2 has 7 cells, not 6"),
        (lambda lines: [*lines[:2], "001_HC.png,a,1,1,1,1"], r"row 3 \(001_HC\.png\): could not"),
        (lambda lines: [*lines[:2], "001_HC.png,0_1,1,1,1,1"], "'0_1' is not a number; write"),
    ],
)
def test_wrong_files_are_named(rows, hc18_folder, tmp_path, change, message):
    path = tmp_path / "submission.csv"
    path.write_text("\r\n".join(change(submission_text(rows).splitlines())))
    with pytest.raises(InputError, match=message):
        validate_submission(path, hc18_folder)


def evaluated(logits_of, samples, *, frame, prompt, folder):
    """The masks that the sweep's scoring keeps, by image."""
    datamodule = HC18DataModule(
        samples=samples,
        train_ids=[],
        val_ids=[],
        test_ids={"hc18": list(samples)},
        frame=frame,
        cache=Cache(folder=folder),
        batch_size=1,
        n_batches=0,
        seed=0,
    )
    datamodule.setup()
    kept = {}
    with torch.inference_mode():
        evaluate(
            logits_of,
            datamodule.test_dataloader()[0],
            cohort="hc18",
            protocol=Protocol(prompt=prompt),
            scorer=Scorer(samples=samples, frame_hw=frame.size_hw, mode=frame.resize_mode),
            keep=lambda name, mask: kept.update({name: mask}),
        )
    return kept


@pytest.mark.parametrize(
    ("kind", "prompt"), [("sam", "whole_image"), ("sam", "predicted_box"), ("unet", "whole_image")]
)
def test_masks_are_those_of_the_evaluation(hc18_folder, run_dir, unet_dir, tmp_path, kind, prompt):
    samples = {s.sample_id: s for s in read_hc18(hc18_folder)}
    if kind == "sam":
        module = SamModule(SegmenterConfig(backbone="tiny")).eval()
        frame = Frame(size_hw=(64, 64), resize_mode="pad")
        logits_of = module
    else:
        module, frame = load_run(unet_dir), Frame(size_hw=UNET.size_hw, resize_mode="squash")
        logits_of = module.predict
    folder = tmp_path / "cache"
    expected = evaluated(logits_of, samples, frame=frame, prompt=prompt, folder=folder)
    paths = {name: sample.image_path for name, sample in samples.items()}
    found = dict(segment_images(module, paths, prompt=prompt))
    assert list(found) == list(paths)
    for name, mask in found.items():
        assert mask.shape == (54, 80)
        np.testing.assert_array_equal(mask, expected[name])
    # The random network marks a part of the images, so the above compares something.
    assert 0 < np.mean([mask.mean() for mask in found.values()]) < 1
    if (kind, prompt) == ("sam", "whole_image"):
        # The fitted one encodes by folded convolutions: other roundings at the threshold.
        loaded = dict(segment_images(load_run(run_dir), paths, prompt="whole_image"))
        assert np.mean([np.mean(loaded[name] != found[name]) for name in found]) < 0.01


def test_logits_that_are_not_finite_are_told(hc18_folder, unet_dir):
    module = load_run(unet_dir)
    next(module.parameters()).data.fill_(math.nan)
    paths = {s.sample_id: s.image_path for s in read_hc18(hc18_folder)}
    with pytest.raises(InputError, match="001_HC: the logits are not finite; fit the segmenter"):
        dict(segment_images(module, paths, prompt="whole_image"))


def test_submit_writes_a_file_that_checks(sonosweep, hc18_folder, run_dir, hand_made, tmp_path):
    out, masks = tmp_path / "s.csv", tmp_path / "masks"
    words = ("submit", run_dir, "--test-root", hc18_folder, "--out", out, "--masks", masks)
    code, printed, err = sonosweep(*words)
    assert (code, err) == (0, "")
    assert "2 rows, valid for these test images; the challenge's own test set has 335" in printed
    drawn = cv2.imread(str(masks / "001_HC.png"), cv2.IMREAD_UNCHANGED)
    head = rasterise(HEAD, size_hw=(54, 80))
    np.testing.assert_array_equal(drawn, filled_ellipse(head)[1] * 255)
    assert dice_score(drawn, head) > 0.98
    words = ("submit", "--check", out, "--test-root", hc18_folder)
    code, printed, _ = sonosweep(*words)
    assert code == 0
    assert "2 rows, valid" in printed
    assert "median HC" not in printed
    whole = out.read_text()
    names, values = zip(*(line.split(",", 1) for line in whole.splitlines()[1:]), strict=True)
    in_cm = [[f"{float(v) / 10:.6f}" for v in line.split(",")] for line in values]
    lines = [",".join([name, *cells]) for name, cells in zip(names, in_cm, strict=True)]
    out.write_text("\n".join([whole.splitlines()[0], *lines]) + "\n")
    code, printed, _ = sonosweep(*words)
    assert code == 0
    assert "its median HC is 14.0 mm, outside 30 to 420 mm; are these" in printed
    out.write_text(whole)
    out.write_text(out.read_text().replace("001_HC", "007_HC"))
    code, _, err = sonosweep(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "no row for 001_HC.png" in err


def test_degenerate_prediction_is_not_invented(
    sonosweep, hc18_folder, run_dir, hand_made, tmp_path
):
    hand_made["001_HC"] = np.zeros((54, 80), np.uint8)
    out, masks = tmp_path / "s.csv", tmp_path / "masks"
    words = ("submit", run_dir, "--test-root", hc18_folder, "--out", out, "--masks", masks)
    code, printed, err = sonosweep(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "for 1 of 2 images the prediction gives no ellipse (001_HC.png)" in err
    assert "001_HC.png: the predicted mask is empty" in printed
    assert not out.exists()
    assert not masks.exists()
    code, printed, _ = sonosweep(*words, "--skip-degenerate")
    assert len(list(masks.iterdir())) == 2
    assert code == 0
    assert "1 rows, 1 left out; this is not a valid submission" in printed
    lines = out.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert [line.split(",")[0] for line in lines[1:]] == ["000_HC.png"]
    with pytest.raises(InputError, match=r"no row for 001_HC\.png"):
        validate_submission(out, hc18_folder)


def test_cohort_without_masks_is_segmented_and_scored(sonosweep, hc18_folder, run_dir, tmp_path):
    """Prediction works where there are no references; its masks are what `score` reads."""
    cohort, made = tmp_path / "ours", tmp_path / "made"
    (cohort / "image").mkdir(parents=True)
    for sample in read_hc18(hc18_folder):
        (cohort / "image" / sample.image_path.name).write_bytes(sample.image_path.read_bytes())
    words = ("submit", run_dir, "--test-root", cohort)
    code, printed, err = sonosweep(*words, "--masks", made)
    assert (code, err) == (0, "")
    assert "12 masks" in printed
    assert len(list(made.glob("*.png"))) == 12
    code, printed, _ = sonosweep("score", made, "--root", hc18_folder, "--json")
    assert code == 0
    assert json.loads(printed)["n_images"] == 12
    code, _, err = sonosweep(*words, "--out", tmp_path / "s.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "not HC18, test_set/ is missing" in err


def test_a_mask_that_cannot_be_written_is_told(sonosweep, hc18_folder, unet_dir, tmp_path):
    image, name = read_image(read_hc18(hc18_folder)[0].image_path), "x" * 253
    (tmp_path / "ours" / "image").mkdir(parents=True)
    write_dicom(tmp_path / "ours" / "image" / name, image)
    made = tmp_path / "made"
    words = ("submit", unet_dir, "--test-root", tmp_path / "ours", "--masks", made)
    code, _, err = sonosweep(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{name}.png: File name too long" in err
    assert [path.name for path in tmp_path.iterdir() if "made" in path.name] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--out", "s.csv"], "--test-root is missing"),
        (["--test-root", "ROOT", "--out", "s.csv"], "give either RUN"),
        (["RUN", "--test-root", "ROOT"], "nothing to write"),
        (["RUN", "--test-root", "ROOT", "--out", "/proc/s.csv"], "/proc/s.csv: "),
        (["--check", "no.csv", "--test-root", "ROOT"], "no.csv: cannot be read (No such file or"),
        (["RUN", "--test-root", "ROOT", "--out", "no/s.csv"], "no such folder"),
        (["RUN", "--test-root", "ROOT", "--masks", "ROOT"], "exists; choose another folder"),
        (["RUN", "--test-root", "ROOT", "--out", "ROOT"], "exists; choose another file"),
        (["RUN", "--test-root", "ROOT", "--out", "old.csv"], "old.csv: exists; choose another"),
        (["RUN", "--test-root", "ROOT", "--out", "s.csv", "--masks", "s.csv"], "this name too"),
        (["RUN", "--test-root", "ROOT", "--out", "s.csv", "--prompt", "tight_box"], "unknown"),
        (["RUN", "--test-root", "ROOT/no", "--out", "s.csv"], "no such folder"),
        (["ROOT", "--test-root", "ROOT", "--out", "s.csv"], "so this is no run"),
    ],
)
def test_bad_input_of_submit_is_one_line(
    sonosweep, monkeypatch, hc18_folder, run_dir, tmp_path, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.csv").write_text("old")
    words = [w.replace("RUN", str(run_dir)).replace("ROOT", str(hc18_folder)) for w in words]
    code, _, err = sonosweep("submit", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "s.csv").exists()
    assert (tmp_path / "old.csv").read_text() == "old"


def test_a_unet_of_other_settings_is_refused(unet_dir):
    for unet, kind, said in (
        ({"colour": 3}, InputError, "not of this version"),
        (asdict(UNET) | {"steps": 2}, WeightsError, "fitted with steps=1, not 2"),
    ):
        manifest = {"stage": "fit", "segmenter": {"kind": "unet", "settings": unet}}
        (unet_dir / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(kind, match=said):
            load_run(unet_dir)


@pytest.mark.long
def test_submission_for_the_real_test_images(real_hc18_root, tmp_path):
    """The bare LiteMedSAM on HC18: every mask has its image's size, every ellipse validates."""
    module = SamModule(SegmenterConfig()).eval()
    samples = read_hc18_test(real_hc18_root)
    paths = {s.sample_id: s.image_path for s in samples}
    rows, degenerate = [], []
    for sample, (name, mask) in zip(
        samples, segment_images(module, paths, prompt="predicted_box"), strict=True
    ):
        assert name == sample.sample_id
        ellipse, _ = fitted_ellipse(mask)
        if ellipse is None:
            degenerate.append(name)
        else:
            size_mm = sample.pixel_size_mm
            rows.append(row_of_ellipse(ellipse, filename=f"{name}.png", pixel_size_mm=size_mm))
    assert len(rows) > 0.8 * len(samples)
    path = tmp_path / "submission.csv"
    write_submission(path, rows, degenerate=degenerate, skip=True)
    if degenerate:
        with pytest.raises(InputError, match="no row for"):
            validate_submission(path, real_hc18_root)
    else:
        assert len(validate_submission(path, real_hc18_root)) == len(samples)
    # Fetal heads are 40 to 350 mm round, that is 6 to 60 mm in semi-axis.
    assert 6 < np.median([row.semi_axes_a_mm for row in rows]) < 60
