"""SamModule on the tiny backbone: what trains, what stays, and under which prompts."""

import pytest
import torch
from sam_parts import make_batch, make_config, trainable_names, weights

from lightning_modules.errors import WeightsError
from lightning_modules.prompts import boxes_from_masks, jitter_boxes, whole_image_boxes
from lightning_modules.schedule import learning_rate_factor
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, IMAGE_SIDE_PX, SegmenterConfig
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.network import decode, encode


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
    from_image = module(batch, boxes)
    embedding = encode(module.sam, batch["image"], valid_hw=batch["valid_hw"], precision="fp32")
    assert torch.equal(from_image, decode(module.sam, embedding, boxes))
    without_image = {"embedding": embedding, "valid_hw": batch["valid_hw"]}
    assert torch.equal(from_image, module(without_image, boxes))
    other = module({**batch, "embedding": embedding.flip(0)}, boxes)
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


def test_learning_rate_by_hand():
    def factor(step):
        return learning_rate_factor(step, warmup_steps=4, steps=12)

    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert factor(8) == pytest.approx(0.5)
    assert factor(12) == factor(99) == 0
    constant = [
        learning_rate_factor(step, warmup_steps=2, steps=4, schedule="constant")
        for step in range(6)
    ]
    assert constant == [0.5, 1, 1, 1, 0, 0]
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
