"""Training items that lie on the device: the same batches, the same weights."""

import pytest
import torch
from hc18_parts import TRAIN, TinyModule, builder, embedding_set, fit, five_pairs, ready, weights

from datamodules.frames import FrameDataset
from datamodules.hc18 import HC18DataModule
from datamodules.resident import ResidentItems

MANY = 10**9


@pytest.fixture
def make(hc18_folder, tmp_path):
    return builder(hc18_folder, tmp_path / "cache")


def batches(datamodule: HC18DataModule) -> list[dict]:
    """Training batches as the module gets them."""
    ready(datamodule)
    loader = datamodule.train_dataloader()
    return [datamodule.on_after_batch_transfer(batch, 0) for batch in loader]


def test_batches_are_those_of_the_loader(make, tmp_path):
    """With synthetic pairs and embeddings; also where not every item comes up."""
    pairs = five_pairs(tmp_path / "pairs")
    names = [*TRAIN, *(pair.sample_id for pair in pairs)]
    values = {name: float(number) for number, name in enumerate(names)}
    embeddings = [embedding_set(tmp_path / "embeddings", values)]
    for n_batches in (1, 9):
        given = {"synthetic": pairs, "embeddings": embeddings, "n_batches": n_batches}
        expected = batches(make(**given))
        kept = make(**given, resident_bytes=MANY)
        found = batches(kept)
        assert isinstance(kept.train_dataloader().dataset, ResidentItems)
        assert len(found) == len(expected) == n_batches
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert one.pop("sample_id") == other.pop("sample_id")
            for name, value in other.items():
                assert one[name].dtype == value.dtype, name
                assert torch.equal(one[name], value), name


def test_only_what_is_drawn_is_held(make):
    datamodule = ready(make(n_batches=1, batch_size=2, resident_bytes=MANY))
    items = datamodule.train_dataloader().dataset
    assert len(items) == 2
    image = 32 * 48 * 4
    # Image and mask, two sizes, index and kind.
    assert items.n_bytes() == 2 * (2 * image + 2 * 16 + 8 + 1)


def test_more_than_the_limit_is_loaded_batch_by_batch(make):
    items = ready(make(resident_bytes=MANY)).train_dataloader().dataset
    at_limit = ready(make(resident_bytes=items.n_bytes())).train_dataloader().dataset
    assert isinstance(at_limit, ResidentItems)
    for limit in (items.n_bytes() - 1, 0):
        dataset = ready(make(resident_bytes=limit)).train_dataloader().dataset
        assert isinstance(dataset, FrameDataset), limit


def test_training_and_resume_give_the_same_weights(make, tmp_path):
    plain, kept, stopped, resumed = TinyModule(), TinyModule(), TinyModule(stop_at=7), TinyModule()
    fit(plain, make(), tmp_path / "plain")
    fit(kept, make(resident_bytes=MANY), tmp_path / "kept")
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(stopped, make(resident_bytes=MANY), tmp_path / "stopped")
    fit(
        resumed,
        make(resident_bytes=MANY),
        tmp_path / "resumed",
        checkpoint=str(tmp_path / "stopped" / "step=6.ckpt"),
    )
    assert kept.seen == plain.seen
    assert kept.masks == plain.masks
    assert resumed.seen == plain.seen[6 * 4 :]
    assert torch.equal(weights(kept), weights(plain))
    assert torch.equal(weights(resumed), weights(plain))
