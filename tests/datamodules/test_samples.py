from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.cohort import read_cohort
from datamodules.errors import InputError
from datamodules.samples import (
    FILLED_BIAS_PX,
    HC18_CSV,
    PHANTOM_MARKER,
    content_hash_of,
    hash_as_read,
    read_hc18,
    read_hc18_test,
    trimester,
)

CSV = HC18_CSV["training"]
BLANK = np.zeros((54, 80), np.uint8)


def rewrite(root, change):
    text = (root / CSV).read_bytes().decode("utf-8")
    (root / CSV).write_bytes(change(text).encode("utf-8"))


def test_hc18_samples(hc18_folder):
    samples = {sample.sample_id: sample for sample in read_hc18(hc18_folder)}
    assert len(samples) == 12
    third = samples["004_3HC"]
    assert (third.exam_id, third.frame, third.hc_mm, third.cohort) == ("004", 3, 170.0, "hc18")
    assert samples["004_HC"].frame == 1
    assert third.filled_bias_px == FILLED_BIAS_PX
    assert third.image_path == hc18_folder / "training_set" / "004_3HC.png"
    assert third.annotation_path == hc18_folder / "training_set" / "004_3HC_Annotation.png"
    tests = read_hc18(hc18_folder, part="test")
    assert [(s.sample_id, s.annotation_path, s.hc_mm) for s in tests] == [
        ("000_HC", None, None),
        ("001_HC", None, None),
    ]
    assert tests[0].pixel_size_mm == 1.234567891


def test_a_procedural_set_is_never_called_hc18(hc18_folder):
    (hc18_folder / PHANTOM_MARKER).write_text("{}")
    assert {sample.cohort for sample in read_hc18(hc18_folder)} == {"phantom"}


def test_frames_of_a_file_and_other_ways_to_read_it_have_hashes_of_their_own(hc18_folder):
    sample = read_hc18(hc18_folder)[0]
    frames = [replace(sample, image_frame=frame) for frame in (None, 1, 2)]
    assert len({content_hash_of(each) for each in frames}) == 3
    assert content_hash_of(replace(sample, label=1)) == content_hash_of(sample)
    ways = [sample, replace(sample, filled_bias_px=0.0), replace(sample, label=2)]
    assert len({hash_as_read("files", each) for each in ways}) == 3


def test_hc18_test_part_in_the_order_of_its_csv(hc18_folder):
    path = hc18_folder / HC18_CSV["test"]
    header, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + second + first)
    assert [s.sample_id for s in read_hc18_test(hc18_folder)] == ["001_HC", "000_HC"]
    assert sorted(read_hc18_test(hc18_folder), key=lambda s: s.sample_id) == read_hc18(
        hc18_folder, part="test"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\r\n", "\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("pixel size(mm)", " Pixel Size (mm) "),
        lambda text: text + "\r\n\r\n",
        lambda text: text.replace("001_HC.png,", " 001_HC.png , "),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", ";").replace("0.", "0,").replace(".00", ",00"),
        lambda text: "sep=;\r\n" + text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",70.00", ',"70,00"'),
        lambda text: text.replace(",70.00", ",70.00,,"),
        lambda text: text.replace("(mm)\r\n", "(mm),,\r\n"),
    ],
    ids=[
        *("lf", "bom", "spaces", "blank lines", "padded cells"),
        *("semicolons", "decimal commas", "a spreadsheet's first line", "tabs", "quoted comma"),
        *("surplus empty cells", "surplus empty columns"),
    ],
)
def test_tolerated_csv_spellings(hc18_folder, change):
    expected = read_hc18(hc18_folder)
    rewrite(hc18_folder, change)
    assert read_hc18(hc18_folder) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.replace("head circumference (mm)", "hc"),
            "'head circumference .mm.'.*missing",
        ),
        (lambda t: "", "'filename' is missing"),
        (lambda t: t + "009_HC.png,0.1,100\r\n", "row 009_HC.png has no image"),
        (lambda t: t + "001_HC.png,0.1,100\r\n", "row 14 repeats 001_HC.png"),
        (lambda t: t.replace(",70.00", ",nan"), "001_HC.png.*head circumference.*'nan'"),
        (lambda t: t.replace(",70.00", ",-70"), "001_HC.png.*'-70'; expected a positive"),
        (lambda t: t.replace(",70.00", ",0"), "001_HC.png.*'0'; expected a positive"),
        (lambda t: t.replace(",70.00", ","), "001_HC.png.*''"),
        (lambda t: t.replace(",70.00", ",7_0"), "001_HC.png.*'7_0'; expected a positive"),
        (lambda t: t.replace(",70.00", ""), "row 2 has 2 of 3 cells"),
        (
            lambda t: t.replace(",70.00", ",70,00"),
            r"row 2 \(001_HC.png\) has 4 of 3 cells; quote decimal commas",
        ),
        (
            lambda t: t.replace("(mm)\r\n", "(mm),\r\n").replace(",70.00", ",70,00"),
            "has 4 of 3 cells",
        ),
        (
            lambda t: t.replace("(mm)\r\n", "(mm), Pixel Size (mm)\r\n").replace(
                ".00\r", ".00,1\r"
            ),
            r"column 'Pixel Size \(mm\)' is there twice; keep one",
        ),
        (lambda t: "\r\n".join(t.split("\r\n")[:-2]), "008_HC.png: no row in"),
    ],
)
def test_defects_of_the_csv_are_named(hc18_folder, change, message):
    rewrite(hc18_folder, change)
    with pytest.raises(InputError, match=message) as caught:
        read_hc18(hc18_folder)
    assert "\n" not in str(caught.value)


def test_defects_of_the_folder_are_named(hc18_folder, tmp_path):
    training = hc18_folder / "training_set"
    with pytest.raises(InputError, match="no such folder"):
        read_hc18(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is empty"):
        read_hc18(tmp_path / "empty")
    with pytest.raises(InputError, match="give its parent") as caught:
        read_hc18(training)
    assert str(hc18_folder) in str(caught.value)
    with pytest.raises(InputError, match=f"further down; give {hc18_folder}"):
        read_hc18(tmp_path)
    (training / "003_HC_Annotation.png").rename(training / "009_HC_Annotation.png")
    with pytest.raises(InputError, match=r"003_HC\.png: no annotation"):
        read_hc18(hc18_folder)
    (training / "003_HC_Annotation.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"009_HC_Annotation\.png: annotation without"):
        read_hc18(hc18_folder)
    (training / "009_HC_Annotation.png").unlink()
    (hc18_folder / CSV).rename(hc18_folder / "else.csv")
    with pytest.raises(InputError, match=f"{CSV} is missing"):
        read_hc18(hc18_folder)


def test_hidden_files_of_other_systems_do_not_disturb(hc18_folder):
    (hc18_folder / "training_set" / "._001_HC.png").write_bytes(b"junk")
    assert len(read_hc18(hc18_folder)) == 12


def make_cohort(root, names):
    (root / "image").mkdir(parents=True)
    (root / "mask").mkdir()
    for name in names:
        cv2.imwrite(str(root / "image" / f"{name}.png"), BLANK)
        cv2.imwrite(str(root / "mask" / f"{name}_Annotation.png"), BLANK)
    return root


def test_cohort_exams_and_frames(tmp_path):
    names = [
        "Patient00705_Plane3_2_of_3",
        "Patient00705_Plane3_3_of_3",
        "p1_DZA_plane1",
        "x",
        "7_HC",
    ]
    samples = read_cohort(make_cohort(tmp_path / "es", names))
    found = {s.sample_id: (s.exam_id, s.frame, s.cohort, s.pixel_size_mm) for s in samples}
    assert found == {
        "Patient00705_Plane3_2_of_3": ("Patient00705", 1, "es", None),
        "Patient00705_Plane3_3_of_3": ("Patient00705", 2, "es", None),
        "p1_DZA_plane1": ("p1_DZA", 1, "es", None),
        "x": ("x", 1, "es", None),
        "7_HC": ("7", 1, "es", None),
    }
    assert read_cohort(tmp_path / "es", name="spain")[0].cohort == "spain"


def test_a_column_says_which_images_show_one_patient(tmp_path):
    root = make_cohort(tmp_path / "es", ["a_HC", "b", "c"])
    table = "filename,pixel size(mm),Exam\na_HC.png,0.1,p 1\nb.png,0.1,p 1\nc.png,0.1,p2\n"
    (root / "sizes.csv").write_text(table)
    found = {s.sample_id: (s.exam_id, s.frame) for s in read_cohort(root)}
    assert found == {"a_HC": ("p 1", 1), "b": ("p 1", 2), "c": ("p2", 1)}
    (root / "sizes.csv").write_text(table.replace("p2", " "))
    with pytest.raises(InputError, match=r"row 4 \(c\.png\): exam is empty"):
        read_cohort(root)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ("Patient ID", "exam"),
        ("subject_id", "exam"),
        ("head circumference (cm)", "head circumference (mm)"),
        ("HC", "head circumference (mm)"),
        ("HC (px)", "head circumference (mm)"),
    ],
)
def test_a_column_that_would_be_passed_over_is_refused(tmp_path, column, wanted):
    root = make_cohort(tmp_path / "es", ["a", "b"])
    table = f"filename,pixel size(mm),device,{column}\na.png,0.1,x,1\nb.png,0.1,x,1\n"
    (root / "sizes.csv").write_text(table)
    with pytest.raises(InputError, match="would not be read; call it") as error:
        read_cohort(root)
    assert f"call it '{wanted}'" in str(error.value)
    # Beside the one that is read, it is the user's own.
    both = table.replace(f",{column}", f",{column},{wanted}").replace("x,1", "x,1,7")
    (root / "sizes.csv").write_text(both)
    assert len(read_cohort(root)) == 2


def test_pictures_in_a_folder_below_are_not_passed_over(tmp_path):
    root = make_cohort(tmp_path / "es", ["a"])
    for name in ("notes", ".cache"):
        (root / "image" / name).mkdir()
    (root / "image" / "notes" / "read me.txt").touch()
    (root / "image" / ".cache" / "a.png").touch()
    assert len(read_cohort(root)) == 1
    (root / "image" / "p2").mkdir()
    (root / "image" / "a.png").rename(root / "image" / "p2" / "b.png")
    (root / "image" / "a.png").write_bytes((root / "image" / "p2" / "b.png").read_bytes())
    with pytest.raises(InputError, match=r"image/p2: folders in image/ are not looked into"):
        read_cohort(root)


def test_a_linked_cohort_is_called_as_its_link(tmp_path, monkeypatch):
    root = make_cohort(tmp_path / "spain-2021", ["a"])
    (tmp_path / "es").symlink_to(root)
    assert read_cohort(tmp_path / "es")[0].cohort == "es"
    monkeypatch.chdir(root)
    for path in (".", "image/..", root):
        assert read_cohort(path)[0].cohort == "spain-2021"


def test_cohort_pixel_sizes(tmp_path):
    root = make_cohort(tmp_path / "c", ["a", "b"])
    (root / "sizes.csv").write_text("filename,pixel size(mm)\na.png,0.1\nb.png,0.2\n")
    assert [(s.pixel_size_mm, s.hc_mm) for s in read_cohort(root)] == [(0.1, None), (0.2, None)]
    (root / "sizes.csv").rename(root / "SIZES.CSV")
    (root / "._sizes.csv").write_bytes(b"\0")
    assert read_cohort(root)[0].pixel_size_mm == 0.1
    (root / "notes.csv").write_text("what\n")
    with pytest.raises(InputError, match=r"2 CSV files.*pixel_sizes\.csv"):
        read_cohort(root)
    (root / "pixel_sizes.csv").write_text(
        "filename,pixel size(mm),head circumference (mm)\na.png,0.3,99\nb.png,0.2,120\n"
    )
    assert [(s.pixel_size_mm, s.hc_mm) for s in read_cohort(root)] == [(0.3, 99.0), (0.2, 120.0)]


def test_defects_of_a_cohort_are_named(tmp_path):
    root = make_cohort(tmp_path / "c", ["a", "b"])
    (root / "mask" / "b_Annotation.png").unlink()
    with pytest.raises(InputError, match=r"b\.png: no annotation"):
        read_cohort(root)
    (root / "image" / "b.png").unlink()
    (root / "mask" / "z_Annotation.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"z_Annotation\.png: annotation without its image"):
        read_cohort(root)
    with pytest.raises(InputError, match=r"image/ is missing"):
        read_cohort(root / "image")


@pytest.mark.parametrize(
    "name",
    ["image/c.PNG", "image/c.jpg", "mask/c_Annotation.PNG", "image/c.nii.gz", "mask/c.mha"],
)
def test_a_picture_that_would_be_passed_over_is_refused(tmp_path, name):
    root = make_cohort(tmp_path / "c", ["a", "b"])
    (root / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"{name}: data are read from files that end in \.png"):
        read_cohort(root)


def test_a_cohort_without_masks_says_that_evaluation_needs_them(tmp_path):
    root = make_cohort(tmp_path / "es", ["a", "b"])
    for mask in (root / "mask").iterdir():
        mask.unlink()
    with pytest.raises(InputError, match=r"no PNG masks, and evaluation needs masks.* 2 images"):
        read_cohort(root)
    (root / "mask").rmdir()
    with pytest.raises(InputError, match=r"es: mask/ is missing, and evaluation needs") as error:
        read_cohort(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("hc_mm", "expected"),
    [(None, None), (44.3, 1), (97.99, 1), (98.0, 2), (259.99, 2), (260.0, 3), (346.4, 3)],
)
def test_trimester(hc_mm, expected):
    assert trimester(hc_mm) == expected


def test_real_hc18_is_checked_without_decoding_an_image(real_hc18_root, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an image is decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr("cv2.imread", refuse)
    monkeypatch.setattr("cv2.imdecode", refuse)
    samples = read_hc18(real_hc18_root)
    assert len(samples) == len({sample.sample_id for sample in samples}) > 0
