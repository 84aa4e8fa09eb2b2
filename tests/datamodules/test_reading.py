"""How filled masks are read: by the bias that the CSV shows, not by an expected one."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.annotation import annotation_of
from datamodules.ellipse import Ellipse, perimeter_px, rasterise
from datamodules.index import build_index
from datamodules.phantom import write_phantom
from datamodules.plausible import doubts
from datamodules.reading import bias_notes, reads_as, settle_bias, settled_samples
from datamodules.samples import Sample, read_hc18
from datamodules.summary import summary

HEAD = Ellipse(
    center_x_px=80.0, center_y_px=54.0, semi_major_px=50.0, semi_minor_px=38.0, theta_rad=0.4
)
PIXEL_SIZE_MM = 0.5


def filled(tmp_path, *, bias_px: float, n: int = 6, values: tuple[int, int] = (0, 255)):
    """Samples of HC18's layout whose masks reach beyond the head by `bias_px`."""
    samples, hc_mm = [], perimeter_px(HEAD) * PIXEL_SIZE_MM
    for number in range(n):
        a, b = HEAD.semi_major_px - number, HEAD.semi_minor_px - number
        inner = replace(HEAD, semi_major_px=a, semi_minor_px=b)
        grown = replace(inner, semi_major_px=a + bias_px, semi_minor_px=b + bias_px)
        mask = np.where(rasterise(grown, size_hw=(108, 160)) > 0, *values[::-1]).astype(np.uint8)
        noise = np.random.default_rng(number).integers(0, 255, mask.shape, dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), noise)
        cv2.imwrite(str(tmp_path / f"{number}_Annotation.png"), mask)
        samples.append(
            Sample(
                sample_id=str(number),
                image_path=tmp_path / f"{number}.png",
                annotation_path=tmp_path / f"{number}_Annotation.png",
                exam_id=str(number),
                frame=1,
                pixel_size_mm=PIXEL_SIZE_MM,
                hc_mm=hc_mm * perimeter_px(inner) / perimeter_px(HEAD),
                cohort="hc18",
                filled_bias_px=1.40,
            )
        )
    return samples


@pytest.mark.parametrize(("bias_px", "found_px"), [(0.0, 0.0), (-1.3, -1.3), (3.0, 3.0)])
def test_masks_are_corrected_by_the_bias_that_their_csv_shows(tmp_path, bias_px, found_px):
    samples = filled(tmp_path, bias_px=bias_px)
    index = settle_bias(build_index(samples))
    assert {row.filled_bias_px for row in index.rows} == {found_px}
    assert max(abs(row.hc_fit_mm - row.hc_mm) for row in index.rows) < 0.2
    settled = settled_samples(samples, index)
    assert {sample.filled_bias_px for sample in settled} == {found_px}
    truth = rasterise(HEAD, size_hw=(108, 160))
    assert np.count_nonzero(annotation_of(settled[0]).mask != truth) < 0.01 * truth.sum()
    assert perimeter_px(annotation_of(settled[0]).ellipse) == pytest.approx(
        perimeter_px(index.rows[0].ellipse)
    )


def test_the_usual_bias_is_kept_to_the_last_digit(tmp_path):
    """Ids of finished runs hash it."""
    for bias_px in (1.35, 1.45):
        samples = filled(tmp_path, bias_px=bias_px)
        index = build_index(samples)
        assert settle_bias(index) is index
        assert settled_samples(samples, index) == samples


@pytest.mark.parametrize("size_hw", [(54, 80), (270, 400)])
def test_phantoms_keep_the_usual_bias(tmp_path, size_hw):
    write_phantom(tmp_path / "p", n_exams=8, seed=0, size_hw=size_hw, outlines="filled")
    index = build_index(read_hc18(tmp_path / "p"))
    assert settle_bias(index) is index


def test_without_a_measure_it_says_what_was_assumed(tmp_path):
    samples = filled(tmp_path, bias_px=0.0)
    for unknown in (
        [replace(sample, hc_mm=None) for sample in samples],
        samples[:2],
        [replace(s, pixel_size_mm=PIXEL_SIZE_MM * (1 + 0.1 * i)) for i, s in enumerate(samples)],
    ):
        index = build_index(unknown)
        assert settle_bias(index) is index
        (sentence, *_) = bias_notes(index)
        assert "made smaller by 1.4 px on every side (assumed" in sentence
        assert "data.filled_bias_px" in sentence
    as_they_are = [replace(sample, filled_bias_px=0.0, hc_mm=None) for sample in samples]
    (sentence,) = bias_notes(build_index(as_they_are))
    assert "taken as they are (assumed" in sentence
    assert "data.filled_bias_px" in sentence


def test_a_correction_that_makes_it_worse_is_a_finding(tmp_path):
    samples = reads_as(filled(tmp_path, bias_px=0.0), label=None, filled_bias_px=1.0)
    found = summary(build_index(samples))
    assert found["hc_error_mm"]["filled"]["mean"] > 2
    assert found["hc_error_mm"]["filled_uncorrected"]["mean"] < 0.2
    assert any("the filled masks reach 0.0" in text for text in found["findings"])
    assert any("makes the HC errors of filled masks larger" in text for text in found["findings"])


def test_a_correction_that_contradicts_the_csv_is_named_as_the_cause(tmp_path):
    """Too few masks to measure their bias by: the usual one is taken off, and too much of these."""
    sentences = doubts(build_index(filled(tmp_path, bias_px=0.0, n=3)))
    assert len(sentences) == 3
    assert all("probably filled masks that do not reach beyond" in text for text in sentences)


def test_the_heads_label_is_read_everywhere(tmp_path):
    samples = filled(tmp_path, bias_px=0.0, n=3)
    for sample in samples:
        mask = cv2.imread(str(sample.annotation_path), cv2.IMREAD_GRAYSCALE) // 255
        mask[:9, :9] = 2
        cv2.imwrite(str(sample.annotation_path), mask)
    read = reads_as(samples, label=1, filled_bias_px=0.0)
    assert all(abs(row.hc_fit_mm - row.hc_mm) < 0.2 for row in build_index(read).rows)
    assert annotation_of(read[0]).mask[:9, :9].sum() == 0
