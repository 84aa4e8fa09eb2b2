"""HC18DataModule: what a batch holds, what a part may hold, and exact resume."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.ellipse import Ellipse, rasterise
from datamodules.embeddings import write_embeddings
from datamodules.errors import InputError
from datamodules.hc18 import HC18DataModule
from datamodules.samples import read_hc18
from datamodules.synthetic import read_synthetic, write_pair
from lightning_modules.randomness import keyed_randn

TRAIN = ["001_HC", "003_HC", "004_HC", "004_2HC", "004_3HC", "007_HC"]
VAL = ["005_HC", "008_HC"]
TEST = ["002_HC", "002_2HC", "006_HC", "006_2HC"]
FRAMES = [((64, 96), "squash", (64, 96)), ((256, 256), "pad", (173, 256))]


@pytest.fixture
def pairs(tmp_path):
    """Five synthetic pairs of 54x80."""
    rng = np.random.default_rng(7)
    for number in range(5):
        ellipse = Ellipse(
            center_x_px=38 + number,
            center_y_px=26,
            semi_major_px=20,
            semi_minor_px=14 + number,
            theta_rad=0.2,
        )
        write_pair(
            tmp_path / "synthetic",
            f"gen-{number}",
            image=rng.integers(0, 256, (54, 80), dtype=np.uint8),
            mask=rasterise(ellipse, size_hw=(54, 80)),
        )
    return read_synthetic(tmp_path / "synthetic").samples


@pytest.fixture
def make(hc18_folder, tmp_path):
    samples = {s.sample_id: s for s in read_hc18(hc18_folder)}

    def build(**changes):
        values = {
            "samples": samples,
            "train_ids": TRAIN,
            "val_ids": VAL,
            "test_ids": {"hc18": TEST},
            "frame_hw": (32, 48),
            "resize_mode": "squash",
            "batch_size": 4,
            "n_batches": 9,
            "seed": 3,
            "cache_dir": tmp_path / "cache",
        }
        return HC18DataModule(**(values | changes))

    return build


def ready(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def all_batches(datamodule):
    loaders = [datamodule.train_dataloader(), datamodule.val_dataloader()]
    return [batch for loader in loaders + datamodule.test_dataloader() for batch in loader]


@pytest.mark.parametrize(("frame_hw", "resize_mode", "valid_hw"), FRAMES)
def test_batches_of_generator_and_segmenter(make, pairs, frame_hw, resize_mode, valid_hw):
    datamodule = ready(
        make(frame_hw=frame_hw, resize_mode=resize_mode, synthetic=pairs, n_batches=3)
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


def test_a_pair_with_the_name_of_a_real_image_is_refused(make, tmp_path):
    image = np.zeros((54, 80), dtype=np.uint8)
    mask = np.zeros_like(image)
    mask[10:30, 20:50] = 1
    write_pair(tmp_path / "theirs", "001_HC", image=image, mask=mask)
    with pytest.raises(InputError, match=r"001_HC\.png: a real image has this name too"):
        make(synthetic=read_synthetic(tmp_path / "theirs").samples)


def test_embeddings_belong_to_their_samples(make, pairs, tmp_path):
    names = sorted(TRAIN + VAL + TEST)
    values = np.arange(17, dtype=np.float32)[:, None, None, None] * np.ones((17, 2, 3, 3))
    # Stored in another order than the images', as another sweep may have done.
    real = write_embeddings(
        tmp_path / "real", sample_ids=names[::-1], batches=[values[:12][::-1]], shape=(2, 3, 3)
    )
    generated = write_embeddings(
        tmp_path / "generated",
        sample_ids=[s.sample_id for s in pairs],
        batches=[values[12:]],
        shape=(2, 3, 3),
    )
    found = all_batches(ready(make(synthetic=pairs, embeddings=[real, generated])))
    for batch in found:
        assert batch["embedding"].dtype == torch.float16
        assert tuple(batch["embedding"].shape[1:]) == (2, 3, 3)
        assert torch.equal(batch["embedding"][:, 1, 2, 0], batch["index"].half())
    assert {int(i) for b in found for i in b["index"]} == set(range(17))
    with pytest.raises(KeyError, match="gen-"):
        list(ready(make(synthetic=pairs, embeddings=[real])).train_dataloader())


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


def test_two_processes_share_the_batches_of_one(make, pairs):
    whole = list(ready(make(synthetic=pairs)).train_dataloader())
    ranks = []
    for rank in range(2):
        datamodule = ready(make(synthetic=pairs))
        datamodule.trainer = SimpleNamespace(
            world_size=2, global_rank=rank, fit_loop=SimpleNamespace(restarting=False)
        )
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


class TinyModule(L.LightningModule):
    """Two convolutions under Adam; noise keyed by `draw`; stops where it is told to."""

    def __init__(self, *, stop_at=None, stop_in="training"):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 1)
        )
        self.stop_at, self.stop_in = stop_at, stop_in
        self.seen = []

    def training_step(self, batch, batch_idx):
        if self.stop_in == "training" and self.global_step == self.stop_at:
            raise RuntimeError("interrupted")
        self.seen += list(zip(batch["draw"].tolist(), batch["sample_id"], strict=True))
        shape = batch["image"].shape[1:]
        noise = keyed_randn(shape, seed=3, draws=batch["draw"], stream="noise")
        logits = self.net(batch["image"] + 0.1 * noise)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["mask"])

    def validation_step(self, batch, batch_idx):
        if self.stop_in == "validation" and self.global_step == self.stop_at:
            raise RuntimeError("interrupted")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(module, datamodule, folder, *, checkpoint=None, validate_every=None):
    saver = ModelCheckpoint(
        dirpath=folder,
        filename="{step}",
        every_n_train_steps=3,
        save_top_k=-1,
        save_on_exception=True,
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[saver],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=None if validate_every else 0,
        val_check_interval=validate_every,
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
    return trainer


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    ("num_workers", "stop_at", "stop_in", "saved_at"),
    [
        (0, 5, "training", 5),
        (0, 5, "training", 3),
        (0, 6, "training", 6),
        (0, 4, "validation", 4),
        (2, 5, "training", 5),
        (2, 5, "training", 3),
    ],
)
def test_resume_is_exact(make, pairs, tmp_path, num_workers, stop_at, stop_in, saved_at):
    """From the checkpoint of the interruption, or from an earlier one after a kill."""

    def build():
        return make(synthetic=pairs, num_workers=num_workers)

    every = 2 if stop_in == "validation" else None
    whole = TinyModule()
    fit(whole, build(), tmp_path / "whole", validate_every=every)
    assert [draw for draw, _ in whole.seen] == list(range(9 * 4))
    stopped = TinyModule(stop_at=stop_at, stop_in=stop_in)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(stopped, build(), tmp_path / "runs", validate_every=every)
    assert stopped.seen == whole.seen[: stop_at * 4]
    resumed = TinyModule()
    trainer = fit(
        resumed,
        build(),
        tmp_path / "runs",
        checkpoint=str(tmp_path / "runs" / f"step={saved_at}.ckpt"),
        validate_every=every,
    )
    assert trainer.global_step == 9
    assert resumed.seen == whole.seen[saved_at * 4 :]
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(stopped), weights(whole))


def test_resume_of_a_finished_training_does_nothing(make, tmp_path):
    """Killed between the last step and the end of the run."""
    whole = TinyModule()
    fit(whole, make(), tmp_path)
    resumed = TinyModule()
    trainer = fit(resumed, make(), tmp_path, checkpoint=str(tmp_path / "step=9.ckpt"))
    assert trainer.global_step == 9
    assert resumed.seen == []
    assert torch.equal(weights(resumed), weights(whole))


def test_workers_change_nothing(make, pairs):
    alone, shared = (
        [
            (b["sample_id"], b["draw"].tolist(), b["image"])
            for b in ready(make(synthetic=pairs, num_workers=n)).train_dataloader()
        ]
        for n in (0, 2)
    )
    assert [x[:2] for x in alone] == [x[:2] for x in shared]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(alone, shared, strict=True))
