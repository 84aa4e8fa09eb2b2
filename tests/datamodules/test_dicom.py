"""DICOM: pixels as they are meant to be seen, lengths that are lengths, nothing of a patient."""

import re
import sys

import cv2
import numpy as np
import pydicom
import pytest
from dicom_parts import PATIENT, region, write_dicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing
from pydicom.uid import (
    MPEG4HP41,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from datamodules.annotation import image_of
from datamodules.any_image import find_images, read_any_image, read_frames
from datamodules.cohort import read_cohort
from datamodules.dicom import windowed
from datamodules.errors import InputError
from datamodules.index import build_index
from datamodules.prepared import prepare_images
from datamodules.samples import content_hash_of


@pytest.fixture
def grey():
    """uint8 (54, 80), 0 and 255 included."""
    image = np.random.default_rng(1).integers(0, 256, (54, 80), dtype=np.uint8)
    image[0, :2] = 0, 255
    return image


def test_grey_of_8_bit(grey, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", grey)
    found = read_any_image(path)
    np.testing.assert_array_equal(found.grey, grey)
    assert (found.scaled_from, found.window, found.pixel_size_mm) == (None, None, None)
    # The window of the whole range changes nothing, and nothing is said of it.
    write_dicom(path, grey, WindowCenter=128, WindowWidth=256, RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(read_any_image(path).grey, grey)
    assert read_any_image(path).window is None
    write_dicom(path, grey, WindowCenter=0, WindowWidth=0)  # As some scanners write.
    np.testing.assert_array_equal(read_any_image(path).grey, grey)
    write_dicom(path, grey, kind="MONOCHROME1", RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(read_any_image(path).grey, 255 - grey)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_grey_of_16_bit(grey, tmp_path, dtype):
    low = -100 if dtype == np.int16 else 100
    values = grey.astype(dtype) * 16 + dtype(low)
    path = write_dicom(tmp_path / "a.dcm", values)
    found = read_any_image(path)
    np.testing.assert_array_equal(found.grey, grey)
    assert found.scaled_from == (low, 255 * 16 + low)
    # By hand: 0 at centre - width / 2, 255 at centre + width / 2.
    write_dicom(path, values, WindowCenter=[1000, 7], WindowWidth=[1000, 9])
    found = read_any_image(path)
    expected = ((values.astype(float) - 999.5) / 999 + 0.5).clip(0, 1) * 255
    np.testing.assert_allclose(found.grey, expected, atol=0.51)
    assert (found.window, found.scaled_from) == ((1000, 1000), None)
    # Rescaled first: the same window on values twice as large.
    write_dicom(
        path, values, WindowCenter=2000, WindowWidth=2000, RescaleSlope=2, RescaleIntercept=0
    )
    np.testing.assert_allclose(read_any_image(path).grey, expected, atol=0.7)


def test_a_signed_range_wider_than_its_type(grey, tmp_path):
    values = (grey.astype(int) * 250 - 32000).astype(np.int16)
    found = read_any_image(write_dicom(tmp_path / "a.dcm", values))
    np.testing.assert_array_equal(found.grey, grey)
    assert found.scaled_from == (-32000, 255 * 250 - 32000)


def test_a_rescaled_range_below_1(grey, tmp_path):
    tags = {"RescaleSlope": 0.001, "RescaleIntercept": 0}
    path = write_dicom(tmp_path / "a.dcm", grey.astype(np.uint16), **tags)
    np.testing.assert_array_equal(read_any_image(path).grey, grey)


def test_a_table_of_values(grey, tmp_path):
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 12])
    table.add_new("LUTData", "US", [(255 - v) * 16 + 15 for v in range(256)])
    path = write_dicom(tmp_path / "a.dcm", grey, VOILUTSequence=[table])
    np.testing.assert_allclose(read_any_image(path).grey, 255.0 - grey, atol=1)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_pydicoms(function):
    data = pydicom.Dataset()
    data.BitsStored, data.PixelRepresentation, data.PhotometricInterpretation = 8, 0, "MONOCHROME2"
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = 100.0, 60.0, function
    values = np.arange(256, dtype=np.uint8)[None]
    expected = apply_windowing(values, data)
    found = windowed(values, centre=100, width=60, function=function)
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_colour(grey, tmp_path):
    rgb = np.dstack([grey, np.rot90(grey, 2), np.flipud(grey)])
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    path = write_dicom(tmp_path / "a.dcm", rgb, kind="RGB")
    np.testing.assert_array_equal(read_any_image(path).grey, expected)
    ycbcr = np.array(Image.fromarray(rgb).convert("YCbCr"))
    write_dicom(path, ycbcr, kind="YBR_FULL")
    assert np.abs(read_any_image(path).grey.astype(int) - expected).max() <= 2
    lut = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    ramp = (np.arange(256, dtype=np.uint16) * 128 + 256).tobytes()  # Not stretched to 0..255.
    lut |= {f"{c}PaletteColorLookupTableData": ramp for c in ("Red", "Green", "Blue")}
    write_dicom(path, grey, kind="PALETTE COLOR", **lut)
    np.testing.assert_array_equal(read_any_image(path).grey, 1 + grey // 2)
    write_dicom(path, grey, kind="HSV")
    with pytest.raises(InputError, match="its colours are none of MONOCHROME1, "):
        read_any_image(path)


def test_compressed(grey, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.stack([grey, 255 - grey]))
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    data.save_as(path)
    frames = dict(read_frames(path))
    np.testing.assert_array_equal(frames[1].grey, grey)
    np.testing.assert_array_equal(frames[2].grey, 255 - grey)
    smooth = cv2.GaussianBlur(grey, (0, 0), 4)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    stream = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    write_dicom(path, smooth)
    data = pydicom.dcmread(path)
    data.PixelData, data.file_meta.TransferSyntaxUID = stream, JPEGBaseline8Bit
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    assert np.abs(read_any_image(path).grey.astype(int) - smooth).max() <= 3


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (JPEGLosslessSV1, "JPEG Lossless.*pip install pylibjpeg pylibjpeg-libjpeg"),
        (MPEG4HP41, r"MPEG-4 AVC/H\.264.*save its images as PNG"),
    ],
)
def test_what_no_codec_decodes_says_what_to_install(grey, tmp_path, syntax, words):
    path = write_dicom(tmp_path / "a.dcm", grey)
    data = pydicom.dcmread(path)
    data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate([b"\0" * 10]), syntax
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    with pytest.raises(InputError, match=words) as error:
        read_any_image(path)
    assert "\n" not in str(error.value)


TIME = 4
"""The code of seconds in a region's units."""


@pytest.mark.parametrize(
    ("regions", "tags", "mm", "because"),
    [
        ([region(delta_y=-0.02)], {}, 0.2, ""),
        ([region(units=0)], {}, None, ""),
        ([region(units=TIME), region(delta_x=0.03, delta_y=0.03)], {}, 0.3, ""),
        ([region(spatial_format=2)], {"PixelSpacing": [0.4, 0.4]}, 0.4, ""),
        ([region(), region()], {"PixelSpacing": [0.2, 0.2]}, 0.2, ""),
        ([region()], {"PixelSpacing": [0.4, 0.4]}, None, "say 0.2 mm a pixel, PixelSpacing 0.4"),
        ([region()], {"PixelSpacing": 0.2}, 0.2, ""),
        ([region()], {"ImagerPixelSpacing": [0.4, 0.4]}, 0.2, ""),
        ([region(), region(delta_x=0.04, delta_y=0.04)], {}, None, "regions differ.*0.2, 0.4 mm"),
        ([region(delta_y=0.03)], {}, None, r"not square \(0.2 x 0.3 mm\)"),
        ([region(delta_x=0)], {}, None, "no pair of positive numbers"),
        ([], {"PixelSpacing": 0.3}, None, "no pair of positive numbers"),
        ([], {"PixelSpacing": [0.3, 0.2]}, None, r"not square \(0.2 x 0.3 mm\)"),
        ([], {"ImagerPixelSpacing": [0.15, 0.15]}, 0.15, ""),
        ([], {"PixelAspectRatio": [3, 2]}, None, r"not square \(height to width 3:2\)"),
        ([], {"PixelAspectRatio": [1, 1]}, None, ""),
        ([region()], {"PixelAspectRatio": [1, 1]}, 0.2, ""),
        ([], {}, None, ""),
    ],
)
def test_pixel_size(grey, tmp_path, regions, tags, mm, because):
    found = read_any_image(write_dicom(tmp_path / "a.dcm", grey, regions=regions, **tags))
    assert found.pixel_size_mm == (None if mm is None else pytest.approx(mm))

    assert re.search(because, found.no_size_because)
    assert (found.no_size_because == "") == (because == "")


def test_what_lies_outside_the_ultrasound_is_black(grey, tmp_path):
    """There the scanner writes the patient's name."""
    path = write_dicom(tmp_path / "a.dcm", 255 - grey // 2, regions=[region(box=(10, 5, 69, 49))])
    found = read_any_image(path).grey
    inside = np.s_[5:50, 10:70]
    np.testing.assert_array_equal(found[inside], (255 - grey // 2)[inside])
    assert found.sum() == found[inside].sum()


@pytest.mark.parametrize("box", [(69, 5, 10, 49), (None, 5, 69, 49), (90, 5, 99, 49), ()])
def test_regions_without_usable_corners_are_refused(grey, tmp_path, box):
    """A name beside them would show; another region's corners would do."""
    bad, good = region(box=box or (0, 0, 79, 53)), region(box=(10, 5, 69, 49))
    if not box:
        del bad.RegionLocationMaxX1
    with pytest.raises(InputError, match=r"a\.dcm: none of its ultrasound regions has usable"):
        read_any_image(write_dicom(tmp_path / "a.dcm", grey, regions=[bad]))
    found = read_any_image(write_dicom(tmp_path / "b.dcm", grey, regions=[bad, good])).grey
    assert found.sum() == grey[5:50, 10:70].sum()


def test_found_without_an_ending_and_by_the_whole_name(grey, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("IM_0001", "1.2.840.1", "1.2.840.2", "b.DCM", "DICOMDIR"):
        write_dicom(folder / name, grey)
    (folder / "notes").write_text("x" * 200)
    found, left = find_images([folder])
    assert list(found) == ["1.2.840.1", "1.2.840.2", "IM_0001", "b"]
    assert left == ["DICOMDIR", "notes"]
    assert find_images([folder / "IM_0001"])[0] == {"IM_0001": folder / "IM_0001"}
    np.testing.assert_array_equal(read_any_image(folder / "IM_0001").grey, grey)


def test_what_cannot_be_read_is_one_line_without_the_patient(grey, tmp_path, capfd, monkeypatch):
    whole = write_dicom(tmp_path / "whole.dcm", grey).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-600])
    (tmp_path / "header.dcm").write_bytes(whole[:300])
    (tmp_path / "text.dcm").write_text("no image")
    write_dicom(tmp_path / "report.dcm", grey)
    data = pydicom.dcmread(tmp_path / "report.dcm")
    del data.PixelData
    data.save_as(tmp_path / "report.dcm")
    write_dicom(tmp_path / "film.dcm", np.stack([grey] * 3))
    cases = {
        "cut.dcm": "damaged or cut short DICOM",
        "header.dcm": "DICOM",
        "text.dcm": "not a DICOM file",
        "report.dcm": "without an image",
    }
    for name, what in cases.items():
        with pytest.raises(InputError, match=what) as error:
            list(read_frames(tmp_path / name))
        assert "\n" not in str(error.value)
        assert name in str(error.value)
        assert PATIENT not in str(error.value)
    with pytest.raises(InputError, match="holds 3 frames, and one image is wanted"):
        read_any_image(tmp_path / "film.dcm")
    assert capfd.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match="pip install 'pydicom>=3'"):
        read_any_image(tmp_path / "whole.dcm")


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_pixels_that_would_be_lost_are_refused(grey, tmp_path, syntax):
    path = write_dicom(tmp_path / "film.dcm", np.stack([grey] * 3))
    data = pydicom.dcmread(path)
    if syntax is not None:
        data.compress(syntax)
    for n_frames in (None, 2):
        data.NumberOfFrames = n_frames
        data.save_as(path)
        assert "holds more pixels" in said_of(path)
    data.NumberOfFrames = 3
    data.save_as(path)
    assert said_of(path) == ""
    if syntax is None:
        data.Rows = 27
        data.save_as(path)
        assert "holds more pixels" in said_of(path)


def said_of(path):
    """What is said of a file that cannot be read; "" where it can."""
    try:
        list(read_frames(path))
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("error")
def test_a_damaged_file_is_not_quoted(grey, tmp_path):
    """Neither in an error nor in pydicom's own warnings, whatever is damaged in the header."""
    whole = write_dicom(tmp_path / "whole.dcm", grey, regions=[region()]).read_bytes()
    words = set()
    for offset in range(132, 1000, 7):
        data = bytearray(whole)
        data[offset : offset + 2] = b"\xd6\x07"
        (tmp_path / "a.dcm").write_bytes(data)
        words.add(said_of(tmp_path / "a.dcm"))
    assert len(words) > 3
    assert not any(PATIENT[:3] in each or "\n" in each or "\x07" in each for each in words)


def test_a_cohort_of_dicom(grey, tmp_path):
    """With the pixel size that its files state; a CSV beside them counts."""
    (tmp_path / "image").mkdir()
    (tmp_path / "mask").mkdir()
    mask = np.zeros_like(grey)
    cv2.ellipse(mask, (40, 27), (25, 18), 10, 0, 360, 255, -1)
    for name in ("a.dcm", "b"):
        write_dicom(tmp_path / "image" / name, grey, regions=[region(delta_x=0.3, delta_y=0.3)])
    cv2.imwrite(str(tmp_path / "image" / "c.png"), grey)
    for stem in "abc":
        cv2.imwrite(str(tmp_path / "mask" / f"{stem}_Annotation.png"), mask)
    samples = read_cohort(tmp_path)
    sizes = {sample.sample_id: sample.pixel_size_mm for sample in samples}
    assert sizes == {"a": pytest.approx(3.0), "b": pytest.approx(3.0), "c": None}
    rows = {row.sample_id: row for row in build_index(samples).rows}
    assert rows["a"].hc_fit_mm == pytest.approx(3 * 139.1, rel=0.01)  # Semi-axes of 25.5 and 18.5.
    assert rows["c"].hc_fit_mm is None
    lines = ["filename,pixel size(mm)", "a.dcm,2.5", "b,2.5", "c.png,2"]
    (tmp_path / "pixel_sizes.csv").write_text("\n".join(lines))
    assert [sample.pixel_size_mm for sample in read_cohort(tmp_path)] == [2.5, 2.5, 2.0]
    (tmp_path / "pixel_sizes.csv").unlink()
    write_dicom(tmp_path / "image" / "a.dcm", grey, regions=[region(delta_x=0.3)])
    with pytest.raises(InputError, match=r"a\.dcm: its pixels are not square"):
        read_cohort(tmp_path)


def test_a_cohort_of_frames(grey, tmp_path):
    """Each frame that has a mask is a sample of one exam, with its own pixels and content."""
    for name in ("image", "mask"):
        (tmp_path / name).mkdir()
    shifted = [np.roll(grey, k, axis=1) for k in range(12)]
    clip = tmp_path / "image" / "p1_HC_clip.dcm"
    write_dicom(clip, np.stack(shifted), regions=[region(delta_x=0.3, delta_y=0.3)])
    cv2.imwrite(str(tmp_path / "image" / "p2.png"), grey)
    mask = np.zeros_like(grey)
    cv2.ellipse(mask, (40, 27), (25, 18), 10, 0, 360, 255, -1)
    with pytest.raises(InputError, match="no PNG masks"):
        read_cohort(tmp_path)
    cv2.imwrite(str(tmp_path / "mask" / "p2_Annotation.png"), mask)
    with pytest.raises(InputError, match=r"12 frames, none with an annotation; .*_frame01_"):
        read_cohort(tmp_path)
    for number in ("02", "11"):
        cv2.imwrite(str(tmp_path / "mask" / f"p1_HC_clip_frame{number}_Annotation.png"), mask)
    samples = read_cohort(tmp_path)
    assert [(s.sample_id, s.exam_id, s.frame, s.image_frame) for s in samples] == [
        ("p1_HC_clip_frame02", "p1", 1, 2),
        ("p1_HC_clip_frame11", "p1", 2, 11),
        ("p2", "p2", 1, None),
    ]
    np.testing.assert_array_equal(image_of(samples[0]), shifted[1])
    np.testing.assert_array_equal(image_of(samples[1]), shifted[10])
    assert samples[0].pixel_size_mm == pytest.approx(3.0)
    # One file and equal masks, but two images: what is kept of them must not be mixed up.
    assert content_hash_of(samples[0]) != content_hash_of(samples[1])
    prepared = prepare_images(
        samples[:2],
        content_hashes=[content_hash_of(s) for s in samples[:2]],
        frame_hw=grey.shape,
        mode="pad",
        cache_dir=tmp_path / "cache",
    )
    np.testing.assert_array_equal(prepared.images, np.stack([shifted[1], shifted[10]]))
    assert build_index(samples).rows[1].image_sha256 != build_index(samples).rows[0].image_sha256


def test_the_csv_of_a_cohort_names_a_file_or_its_frames(grey, tmp_path):
    for name in ("image", "mask"):
        (tmp_path / name).mkdir()
    write_dicom(tmp_path / "image" / "clip.dcm", np.stack([grey] * 3))
    for number in (1, 3):
        cv2.imwrite(str(tmp_path / "mask" / f"clip_frame{number}_Annotation.png"), grey)
    csv = tmp_path / "pixel_sizes.csv"
    for rows, sizes in {
        "clip.dcm,2": [2, 2],
        "clip_frame1,2\nclip_frame3,3": [2, 3],
        "clip_frame1,2\nclip_frame2,9\nclip_frame3,3": [2, 3],
    }.items():
        csv.write_text(f"filename,pixel size(mm)\n{rows}\n")
        assert [sample.pixel_size_mm for sample in read_cohort(tmp_path)] == sizes
    csv.write_text("filename,pixel size(mm)\nclip_frame1,2\n")
    with pytest.raises(InputError, match=r"clip_frame3: no row in pixel_sizes\.csv"):
        read_cohort(tmp_path)
    cv2.imwrite(str(tmp_path / "image" / "clip_frame2.png"), grey)
    with pytest.raises(InputError, match="is called clip_frame2 too; rename one"):
        read_cohort(tmp_path)
