"""Prepared images: what is stored, when it is reused, and when it is not."""

import os
from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.annotation import read_annotation
from datamodules.ellipse import rasterise
from datamodules.errors import ChangedError, InputError
from datamodules.geometry import image_to_frame, mask_to_frame, place
from datamodules.prepared import NAMES, open_prepared, prepare_images
from datamodules.samples import content_hash_of, hash_as_read, read_hc18
from datamodules.storage import files_sha256

FRAMES = [("pad", (64, 64), (43, 64)), ("squash", (32, 48), (32, 48)), ("pad", (54, 80), (54, 80))]


def prepare(samples, cache_dir, *, frame_hw=(64, 64), mode="pad", hashes=None, progress=None):
    if hashes is None:
        hashes = [files_sha256(s.image_path, s.annotation_path) for s in samples]
    return prepare_images(
        samples,
        content_hashes=hashes,
        frame_hw=frame_hw,
        mode=mode,
        cache_dir=cache_dir,
        progress=progress,
    )


def snapshot(folder):
    """Everything that changes when a file is written again."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(("mode", "frame_hw", "valid_hw"), FRAMES)
def test_arrays_equal_the_decoded_files_in_the_frame(
    hc18_folder, tmp_path, mode, frame_hw, valid_hw
):
    samples = read_hc18(hc18_folder)
    prepared = prepare(samples, tmp_path / "cache", frame_hw=frame_hw, mode=mode)
    assert prepared.sample_ids == [s.sample_id for s in samples]
    assert prepared.images.shape == prepared.masks.shape == (12, *frame_hw)
    assert prepared.images.dtype == prepared.masks.dtype == np.uint8
    assert prepared.size_hw.tolist() == [[54, 80]] * 12
    assert prepared.valid_hw.tolist() == [list(valid_hw)] * 12
    assert prepared.size_hw.dtype == prepared.valid_hw.dtype == np.int64
    for row, sample in enumerate(samples):
        placement = place((54, 80), frame_hw=frame_hw, mode=mode)
        image = cv2.imread(str(sample.image_path), cv2.IMREAD_GRAYSCALE)
        mask = read_annotation(sample.annotation_path, filled_bias_px=1.4).mask
        assert np.array_equal(prepared.images[row], image_to_frame(image, placement))
        assert np.array_equal(prepared.masks[row], mask_to_frame(mask, placement))
        # The reference itself is no constant: a head of 16 to 36 % of the image.
        assert 0.15 < prepared.masks[row].sum() / (valid_hw[0] * valid_hw[1]) < 0.4
    assert set(np.unique(prepared.masks)) == {0, 1}
    assert not prepared.images[:, valid_hw[0] :].any()


def test_images_of_several_sizes(hc18_folder, tmp_path):
    samples = read_hc18(hc18_folder)[:2]
    for path in (samples[1].image_path, samples[1].annotation_path):
        turned = cv2.rotate(cv2.imread(str(path), 0), cv2.ROTATE_90_CLOCKWISE)
        cv2.imwrite(str(path), turned)
    prepared = prepare(samples, tmp_path / "cache")
    assert prepared.size_hw.tolist() == [[54, 80], [80, 54]]
    assert prepared.valid_hw.tolist() == [[43, 64], [64, 43]]
    assert not prepared.images[0, 43:].any()
    assert not prepared.images[1, :, 43:].any()


def test_filled_annotations_lose_their_bias(hc18_folder, tmp_path):
    """HC18 as others pass it on: filled masks that reach 1.4 px beyond the head."""
    samples = read_hc18(hc18_folder)[:1]
    outlined = np.array(prepare(samples, tmp_path / "cache", frame_hw=(54, 80)).masks[0])
    ellipse = read_annotation(samples[0].annotation_path).ellipse
    grown = replace(
        ellipse,
        semi_major_px=ellipse.semi_major_px + 1.4,
        semi_minor_px=ellipse.semi_minor_px + 1.4,
    )
    filled = rasterise(grown, size_hw=(54, 80))
    cv2.imwrite(str(samples[0].annotation_path), filled * 255)
    mask = prepare(samples, tmp_path / "cache", frame_hw=(54, 80)).masks[0]
    assert filled.sum() > 1.1 * outlined.sum()
    assert (mask != outlined).sum() < 0.02 * outlined.sum()


def test_second_use_reads_and_does_not_write(hc18_folder, tmp_path):
    samples = read_hc18(hc18_folder)
    calls = []
    first = prepare(samples, tmp_path / "cache", progress=lambda *a: calls.append(a))
    assert calls == [(n, 12) for n in range(1, 13)]
    before = snapshot(tmp_path / "cache")
    assert len(before) == 7  # one folder, four arrays, the ids, the marker
    hashes = [files_sha256(s.image_path, s.annotation_path) for s in samples]
    for sample in samples:
        sample.image_path.unlink()  # nothing is decoded again
    again = prepare(samples, tmp_path / "cache", hashes=hashes, progress=lambda *a: calls.append(a))
    assert len(calls) == 12
    assert snapshot(tmp_path / "cache") == before
    assert np.array_equal(first.images, again.images)
    assert again.sample_ids == first.sample_ids


def flipped(content):
    at = len(content) * 2 // 3
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[: len(content) // 2]])
@pytest.mark.parametrize(
    "name", ["images.npy", "masks.npy", "size_hw.npy", "ids.json", "DONE.json"]
)
def test_what_was_cut_or_flipped_is_made_again(hc18_folder, tmp_path, name, damage, capsys):
    samples = read_hc18(hc18_folder)
    expected = np.array(prepare(samples, tmp_path / "cache").images)
    (folder,) = (tmp_path / "cache").iterdir()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(damage(content))
    again = prepare(samples, tmp_path / "cache")
    assert np.array_equal(again.images, expected)
    assert (folder / name).read_bytes() == content
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert name in said
    assert "so it is made again" in said


@pytest.mark.parametrize(("name", "is_made_again"), [("masks.npy", True), ("images.npy", False)])
def test_a_folder_of_before_is_taken_as_it_is_unless_it_was_cut(
    hc18_folder, tmp_path, name, is_made_again
):
    samples = read_hc18(hc18_folder)[:2]
    prepare(samples, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "DONE.json").unlink()
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] if is_made_again else flipped(path.read_bytes()))
    prepare(samples, tmp_path / "cache")
    assert (folder / "DONE.json").exists() is is_made_again


def test_files_that_did_not_change_are_read_once_in_a_process(hc18_folder, tmp_path, monkeypatch):
    samples, read = read_hc18(hc18_folder)[:2], []
    monkeypatch.setattr(
        "datamodules.prepared.damaged_file", lambda folder, facts: read.extend(facts)
    )
    for _ in range(3):
        prepare(samples, tmp_path / "cache")
    assert sorted(read) == sorted(NAMES)


def test_whatever_changes_the_content_changes_the_folder(hc18_folder, tmp_path):
    samples, cache = read_hc18(hc18_folder)[:3], tmp_path / "cache"

    def folders():
        return {path.name for path in cache.iterdir()}

    old = prepare(samples, cache)
    kept = np.array(old.images)
    assert len(folders()) == 1
    image = cv2.imread(str(samples[1].image_path), 0)
    image[20, 30] ^= 255
    cv2.imwrite(str(samples[1].image_path), image)
    new = prepare(samples, cache)
    assert len(folders()) == 2
    assert not np.array_equal(new.images[1], kept[1])
    assert np.array_equal(new.images[[0, 2]], kept[[0, 2]])
    assert np.array_equal(old.images, kept)  # the old folder is as it was
    prepare(samples[:2], cache)
    prepare(samples[::-1], cache)
    prepare(samples, cache, mode="squash")
    prepare(samples, cache, frame_hw=(64, 65))
    prepare([replace(sample, filled_bias_px=0.0) for sample in samples], cache)
    prepare([replace(sample, label=255) for sample in samples], cache)
    assert len(folders()) == 8
    assert prepare(samples[::-1], cache).sample_ids == [s.sample_id for s in samples[::-1]]
    assert len(folders()) == 8


def test_touching_or_moving_files_changes_nothing(hc18_folder, tmp_path):
    samples, cache = read_hc18(hc18_folder)[:2], tmp_path / "cache"
    prepare(samples, cache)
    before = snapshot(cache)
    os.utime(samples[0].image_path, (1, 1))
    moved = hc18_folder.rename(tmp_path / "elsewhere")
    prepare(read_hc18(moved)[:2], cache)
    assert snapshot(cache) == before


def test_a_file_that_cannot_be_read_leaves_nothing(hc18_folder, tmp_path):
    samples = read_hc18(hc18_folder)
    broken = samples[5].image_path
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InputError, match=rf"{broken.name}: PNG cut short"):
        prepare(samples, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("what", ["image_path", "annotation_path"])
def test_files_that_are_not_what_was_hashed_are_not_kept(hc18_folder, tmp_path, what):
    """They changed after their hashes were taken, so their folder's name would be another's."""
    samples = read_hc18(hc18_folder)[:3]
    hashes = [content_hash_of(sample) for sample in samples]
    changed = getattr(samples[1], what)
    whole = changed.read_bytes()
    picture = cv2.imread(str(changed), 0)
    picture[0, 0] ^= 1
    cv2.imwrite(str(changed), picture)
    words = rf"{samples[1].image_path.name}, or its annotation .*: changed since the sweep began"
    with pytest.raises(ChangedError, match=words):
        prepare(samples, tmp_path / "cache", hashes=hashes)
    assert not (tmp_path / "cache").exists()
    changed.write_bytes(whole)
    assert len(prepare(samples, tmp_path / "cache", hashes=hashes).images) == 3


def test_hashes_may_be_of_how_files_are_read_and_of_other_samples_files(hc18_folder, tmp_path):
    sample, other = read_hc18(hc18_folder)[:2]
    as_read = hash_as_read(content_hash_of(sample), sample)
    place = {"frame_hw": (64, 64), "mode": "pad", "cache_dir": tmp_path}
    assert len(prepare([sample], tmp_path, hashes=[as_read]).images) == 1
    hashes = [content_hash_of(other)]
    with pytest.raises(ChangedError):
        prepare([sample], tmp_path, hashes=hashes)
    found = prepare_images([sample], content_hashes=hashes, hashed=[other], **place)
    assert found.sample_ids == [sample.sample_id]


def test_arrays_have_their_room_on_the_disk_before_they_are_filled(hc18_folder, tmp_path):
    """A page of a map that finds none ends the process by SIGBUS, which tells nobody why."""
    rooms = []

    def look(done, total):
        paths = (tmp_path / "cache").glob(".prepared-*/*s.npy")
        rooms.append([(f.st_blocks * 512, f.st_size) for f in (path.stat() for path in paths)])

    samples = read_hc18(hc18_folder)
    prepare(samples, tmp_path / "cache", frame_hw=(256, 256), progress=look)
    assert len(rooms[0]) == 2
    assert all(taken >= size > 12 * 256 * 256 for taken, size in rooms[0])


def test_arrays_are_mapped_and_read_only(hc18_folder, tmp_path):
    prepare(read_hc18(hc18_folder)[:2], tmp_path)
    (folder,) = tmp_path.glob("prepared-*")
    prepared = open_prepared(folder)
    assert isinstance(prepared.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        prepared.images[0, 0, 0] = 1


def test_no_images(tmp_path):
    prepared = prepare([], tmp_path, frame_hw=(8, 9))
    assert prepared.images.shape == (0, 8, 9)
    assert prepared.size_hw.shape == (0, 2)
    assert prepared.sample_ids == []
