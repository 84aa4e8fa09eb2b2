import json

import cv2
import numpy as np
import pytest

from datamodules.cohort import read_cohort
from datamodules.duplicates import correlations, fingerprints, group_ids, near_duplicate_pairs
from datamodules.errors import InputError
from datamodules.index import (
    Index,
    build_index,
    cross_cohort_duplicates,
    data_manifest_sha256,
)
from datamodules.samples import HC18_CSV, read_hc18
from datamodules.summary import summary

KNOWN_DUPLICATES = {
    ("198_2HC", "198_HC"),
    ("220_2HC", "220_HC"),
    ("243_3HC", "243_HC"),
    ("392_2HC", "392_3HC"),
    ("392_2HC", "392_HC"),
    ("392_3HC", "392_HC"),
    ("507_2HC", "507_HC"),
    ("720_2HC", "720_HC"),
    ("788_2HC", "788_HC"),
}


def speckle(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).rayleigh(60, (54, 80))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 2), 3, 255).astype(np.uint8)


def test_correlation_over_common_cells_against_numpy():
    rng = np.random.default_rng(0)
    prints = rng.uniform(0, 255, (5, 200))
    prints[rng.random(prints.shape) < 0.3] = np.nan
    found = correlations(prints, prints)
    for i in range(5):
        for j in range(5):
            both = np.isfinite(prints[i]) & np.isfinite(prints[j])
            expected = np.corrcoef(prints[i][both], prints[j][both])[0, 1]
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


def test_cells_that_are_too_few_say_nothing():
    prints = np.full((2, 100), np.nan)
    for count, expected in ((4, 0.0), (5, 1.0)):
        prints[:, :count] = np.arange(count)
        assert correlations(prints[:1], prints[1:]).item() == pytest.approx(expected)


def test_blank_and_constant_images_resemble_nothing():
    prints = np.stack(
        [fingerprints(np.full((54, 80), value, np.uint8)) for value in (0, 0, 90, 90)]
    )
    assert np.isnan(prints[0]).all()
    assert near_duplicate_pairs(prints) == []
    assert near_duplicate_pairs(prints[:1]) == []


def test_re_export_with_a_black_box_and_other_gain_is_found():
    first, other = speckle(0), speckle(1)
    again = (first * 0.8 + 5).astype(np.uint8)
    again[35:, 50:] = 0
    prints = np.stack([fingerprints(image) for image in (first, other, again)])
    assert near_duplicate_pairs(prints) == [(0, 2)]


def test_groups_join_exams_transitively():
    exams = ["a", "b", "b", "c", "d", "e"]
    assert group_ids(exams, pairs=[(0, 1), (2, 3)]) == ["a", "a", "a", "a", "d", "e"]
    assert group_ids(exams, pairs=[]) == exams
    assert group_ids(["d", "b", "c", "a"], pairs=[(0, 1), (2, 3), (0, 2)]) == ["a"] * 4


def test_index_of_a_folder(hc18_folder):
    samples = read_hc18(hc18_folder)
    calls = []
    index = build_index(samples, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 12) for n in range(1, 13)]
    assert [row.sample_id for row in index.rows] == [sample.sample_id for sample in samples]
    row = index.rows[0]
    assert (row.size_hw, row.kind, row.is_open, row.group_id) == ((54, 80), "outline", False, "001")
    assert row.hc_fit_mm == pytest.approx(70, abs=0.5)
    assert Index.from_json(index.to_json()) == index
    assert build_index(samples) == index


def test_summary_counts(hc18_folder):
    found = summary(build_index(read_hc18(hc18_folder)))
    assert found["images"] == 12
    assert found["exams"] == 8
    assert found["frames_per_exam"] == {"1": 5, "2": 2, "3": 1}
    assert found["annotations"] == {"outline": 12}
    assert found["sizes"] == {"80x54": 12}
    assert found["trimesters"] == {"1": 3, "2": 7, "3": 2}
    assert found["hc_mm"]["min"] == 70.0
    assert found["hc_mm"]["max"] == 300.0
    assert found["hc_error_mm"]["outline"]["n"] == 12
    assert found["duplicates"] == []
    assert found["findings"] == []
    json.dumps(found)


def test_the_test_part_has_no_annotations(hc18_folder):
    index = build_index(read_hc18(hc18_folder, part="test"))
    assert index.rows[0].ellipse is None
    assert Index.from_json(index.to_json()) == index
    found = summary(index)
    assert (found["annotations"], found["hc_mm"], found["hc_error_mm"]) == ({"none": 2}, None, {})


def test_a_frame_copied_into_another_exam_joins_the_groups(hc18_folder):
    training = hc18_folder / "training_set"
    (training / "008_HC.png").write_bytes((training / "003_HC.png").read_bytes())
    index = build_index(read_hc18(hc18_folder))
    groups = {row.sample_id: row.group_id for row in index.rows}
    assert groups["008_HC"] == groups["003_HC"] == "003"
    assert index.duplicates == (("003_HC", "008_HC"),)
    assert any("in two exams" in finding for finding in summary(index)["findings"])


def test_wrong_hc_in_the_csv_is_a_finding(hc18_folder):
    path = hc18_folder / HC18_CSV["training"]
    path.write_bytes(path.read_bytes().replace(b",300.00", b",290.00"))
    findings = summary(build_index(read_hc18(hc18_folder)))["findings"]
    assert len(findings) == 1
    assert findings[0].startswith("008_HC: the annotation's HC is")


def test_manifest_hash_follows_content_not_place_or_order(hc18_folder):
    samples = read_hc18(hc18_folder)
    first = data_manifest_sha256(build_index(samples))
    moved = hc18_folder.rename(hc18_folder.with_name("elsewhere"))
    samples = read_hc18(moved)
    assert data_manifest_sha256(build_index(samples[::-1])) == first
    path = moved / HC18_CSV["training"]
    path.write_bytes(path.read_bytes().replace(b",300.00", b",300.01"))
    assert data_manifest_sha256(build_index(read_hc18(moved))) != first


def test_damaged_and_mismatched_files_are_named(hc18_folder):
    training = hc18_folder / "training_set"
    samples = read_hc18(hc18_folder)
    with pytest.raises(ValueError, match="at least one"):
        build_index([])
    with pytest.raises(ValueError, match="unique"):
        build_index([samples[0], samples[0]])
    cv2.imwrite(str(training / "003_HC.png"), np.zeros((80, 54), np.uint8))
    with pytest.raises(InputError, match=r"003_HC_Annotation\.png: 80x54 px.*54x80"):
        build_index(samples)
    data = (training / "001_HC.png").read_bytes()
    (training / "001_HC.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"001_HC\.png: PNG cut short"):
        build_index(samples)


def test_only_an_index_is_read_as_one():
    for text in ("", "{}", "[]", '{"version": 99, "rows": [], "duplicates": []}'):
        with pytest.raises(ValueError, match="index"):
            Index.from_json(text)


def test_cohort_without_pixel_sizes(hc18_folder, tmp_path):
    root = tmp_path / "cohort"
    (root / "image").mkdir(parents=True)
    (root / "mask").mkdir()
    training = hc18_folder / "training_set"
    (training / "001_HC.png").rename(root / "image" / "001_HC.png")
    (training / "001_HC_Annotation.png").rename(root / "mask" / "001_HC_Annotation.png")
    index = build_index(read_cohort(root))
    assert index.rows[0].hc_fit_mm is None
    assert summary(index)["findings"] == ["no pixel sizes: measures in mm are left out"]


@pytest.fixture(scope="module", params=["part", pytest.param("whole", marks=pytest.mark.long)])
def real_index(request, real_hc18_root):
    """Every fifth image beside the known duplicates, or all images."""
    samples = read_hc18(real_hc18_root)
    if request.param == "part":
        known = {name for pair in KNOWN_DUPLICATES for name in pair}
        samples = [s for i, s in enumerate(samples) if s.sample_id in known or i % 5 == 0]
    return build_index(samples)


def test_known_duplicates_of_hc18_and_no_others(real_index):
    present = {row.sample_id for row in real_index.rows}
    expected = {pair for pair in KNOWN_DUPLICATES if present.issuperset(pair)}
    found = {tuple(sorted(pair)) for pair in real_index.duplicates}
    # 720_2HC is absent where this was measured: tolerated either way.
    assert found ^ expected <= {("720_2HC", "720_HC")}


def test_real_annotations_reproduce_the_csv(real_index):
    errors_mm = {"outline": [], "filled": []}
    for row in real_index.rows:
        errors_mm[row.kind].append(abs(row.hc_fit_mm - row.hc_mm))
        assert row.residual_px < 0.3
    for kind, mean_mm, max_mm in (("outline", 0.01, 0.05), ("filled", 0.10, 0.7)):
        if errors_mm[kind]:
            assert np.mean(errors_mm[kind]) <= mean_mm
            assert np.max(errors_mm[kind]) <= max_mm


@pytest.mark.long
def test_hc18_beside_itself_gives_every_image_and_the_pairs_within(real_index):
    found = cross_cohort_duplicates({"first": real_index, "second": real_index})
    # Every image is its own copy; beyond these only the known pairs, in both orders.
    assert sum(len(set(pair.sample_ids)) == 1 for pair in found) == len(real_index.rows)
    others = {tuple(sorted(pair.sample_ids)) for pair in found if len(set(pair.sample_ids)) == 2}
    assert others == {tuple(sorted(pair)) for pair in real_index.duplicates}
