import cv2
import numpy as np
import pytest

from datamodules.annotation import read_annotation
from datamodules.errors import InputError
from datamodules.index import build_index
from datamodules.phantom import write_phantom
from datamodules.samples import HC18_CSV, read_hc18
from datamodules.summary import summary

SIZE_HW = (108, 160)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(root, n_exams=24, seed=3, size_hw=SIZE_HW, test_images=3)
    return root


def content(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_layout_and_file_formats_are_hc18s(phantom):
    samples = read_hc18(phantom)
    assert len({sample.exam_id for sample in samples}) == 24
    assert max(sample.frame for sample in samples) == 2
    assert len(read_hc18(phantom, part="test")) == 3
    text = (phantom / HC18_CSV["training"]).read_bytes()
    assert text.startswith(b"filename,pixel size(mm),head circumference (mm)\r\n000_HC.png,0.")
    assert text.count(b"\n") == text.count(b"\r\n") == len(samples) + 1
    image = cv2.imread(str(samples[0].image_path), cv2.IMREAD_UNCHANGED)
    assert (image.shape, image.dtype) == (SIZE_HW, np.uint8)
    outline = cv2.imread(str(samples[0].annotation_path), cv2.IMREAD_UNCHANGED)
    assert (outline.shape, set(np.unique(outline))) == (SIZE_HW, {0, 255})


def test_annotations_give_the_csvs_hc_and_all_trimesters_occur(phantom):
    index = build_index(read_hc18(phantom))
    found = summary(index)
    assert found["duplicates"] == []
    assert found["open_outlines"] == []
    assert set(found["annotations"]) == {"outline", "filled"}
    # A pixel is 0.5 to 1.5 mm here.
    assert found["hc_error_mm"]["outline"]["max"] < 0.5
    assert found["hc_error_mm"]["filled"]["max"] < 1.0
    assert min(found["trimesters"]["1"], found["trimesters"]["3"]) >= 4
    assert found["trimesters"]["2"] > found["trimesters"]["1"]


def test_outlines_are_thin_lines_at_full_size(tmp_path):
    write_phantom(tmp_path / "p", n_exams=1, seed=0, outlines="outline")
    sample = read_hc18(tmp_path / "p")[0]
    annotation = read_annotation(sample.annotation_path)
    pixels = cv2.imread(str(sample.annotation_path), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (540, 800)
    perimeter = sample.hc_mm / sample.pixel_size_mm
    assert (pixels > 0).sum() / perimeter == pytest.approx(2.4, abs=0.05)
    assert annotation.residual_px < 0.15


def test_images_are_dark_with_speckle_and_skull(phantom):
    means, contrasts = [], []
    for sample in read_hc18(phantom):
        image = cv2.imread(str(sample.image_path), cv2.IMREAD_GRAYSCALE) / 255
        mask = read_annotation(sample.annotation_path, filled_bias_px=1.4).mask
        ring = mask - cv2.erode(mask, np.ones((7, 7), np.uint8))
        core = cv2.erode(mask, np.ones((15, 15), np.uint8))
        means.append(image.mean())
        contrasts.append(image[ring == 1].mean() - image[core == 1].mean())
    assert np.mean(means) == pytest.approx(0.165, abs=0.03)
    assert np.mean(contrasts) > 0.05
    # Hard enough: by brightness alone some skulls are hardly there.
    assert min(contrasts) < 0.1


def test_the_same_seed_gives_the_same_bytes_and_another_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_phantom(tmp_path / name, n_exams=3, seed=seed, size_hw=(54, 80), test_images=1)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    image = "training_set/001_HC.png"
    assert (tmp_path / "a" / image).read_bytes() != (tmp_path / "c" / image).read_bytes()


@pytest.mark.parametrize(("outlines", "kind"), [("outline", "outline"), ("filled", "filled")])
def test_kind_of_annotation_is_chosen(tmp_path, outlines, kind):
    write_phantom(tmp_path / "p", n_exams=8, seed=0, size_hw=(54, 80), outlines=outlines)
    kinds = {read_annotation(s.annotation_path).kind for s in read_hc18(tmp_path / "p")}
    assert kinds == {kind}


def test_existing_data_is_never_overwritten(tmp_path):
    root = tmp_path / "p"
    root.mkdir()
    (root / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        write_phantom(root, n_exams=1, seed=0, size_hw=(54, 80))
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    (root / "precious.txt").unlink()
    write_phantom(root, n_exams=1, seed=0, size_hw=(54, 80))
    assert len(read_hc18(root)) >= 1


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datamodules.phantom.write_png", full_disk)
    with pytest.raises(InputError, match="cannot be written"):
        write_phantom(tmp_path / "p", n_exams=1, seed=0, size_hw=(54, 80))
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="n_exams"):
        write_phantom(tmp_path / "p", n_exams=0, seed=0)
    with pytest.raises(ValueError, match="outlines"):
        write_phantom(tmp_path / "p", n_exams=1, seed=0, outlines="dotted")
