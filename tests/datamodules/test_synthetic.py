"""Synthetic sets: written and read back, ours and those made elsewhere."""

import json

import cv2
import numpy as np
import pytest

from datamodules.annotation import read_annotation, read_image
from datamodules.ellipse import Ellipse, rasterise
from datamodules.errors import InputError
from datamodules.samples import Sample
from datamodules.synthetic import (
    SyntheticPair,
    link_pair,
    pair_paths,
    read_metadata,
    read_synthetic,
    write_metadata,
    write_pair,
    write_png,
)

ELLIPSE = Ellipse(
    center_x_px=39.25, center_y_px=26.5, semi_major_px=21.0, semi_minor_px=15.125, theta_rad=0.3
)
FULL = SyntheticPair(
    sample_id="gen-00000",
    ellipse=ELLIPSE,
    seed=2**62 + 1,
    generator_id="0123abcd",
    native_size_hw=(64, 96),
    gate={"agreement": 0.875, "nearest": "001_HC"},
    reasons=("near-copy of 001_HC", "mean intensity 0.9 outside 0.1 to 0.3"),
)


def pictures(seed):
    image = np.random.default_rng(seed).integers(0, 256, (54, 80), dtype=np.uint8)
    return image, rasterise(ELLIPSE, size_hw=(54, 80))


def write_set(root, names=("gen-00000", "gen-00001")):
    for seed, name in enumerate(names):
        image, mask = pictures(seed)
        write_pair(root, name, image=image, mask=mask)
    return root


def test_a_picture_that_cannot_be_written_raises(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        write_png(tmp_path / f"{'x' * 253}.png", pictures(0)[0])


def test_round_trip(tmp_path):
    root = write_set(tmp_path / "set")
    bare = SyntheticPair(sample_id="gen-00001")
    write_metadata(root / "metadata.jsonl", [bare, FULL])
    found = read_synthetic(root)
    assert [s.sample_id for s in found.samples] == ["gen-00000", "gen-00001"]
    assert found.pairs == {"gen-00000": FULL, "gen-00001": bare}
    for seed, sample in enumerate(found.samples):
        image, mask = pictures(seed)
        assert np.array_equal(read_image(sample.image_path), image)
        assert np.array_equal(read_annotation(sample.annotation_path).mask, mask)
        assert sample.cohort == "synthetic"
        assert sample.filled_bias_px == 0.0
        assert sample.pixel_size_mm is None
        assert sample.exam_id == sample.sample_id
    stored = cv2.imread(str(pair_paths(root, "gen-00000")[1]), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(stored)) == {0, 255}


def test_metadata_is_an_image_folder_index(tmp_path):
    write_metadata(tmp_path / "metadata.jsonl", [FULL])
    (line,) = (tmp_path / "metadata.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["file_name"] == "image/gen-00000.png"
    assert row["mask_file_name"] == "mask/gen-00000_Annotation.png"
    assert row["ellipse"]["semi_minor_px"] == 15.125
    assert row["seed"] == 2**62 + 1
    write_metadata(tmp_path / "empty.jsonl", [])
    assert read_metadata(tmp_path / "empty.jsonl") == []


def test_foreign_set_without_metadata(tmp_path):
    found = read_synthetic(write_set(tmp_path / "theirs", names=("b", "a")))
    assert [s.sample_id for s in found.samples] == ["a", "b"]
    assert found.pairs == {n: SyntheticPair(sample_id=n) for n in "ab"}
    assert found.pairs["a"].ellipse is None


def test_foreign_metadata_with_file_names_only(tmp_path):
    root = write_set(tmp_path / "theirs", names=("a", "b"))
    (root / "metadata.jsonl").write_text('{"file_name": "image/a.png", "text": "a head"}\n')
    assert read_synthetic(root).pairs == {n: SyntheticPair(sample_id=n) for n in "ab"}


def test_labels_of_images_that_lie_elsewhere(tmp_path):
    original = Sample(
        sample_id="001_HC",
        image_path=tmp_path / "001_HC.png",
        annotation_path=tmp_path / "never_read.png",
        exam_id="001",
        frame=1,
        pixel_size_mm=0.5,
        hc_mm=77.0,
        cohort="hc18",
        filled_bias_px=1.4,
        label=2,
    )
    circle = Ellipse(
        center_x_px=40, center_y_px=27, semi_major_px=20, semi_minor_px=20, theta_rad=0
    )
    root, pair = (
        tmp_path / "labels",
        SyntheticPair(sample_id="ab-001_HC", ellipse=circle, image_of="001_HC"),
    )
    write_pair(root, pair.sample_id, image=None, mask=np.ones((54, 80), np.uint8))
    write_metadata(root / "metadata.jsonl", [pair])
    assert not (root / "image").exists()
    found = read_synthetic(root, originals={"001_HC": original})
    assert found.pairs == {pair.sample_id: pair}
    (sample,) = found.samples
    assert sample.image_path == original.image_path
    assert sample.annotation_path == pair_paths(root, pair.sample_id)[1]
    # Of the label, never of the reference; and the mask is taken as it was drawn.
    assert sample.hc_mm == pytest.approx(0.5 * 2 * np.pi * 20)
    assert (sample.filled_bias_px, sample.label) == (0, None)
    with pytest.raises(InputError, match="ab-001_HC is a label of 001_HC, which is not among"):
        read_synthetic(root)
    sample.annotation_path.unlink()
    with pytest.raises(InputError, match=r"Annotation\.png is not there"):
        read_synthetic(root, originals={"001_HC": original})


def test_link_pair(tmp_path):
    root = write_set(tmp_path / "set")
    link_pair(root, tmp_path / "accepted", sample_id="gen-00001")
    found = read_synthetic(tmp_path / "accepted")
    assert [s.sample_id for s in found.samples] == ["gen-00001"]
    for old, new in zip(
        pair_paths(root, "gen-00001"), pair_paths(tmp_path / "accepted", "gen-00001"), strict=True
    ):
        assert new.read_bytes() == old.read_bytes()
        assert new.stat().st_ino == old.stat().st_ino


def test_link_pair_may_be_done_again(tmp_path):
    root = write_set(tmp_path / "set")
    for _ in range(2):
        link_pair(root, tmp_path / "accepted", sample_id="gen-00001")
    old, new = (pair_paths(folder, "gen-00001")[0] for folder in (root, tmp_path / "accepted"))
    assert new.read_bytes() == old.read_bytes()


def test_link_pair_copies_where_links_are_not_possible(tmp_path, monkeypatch):
    root = write_set(tmp_path / "set")

    def refuse(*_):
        raise OSError("cross-device link")

    monkeypatch.setattr("os.link", refuse)
    link_pair(root, tmp_path / "accepted", sample_id="gen-00000")
    for old, new in zip(
        pair_paths(root, "gen-00000"), pair_paths(tmp_path / "accepted", "gen-00000"), strict=True
    ):
        assert new.read_bytes() == old.read_bytes()
        assert new.stat().st_ino != old.stat().st_ino


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1, 2]",
        '"text"',
        '{"sample_id": "gen-00000"}',
        '{"file_name": 3}',
        '{"file_name": "image/gen-00000.png", "ellipse": {"center_x_px": 1.0}}',
        '{"file_name": "image/gen-00000.png", "ellipse": 7}',
        '{"file_name": "image/gen-00000.png", "reasons": null}',
        '{"file_name": "image/gen-00000.png", "sample_id": ["a"]}',
    ],
)
def test_malformed_metadata(tmp_path, line):
    root = write_set(tmp_path / "set")
    write_metadata(root / "metadata.jsonl", [FULL])
    with (root / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"metadata\.jsonl line 2: expected .*`file_name`"):
        read_synthetic(root)


def test_metadata_that_name_a_pair_twice_or_are_no_text(tmp_path):
    root = write_set(tmp_path / "set")
    write_metadata(root / "metadata.jsonl", [FULL, FULL])
    with pytest.raises(InputError, match=rf"line 2: names {FULL.sample_id} again; keep one line"):
        read_synthetic(root)
    (root / "metadata.jsonl").write_bytes(b'{"file_name": "image/\xe9.png"}\n')
    with pytest.raises(InputError, match="not UTF-8"):
        read_synthetic(root)


def test_metadata_of_a_picture_that_is_gone(tmp_path):
    root = write_set(tmp_path / "set", names=("a",))
    write_metadata(root / "metadata.jsonl", [FULL])
    with pytest.raises(InputError, match=r"names gen-00000, but image/gen-00000\.png is not"):
        read_synthetic(root)


def test_folders_that_are_no_set(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_synthetic(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder is empty"):
        read_synthetic(tmp_path / "empty")
    root = write_set(tmp_path / "set")
    pair_paths(root, "gen-00001")[1].unlink()
    with pytest.raises(InputError, match=r"gen-00001\.png: no annotation"):
        read_synthetic(root)
    (tmp_path / "pictures" / "image").mkdir(parents=True)
    with pytest.raises(InputError, match="mask/ is missing"):
        read_synthetic(tmp_path / "pictures")


def test_a_pair_that_cannot_be_written(tmp_path):
    image, mask = pictures(0)
    (tmp_path / "image" / "a.png").mkdir(parents=True)
    with pytest.raises(OSError, match=r"Is a directory: .*a\.png"):
        write_pair(tmp_path, "a", image=image, mask=mask)
