"""Embeddings by key: what is kept, what is refused, and what a set looks up."""

import json
import multiprocessing

import numpy as np
import pytest

from datamodules.embeddings import EmbeddingSet, EmbeddingStore, open_embeddings, write_index

KEY = "3f" + "0" * 62


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "deep" / "embeddings")


def values(seed=0, shape=(4, 3, 5)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def files(store):
    return sorted(p.relative_to(store.root).as_posix() for p in store.root.rglob("*.*"))


def test_round_trip_is_half_precision_and_read_only(store):
    assert KEY not in store
    with pytest.raises(FileNotFoundError):
        store.read(KEY)
    store.write(KEY, values())
    assert KEY in store
    found = store.read(KEY)
    assert found.dtype == np.float16
    assert np.array_equal(found, values().astype(np.float16))
    assert isinstance(found, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0, 0] = 1
    assert files(store) == [f"3f/{KEY}.npy"], "no temporary file is left"


def test_an_array_that_is_not_contiguous_keeps_its_order(store):
    turned = values(shape=(5, 3, 4)).transpose(2, 1, 0)
    store.write(KEY, turned)
    assert np.array_equal(store.read(KEY), turned.astype(np.float16))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 65536.0, -1e9])
def test_what_half_precision_cannot_hold_is_refused_and_leaves_nothing(store, bad):
    broken = values()
    broken[2, 0, 1] = bad
    with pytest.raises(ValueError, match="not finite in fp16; choose precision fp32"):
        store.write(KEY, broken)
    assert KEY not in store
    assert files(store) == []


def test_a_view_keeps_its_frame_and_mask(store):
    image = np.arange(54 * 80, dtype=np.uint8).reshape(54, 80)
    mask = (image > 100).astype(np.uint8)
    store.write(KEY, values())
    assert not store.has_view(KEY)
    store.write_view(KEY, image=image, mask=mask)
    assert store.has_view(KEY)
    found_image, found_mask = store.read_view(KEY)
    assert found_image.dtype == found_mask.dtype == np.uint8
    assert np.array_equal(found_image, image)
    assert np.array_equal(found_mask, mask)
    # A view without its embedding is not an embedding.
    other = "aa" + "0" * 62
    store.write_view(other, image=image, mask=mask)
    assert other not in store


def test_a_set_finds_images_and_views_by_name(store, tmp_path):
    frames = {}
    for number in range(3):
        key = f"{number}0" + "0" * 62
        store.write(key, values(number))
        frames[number] = (np.full((2, 3), number, np.uint8), np.full((2, 3), 1, np.uint8))
        store.write_view(key, image=frames[number][0], mask=frames[number][1])
    keys = {"a": ["00" + "0" * 62, "10" + "0" * 62], "b": ("20" + "0" * 62,)}
    write_index(tmp_path, keys)
    opened = open_embeddings(tmp_path, store=store)
    assert json.loads((tmp_path / "embeddings.json").read_text())["b"] == ["20" + "0" * 62]
    for found in (EmbeddingSet(store=store, keys=keys), opened):
        assert np.array_equal(found["a"], values(0).astype(np.float16))
        assert np.array_equal(found["b"], values(2).astype(np.float16))
        embedding, image, mask = found.view("a", 1)
        assert np.array_equal(embedding, values(1).astype(np.float16))
        assert np.array_equal(image, frames[1][0])
        assert np.array_equal(mask, frames[1][1])
        assert "a" in found
        assert "c" not in found
        with pytest.raises(KeyError):
            found["c"]
        with pytest.raises(IndexError):
            found.view("b", 1)


def test_an_empty_set(store, tmp_path):
    write_index(tmp_path, {})
    found = open_embeddings(tmp_path, store=store)
    assert "a" not in found
    assert dict(found.keys) == {}


def _write_often(root, number):
    store = EmbeddingStore(root)
    for _ in range(20):
        store.write(KEY, np.full((8, 16, 16), number, dtype=np.float32))


def test_two_processes_may_write_the_same_key(store):
    """A reader sees one whole file or the other, never a part."""
    context = multiprocessing.get_context("fork")
    store.write(KEY, np.zeros((8, 16, 16), dtype=np.float32))
    writers = [context.Process(target=_write_often, args=(store.root, n)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(np.unique(store.read(KEY)).tolist())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert all(each in ([0.0], [1.0], [2.0]) for each in seen)
    assert np.unique(store.read(KEY)).tolist() in ([1.0], [2.0])
    assert files(store) == [f"3f/{KEY}.npy"]
