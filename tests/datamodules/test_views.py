"""Augmented views: which one a draw takes, and that image, mask and embedding are of one view."""

import hashlib

import numpy as np
import pytest
import torch
from hc18_parts import (
    TEST,
    TRAIN,
    VAL,
    TinyModule,
    boxes_of,
    builder,
    fit,
    five_pairs,
    ready,
    weights,
)

from datamodules.embeddings import EmbeddingSet, EmbeddingStore
from datamodules.frames import view_of

GOLDEN_VIEWS = [3, 1, 0, 5, 6, 6, 1, 7, 2, 3, 4, 5]
N_VIEWS = 4


@pytest.fixture
def pairs(tmp_path):
    return five_pairs(tmp_path / "synthetic")


@pytest.fixture
def make(hc18_folder, tmp_path):
    return builder(hc18_folder, tmp_path / "cache")


@pytest.fixture
def views(make, tmp_path):
    """Four views of each train image: itself, and three whose frame and mask say which they are."""
    store, names = EmbeddingStore(tmp_path / "views"), sorted(TRAIN + VAL + TEST)
    keys = {}
    for sample_id in TRAIN:
        keys[sample_id] = [f"bb-{sample_id}-{view}" for view in range(N_VIEWS)]
        for view, key in enumerate(keys[sample_id]):
            value = 100 * view + names.index(sample_id)
            store.write(key, np.full((2, 3, 3), value, dtype=np.float32))
            if view:
                image = np.full((32, 48), 10 * view + names.index(sample_id), dtype=np.uint8)
                mask = np.zeros((32, 48), dtype=np.uint8)
                mask[view : 10 + view, 2 * view : 20 + 3 * view] = 1
                store.write_view(key, image=image, mask=mask)
    return EmbeddingSet(store=store, keys=keys)


def with_views(make, views, pairs, **changes):
    """A datamodule over views of the real images, and pairs that have none."""
    store = views.store
    keys = {s.sample_id: [f"cc-{s.sample_id}"] for s in pairs}
    for (key,) in keys.values():
        store.write(key, np.full((2, 3, 3), 900, dtype=np.float32))
    generated = EmbeddingSet(store=store, keys=keys)
    own = EmbeddingSet(store=store, keys={name: each[:1] for name, each in views.keys.items()})
    values = {"synthetic": pairs, "embeddings": [own, generated], "val_ids": [], "test_ids": {}}
    return make(**(values | {"views": views, "n_views": N_VIEWS} | changes))


@pytest.mark.parametrize("resident_bytes", [0, 10**9])
def test_a_draw_has_image_mask_embedding_and_box_of_its_view(make, views, pairs, resident_bytes):
    """Loaded batch by batch, and from the items that lie on the device."""
    changes = {"n_batches": 20, "resident_bytes": resident_bytes}
    datamodule = ready(with_views(make, views, pairs, **changes))
    prepared = datamodule._real()
    seen = set()
    for loaded in datamodule.train_dataloader():
        batch = datamodule.on_after_batch_transfer(loaded, 0)
        boxes = boxes_of(batch)
        for item, draw in enumerate(batch["draw"].tolist()):
            image, mask = batch["image"][item, 0].numpy(), batch["mask"][item, 0].numpy()
            value, row = float(batch["embedding"][item, 0, 0, 0]), int(batch["index"][item])
            if batch["is_synthetic"][item]:
                assert value == 900
                continue
            view = view_of(draw, seed=3, n_views=N_VIEWS)
            seen.add(view)
            assert value == 100 * view + row
            if view:
                assert np.array_equal(
                    image, np.full((32, 48), np.float32(10 * view + row) / np.float32(255))
                )
                # The box is the view's own, not that of the image as it was.
                assert boxes[item] == [2 * view, view, 19 + 3 * view, 9 + view]
                assert mask.sum() == 10 * (20 + view)
            else:
                assert np.array_equal(mask, prepared.masks[row])
                assert np.array_equal(image, prepared.images[row] / np.float32(255))
    assert seen == set(range(N_VIEWS))


def test_views_are_for_training_alone(make, views, pairs):
    changes = {"val_ids": TRAIN[:2], "train_ids": TRAIN[2:], "n_batches": 2}
    datamodule = ready(with_views(make, views, pairs, **changes))
    prepared = datamodule._real()
    (batch,) = datamodule.val_dataloader()
    assert batch["sample_id"] == TRAIN[:2]
    for item, row in enumerate(batch["index"].tolist()):
        assert np.array_equal(batch["mask"][item, 0].numpy(), prepared.masks[row])
        assert float(batch["embedding"][item, 0, 0, 0]) == row


def test_the_view_of_a_draw_is_a_hash():
    found = [view_of(draw, seed=0, n_views=8) for draw in range(4000)]
    counts = np.bincount(found, minlength=8)
    assert len(counts) == 8
    # 500 each; the standard deviation of a fair draw is 21.
    assert counts.min() > 420
    assert counts.max() < 580
    pairs_of = np.bincount(8 * np.array(found[:-1]) + np.array(found[1:]), minlength=64)
    assert pairs_of.min() > 30, "neighbouring draws are independent: 62 each"
    torch.manual_seed(5)  # no global random state is read
    assert [view_of(draw, seed=0, n_views=8) for draw in range(4000)] == found
    assert [view_of(draw, seed=1, n_views=8) for draw in range(4000)] != found
    assert {view_of(draw, seed=0, n_views=1) for draw in range(50)} == {0}
    expected = int.from_bytes(hashlib.sha256(b"view:3:17").digest()[:8], "big") % 5
    assert view_of(17, seed=3, n_views=5) == expected
    # Frozen: another choice would unpair new trials from old ones.
    assert found[:12] == GOLDEN_VIEWS


def test_resume_takes_the_same_views(make, views, pairs, tmp_path):
    def build():
        return with_views(make, views, pairs)

    whole, stopped, resumed = TinyModule(), TinyModule(stop_at=5), TinyModule()
    fit(whole, build(), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(stopped, build(), tmp_path / "runs")
    fit(resumed, build(), tmp_path / "runs", checkpoint=str(tmp_path / "runs" / "step=3.ckpt"))
    assert resumed.masks == whole.masks[3 * 4 :]
    assert len(set(whole.masks)) > N_VIEWS
    assert torch.equal(weights(resumed), weights(whole))
