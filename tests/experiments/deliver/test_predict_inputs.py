"""`sonosweep predict` on DICOM and with pixel sizes that cannot be right."""

import json

import cv2
import numpy as np
import pydicom
import pytest
from deliver_parts import HEAD, predicted
from dicom_parts import PATIENT, region, write_dicom
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1

from datamodules.ellipse import perimeter_px


@pytest.fixture
def speckle():
    """uint8 (12, 54, 80)."""
    return np.random.default_rng(0).integers(1, 256, (12, 54, 80), dtype=np.uint8)


def test_dicom_of_one_frame_and_of_several(sonosweep, run_dir, speckle, hand_made, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    write_dicom(scans / "clip.dcm", speckle, regions=[region()])
    write_dicom(scans / "IM_1", speckle[0].astype(np.uint16) * 9, regions=[region(delta_x=0.03)])
    write_dicom(scans / "w.dcm", speckle[1].astype(np.uint16), WindowCenter=99, WindowWidth=80)
    cv2.imwrite(str(scans / "a.png"), speckle[2])
    out = tmp_path / "out"
    code, printed, err = sonosweep("predict", run_dir, scans, "--out", out)
    assert code == 0
    rows = predicted(out)
    frames = [f"clip_frame{number:02d}" for number in range(1, 13)]
    assert list(rows) == ["IM_1", "a.png", *frames, "w.dcm"]
    for name in frames:
        assert float(rows[name]["pixel_size_mm"]) == pytest.approx(0.2)
        assert float(rows[name]["hc_mm"]) == pytest.approx(0.2 * perimeter_px(HEAD), rel=0.015)
    for name in ("IM_1", "a.png", "w.dcm"):
        assert rows[name]["found"] == "true"
        assert rows[name]["hc_mm"] == ""
    assert "IM_1: its pixels are not square (0.3 x 0.2 mm)" in printed
    low, high = int(speckle[0].min()) * 9, int(speckle[0].max()) * 9
    assert f"scaled from their own range to 0..255: IM_1 {low}..{high}" in printed
    assert "shown by the window of their file (w.dcm: centre 99, width 80)" in printed
    assert "no pixel size is known of 3 of " in printed
    assert "--pixel-sizes CSV: IM_1, a.png, w.dcm" in printed
    overlay = cv2.imread(str(out / "overlays" / "clip_frame03.png"))
    np.testing.assert_array_equal(overlay[0, :, 0], speckle[2][0])
    # Nothing of the patient's, neither in files nor in what is printed.
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) == 3 * 15 + 2
    texts = [printed, err, *(path.name for path in written)]
    assert not any(PATIENT in text for text in texts)
    assert not any(PATIENT.encode() in path.read_bytes() for path in written)


def test_the_size_that_is_given_counts(sonosweep, run_dir, speckle, hand_made, tmp_path):
    for name in "ab":
        write_dicom(tmp_path / f"{name}.dcm", speckle[:2], regions=[region()])
    places = (run_dir, tmp_path / "a.dcm", tmp_path / "b.dcm")
    words = ("predict", *places, "--pixel-size", 0.3, "--json")
    code, printed, _ = sonosweep(*words, "--out", tmp_path / "all")
    assert code == 0
    found = json.loads(printed)
    assert {p["pixel_size_mm"] for p in found["predictions"]} == {0.3}
    assert found["other_sizes_stated_mm"]["a_frame1"] == pytest.approx(0.2)
    lines = ["filename,pixel size(mm)", "a.dcm,0.4", "a_frame2,0.5"]
    (tmp_path / "sizes.csv").write_text("\n".join(lines))
    words = ("predict", *places, "--pixel-sizes", tmp_path / "sizes.csv")
    assert sonosweep(*words, "--out", tmp_path / "each")[0] == 0
    sizes = [float(row["pixel_size_mm"]) for row in predicted(tmp_path / "each").values()]
    assert sizes == pytest.approx([0.4, 0.5, 0.2, 0.2])
    summary = json.loads((tmp_path / "each" / "summary.json").read_text())
    assert summary["sizes_not_in_table"] == ["b_frame1", "b_frame2"]


def test_a_size_given_for_pixels_that_are_not_square_is_told(
    sonosweep, run_dir, speckle, hand_made, tmp_path
):
    write_dicom(tmp_path / "a.dcm", speckle[:1], PixelSpacing=[0.3, 0.2])
    words = ("predict", run_dir, tmp_path / "a.dcm", "--pixel-size", 0.2, "--out", tmp_path / "o")
    code, printed, _ = sonosweep(*words)
    assert code == 0
    assert "its pixels are not square" in printed
    assert "one length counts in both directions" in printed


def test_a_sweep_is_neither_a_run_nor_images(sonosweep, run_dir, speckle, tmp_path):
    sweep = tmp_path / "hc18-few"
    sweep.mkdir()
    (sweep / "plan.json").write_text("{}")
    code, _, err = sonosweep("predict", sweep, tmp_path, "--out", tmp_path / "o")
    assert (code, err.count("\n")) == (2, 1)
    assert "hc18-few: a sweep's folder, neither a run nor images" in err
    code, _, err = sonosweep("predict", tmp_path / "typo.png", sweep, "--out", tmp_path / "o")
    assert (code, err.count("\n")) == (2, 1)
    assert "typo.png: no such file" in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("mm", "delta", "message"),
    [
        (0.014, 0.02, "--pixel-size 0.014: a.dcm: a pixel size of 0.014 mm is outside 0.02 to 1"),
        (0.0005, 0.02, "outside 0.02 to 1 mm; give"),
        (4, 0.02, "is outside 0.02 to 1 mm, and 80x54 px would be 320 mm"),
        ("CSV", 0.02, "sizes.csv: a.dcm: a pixel size of 0.01 mm is outside 0.02 to 1 mm"),
        (None, 0.00014, "a.dcm (as its file states): a pixel size of 0.0014 mm is outside"),
    ],
)
def test_pixel_sizes_that_cannot_be_right(
    sonosweep, run_dir, speckle, tmp_path, mm, delta, message
):
    regions = [region(delta_x=delta, delta_y=delta)]
    scan = write_dicom(tmp_path / "a.dcm", speckle[0], regions=regions)
    (tmp_path / "sizes.csv").write_text("filename,pixel size(mm)\na.dcm,0.01\n")
    words = [] if mm is None else ["--pixel-size", mm]
    if mm == "CSV":
        words = ["--pixel-sizes", tmp_path / "sizes.csv"]
    code, printed, err = sonosweep("predict", run_dir, scan, *words, "--out", tmp_path / "out")
    assert (code, printed, err.count("error: ")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_submission_in_centimetres_is_refused(sonosweep, run_dir, hc18_folder, tmp_path):
    csv_path = hc18_folder / "test_set_pixel_size.csv"
    csv_path.write_text(csv_path.read_text().replace("1.234567891", "0.012"))
    words = ("submit", run_dir, "--test-root", hc18_folder, "--out", tmp_path / "s.csv")
    code, _, err = sonosweep(*words)
    assert code == 2
    assert "test_set_pixel_size.csv: 000_HC.png: a pixel size of 0.012 mm is outside" in err
    assert "; probably centimetres; give the side of a pixel in mm" in err
    assert not (tmp_path / "s.csv").exists()


def test_what_is_not_decoded_leaves_nothing(sonosweep, run_dir, speckle, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    cv2.imwrite(str(scans / "a.png"), speckle[0])
    data = pydicom.dcmread(write_dicom(scans / "b.dcm", speckle[0]))
    data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate([b"\0" * 10]), JPEGLosslessSV1
    data["PixelData"].is_undefined_length = True
    data.save_as(scans / "b.dcm")
    code, printed, err = sonosweep("predict", run_dir, scans, "--out", tmp_path / "out")
    assert (code, printed, err.count("error: ")) == (2, "", 1)
    assert "b.dcm: its pixels are compressed as JPEG Lossless" in err
    assert "pip install pylibjpeg pylibjpeg-libjpeg" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["clip_frame1.png", "clip_frame2.dcm"])
def test_a_frame_and_a_file_of_one_name(sonosweep, run_dir, speckle, tmp_path, other):
    scans = tmp_path / "scans"
    scans.mkdir()
    write_dicom(scans / "clip.dcm", speckle[:2])
    if other.endswith(".png"):
        cv2.imwrite(str(scans / other), speckle[0])
    else:
        write_dicom(scans / other, speckle[0])
    code, _, err = sonosweep("predict", run_dir, scans, "--out", tmp_path / "out")
    assert code == 2
    assert "another image is called clip_frame" in err


def test_submit_segments_a_folder_of_dicom(sonosweep, run_dir, speckle, tmp_path):
    (tmp_path / "cohort" / "image").mkdir(parents=True)
    write_dicom(tmp_path / "cohort" / "image" / "1.2.840", speckle[0])
    cv2.imwrite(str(tmp_path / "cohort" / "image" / "b.png"), speckle[0])
    words = ("submit", run_dir, "--test-root", tmp_path / "cohort", "--masks", tmp_path / "masks")
    assert sonosweep(*words)[0] == 0
    first, second = (
        cv2.imread(str(tmp_path / "masks" / name), cv2.IMREAD_UNCHANGED)
        for name in ("1.2.840.png", "b.png")
    )
    assert first.any()
    np.testing.assert_array_equal(first, second)
