"""`sonosweep predict`: one's own images of any kind, measured in px and, where known, in mm."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from deliver_parts import HEAD, predicted, segment_images

from datamodules.ellipse import Ellipse, perimeter_px, rasterise
from datamodules.head_ellipse import filled_ellipse
from datamodules.samples import read_hc18
from experiments.deliver.inference import load_run
from experiments.deliver.predict import COLUMNS, prediction_of_mask, predictions_text
from experiments.results.pictures import PREDICTION_RGB
from experiments.store.runs import write_done


@pytest.fixture
def scans(hc18_folder, tmp_path):
    """One image as PNG, JPEG, 16-bit TIFF and colour BMP; 54 rows, 80 columns."""
    image = cv2.imread(str(hc18_folder / "training_set" / "001_HC.png"), cv2.IMREAD_GRAYSCALE)
    folder = tmp_path / "scans"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), image)
    cv2.imwrite(str(folder / "b.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    cv2.imwrite(str(folder / "c.tif"), image.astype(np.uint16) * 16)
    cv2.imwrite(str(folder / "d.bmp"), cv2.merge([image] * 3))
    return folder


def measured(mask, *, pixel_size_mm):
    """The prediction of a mask that the second view confirms, on an image of speckle."""
    image = np.random.default_rng(0).integers(0, 255, (54, 80), np.uint8)
    views = {"mask": mask, "second_mask": mask, "image": image}
    return prediction_of_mask(**views, filename="a.png", pixel_size_mm=pixel_size_mm)[0]


def test_measures_of_a_known_head():
    mask = rasterise(HEAD, size_hw=(54, 80))
    found = measured(mask, pixel_size_mm=0.5)
    assert (found["found"], found["doubtful"], found["reason"]) == (True, False, "")
    assert found["confidence"] > 0.98
    assert found["center_x_mm"] == pytest.approx(0.5 * found["center_x_px"])
    assert found["semi_minor_mm"] == pytest.approx(0.5 * found["semi_minor_px"])
    assert found["center_x_px"] == pytest.approx(42.3, abs=0.1)
    assert found["center_y_px"] == pytest.approx(25.6, abs=0.1)
    assert found["semi_major_px"] == pytest.approx(20.5, abs=0.3)
    assert found["semi_minor_px"] == pytest.approx(15.2, abs=0.3)
    assert found["theta_rad"] == pytest.approx(2.6, abs=0.04)
    assert found["hc_px"] == pytest.approx(perimeter_px(HEAD), rel=0.015)
    assert found["hc_mm"] == pytest.approx(found["hc_px"] / 2)
    small = measured(mask, pixel_size_mm=0.05)
    assert small["doubtful"]
    assert small["reason"] == (
        f"an HC of {small['hc_mm']:.1f} mm is outside 30 to 420 mm; is the pixel size right?"
    )
    unknown = measured(mask, pixel_size_mm=None)
    assert [unknown[name] for name in ("hc_mm", "center_x_mm", "semi_major_mm")] == [None] * 3


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (np.s_[:0, :0], "is empty"),
        (np.s_[:, :], "fills the image"),
        (np.s_[20, 5:70], "no ellipse fits"),
        (np.s_[20, 30], "no ellipse fits"),
    ],
)
def test_degenerate_masks_have_a_reason_and_no_numbers(drawn, reason):
    mask = np.zeros((54, 80), np.uint8)
    mask[drawn] = 1
    found = measured(mask, pixel_size_mm=0.1)
    assert reason in found["reason"]
    assert not found["found"]
    assert (found["doubtful"], found["confidence"]) == (True, 0)
    assert [found[name] for name in ("center_x_px", "hc_px", "hc_mm")] == [None] * 3
    line = predictions_text([found]).splitlines()[1]
    # Empty cells, never a 0 that reads as a measurement.
    assert line == f"a.png,false,,,,,,,0.100000,,,,,,0.000000,true,{found['reason']}"


def test_ellipse_outside_the_image_is_not_a_head():
    above = Ellipse(
        center_x_px=40.0, center_y_px=-8.0, semi_major_px=38, semi_minor_px=36, theta_rad=0.0
    )
    mask = rasterise(above, size_hw=(54, 80))
    found = measured(mask, pixel_size_mm=None)
    assert "centre outside the image (40.0, -3.7)" in found["reason"]


def test_one_image_in_every_format(sonosweep, run_dir, scans, hand_made, tmp_path):
    out = tmp_path / "new" / "out"
    words = ("predict", run_dir, scans, "--out", out, "--pixel-size", 0.5)
    code, printed, _ = sonosweep(*words)
    assert code == 0
    assert "4 masks and overlays, predictions.csv; a head in 4 of 4 images" in printed
    assert f"segmented by {run_dir}\n" in printed
    assert (
        "1 images of more than 8 bit were scaled from their own range to 0..255: c.tif" in printed
    )
    rows = predicted(out)
    assert list(rows) == ["a.png", "b.jpg", "c.tif", "d.bmp"]
    for row in rows.values():
        assert tuple(row) == COLUMNS
        assert row["found"] == "true"
        assert float(row["hc_mm"]) == pytest.approx(0.5 * float(row["hc_px"]), abs=1e-5)
        assert float(row["hc_px"]) == pytest.approx(perimeter_px(HEAD), rel=0.015)
        assert row["doubtful"] == "false"
        assert float(row["confidence"]) > 0.9
    for stem in "abcd":
        mask = cv2.imread(str(out / "masks" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        own = cv2.imread(str(out / "network_masks" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        head = rasterise(HEAD, size_hw=(54, 80))
        np.testing.assert_array_equal(own, head * 255)
        np.testing.assert_array_equal(mask, filled_ellipse(head)[1] * 255)
        overlay = cv2.imread(str(out / "overlays" / f"{stem}.png"))
        drawn = (overlay == np.array(PREDICTION_RGB[::-1])).all(axis=2)
        assert overlay.shape == (54, 80, 3)
        assert 60 < drawn.sum() < 200  # The outline: of 113 px, here 1 px wide.
        assert not drawn[25, 42]
    image = cv2.imread(str(scans / "a.png"), cv2.IMREAD_GRAYSCALE)
    overlay = cv2.imread(str(out / "overlays" / "a.png"))
    assert (overlay[25, 42] == image[25, 42]).all()
    # Made whole: nothing temporary is left beside it.
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("prompt", ["whole_image", "predicted_box"])
def test_masks_are_those_of_submit(sonosweep, hc18_folder, run_dir, tmp_path, prompt):
    paths = {s.sample_id: s.image_path for s in read_hc18(hc18_folder)}
    expected = dict(segment_images(load_run(run_dir), paths, prompt=prompt))
    out = tmp_path / "out"
    words = ("predict", run_dir, *paths.values(), "--out", out, "--prompt", prompt, "--json")
    code, printed, _ = sonosweep(*words)
    assert code == 0
    for stem, mask in expected.items():
        found = cv2.imread(str(out / "network_masks" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(found, mask * 255)
    assert 0 < np.mean([mask.mean() for mask in expected.values()]) < 1
    summary = json.loads(printed)
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["n_images"], summary["prompt"], summary["run_id"]) == (12, prompt, "0123")
    assert len(summary["predictions"]) == 12
    assert all(p["hc_mm"] is None for p in summary["predictions"])


def test_folder_of_hc18_with_its_csv(sonosweep, hc18_folder, run_dir, hand_made, tmp_path):
    """The annotations beside the images are no images, and the official CSV is read as it is."""
    out = tmp_path / "out"
    sizes = hc18_folder / "training_set_pixel_size_and_HC.csv"
    words = ("predict", run_dir, hc18_folder / "training_set", "--pixel-sizes", sizes)
    code, printed, _ = sonosweep(*words, "--out", out)
    assert code == 0
    assert "12 files are no images and were not read: 001_HC_Annotation.png, " in printed
    samples = {s.image_path.name: s for s in read_hc18(hc18_folder)}
    rows = predicted(out)
    assert rows.keys() == samples.keys()
    for name, row in rows.items():
        size = samples[name].pixel_size_mm
        assert float(row["pixel_size_mm"]) == pytest.approx(size, abs=1e-6)
        assert float(row["hc_mm"]) == pytest.approx(float(row["hc_px"]) * size, abs=1e-4)


def test_degenerate_predictions_are_named_and_no_error(
    sonosweep, run_dir, scans, hand_made, tmp_path
):
    hand_made["b"] = np.zeros((54, 80), np.uint8)
    out = tmp_path / "out"
    code, printed, _ = sonosweep("predict", run_dir, scans, "--out", out)
    assert code == 0
    assert "a head in 3 of 4 images" in printed
    assert printed.splitlines()[-2:] == [
        "doubtful: 1 of 4 images; look at them before their numbers are used:",
        "b.jpg: the predicted mask is empty",
    ]
    assert "no pixel size is known, so hc_mm is empty" in printed
    row = predicted(out)["b.jpg"]
    assert (row["found"], row["hc_px"], row["hc_mm"]) == ("false", "", "")
    assert predicted(out)["a.png"]["hc_mm"] == ""
    assert cv2.imread(str(out / "masks" / "b.png"), cv2.IMREAD_UNCHANGED).max() == 0


def test_a_unet_predicts_too(sonosweep, unet_dir, scans, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = sonosweep("predict", unet_dir, scans, "--out", out)
    assert code == 0
    assert "4 masks" in printed
    mask = cv2.imread(str(out / "masks" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (54, 80)
    words = ("predict", unet_dir, scans, "--out", tmp_path / "x", "--prompt", "predicted_box")
    code, _, err = sonosweep(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "is a U-Net, which takes no prompt" in err


def test_a_compact_model_predicts_as_its_run(sonosweep, unet_dir, run_dir, scans, tmp_path):
    small = tmp_path / "small"
    assert sonosweep("export", unet_dir, "--format", "compact", "--out", small)[0] == 0
    sizes = [(each / "segmenter.safetensors").stat().st_size for each in (unet_dir, small)]
    assert sizes[1] < 0.6 * sizes[0]
    for model in (unet_dir, small):
        assert sonosweep("predict", model, scans, "--out", tmp_path / f"of-{model.name}")[0] == 0
    first, second = (
        cv2.imread(str(tmp_path / f"of-{name}" / "network_masks" / "a.png"), cv2.IMREAD_UNCHANGED)
        for name in ("u", "small")
    )
    assert first.any()
    assert (first != second).mean() < 0.01
    # Exported again it says of its data what it said.
    assert sonosweep("export", small, "--format", "compact", "--out", tmp_path / "again")[0] == 0
    texts = [(each / "manifest.json").read_text() for each in (small, tmp_path / "again")]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["content"] == {"n_images": 1}
    code, _, err = sonosweep("export", run_dir, "--format", "compact", "--out", tmp_path / "x")
    assert (code, err.count("\n")) == (2, 1)
    assert "no fitted segmenter" in err


def test_weights_that_are_not_those_written_are_not_used(sonosweep, unet_dir, scans, tmp_path):
    run = shutil.copytree(unet_dir, tmp_path / "run")
    write_done(run, {})
    assert sonosweep("predict", run, scans, "--out", tmp_path / "whole")[0] == 0
    weights = run / "segmenter.safetensors"
    data = bytearray(weights.read_bytes())
    data[-40:] = bytes(40)
    weights.write_bytes(data)
    for words in (
        ("predict", run, scans),
        ("export", run, "--format", "compact"),
    ):
        code, printed, err = sonosweep(*words, "--out", tmp_path / "new")
        assert (code, printed, err.count("\n")) == (2, "", 1)
        assert "segmenter.safetensors is not what was written" in err
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "SCANS/none.png"], "none.png: no such file or folder"),
        (["RUN", "EMPTY"], "no images"),
        (["RUN", "SCANS", "TWIN/a.jpg"], "have one name"),
        (["RUN", "TWIN/clip.mp4"], "a video, not an image"),
        (["RUN", "SCANS", "TWIN/bad.png"], "bad.png: PNG cut short"),
        (["RUN", "SCANS", "--pixel-size", "0"], "--pixel-size 0.0: must be above 0"),
        (["RUN", "SCANS", "--pixel-size", "nan"], "must be above 0"),
        (["RUN", "SCANS", "--pixel-size", "1", "--pixel-sizes", "CSV"], "leave one out"),
        (["RUN", "SCANS", "--pixel-sizes", "CSV"], "no row for 2 of 4 images (b.jpg, d.bmp)"),
        (["RUN", "SCANS", "--pixel-sizes", "SCANS/none.csv"], "none.csv: cannot be read"),
        (["RUN", "SCANS", "--prompt", "tight_box"], "--prompt tight_box: unknown"),
        (["RUN", "SCANS", "--out", "EMPTY"], "exists; choose another folder"),
        (["RUN", "SCANS", "--out", "CSV/x/y"], "sizes.csv is no folder; choose another"),
        (["FIT/1a", "SCANS"], "manifest.json is missing, so this is no run"),
        (["RUN"], "a run and no images"),
        (["EMPTY"], "no images"),
        (["EMPTY/none", "SCANS"], "no such directory; give a run's"),
        (["RUN/segmenter.safetensors", "SCANS"], "a file; give the run's directory"),
        (["CUT", "SCANS"], "segmenter.safetensors: damaged or cut short"),
        (["OTHER", "SCANS"], "not of this version"),
        (["NO_JSON", "SCANS"], "manifest.json: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    sonosweep, monkeypatch, run_dir, scans, tmp_path, words, message
):
    places = {"RUN": run_dir, "SCANS": scans, "CSV": tmp_path / "sizes.csv"}
    for name in ("EMPTY", "TWIN", "CUT", "OTHER", "FIT", "NO_JSON"):
        places[name] = tmp_path / name.lower()
        places[name].mkdir()
    (places["FIT"] / "1a").mkdir()
    places["CSV"].write_text("filename,pixel size(mm)\na.png,0.1\nc.tif,0.2\nz.png,0.3\n")
    shutil.copy(scans / "b.jpg", places["TWIN"] / "a.jpg")
    (places["TWIN"] / "clip.mp4").write_bytes(b"x")
    (places["TWIN"] / "bad.png").write_bytes((scans / "a.png").read_bytes()[:-50])
    for name in ("manifest.json", "segmenter.safetensors"):
        for folder in ("CUT", "OTHER"):
            shutil.copy(run_dir / name, places[folder] / name)
    weights = places["CUT"] / "segmenter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    manifest = {"stage": "fit", "segmenter": {"kind": "sam", "settings": {"colour": 3}}}
    (places["OTHER"] / "manifest.json").write_text(json.dumps(manifest))
    (places["NO_JSON"] / "manifest.json").write_text('{"stage": ')
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given = []
    for word in words:
        head, _, rest = word.partition("/")
        given.append(str(places[head] / rest) if head in places else word)
    code, printed, err = sonosweep("predict", *given)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, printed, len(lines)) == (2, "", 1)
    assert message in lines[0]
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_words_are_refused_without_torch(tmp_path):
    """A typo is answered at once."""
    code = (
        "import sys\n"
        "from experiments.__main__ import main\n"
        f"sys.argv = ['sonosweep', 'predict', {str(tmp_path / 'none')!r}, 'x.png']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n"
        "    print(ended.code, 'torch' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "2 False\n"
    assert "no such directory" in ended.stderr
