"""SamModule on the tiny backbone: what trains, what stays, and that a run can be repeated."""

from dataclasses import asdict

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.geometry import image_to_frame, mask_to_frame, place
from lightning_modules.errors import NonFiniteLossError, WeightsError
from lightning_modules.prompts import boxes_from_masks, jitter_boxes, whole_image_boxes
from lightning_modules.schedule import learning_rate_factor
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, IMAGE_SIDE_PX, SegmenterConfig
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.network import decode, encode
from lightning_modules.step_loss import StepLoss


def make_config(**changes):
    values = {"backbone": "tiny", "steps": 8, "learning_rate": 1e-3, "warmup_steps": 2}
    return SegmenterConfig(**{**values, **changes})


class Heads(Dataset):
    """Bright ellipses on noise, 54x80 and 80x54, in the tiny backbone's frame."""

    def __init__(self, items=8):
        self.items = [self.make(index) for index in range(items)]

    @staticmethod
    def make(index):
        rng = np.random.default_rng(index)
        size_hw = (54, 80) if index % 2 == 0 else (80, 54)
        y, x = np.mgrid[: size_hw[0], : size_hw[1]]
        center, axes = rng.uniform(0.4, 0.6, 2) * size_hw, rng.uniform(0.2, 0.35, 2) * size_hw
        radius = ((y - center[0]) / axes[0]) ** 2 + ((x - center[1]) / axes[1]) ** 2
        mask = (radius <= 1).astype(np.uint8)
        image = (0.2 + 0.5 * mask + rng.normal(0, 0.05, size_hw)).clip(0, 1).astype(np.float32)
        placement = place(size_hw, frame_hw=(64, 64), mode="pad")
        return {
            "image": torch.from_numpy(image_to_frame(image, placement))[None],
            "mask": torch.from_numpy(mask_to_frame(mask, placement))[None].float(),
            "valid_hw": torch.tensor(placement.valid_hw),
        }

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return {**self.items[index], "draw": torch.tensor(index)}


def make_batch(items=4):
    return next(iter(DataLoader(Heads(items), batch_size=items)))


class EpochStream(Dataset):
    """Eight items an epoch whose order and draws depend on the trainer's epoch alone."""

    def __init__(self):
        self.heads, self.epoch = Heads(), 0

    def __len__(self):
        return len(self.heads)

    def __getitem__(self, index):
        draw = self.epoch * len(self) + index
        return {**self.heads.items[(index * 3 + self.epoch) % 8], "draw": torch.tensor(draw)}


class StreamData(L.LightningDataModule):
    def train_dataloader(self):
        stream = EpochStream()
        stream.epoch = self.trainer.current_epoch
        return DataLoader(stream, batch_size=4)

    def val_dataloader(self):
        return DataLoader(Heads(3), batch_size=2)

    test_dataloader = val_dataloader


def make_trainer(tmp_path, **changes):
    flags = {
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**{**flags, **changes})


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def trainable_names(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def optimise(module, batches):
    """Plain steps of the module's own optimiser and schedule; the losses."""
    setup = module.configure_optimizers()
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    losses = []
    module.train()
    for batch in batches:
        loss = module.training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def unlogged(monkeypatch):
    """Lightning's log needs a trainer, which a plain loop has not."""
    monkeypatch.setattr(SamModule, "log", lambda *args, **kwargs: None)


@pytest.mark.usefixtures("unlogged")
def test_overfits_one_batch_in_40_steps():
    module = SamModule(make_config(steps=40, train_prompts=["tight_box"]))
    losses = optimise(module, [make_batch()] * 40)
    assert losses[0] > 0.8
    assert losses[-1] < 0.1


@pytest.mark.usefixtures("unlogged")
def test_encoders_stay_bit_equal_and_the_decoder_moves():
    module = SamModule(make_config())
    before = weights(module)
    optimise(module, [make_batch()] * 2)
    after, trainable = weights(module), trainable_names(module)
    assert all(name.startswith("sam.mask_decoder.") for name in trainable)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= trainable
    # A key's bias shifts all attention scores alike, so its gradient is zero up to rounding.
    unmoved = trainable - moved
    assert {name.rsplit(".", 2)[1] for name in unmoved} <= {"k_proj"}
    buffers = [name for name, _ in module.named_buffers() if "running" in name]
    assert len(buffers) == 4
    assert not moved & set(buffers)


@pytest.mark.usefixtures("unlogged")
def test_every_trainable_weight_gets_a_gradient():
    """A parameter without one would make DDP wait for ever."""
    module = SamModule(make_config())
    module.training_step(make_batch()).backward()
    reached = {name for name, p in module.named_parameters() if p.grad is not None}
    assert reached == trainable_names(module)


def test_frozen_parts_stay_in_eval_mode():
    module = SamModule(make_config())
    for _ in range(2):
        module.train()
        assert module.sam.mask_decoder.training
        assert not any(m.training for m in module.sam.image_encoder.modules())
        assert not any(m.training for m in module.sam.prompt_encoder.modules())
        module.eval()
        assert not module.sam.mask_decoder.training


@torch.no_grad()
def test_forward_uses_the_embedding_or_else_the_image():
    module, batch = SamModule(make_config()), make_batch(2)
    boxes = whole_image_boxes(batch["valid_hw"])
    from_image, iou_pred = module(batch, boxes)
    embedding = encode(module.sam, batch["image"], valid_hw=batch["valid_hw"], precision="fp32")
    assert torch.equal(from_image, decode(module.sam, embedding, boxes)[0])
    without_image = {"embedding": embedding, "valid_hw": batch["valid_hw"]}
    assert torch.equal(from_image, module(without_image, boxes)[0])
    assert iou_pred.shape == (2,)
    other = module({**batch, "embedding": embedding.flip(0)}, boxes)[0]
    assert not torch.equal(other, from_image)


def boxes_of_training(module, batch):
    """The boxes (B, 4) under which a training step decodes the batch."""
    seen = []
    hook = module.sam.prompt_encoder.register_forward_pre_hook(
        lambda _module, _args, named: seen.append(named["boxes"]), with_kwargs=True
    )
    try:
        module.training_step(batch)
    finally:
        hook.remove()
    (boxes,) = seen
    return boxes


@pytest.mark.usefixtures("unlogged")
def test_training_boxes_are_the_drawn_protocols_and_do_not_depend_on_the_batch():
    module, batch = SamModule(make_config(), seed=3), make_batch(8)
    batch["draw"] = torch.arange(100, 108)
    boxes = boxes_of_training(module, batch)
    for item in range(8):
        single = {key: value[item : item + 1] for key, value in batch.items()}
        assert torch.equal(boxes_of_training(module, single)[0], boxes[item])
    whole = whole_image_boxes(batch["valid_hw"])
    tight = boxes_from_masks(batch["mask"], valid_hw=batch["valid_hw"])
    largest = jitter_boxes(tight, offsets=torch.full((8, 4), 19), valid_hw=batch["valid_hw"])
    is_whole = (boxes == whole).all(dim=1)
    assert 0 < is_whole.sum() < 8
    jittered = boxes[~is_whole]
    outward = torch.tensor([-1, -1, 1, 1])
    assert torch.all((jittered - tight[~is_whole]) * outward >= 0)
    assert torch.all((largest[~is_whole] - jittered) * outward >= 0)
    other = SamModule(make_config(), seed=4)
    assert not torch.equal(boxes_of_training(other, batch), boxes)


@pytest.mark.usefixtures("unlogged")
def test_prompts_are_drawn_with_equal_odds():
    module = SamModule(make_config(train_prompts=["tight_box", "whole_image"]))
    one = make_batch(1)
    one["embedding"] = encode(module.sam, one["image"], valid_hw=one["valid_hw"], precision="fp32")
    batch = {key: value.expand(400, *value.shape[1:]) for key, value in one.items()}
    batch["draw"] = torch.arange(400)
    is_whole = boxes_of_training(module, batch) == whole_image_boxes(batch["valid_hw"])
    # Standard deviation 10.
    assert is_whole.all(dim=1).sum().item() == pytest.approx(200, abs=40)


@pytest.mark.usefixtures("unlogged")
def test_a_batch_of_8_equals_2_of_4_accumulated():
    batch = make_batch(8)
    whole = SamModule(make_config())
    whole.training_step(batch).backward()
    halves = SamModule(make_config())
    for half in (slice(0, 4), slice(4, 8)):
        part = {key: value[half] for key, value in batch.items()}
        (halves.training_step(part) / 2).backward()
    for (name, a), b in zip(whole.named_parameters(), halves.parameters(), strict=True):
        if a.requires_grad:
            scale = a.grad.abs().max().item()
            assert torch.allclose(a.grad, b.grad, atol=1e-6 + 1e-4 * scale), name


def test_resume_at_a_boundary_gives_the_same_weights(tmp_path):
    def fit(epochs, ckpt_path=None, global_seed=0):
        torch.manual_seed(global_seed)
        module = SamModule(make_config(), seed=1)
        trainer = make_trainer(tmp_path, max_epochs=epochs)
        trainer.fit(module, datamodule=StreamData(), ckpt_path=ckpt_path)
        assert trainer.global_step == 2 * epochs
        return module, trainer

    straight, _ = fit(4)
    _, half_trainer = fit(2, global_seed=5)
    path = tmp_path / "half.ckpt"
    half_trainer.save_checkpoint(path)
    resumed, _ = fit(4, ckpt_path=path, global_seed=6)
    expected, found = weights(straight), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_checkpoints_hold_trainable_weights_only_and_load(tmp_path):
    config = make_config()
    module = SamModule(config, seed=2)
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(module, datamodule=StreamData())
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert set(content["state_dict"]) == trainable_names(module)
    assert content["hyper_parameters"] == {"config": asdict(config), "seed": 2}
    loaded = SamModule.load_from_checkpoint(path)
    assert loaded.config == config
    assert loaded.seed == 2
    expected, found = weights(module), weights(loaded)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_loading_refuses_missing_and_unknown_weights():
    module = SamModule(make_config())
    trainable = {name: module.state_dict()[name] for name in trainable_names(module)}
    module.load_state_dict(trainable)
    module.load_state_dict(module.state_dict())
    name = "sam.mask_decoder.mask_tokens.weight"
    without = {key: value for key, value in trainable.items() if key != name}
    with pytest.raises(WeightsError, match=f"1 trainable weights missing, 0 unknown.*{name}"):
        module.load_state_dict(without, strict=False)
    with pytest.raises(WeightsError, match=r"0 trainable weights missing, 1 unknown.*network\.a"):
        module.load_state_dict({**trainable, "network.a": torch.zeros(1)})


def test_a_loss_that_is_not_finite_moves_no_weight(tmp_path):
    class Broken(StreamData):
        def train_dataloader(self):
            loader = super().train_dataloader()
            loader.dataset.heads.items[0]["image"][...] = float("nan")
            return loader

    module = SamModule(make_config())
    before = weights(module)
    # Item 0 is in the first batch.
    with pytest.raises(NonFiniteLossError, match=r"at step 0 .*lower segmenter.learning_rate"):
        make_trainer(tmp_path, max_steps=2).fit(module, datamodule=Broken())
    for name, value in weights(module).items():
        assert torch.equal(value, before[name]), name


def test_weights_that_the_last_step_ruins_are_noticed(tmp_path):
    class Ruined(SamModule):
        def on_train_batch_end(self, *_):
            self.sam.mask_decoder.mask_tokens.weight.data[0, 0] = float("inf")

    with pytest.raises(NonFiniteLossError, match=r"a weight is nan at step 1 .*lower segmenter"):
        make_trainer(tmp_path, max_steps=1).fit(Ruined(make_config()), datamodule=StreamData())


def test_the_training_dice_is_logged_over_all_items(tmp_path):
    module, seen = SamModule(make_config()), []
    update = module.train_dice.update
    module.train_dice.update = lambda dice: (seen.extend(dice.tolist()), update(dice))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=StreamData())
    assert len(seen) == 8
    assert trainer.callback_metrics["train/dice"].item() == pytest.approx(np.mean(seen), abs=1e-6)


@pytest.mark.parametrize("backbone", ["lite", "tiny"])
def test_without_an_encoder_embeddings_train_the_same(backbone):
    """The decoder's weights are those of the whole network, and an image is refused."""
    config = make_config(backbone=backbone)
    whole, light = SamModule(config, seed=3), SamModule(config, seed=3, has_encoder=False)
    assert not any(p.numel() for p in light.sam.image_encoder.parameters())
    side, grid = FRAME_SIDE_PX[backbone], FRAME_SIDE_PX[backbone] // 4
    mask = torch.zeros(2, 1, side, side)
    mask[..., 5:30, 8:40] = 1
    batch = {
        "embedding": torch.randn(2, 256, grid, grid, generator=torch.Generator().manual_seed(0)),
        "mask": mask,
        "valid_hw": torch.tensor([[side, side], [side // 2, side]]),
        "draw": torch.tensor([3, 4]),
    }
    losses = [module.training_step(batch) for module in (whole, light)]
    assert torch.equal(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for name, parameter in light.named_parameters():
        other = whole.get_parameter(name)
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), name
    image = torch.zeros(2, 1, IMAGE_SIDE_PX[backbone], IMAGE_SIDE_PX[backbone])
    with pytest.raises(RuntimeError, match="no encoder was built"):
        light.embed(
            {key: value for key, value in batch.items() if key != "embedding"} | {"image": image}
        )


def test_bf16_mixed_trains_on_the_cpu(tmp_path):
    module = SamModule(make_config(precision="bf16-mixed"))
    before = weights(module)
    step_loss = StepLoss()
    trainer = make_trainer(
        tmp_path, max_steps=2, precision=module.config.precision, callbacks=[step_loss]
    )
    trainer.fit(module, datamodule=StreamData())
    after = weights(module)
    assert not torch.equal(
        before["sam.mask_decoder.mask_tokens.weight"], after["sam.mask_decoder.mask_tokens.weight"]
    )
    assert all(value.isfinite().all() for value in after.values())
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert np.isfinite(step_loss.last)


def test_validation_and_test_log_the_whole_image_dice_over_items(tmp_path):
    module = SamModule(make_config())
    trainer = make_trainer(tmp_path)
    logged = trainer.validate(module, datamodule=StreamData(), verbose=False)[0]
    dice = []
    for index in range(3):
        batch = {key: value[None] for key, value in Heads(3)[index].items()}
        h, w = batch["valid_hw"][0].tolist()
        with torch.no_grad():
            logits, _ = module(batch, torch.tensor([[0.0, 0, w - 1, h - 1]]))
        predicted = (logits[0, 0, :h, :w] > 0).numpy()
        target = batch["mask"][0, 0, :h, :w].numpy() == 1
        dice.append(2 * (predicted & target).sum() / (predicted.sum() + target.sum()))
    # Batches of 2 and 1: a mean over batches would differ.
    assert logged["val/dice"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert set(logged) == {"val/dice", "val/loss"}
    tested = trainer.test(module, datamodule=StreamData(), verbose=False)[0]
    assert tested["test/dice"] == pytest.approx(logged["val/dice"], abs=1e-6)


def test_learning_rate_by_hand():
    def factor(step):
        return learning_rate_factor(step, warmup_steps=4, steps=12)

    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert factor(8) == pytest.approx(0.5)
    assert factor(12) == factor(99) == 0
    assert learning_rate_factor(0, warmup_steps=0, steps=1) == 1
    assert learning_rate_factor(3, warmup_steps=9, steps=4) == pytest.approx(4 / 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_x"}, r"backbone=vit_x: unknown; did you mean vit_\w\?"),
        ({"train_prompts": []}, "train_prompts is empty"),
        ({"train_prompts": ["whole_image", "no_box"]}, "train_prompts=no_box: unknown"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"jitter_max_px": -1}, "jitter_max_px=-1: must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: must be finite and above 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: must be at least 0"),
        ({"synthetic_share": 1.5}, r"synthetic_share=1.5: must be in \[0, 1\]"),
        ({"early_stopping_patience": 0}, "early_stopping_patience=0: must be at least 1"),
        ({"precision": "16"}, "precision=16: unknown; use one of 32-true"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        SegmenterConfig(**changes)
