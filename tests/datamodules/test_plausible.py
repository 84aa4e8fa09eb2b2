"""Lengths that cannot be right are named, with the probable cause."""

from dataclasses import replace

import pytest

from datamodules.errors import InputError
from datamodules.index import Index, build_index
from datamodules.phantom import write_phantom
from datamodules.plausible import contradicts_csv, doubts, require_pixel_size
from datamodules.samples import read_hc18
from datamodules.summary import summary


@pytest.fixture
def index(hc18_folder) -> Index:
    return build_index(read_hc18(hc18_folder))


def scaled(index: Index, *, pixels: float = 1.0, hc: float = 1.0, only: int | None = None) -> Index:
    """The index of the same files under another CSV."""
    rows = [
        replace(
            row,
            pixel_size_mm=row.pixel_size_mm * pixels,
            hc_fit_mm=row.hc_fit_mm * pixels,
            hc_mm=row.hc_mm * hc,
        )
        for row in index.rows[:only]
    ]
    return replace(index, rows=(*rows, *index.rows[len(rows) :]))


@pytest.mark.parametrize(
    ("pixels", "hc", "words"),
    [
        (2.0, 1.0, "enlarged to twice the size"),
        (0.5, 1.0, "resized to half the size"),
        (0.64, 1.0, "resized to 0.6"),
        (1.0, 0.1, "HC in centimetres"),
        (0.1, 1.0, "pixel sizes in centimetres"),
    ],
)
def test_hcs_that_contradict_the_csv_come_first_with_their_cause(index, pixels, hc, words):
    found = summary(scaled(index, pixels=pixels, hc=hc))
    assert found["findings"][0].startswith("12 of 12 annotations have another HC than the CSV")
    assert words in found["findings"][0]
    assert found["findings"][: len(found["implausible"])] == found["implausible"]


def test_a_set_in_centimetres_is_no_set_of_small_heads(index):
    small = scaled(index, pixels=0.1, hc=0.1)
    (sentence,) = doubts(small)
    assert sentence.startswith("HC of 11 of 12 images is 7 to 27 mm, outside 30 to 420 mm")
    assert "lengths in centimetres" in sentence
    (row,) = index.rows[:1]
    fine = replace(row, pixel_size_mm=0.005, hc_fit_mm=5.7, hc_mm=None)
    texts = doubts(replace(index, rows=(fine,)))
    assert [text.split(" of 1 ")[0] for text in texts] == [
        "the annotation's HC",
        "the pixel size",
    ]
    assert all("pixel sizes in centimetres" in text for text in texts)


def test_one_wrong_row_is_named_by_itself(index):
    (sentence,) = doubts(scaled(index, hc=2, only=1))
    assert sentence.startswith("001_HC: the annotation's HC is 7")
    assert "half the size" in sentence


def test_large_pixels_of_small_images_pass_where_the_heads_fit(index):
    """The fixture's pixels are 1 to 3 mm wide, and its heads as large as any."""
    assert doubts(index) == []
    huge = replace(index.rows[0], pixel_size_mm=7.7, hc_mm=None, hc_fit_mm=900.0)
    assert len(doubts(replace(index, rows=(huge,)))) == 2


@pytest.mark.parametrize(
    ("hc_mm", "hc_fit_mm", "expected"),
    [
        (50.0, 51.9, False),  # 2 mm, though 3.8 %
        (50.0, 52.1, True),
        (200.0, 203.9, False),  # 2 %, though 3.9 mm
        (200.0, 195.9, True),
        (None, 1.0, False),
    ],
)
def test_an_hc_contradicts_another_beyond_both_tolerances(index, hc_mm, hc_fit_mm, expected):
    row = replace(index.rows[0], hc_mm=hc_mm, hc_fit_mm=hc_fit_mm)
    assert contradicts_csv(row) is expected


@pytest.mark.parametrize("size_hw", [(54, 80), (80, 54)])
def test_a_large_pixel_passes_where_the_longer_side_is_a_field(size_hw):
    require_pixel_size(3.7, size_hw=size_hw, of="a.png")
    with pytest.raises(InputError, match=r"a\.png: .*3\.8 mm is outside .* would be 304 mm"):
        require_pixel_size(3.8, size_hw=size_hw, of="a.png")


def test_a_pixel_size_in_centimetres_is_called_that():
    require_pixel_size(0.02, size_hw=(540, 800), of="a.png")
    with pytest.raises(InputError, match=r"0\.015 mm is outside .*; probably centimetres"):
        require_pixel_size(0.015, size_hw=(540, 800), of="a.png")
    with pytest.raises(InputError, match=r"0\.0015 mm is outside 0\.02 to 1 mm; give"):
        require_pixel_size(0.0015, size_hw=(540, 800), of="a.png")


@pytest.mark.parametrize("size_hw", [(54, 80), (270, 400)])
def test_phantoms_pass(tmp_path, size_hw):
    write_phantom(tmp_path / "phantom", n_exams=6, seed=0, size_hw=size_hw, outlines="filled")
    assert doubts(build_index(read_hc18(tmp_path / "phantom"))) == []
