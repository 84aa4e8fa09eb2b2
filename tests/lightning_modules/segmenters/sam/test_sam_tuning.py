"""Tuning modes: what moves, what stays, and that each starts as the stock network."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lightning_modules.errors import WeightsError
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.network import build_sam, encoder_input
from lightning_modules.segmenters.sam.tuning import (
    encode_prefix,
    encode_suffix,
    merged_state_dict,
)
from lightning_modules.weight_counts import trainable_summary

MODES = ("decoder", "lora", "late_lora", "adapter", "full")
LITE_MODES = ("lora", "adapter", "full")


def make_config(tuning: str = "decoder", **changes) -> SegmenterConfig:
    settings = {
        "backbone": "vit_tiny",
        "tuning": tuning,
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        **changes,
    }
    return SegmenterConfig(**settings)


class Heads(Dataset):
    """Bright discs on dark noise, by draw: 128x128 images, masks in the frame of 32x32."""

    def __init__(self, draws=range(64)) -> None:
        self.draws = list(draws)

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, position: int) -> dict:
        draw = self.draws[position]
        generator = torch.Generator().manual_seed(draw % 4)
        center = 8 + 10 * torch.rand(2, generator=generator)
        rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        mask = ((rows - center[0]) ** 2 + (columns - center[1]) ** 2 < 49).float()
        mask[22:] = 0
        image = torch.nn.functional.interpolate(mask[None, None], scale_factor=4)[0]
        image = (0.2 + 0.5 * image + 0.1 * torch.rand(1, 128, 128, generator=generator)).clamp(0, 1)
        image[:, 88:] = 0
        valid_hw = torch.tensor([22, 32])
        return {"image": image, "mask": mask[None], "valid_hw": valid_hw, "draw": draw}


def batch_of(n: int = 4) -> dict:
    return next(iter(DataLoader(Heads(), batch_size=n)))


def fit(module, *, steps, batch_size=4, accumulate=1, ckpt_path=None, folder=None, first=0):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        precision=module.config.precision,
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}")] if folder else [],
    )
    loader = DataLoader(Heads(range(first, 64)), batch_size=batch_size)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return module


def boxes(n: int = 4) -> torch.Tensor:
    return torch.tensor([[0.0, 0.0, 31.0, 21.0]]).repeat(n, 1)


@pytest.mark.parametrize("mode", ["lora", "late_lora", "adapter"])
def test_a_mode_starts_as_the_stock_network(mode):
    stock, tuned = SamModule(make_config()).eval(), SamModule(make_config(mode)).eval()
    with torch.no_grad():
        expected, found = stock(batch_of(), boxes()), tuned(batch_of(), boxes())
    # The stock embedding is kept as float16.
    assert torch.allclose(found, expected, atol=0.02)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("mode", LITE_MODES)
def test_an_encoder_in_training_lies_as_its_images_do(mode):
    module = SamModule(make_config(mode))
    encoder = module.sam.image_encoder
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    kernels = [m.weight for m in convolutions if min(m.weight.shape[1:3]) > 1]
    assert kernels
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_trained_moves_and_nothing_else(mode):
    module = SamModule(make_config(mode))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fit(module, steps=3)
    moved = {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}
    assert set() < moved <= trained
    # No gradient is missing: with one that is, DDP would wait for ever.
    assert {name for name, p in module.named_parameters() if p.grad is not None} == trained
    unmoved = {name for name in trained - moved if "bias" not in name}
    assert not unmoved
    in_encoder = {name for name in trained if "image_encoder" in name}
    assert bool(in_encoder) == (mode != "decoder")
    assert not any("prompt_encoder" in name for name in trained)
    if mode == "late_lora":
        assert {int(name.split("blocks.")[1][0]) for name in in_encoder} == {2, 3}
    if mode == "lora":
        assert {int(name.split("blocks.")[1][0]) for name in in_encoder} == {0, 1, 2, 3}


@pytest.mark.parametrize("mode", LITE_MODES)
def test_lite_moves_nothing_that_is_frozen(mode):
    config = SegmenterConfig(tuning=mode, steps=1, batch_size=1, warmup_steps=0)
    module = SamModule.start(config, seed=0, cached=False, captures=False)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    image = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 60:120, 70:170] = 1
    batch = {"image": image, "mask": mask, "valid_hw": torch.tensor([[173, 256]])}
    batch["draw"] = torch.tensor([0])
    optimizer = module.configure_optimizers()["optimizer"]
    module._step(batch, "train").backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None} == trained
    assert not any("attention_biases" in name for name in trained)
    optimizer.step()
    after = module.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert set() < moved <= trained
    if mode == "full":
        # Statistics of the normalisation layers are buffers: they are not among the trained.
        assert any("running_mean" in name for name in before)
    again = SamModule(config)
    again.load_state_dict({name: after[name] for name in trained})
    # A training that goes on trains what it trained before.
    again.train()._step(batch, "train").backward()
    assert {name for name, p in again.named_parameters() if p.grad is not None} == trained
    again = again.state_dict()
    assert again.keys() == after.keys()
    assert all(torch.equal(again[name], after[name]) for name in after)


@pytest.mark.parametrize("mode", MODES)
def test_overfits_one_batch(mode):
    module = SamModule(make_config(mode, steps=40, learning_rate=3e-3))
    batch = batch_of()
    optimizer = module.configure_optimizers()["optimizer"]
    module.train()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = module._step(batch, "train")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("mode", MODES)
def test_two_steps_and_two_more_equal_four(mode, tmp_path):
    whole = fit(SamModule(make_config(mode)), steps=4)
    fit(SamModule(make_config(mode)), steps=2, folder=tmp_path)
    resumed = SamModule(make_config(mode), seed=0)
    (path,) = tmp_path.glob("*.ckpt")
    # The stream continues where it stopped: two batches of four are behind it.
    state = torch.load(path, weights_only=True)
    names = {name for name, p in resumed.named_parameters() if p.requires_grad}
    assert set(state["state_dict"]) == names
    again = fit(resumed, steps=4, ckpt_path=str(path), first=8)
    for (name, one), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert one.shape == other.shape
        if one.requires_grad:
            assert torch.equal(one, other), name


@pytest.mark.parametrize("mode", ["lora", "late_lora", "adapter", "full"])
def test_a_batch_in_parts_gives_the_same_weights(mode):
    config = make_config(mode, learning_rate=1e-5)
    at_once, in_parts = SamModule(config), SamModule(config)
    fit(at_once, steps=2, batch_size=4)
    fit(in_parts, steps=2, batch_size=2, accumulate=2)
    for one, other in zip(at_once.parameters(), in_parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_mixed_precision_and_checkpointing_run(mode):
    config = make_config(mode, precision="bf16-mixed", encoder_checkpointing=mode != "decoder")
    module = fit(SamModule(config), steps=2)
    trained = [p for p in module.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in trained)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_activations_computed_twice_change_nothing(mode):
    plain = fit(SamModule(make_config(mode)), steps=2)
    twice = fit(SamModule(make_config(mode, encoder_checkpointing=True)), steps=2)
    for one, other in zip(plain.parameters(), twice.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_features_before_the_first_trained_block_can_be_cached():
    module = SamModule(make_config("late_lora")).eval()
    encoder, batch = module.sam.image_encoder, batch_of()
    with torch.no_grad():
        prepared = encoder_input(module.sam, batch["image"], valid_hw=batch["valid_hw"])
        tokens = encode_prefix(encoder, prepared)
        assert tokens.shape == (4, 8, 8, 32)
        assert torch.equal(encode_suffix(encoder, tokens), encoder(prepared))
        whole = module(batch, boxes())
        cached = module({**batch, "embedding": tokens.half()}, boxes())
    assert torch.allclose(whole, cached, atol=0.02)


@pytest.mark.parametrize(
    ("mode", "backbone"),
    [("decoder", "vit_tiny"), ("full", "vit_tiny"), ("lora", "vit_tiny"), ("lora", "lite")],
)
def test_merged_weights_load_into_the_stock_network(mode, backbone):
    module = SamModule(make_config(mode, backbone=backbone)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    stock = build_sam(SegmenterConfig(backbone=backbone))
    untouched = {name: t.clone() for name, t in module.state_dict().items()}
    before = {name: t.clone() for name, t in stock.state_dict().items()}
    merged = merged_state_dict(module.sam)
    stock.load_state_dict(merged, strict=True)
    stock.eval()
    side = module.sam.image_encoder.img_size
    image = torch.rand(1, 3, side, side, generator=generator)
    with torch.no_grad():
        expected, found = module.sam.image_encoder(image), stock.image_encoder(image)
    assert torch.allclose(found, expected, atol=1e-5)
    changed = [name for name, t in merged.items() if not torch.equal(t, before[name])]
    assert bool(changed) == (mode == "lora")
    assert all(torch.equal(t, untouched[name]) for name, t in module.state_dict().items())


def test_adapters_cannot_be_merged():
    with pytest.raises(ValueError, match="adapters cannot be merged"):
        merged_state_dict(SamModule(make_config("adapter")).sam)


def test_the_summary_counts_by_hand():
    found = trainable_summary(SamModule(make_config("lora", lora_rank=4)).parts())
    # Four blocks; A is 4 x 32, B is 96 x 4.
    assert found["image_encoder"]["trainable"] == 4 * (4 * 32 + 96 * 4)
    assert found["prompt_encoder"]["trainable"] == 0
    parts = ("image_encoder", "prompt_encoder", "mask_decoder")
    assert found["trainable"] == sum(found[part]["trainable"] for part in parts)
    assert found["all"] == sum(found[part]["all"] for part in parts)
    assert found["gradient_bytes"] == 4 * found["trainable"]
    assert found["optimizer_bytes"] == 8 * found["trainable"]
    assert found["weight_bytes"] == 4 * found["all"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "lite", "tuning": "late_lora"}, "late_lora needs the blocks of a ViT"),
        ({"backbone": "tiny", "tuning": "lora"}, "needs attention, which tiny has not"),
        ({"backbone": "lite", "encoder_checkpointing": True}, "needs a ViT's blocks"),
        ({"tuning": "some"}, "tuning=some: unknown; use one of decoder, lora"),
        ({"lora_rank": 0}, "lora_rank=0: must be at least 1"),
        ({"encoder_learning_rate": 0.0}, "encoder_learning_rate=0.0: must be above 0, or null"),
        ({"epochs": 0}, "epochs=0: must be at least 1, or null"),
        ({"geometry": "crop"}, "geometry=crop: unknown; use one of pad, squash"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SegmenterConfig(**changes)


def test_the_encoder_has_a_learning_rate_of_its_own():
    module = SamModule(make_config("lora", learning_rate=1e-3, encoder_learning_rate=5e-3))
    decoder, encoder = module.configure_optimizers()["optimizer"].param_groups
    assert (decoder["initial_lr"], encoder["initial_lr"]) == (1e-3, 5e-3)
    (alone,) = SamModule(make_config()).configure_optimizers()["optimizer"].param_groups
    assert alone["initial_lr"] == 1e-3


def test_loaded_weights_count_at_once_and_in_any_mode():
    """TinyViT's attention keeps a copy of its biases, which must not outlive them; files of earlier
    versions hold biases that were trained."""
    module = SamModule(make_config("full", backbone="lite"))
    generator = torch.Generator().manual_seed(2)
    state = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    for name, biases in module.named_parameters():
        if "attention_biases" in name:
            state[name] = biases + torch.randn(biases.shape, generator=generator)
    image = torch.rand(1, 1, 256, 256, generator=generator)
    batch = {"image": image, "valid_hw": torch.tensor([[173, 256]])}
    with torch.no_grad():
        before = module.embed(batch)
        module.load_state_dict(state)
        loaded = module.embed(batch)
        in_eval_mode = module.eval().embed(batch)
        in_training = module.train().embed(batch)
    assert (loaded - before).abs().max() > 1e-3
    assert torch.allclose(loaded, in_eval_mode, atol=1e-6)
    assert torch.allclose(loaded, in_training, atol=1e-6)


def test_weights_of_another_rank_are_refused_in_one_line():
    state = SamModule(make_config("lora", lora_rank=2)).state_dict()
    with pytest.raises(
        WeightsError, match=r"tuning lora\): .*lora_A.* is \(2, 32\), not \(4, 32\)$"
    ):
        SamModule(make_config("lora", lora_rank=4)).load_state_dict(state)


@pytest.mark.parametrize(("saved", "asked"), [("lora", "decoder"), ("decoder", "adapter")])
def test_weights_of_another_mode_are_refused(saved, asked):
    state = SamModule(make_config(saved)).state_dict()
    with pytest.raises(WeightsError, match="not of this segmenter"):
        SamModule(make_config(asked)).load_state_dict(state)
