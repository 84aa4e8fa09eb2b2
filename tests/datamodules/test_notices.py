"""What in data may be a mistake, and is said."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.index import build_index
from datamodules.notices import notices
from datamodules.samples import read_hc18
from datamodules.summary import summary


@pytest.fixture
def index(hc18_folder):
    return build_index(read_hc18(hc18_folder))


def called(index, names):
    rows = [
        replace(row, sample_id=name, exam_id=name)
        for row, name in zip(index.rows, names, strict=False)
    ]
    return replace(index, rows=tuple(rows))


def test_usual_data_need_no_word(index):
    assert notices(index) == []


def test_images_that_all_count_as_one_exam_are_said(index):
    rows = tuple(replace(row, exam_id="ES") for row in index.rows)
    (sentence,) = notices(replace(index, rows=rows))
    assert "all 12 images count as one exam, ES" in sentence
    assert "a column `exam`" in sentence
    assert notices(replace(index, rows=rows[:3])) == []


@pytest.mark.parametrize("pattern", ["pat{}_frame{}", "p{}-{}", "case {} {}", "P{}_img_{}"])
def test_numbered_images_of_one_name_are_said(index, pattern):
    names = [pattern.format(n // 3, n % 3) for n in range(12)]
    (sentence,) = notices(called(index, names))
    assert sentence.startswith(f"{names[0]} and {names[1]} are of two exams, as are 10 more")
    # Images of one exam are no exams of their own.
    joined = called(index, names)
    rows = [replace(row, exam_id=f"site_{n // 3}") for n, row in enumerate(joined.rows)]
    assert notices(replace(joined, rows=tuple(rows))) == []


@pytest.mark.parametrize("pattern", ["{:03d}", "img_{:03d}", "scan{}", "{:03d}_HC"])
def test_images_that_are_numbered_through_need_no_word(index, pattern):
    assert notices(called(index, [pattern.format(n) for n in range(12)])) == []


def test_annotations_that_are_no_heads_are_said(index, hc18_folder):
    samples = read_hc18(hc18_folder)
    for number, sample in enumerate(samples[:2]):
        mask = np.zeros((54, 80), np.uint8)
        mask[10:44, 12 + number : 60] = 255
        cv2.imwrite(str(sample.annotation_path), mask)
    found = build_index([replace(sample, hc_mm=None) for sample in samples])
    (sentence,) = notices(found)
    assert sentence.startswith("2 of 12 annotations are no ellipses, 001_HC least of all (")
    assert sentence in summary(found)["findings"]


def test_one_annotation_for_different_images_is_said(hc18_folder):
    samples = read_hc18(hc18_folder)
    for sample in samples[1:3]:
        sample.annotation_path.write_bytes(samples[0].annotation_path.read_bytes())
    found = build_index([replace(sample, hc_mm=None) for sample in samples])
    (sentence,) = notices(found)
    assert sentence.startswith("3 images share their annotation with another one, such as 001_HC")
    # The first two are one image.
    copy = replace(found.rows[1], group_id=found.rows[0].group_id)
    (sentence,) = notices(replace(found, rows=(found.rows[0], copy, *found.rows[2:])))
    assert f"{found.rows[0].sample_id} and {found.rows[2].sample_id}, whose" in sentence
