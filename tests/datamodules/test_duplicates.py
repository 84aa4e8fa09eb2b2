"""Near-duplicates across cohorts, and fingerprints as text."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules import duplicates
from datamodules.cohort import read_cohort
from datamodules.duplicates import (
    correlations,
    fingerprint,
    fingerprints,
    near_duplicate_pairs,
    near_duplicates_between,
    pack_fingerprint,
    unpack_fingerprint,
)
from datamodules.errors import InputError
from datamodules.index import CrossDuplicate, Index, build_index, cross_cohort_duplicates
from datamodules.samples import read_hc18


def speckle(seed: int, size_hw=(54, 80)) -> np.ndarray:
    noise = np.random.default_rng(seed).rayleigh(40, size_hw).astype(np.float32)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 1), 0, 255).astype(np.uint8)


def make_cohort(root: Path, images: dict[str, np.ndarray]) -> Index:
    """Write a cohort of the images, each with a filled ellipse as its mask, and index it."""
    for name in ("image", "mask"):
        (root / name).mkdir(parents=True)
    for name, image in images.items():
        height, width = image.shape
        mask = np.zeros(image.shape, dtype=np.uint8)
        center, axes = (width // 2, height // 2), (width // 3, height // 3)
        cv2.ellipse(mask, center, axes, 0, 0, 360, 255, -1)
        cv2.imwrite(str(root / "image" / f"{name}.png"), image)
        cv2.imwrite(str(root / "mask" / f"{name}_Annotation.png"), mask)
    return build_index(read_cohort(root))


def test_a_fingerprint_survives_as_text():
    image = speckle(0, (540, 800))
    image[400:, 500:] = 0
    first = fingerprint(image)
    second = unpack_fingerprint(pack_fingerprint(first))
    np.testing.assert_array_equal(np.isnan(first), np.isnan(second))
    assert np.isnan(first).sum() > 100
    assert np.nanmax(np.abs(first - second)) <= 0.5
    other = fingerprint(speckle(1, (540, 800)))[None]
    difference = correlations(first[None], other) - correlations(second[None], other)
    assert abs(difference.item()) < 1e-3


def test_darkest_cells_and_blank_ones_stay_apart():
    # Level 3 is the darkest that is not blank; 2 is blank.
    assert (
        unpack_fingerprint(pack_fingerprint(fingerprint(np.full((54, 80), 3, np.uint8)))) == 3
    ).all()
    blank = unpack_fingerprint(pack_fingerprint(fingerprint(np.full((54, 80), 2, np.uint8))))
    assert np.isnan(blank).all()
    bright = fingerprint(np.full((54, 80), 255, np.uint8))
    assert (unpack_fingerprint(pack_fingerprint(bright)) == 255).all()


def test_a_cell_of_which_half_is_black_is_blank():
    image = np.full((128, 128), 90, np.uint8)
    image[:2, 0] = image[0, 2] = 0
    cells = fingerprint(image)
    assert np.isnan(cells[0])
    assert cells[1] == 67.5


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!"])
def test_other_text_is_no_fingerprint(text):
    with pytest.raises(ValueError, match=r"fingerprint|base64"):
        unpack_fingerprint(text)


def test_pairs_between_two_sets():
    prints = np.stack([fingerprints(speckle(seed)) for seed in range(4)])
    found = near_duplicates_between(prints[:3], prints[[3, 2, 0]])
    assert [pair[:2] for pair in found] == [(0, 2), (2, 1)]
    assert all(pair[2] == pytest.approx(1) for pair in found)
    assert near_duplicates_between(prints[:0], prints) == []
    assert near_duplicates_between(prints, prints[:0]) == []
    # More than one block of 1,024.
    many = np.concatenate([np.repeat(prints[:1], 1030, axis=0), prints[1:2]])
    assert [pair[:2] for pair in near_duplicates_between(many, prints[1:2])] == [(1030, 0)]


def test_pairs_within_a_set_of_more_than_one_block(monkeypatch):
    names = np.arange(1030.0)
    names[[1027, 1029]] = names[[3, 1026]]
    monkeypatch.setattr(duplicates, "resemblance", lambda a, b: 0.98 * (a[:, None] == b[None]))
    assert near_duplicate_pairs(names) == [(3, 1027), (1026, 1029)]
    assert near_duplicate_pairs(names, threshold=0.99) == []


def padded(image: np.ndarray) -> np.ndarray:
    """A square, black above and below, as preprocessed data sets are published."""
    height, width = image.shape
    return cv2.copyMakeBorder(image, (width - height) // 2, (width - height) // 2, 0, 0, 0)


def smaller_jpeg(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, (360, 360), interpolation=cv2.INTER_AREA)
    return cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], 0)


@pytest.mark.parametrize(
    "change",
    [
        padded,
        lambda image: image[:, ::-1],
        lambda image: padded(image)[:, ::-1],
        lambda image: smaller_jpeg(padded(image)),
        lambda image: cv2.copyMakeBorder(image, 9, 30, 20, 0, 0),
    ],
)
def test_a_padded_or_mirrored_copy_is_one(change):
    # As coarse as an ultrasound image is.
    originals = [cv2.resize(speckle(seed, (27, 40)), (400, 270)) for seed in range(3)]
    prints = np.stack([fingerprints(image) for image in originals])
    copy = fingerprints(np.ascontiguousarray(change(originals[1])))[None]
    assert [pair[:2] for pair in near_duplicates_between(prints, copy)] == [(1, 0)]


def test_duplicates_between_cohorts_are_found_through_gain_box_and_size(tmp_path):
    changed = (speckle(1, (108, 160)) * 0.8 + 5).astype(np.uint8)
    changed[80:, 110:] = 0
    enlarged = cv2.resize(speckle(2, (108, 160)), (320, 216), interpolation=cv2.INTER_LINEAR)
    indices = {
        "a": make_cohort(tmp_path / "a", {str(s): speckle(s, (108, 160)) for s in (1, 2, 3)}),
        "b": make_cohort(tmp_path / "b", {"x": speckle(9), "y": changed}),
        "c": make_cohort(tmp_path / "c", {"u": enlarged, "v": changed, "w": changed}),
    }
    found = cross_cohort_duplicates(indices)
    assert [(pair.cohorts, pair.sample_ids) for pair in found] == [
        (("a", "b"), ("1", "y")),
        (("a", "c"), ("1", "v")),
        (("a", "c"), ("1", "w")),
        (("a", "c"), ("2", "u")),
        (("b", "c"), ("y", "v")),
        (("b", "c"), ("y", "w")),
    ]
    assert all(pair.correlation >= 0.98 for pair in found)
    # The copy within c is the index's own business.
    assert indices["c"].duplicates == (("v", "w"),)
    # From the stored text as well.
    stored = {cohort: Index.from_json(index.to_json()) for cohort, index in indices.items()}
    assert cross_cohort_duplicates(stored) == found


def test_no_pairs_without_two_cohorts_that_share_an_image(tmp_path):
    first = make_cohort(tmp_path / "a", {"1": speckle(1), "2": speckle(1)})
    second = make_cohort(tmp_path / "b", {"1": speckle(2)})
    assert cross_cohort_duplicates({}) == []
    assert cross_cohort_duplicates({"a": first}) == []
    assert cross_cohort_duplicates({"a": first, "b": second}) == []


def test_one_pair_is_named_by_cohort_and_sample(hc18_folder, tmp_path):
    index = build_index(read_hc18(hc18_folder))
    image = cv2.imread(str(hc18_folder / "training_set" / "003_HC.png"), cv2.IMREAD_GRAYSCALE)
    indices = {"hc18": index, "es": make_cohort(tmp_path / "es", {"p": speckle(5), "q": image})}
    (pair,) = cross_cohort_duplicates(indices)
    assert pair == CrossDuplicate(
        cohorts=("hc18", "es"), sample_ids=("003_HC", "q"), correlation=pair.correlation
    )
    assert pair.correlation == pytest.approx(1)


def test_a_cohorts_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    make_cohort(tmp_path / "a", {"1": speckle(1), "2": speckle(2)})
    mask = tmp_path / "a" / "mask" / "2_Annotation.png"
    cv2.imwrite(str(mask), cv2.resize(cv2.imread(str(mask)), (40, 27)))
    with pytest.raises(InputError, match=r"2_Annotation\.png: 40x27 px.*has 80x54") as error:
        build_index(read_cohort(tmp_path / "a"))
    assert "\n" not in str(error.value)
