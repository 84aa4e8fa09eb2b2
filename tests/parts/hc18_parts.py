"""What the tests of `HC18DataModule` share: its parts, five synthetic pairs, a tiny module."""

from dataclasses import fields

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.ellipse import Ellipse, rasterise
from datamodules.embeddings import EmbeddingSet, EmbeddingStore
from datamodules.hc18 import HC18DataModule
from datamodules.samples import read_hc18
from datamodules.settings import Cache, Frame, Loading, Mixture
from datamodules.synthetic import read_synthetic, write_pair
from lightning_modules.prompts import boxes_from_masks
from lightning_modules.randomness import keyed_randn

TRAIN = ["001_HC", "003_HC", "004_HC", "004_2HC", "004_3HC", "007_HC"]
VAL = ["005_HC", "008_HC"]
GROUPS = {"frame": Frame, "cache": Cache, "mixture": Mixture, "loading": Loading}
TEST = ["002_HC", "002_2HC", "006_HC", "006_2HC"]


def five_pairs(folder):
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
            folder,
            f"gen-{number}",
            image=rng.integers(0, 256, (54, 80), dtype=np.uint8),
            mask=rasterise(ellipse, size_hw=(54, 80)),
        )
    return read_synthetic(folder).samples


def builder(hc18_folder, cache_dir):
    """A function that makes a datamodule of the tiny folder, with changes; a field of a group of
    settings goes by its own name."""
    samples = {s.sample_id: s for s in read_hc18(hc18_folder)}

    def build(**changes):
        values = {
            "samples": samples,
            "train_ids": TRAIN,
            "val_ids": VAL,
            "test_ids": {"hc18": TEST},
            "size_hw": (32, 48),
            "resize_mode": "squash",
            "batch_size": 4,
            "n_batches": 9,
            "seed": 3,
            "folder": cache_dir,
        } | changes
        for name, group in GROUPS.items():
            names = [f.name for f in fields(group) if f.name in values]
            values[name] = group(**{field: values.pop(field) for field in names})
        return HC18DataModule(**values)

    return build


def ready(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def all_batches(datamodule):
    loaders = [datamodule.train_dataloader(), datamodule.val_dataloader()]
    return [batch for loader in loaders + datamodule.test_dataloader() for batch in loader]


def boxes_of(batch):
    return boxes_from_masks(batch["mask"], valid_hw=batch["valid_hw"]).tolist()


def embedding_set(folder, values):
    """Embeddings of constant arrays (2, 3, 3) by sample id, one view each."""
    store = EmbeddingStore(folder)
    for sample_id, value in values.items():
        store.write(f"aa-{sample_id}", np.full((2, 3, 3), value, dtype=np.float32))
    return EmbeddingSet(store=store, keys={sample_id: [f"aa-{sample_id}"] for sample_id in values})


class TinyModule(L.LightningModule):
    """Two convolutions under Adam; noise keyed by `draw`; stops where it is told to."""

    def __init__(self, *, stop_at=None, stop_in="training"):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 1)
        )
        self.stop_at, self.stop_in = stop_at, stop_in
        self.seen, self.masks = [], []

    def training_step(self, batch, batch_idx):
        if self.stop_in == "training" and self.global_step == self.stop_at:
            raise RuntimeError("interrupted")
        self.seen += list(zip(batch["draw"].tolist(), batch["sample_id"], strict=True))
        self.masks += [tuple(box) for box in boxes_of(batch)]
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
