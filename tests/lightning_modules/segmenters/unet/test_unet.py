"""UnetModule at 32x64 and 64x96: what it learns, and that a run repeats."""

import math

import pytest
import torch
from torch.utils.data import DataLoader
from trainer_parts import make_trainer
from unet_parts import (
    FIRST_WEIGHT,
    Heads,
    Stream,
    assert_equal_weights,
    make_batch,
    make_config,
    make_still_config,
    weights,
)

import lightning_modules.segmenters.unet.module as unet
from datamodules.hc18 import HC18DataModule
from datamodules.samples import read_hc18
from datamodules.settings import Cache, Frame
from lightning_modules.errors import NonFiniteLossError, require_finite
from lightning_modules.losses import dice_from_logits
from lightning_modules.segmenters.unet.module import (
    UnetModule,
    build_unet,
    change_intensity,
    standardise,
)


@pytest.fixture
def unlogged(monkeypatch):
    """Lightning's log needs a trainer, which a plain loop has not."""
    monkeypatch.setattr(UnetModule, "log", lambda *args, **kwargs: None)


# The network.


@pytest.mark.parametrize("size_hw", [(32, 64), (96, 64)])
def test_forward_gives_logits_of_the_frame(size_hw):
    module = UnetModule(make_config()).eval()
    image = torch.rand(3, 1, *size_hw)
    logits = module(image)
    assert logits.shape == (3, 1, *size_hw)
    assert logits.dtype == torch.float32
    assert module(image[:0]).shape == (0, 1, *size_hw)


def test_frames_that_the_encoder_cannot_halve_are_refused():
    module = UnetModule(make_config())
    with pytest.raises(ValueError, match=r"multiples of 32, not \(1, 1, 54, 80\)"):
        module(torch.rand(1, 1, 54, 80))
    with pytest.raises(ValueError, match=r"not \(1, 3, 32, 64\)"):
        module(torch.rand(1, 3, 32, 64))


def test_predictions_do_not_depend_on_the_batch_or_on_gain_and_offset():
    module = UnetModule(make_config(), seed=3).eval()
    image = make_batch()["image"]
    together = module(image)
    alone = torch.cat([module(one[None]) for one in image])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.allclose(module(0.3 * image + 0.1), together, atol=1e-3)


def test_initial_weights_come_from_the_seed_and_leave_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_unet(make_config(), seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = build_unet(make_config(), seed=1), build_unet(make_config(), seed=2)
    assert_equal_weights(first.state_dict(), again.state_dict())
    assert not torch.equal(first.state_dict()[FIRST_WEIGHT], other.state_dict()[FIRST_WEIGHT])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_other_encoders_give_a_gradient_to_every_weight(name):
    network = build_unet(make_config(encoder_name=name), seed=0)
    network(torch.rand(2, 1, 64, 96)).square().mean().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "chosen", "asked"),
    [
        ("tu-resnet10t", None, None),
        ("tu-resnet10t", "imagenet", True),
        ("resnet18", None, None),
        ("resnet18", "imagenet", "imagenet"),
    ],
)
def test_pretrained_weights_are_asked_for_as_each_encoder_wants(name, chosen, asked, monkeypatch):
    found = []
    build = unet.smp.Unet

    def record(**key):
        found.append(key["encoder_weights"])
        return build(**{**key, "encoder_weights": None})

    monkeypatch.setattr(unet.smp, "Unet", record)
    build_unet(make_config(encoder_name=name, encoder_weights=chosen), seed=0)
    assert found == [asked]


# Training.


@pytest.mark.usefixtures("unlogged")
def test_overfits_one_batch_to_dice_095_in_40_steps():
    module = UnetModule(make_still_config(steps=40))
    setup = module.configure_optimizers()
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    batch, losses = make_batch(), []
    for _ in range(40):
        loss = module.training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[0] > 0.8
    assert losses[-1] < 0.15
    with torch.no_grad():
        logits = module.eval()(batch["image"])
    dice = dice_from_logits(logits, batch["mask"], valid_hw=batch["valid_hw"])
    assert dice.min() > 0.95


def test_two_steps_and_two_more_equal_four(tmp_path):
    straight = UnetModule(make_config(), seed=7)
    make_trainer(tmp_path, max_epochs=2).fit(straight, Stream())
    half = UnetModule(make_config(), seed=7)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(half, Stream())
    assert trainer.global_step == 2
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)
    resumed = UnetModule(make_config(), seed=7)
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(resumed, Stream(), ckpt_path=str(tmp_path / "half.ckpt"))
    assert trainer.global_step == 4
    assert_equal_weights(weights(resumed), weights(straight))
    assert not torch.equal(weights(half)[FIRST_WEIGHT], weights(straight)[FIRST_WEIGHT])


def test_fits_on_the_datamodule_and_logs(hc18_folder, tmp_path):
    samples = {s.sample_id: s for s in read_hc18(hc18_folder)}
    ids = sorted(samples)
    config = make_config(steps=3)
    data = HC18DataModule(
        samples=samples,
        train_ids=ids[:6],
        val_ids=ids[6:8],
        test_ids={"hc18": ids[8:]},
        frame=Frame(size_hw=config.size_hw, resize_mode="squash"),
        cache=Cache(folder=tmp_path / "cache"),
        batch_size=config.batch_size,
        n_batches=config.steps,
        seed=0,
    )
    module = UnetModule(config)
    trainer = make_trainer(tmp_path, max_epochs=1, use_distributed_sampler=False)
    before = weights(module)
    trainer.fit(module, data)
    assert trainer.global_step == 3
    assert not torch.equal(before[FIRST_WEIGHT], weights(module)[FIRST_WEIGHT])
    assert {"train/dice", "val/loss", "val/dice"} <= trainer.callback_metrics.keys()
    assert 0 <= float(trainer.callback_metrics["val/dice"]) <= 1
    found = trainer.test(module, data, verbose=False)[0]
    assert 0 <= found["test/dice"] <= 1
    assert math.isfinite(found["test/loss"])


# Augmentation.


def test_augmentation_is_keyed_by_draw_and_not_by_order():
    module = UnetModule(make_config(), seed=3)
    batch = make_batch()
    image, mask = module.augment(batch)
    torch.manual_seed(1)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {key: value[order] for key, value in batch.items()}
    again_image, again_mask = module.augment(shuffled)
    assert torch.equal(again_image, image[order])
    assert torch.equal(again_mask, mask[order])
    alone, _ = module.augment({key: value[2:3] for key, value in batch.items()})
    assert torch.allclose(alone, image[2:3], atol=1e-6)
    later, _ = module.augment({**batch, "draw": batch["draw"] + 100})
    other_seed, _ = UnetModule(make_config(), seed=4).augment(batch)
    assert not torch.allclose(later, image, atol=1e-2)
    assert not torch.allclose(other_seed, image, atol=1e-2)


def test_augmentation_keeps_ranges_and_moves_the_mask_with_the_head():
    module = UnetModule(make_config(), seed=0)
    image, mask = module.augment(make_batch(16))
    assert image.min() >= 0
    assert image.max() <= 1
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    inside = (image * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))
    outside = (image * (1 - mask)).sum(dim=(1, 2, 3)) / (1 - mask).sum(dim=(1, 2, 3))
    assert (inside - outside).min() > 0.2


def test_limits_of_none_leave_the_pair_as_it_is():
    batch = make_batch()
    image, mask = UnetModule(make_still_config(), seed=0).augment(batch)
    assert torch.allclose(image, batch["image"], atol=1e-6)
    assert torch.equal(mask, batch["mask"])


def test_intensity_by_hand():
    image = torch.tensor([[0.25, 0.25], [0.25, 0.81]]).reshape(1, 1, 2, 2)
    root = change_intensity(image, gamma=torch.tensor([0.5]), contrast=torch.tensor([1.0]))
    assert torch.allclose(root.flatten(), torch.tensor([0.5, 0.5, 0.5, 0.9]))
    # Mean 0.6: 0.6 + 2 (0.5 - 0.6) = 0.4, and 0.6 + 2 (0.9 - 0.6) = 1.2 is cut.
    both = change_intensity(image, gamma=torch.tensor([0.5]), contrast=torch.tensor([2.0]))
    assert torch.allclose(both.flatten(), torch.tensor([0.4, 0.4, 0.4, 1.0]))


def test_standardise_by_hand():
    image = torch.stack([torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.full((2, 2), 0.7)])[:, None]
    found = standardise(image)
    assert torch.allclose(found[0, 0], torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
    assert torch.allclose(found[1], torch.zeros(1, 2, 2), atol=1e-3)
    assert standardise(image[:0]).shape == (0, 1, 2, 2)


# What is not finite.


def test_an_image_with_nan_stops_the_training_with_step_and_rate(tmp_path):
    class Broken(Heads):
        def __getitem__(self, position):
            item = super().__getitem__(position)
            if self.first + position == 13:
                item["image"][0, 3, 3] = math.nan
            return item

    module = UnetModule(make_config(steps=10, warmup_steps=4, learning_rate=4e-4))
    trainer = make_trainer(tmp_path, max_epochs=1)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(module, DataLoader(Broken(0, 16), batch_size=4))
    message = str(caught.value)
    assert message.startswith("loss is nan at step 3 (learning rate 0.0004); lower unet.learning_r")
    assert "\n" not in message
    assert all(p.isfinite().all() for p in module.parameters())


def test_weights_that_the_last_step_ruins_are_noticed(tmp_path):
    class Ruined(UnetModule):
        def on_train_batch_end(self, *_):
            self.network.state_dict()[FIRST_WEIGHT][0, 0, 0, 0] = math.inf

    trainer = make_trainer(tmp_path, max_steps=1)
    with pytest.raises(NonFiniteLossError, match="a weight is nan at step 1"):
        trainer.fit(Ruined(make_config(steps=1)), DataLoader(Heads(0, 4), batch_size=4))


def test_require_finite_judges_nan_and_infinities_only():
    key = {"step": 12, "learning_rate": 1e-2, "setting": "segmenter.learning_rate"}
    for fine in (0.0, -3.0, 1e30):
        require_finite(fine, **key)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(NonFiniteLossError, match=rf"loss is {value} at step 12 \(learning"):
            require_finite(value, **key)
