"""HC18DataModule: what a batch holds, and what a part may hold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hc18_parts import TEST, TRAIN, VAL, all_batches, builder, embedding_set, five_pairs, ready

from datamodules.errors import InputError
from datamodules.hc18 import end_with_parent
from datamodules.synthetic import read_synthetic, write_pair

FRAMES = [((64, 96), "squash", (64, 96)), ((256, 256), "pad", (173, 256))]


@pytest.fixture
def pairs(tmp_path):
    return five_pairs(tmp_path / "synthetic")


@pytest.fixture
def make(hc18_folder, tmp_path):
    return builder(hc18_folder, tmp_path / "cache")


@pytest.mark.parametrize(("frame_hw", "resize_mode", "valid_hw"), FRAMES)
def test_batches_of_generator_and_segmenter(make, pairs, frame_hw, resize_mode, valid_hw):
    datamodule = ready(
        make(size_hw=frame_hw, resize_mode=resize_mode, synthetic=pairs, n_batches=3)
    )
    found = all_batches(datamodule)
    assert [len(b["index"]) for b in found] == [4, 4, 4, 2, 4]
    for batch in found:
        n = len(batch["index"])
        assert set(batch) == {
            *("image", "mask", "index", "is_synthetic", "size_hw", "valid_hw", "draw"),
            "sample_id",
        }
        for key, dtype, shape in (
            ("image", torch.float32, (n, 1, *frame_hw)),
            ("mask", torch.float32, (n, 1, *frame_hw)),
            ("index", torch.int64, (n,)),
            ("is_synthetic", torch.bool, (n,)),
            ("size_hw", torch.int64, (n, 2)),
            ("valid_hw", torch.int64, (n, 2)),
            ("draw", torch.int64, (n,)),
        ):
            assert batch[key].dtype == dtype, key
            assert tuple(batch[key].shape) == shape, key
        assert batch["size_hw"].tolist() == [[54, 80]] * n
        assert batch["valid_hw"].tolist() == [list(valid_hw)] * n
        image, mask = batch["image"], batch["mask"]
        assert image.min() >= 0
        assert 0.5 < image.max() <= 1
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        head = mask.sum(dim=(1, 2, 3)) / (valid_hw[0] * valid_hw[1])
        assert head.min() > 0.15
        assert head.max() < 0.4
        assert not image[:, :, valid_hw[0] :].any()
        assert not mask[:, :, valid_hw[0] :].any()
        assert isinstance(batch["sample_id"], list)


def test_values_are_those_of_the_prepared_arrays(make):
    datamodule = ready(make())
    prepared = datamodule._real()
    for batch in all_batches(datamodule):
        for item, sample_id in enumerate(batch["sample_id"]):
            row = int(batch["index"][item])
            assert prepared.sample_ids[row] == sample_id
            expected = prepared.images[row].astype(np.float32) / np.float32(255)
            assert np.array_equal(batch["image"][item, 0].numpy(), expected)
            assert np.array_equal(batch["mask"][item, 0].numpy(), prepared.masks[row])


def test_each_part_holds_its_images(make, pairs):
    datamodule = ready(make(synthetic=pairs, n_batches=12))
    train = list(datamodule.train_dataloader())
    real = {
        i for b in train for i, s in zip(b["sample_id"], b["is_synthetic"], strict=True) if not s
    }
    assert real == set(TRAIN)
    (validation,) = datamodule.val_dataloader()
    (loader,) = datamodule.test_dataloader()
    (test,) = loader
    assert validation["sample_id"] == VAL
    assert test["sample_id"] == TEST
    assert not validation["is_synthetic"].any()
    assert not test["is_synthetic"].any()
    # `index` is the rank among all real images, whatever the part.
    ranked = sorted(TRAIN + VAL + TEST)
    for batch in (*train, validation, test):
        for sample_id, index in zip(batch["sample_id"], batch["index"].tolist(), strict=True):
            expected = ranked.index(sample_id) if index < 12 else 12 + int(sample_id[-1])
            assert index == expected


def test_synthetic_pairs_enter_train_only_and_fill_half(make, pairs):
    datamodule = ready(make(synthetic=pairs, n_batches=10))
    seen = set()
    for batch in datamodule.train_dataloader():
        assert batch["is_synthetic"].tolist() == [False, False, True, True]
        assert batch["is_synthetic"].tolist() == (batch["index"] >= 12).tolist()
        assert batch["is_synthetic"].tolist() == [i.startswith("gen") for i in batch["sample_id"]]
        seen |= set(batch["index"].tolist())
    assert seen == {sorted(TRAIN + VAL + TEST).index(i) for i in TRAIN} | set(range(12, 17))
    for batch in ready(make(synthetic=pairs, synthetic_share=0.25)).train_dataloader():
        assert batch["is_synthetic"].sum() == 1


def test_two_sets_of_pairs_get_as_many_places_each(make, pairs):
    mixed = {"synthetic": pairs, "pools": [2, 3], "synthetic_share": 2 / 3, "batch_size": 6}
    seen = []
    for batch in ready(make(**mixed, n_batches=8)).train_dataloader():
        assert batch["is_synthetic"].tolist() == [False] * 2 + [True] * 4
        seen += [int(name[-1]) for name in batch["sample_id"][2:]]
    assert sum(number < 2 for number in seen) == sum(number >= 2 for number in seen) == 16
    assert set(seen) == set(range(5))


def test_a_pair_with_the_name_of_a_real_image_is_refused(make, tmp_path):
    image = np.zeros((54, 80), dtype=np.uint8)
    mask = np.zeros_like(image)
    mask[10:30, 20:50] = 1
    write_pair(tmp_path / "theirs", "001_HC", image=image, mask=mask)
    with pytest.raises(InputError, match=r"001_HC\.png: a real image has this name too"):
        make(synthetic=read_synthetic(tmp_path / "theirs").samples)


def test_embeddings_belong_to_their_samples(make, pairs, tmp_path):
    names = sorted(TRAIN + VAL + TEST)
    # Written in another order than the images', as another sweep may have done.
    real = embedding_set(tmp_path / "real", {n: names.index(n) for n in names[::-1]})
    generated = embedding_set(
        tmp_path / "generated", {s.sample_id: 12 + n for n, s in enumerate(pairs)}
    )
    found = all_batches(ready(make(synthetic=pairs, embeddings=[real, generated])))
    for batch in found:
        assert batch["embedding"].dtype == torch.float16
        assert tuple(batch["embedding"].shape[1:]) == (2, 3, 3)
        assert torch.equal(batch["embedding"][:, 1, 2, 0], batch["index"].half())
    assert {int(i) for b in found for i in b["index"]} == set(range(17))
    with pytest.raises(KeyError, match="gen-"):
        list(ready(make(synthetic=pairs, embeddings=[real])).train_dataloader())


def test_real_images_once_more_fill_the_synthetic_share(make):
    batches = list(ready(make(repeat_real=True, n_batches=12)).train_dataloader())
    once, again = [], []
    for batch in batches:
        assert batch["is_synthetic"].tolist() == [False, False, True, True]
        # The second half is the same images under their own numbers, not new ones.
        assert batch["index"].max() < 12
        once += batch["sample_id"][:2]
        again += batch["sample_id"][2:]
    assert set(once) == set(again) == set(TRAIN)
    assert once != again, "in an order of its own"
    for epoch in range(4):
        assert sorted(again[6 * epoch : 6 * epoch + 6]) == sorted(TRAIN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_ids": [*VAL, "001_HC"]}, "train and val share 1 images: 001_HC"),
        ({"test_ids": {"hc18": [*TEST, *TRAIN]}}, "train and test hc18 share 6 images: 001_HC"),
        ({"test_ids": {"a": TEST, "b": VAL}}, "val and test b share 2 images: 005_HC"),
        ({"test_ids": {"a": TEST, "b": TEST[:1]}}, "test a and test b share 1 images: 002_HC"),
    ],
)
def test_overlapping_parts_are_refused(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_setup_is_idempotent_and_reuses_files(make, pairs, tmp_path):
    datamodule = ready(make(synthetic=pairs))
    files = sorted((tmp_path / "cache").rglob("*"))
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    first = [batch["sample_id"] for batch in all_batches(datamodule)]
    datasets = dict(datamodule._datasets)
    for stage in ("fit", "test", None):
        datamodule.prepare_data()
        datamodule.setup(stage)
    assert datamodule._datasets == datasets
    assert [batch["sample_id"] for batch in all_batches(datamodule)] == first
    # Another trial, with other parts of the same images, writes nothing new either.
    ready(make(train_ids=VAL, val_ids=[], test_ids={}))
    assert sorted((tmp_path / "cache").rglob("*")) == files
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files] == before


def test_no_validation_and_no_test(make):
    datamodule = ready(make(val_ids=[], test_ids={}))
    assert datamodule.val_dataloader() == []
    assert datamodule.test_dataloader() == []
    assert len(datamodule.train_dataloader()) == 9


def test_no_training(make):
    """As the control uses it: test images alone."""
    datamodule = ready(make(train_ids=[], val_ids=[], n_batches=0))
    (loader,) = datamodule.test_dataloader()
    assert [i for batch in loader for i in batch["sample_id"]] == TEST
    with pytest.raises(ValueError, match="at least one real item"):
        datamodule.train_dataloader()


def test_loaders_end_with_the_stage(make):
    assert ready(make()).train_dataloader().worker_init_fn is end_with_parent


def trainer_on(device, *, world_size=1, global_rank=0):
    return SimpleNamespace(
        world_size=world_size,
        global_rank=global_rank,
        fit_loop=SimpleNamespace(
            restarting=False,
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)),
        ),
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )


def test_a_stage_on_the_cpu_leaves_a_gpu_that_is_there_alone(make, monkeypatch):
    """Pinned memory needs a context on it, which a GPU that is full refuses."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    datamodule = ready(make())
    assert not datamodule.test_dataloader()[0].pin_memory
    for device, pins in (("cpu", False), ("cuda", True)):
        datamodule.trainer = trainer_on(device)
        assert datamodule.train_dataloader().pin_memory == pins
        assert datamodule.val_dataloader().pin_memory == pins


@pytest.mark.parametrize(
    ("parts", "world_size", "size"), [(1, 1, 4), (2, 1, 2), (4, 1, 1), (2, 2, 1), (1, 2, 4)]
)
def test_batches_in_parts_are_validated_in_parts(make, parts, world_size, size):
    """Otherwise a validation for which memory does not suffice would fail again and again."""
    datamodule = ready(make(batch_parts=parts))
    datamodule.trainer = trainer_on("cuda", world_size=world_size)
    assert datamodule.val_dataloader().batch_size == size


def test_two_processes_share_the_batches_of_one(make, pairs):
    whole = list(ready(make(synthetic=pairs)).train_dataloader())
    ranks = []
    for rank in range(2):
        datamodule = ready(make(synthetic=pairs))
        datamodule.trainer = trainer_on("cpu", world_size=2, global_rank=rank)
        ranks.append(list(datamodule.train_dataloader()))
        evaluated = [i for batch in datamodule.test_dataloader()[0] for i in batch["sample_id"]]
        assert evaluated == TEST  # nothing repeated, nothing left out
    assert [len(rank) for rank in ranks] == [len(whole)] * 2
    for one, first, second in zip(whole, *ranks, strict=True):
        assert len(first["draw"]) == len(second["draw"]) == 2
        merged = {}
        for part in (first, second):
            merged |= dict(zip(part["draw"].tolist(), part["sample_id"], strict=True))
        assert merged == dict(zip(one["draw"].tolist(), one["sample_id"], strict=True))
