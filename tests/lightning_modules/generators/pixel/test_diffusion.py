"""The diffusion module: training, resume, averaging, sampling, saving; on 32x48 images."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lightning_modules.errors import NonFiniteLossError, WeightsError
from lightning_modules.generators.pixel.config import GeneratorConfig, SamplerConfig
from lightning_modules.generators.pixel.module import (
    DiffusionModule,
    from_model_range,
    load_generator,
    to_model_range,
)
from lightning_modules.generators.pixel.network import mask_condition
from lightning_modules.generators.pixel.sampling import draw_samples, guided_velocity
from lightning_modules.noise import alphas_sigmas, velocity
from lightning_modules.randomness import keyed_generator

STEPS = 4
A_WEIGHT = "unet.conv_out.bias"


def _config(**changes: object) -> GeneratorConfig:
    small = {
        "size_hw": (32, 48),
        "patch": 2,
        "block_out_channels": (16, 32),
        "attention": "none",
        "steps": STEPS,
        "warmup_steps": 1,
        "batch_size": 4,
    }
    return GeneratorConfig(**{**small, **changes})


def _pair(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright ellipse on dark: the mask determines the image up to a little noise."""
    generator = keyed_generator(index, "pair")
    x0, y0, a, b = (
        torch.rand(4, generator=generator) * torch.tensor([12.0, 8.0, 6.0, 3.0])
        + torch.tensor([18.0, 12.0, 8.0, 6.0])
    ).tolist()
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    mask = (((xs - x0) / a) ** 2 + ((ys - y0) / b) ** 2 < 1).float()[None]
    image = 0.05 + 0.4 * mask + 0.05 * torch.rand(1, 32, 48, generator=generator)
    return image, mask


class _Stream(Dataset):
    def __init__(self, draws: range):
        self.draws = draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        draw = self.draws[position]
        image, mask = _pair(draw % 8)
        return {"image": image, "mask": mask, "draw": torch.tensor(draw)}


class _Data(L.LightningDataModule):
    """Numbers every item of the training stream, and after a resume continues where it stopped."""

    def __init__(self, *, batches: int, batch_size: int):
        super().__init__()
        self.items, self.batch_size = batches * batch_size, batch_size

    def train_dataloader(self) -> DataLoader:
        loop = self.trainer.fit_loop
        start = loop.epoch_progress.current.processed * self.items
        skip = loop.epoch_loop.batch_progress.current.processed if loop.restarting else 0
        if skip * self.batch_size >= self.items:
            skip = 0
        draws = range(start + skip * self.batch_size, start + self.items)
        return DataLoader(_Stream(draws), batch_size=self.batch_size)


def _fit(
    module: DiffusionModule,
    *,
    steps: int,
    batches: int = 8,
    batch_size: int = 4,
    accumulate: int = 1,
    precision: str | None = None,
    ckpt_path: Path | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        precision=precision or module.config.precision,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    data = _Data(batches=batches, batch_size=batch_size)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def _batch(count: int = 4, *, first_draw: int = 0) -> dict[str, torch.Tensor]:
    stream = _Stream(range(first_draw, first_draw + count))
    return torch.utils.data.default_collate([stream[i] for i in range(count)])


def _assert_same_state(first: DiffusionModule, second: DiffusionModule) -> None:
    for (name, mine), theirs in zip(
        first.network.state_dict().items(), second.network.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert first.ema.optimization_step == second.ema.optimization_step
    for mine, theirs in zip(first.ema.shadow_params, second.ema.shadow_params, strict=True):
        assert torch.equal(mine, theirs)


@pytest.fixture(scope="module")
def trained() -> DiffusionModule:
    """A generator that has seen eight ellipses for 150 steps."""
    config = _config(steps=150, warmup_steps=10, learning_rate=3e-3, max_rotation_deg=0.0)
    module = DiffusionModule(config, seed=2)
    _fit(module, steps=150, batch_size=8)
    return module.eval()


def test_range_of_hand_values_and_its_inverse():
    config = _config(intensity_gamma=0.5, intensity_mean=0.3, intensity_std=0.2)
    found = to_model_range(torch.tensor([0.0, 0.25, 1.0]), config=config)
    assert torch.allclose(found, torch.tensor([-1.5, 1.0, 3.5]))
    image = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    again = from_model_range(to_model_range(image, config=config), config=config)
    assert torch.allclose(again, image, atol=1e-6)
    beyond = from_model_range(torch.tensor([-9.0, 9.0]), config=config)
    assert beyond.tolist() == [0.0, 1.0]


def test_overfits_one_batch():
    module = DiffusionModule(_config(flip_probability=0.0, mask_dropout=0.0), seed=1)
    optimizer = torch.optim.AdamW(module.network.parameters(), lr=3e-3)
    batch = _batch()
    losses = []
    for _ in range(40):
        loss = module.training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The batch's noise is keyed by its draws and so stays the same: 0.071 falls to 0.0074.
    assert losses[0] > 0.05
    assert losses[-1] < 0.015


def test_loss_of_a_perfect_network_is_zero_and_of_a_silent_one_is_the_weighted_target():
    config = _config(flip_probability=0.0, max_rotation_deg=0.0, max_scale=1.0, max_shift=0.0)
    module, batch, seen = DiffusionModule(config, seed=1), _batch(), {}

    def perfect(noisy: torch.Tensor, *, timesteps: torch.Tensor, condition: torch.Tensor):
        alpha, sigma = alphas_sigmas(module.alphas_cumprod, timesteps)
        image = to_model_range(batch["image"], config=config)
        noise = (noisy - alpha * image) / sigma
        target = velocity(image, noise=noise, alpha=alpha, sigma=sigma)
        seen.update(target=target, timesteps=timesteps, condition=condition)
        return target * seen.get("share", 1.0)

    module.network.forward = perfect
    assert module.training_step(batch).item() < 1e-8
    seen["share"] = 0.0
    signal = module.alphas_cumprod[seen["timesteps"]]
    snr = signal / (1 - signal)
    expected = (snr.clamp(max=5) / (snr + 1) * seen["target"].square().mean((1, 2, 3))).mean()
    assert module.training_step(batch).item() == pytest.approx(expected.item(), rel=1e-4)


def test_mask_dropout_drops_its_share_and_nothing_else():
    for share, expected in ((0.0, 0.0), (1.0, 1.0), (0.25, 0.25)):
        module = DiffusionModule(_config(mask_dropout=share), seed=1)
        seen = []

        def spy(noisy: torch.Tensor, *, timesteps: object, condition: torch.Tensor, seen=seen):
            seen.append((condition == 0).all(dim=(1, 2, 3)))
            return noisy

        module.network.forward = spy
        for first in range(0, 400, 100):
            module.training_step(_batch(100, first_draw=first))
        assert torch.cat(seen).float().mean().item() == pytest.approx(expected, abs=0.06)


def test_items_noise_depends_on_seed_and_draw_alone():
    seen = []

    def spy(noisy: torch.Tensor, *, timesteps: torch.Tensor, condition: torch.Tensor):
        seen.append(noisy)
        return noisy

    for seed, first, count in ((1, 0, 4), (1, 2, 2), (2, 0, 4)):
        module = DiffusionModule(_config(), seed=seed)
        module.network.forward = spy
        torch.manual_seed(seed * 7)
        module.training_step(_batch(count, first_draw=first))
    assert torch.equal(seen[0][2:], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("batches", [2, 8], ids=["epoch_boundary", "mid_epoch"])
def test_four_steps_equal_two_and_two_resumed(tmp_path: Path, batches: int):
    straight = DiffusionModule(_config(), seed=3)
    whole = _fit(straight, steps=4, batches=batches)
    # Saved as a run saves it, within the loop: a finished loop has counted its epoch as done.
    keep = ModelCheckpoint(dirpath=tmp_path, filename="half", every_n_train_steps=2)
    _fit(DiffusionModule(_config(), seed=3), steps=2, batches=batches, callbacks=[keep])
    torch.manual_seed(99)
    resumed = DiffusionModule(_config(), seed=3)
    rest = _fit(resumed, steps=4, batches=batches, ckpt_path=tmp_path / "half.ckpt")
    assert whole.global_step == rest.global_step == 4
    _assert_same_state(straight, resumed)
    mine, theirs = (t.optimizers[0].state_dict()["state"] for t in (whole, rest))
    for key, state in mine.items():
        for name, value in state.items():
            assert torch.equal(value, theirs[key][name])


def test_checkpoint_holds_plain_types_and_rebuilds_the_module(tmp_path: Path):
    module = DiffusionModule(_config(), seed=3)
    _fit(module, steps=2).save_checkpoint(tmp_path / "two.ckpt")
    checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == {"config": asdict(_config()), "seed": 3}
    again = DiffusionModule.load_from_checkpoint(tmp_path / "two.ckpt")
    assert again.config == _config()
    _assert_same_state(module, again)


class _Record(L.Callback):
    def __init__(self):
        self.weights: list[list[torch.Tensor]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append([p.detach().clone() for p in pl_module.network.parameters()])


def test_averaged_weights_equal_a_reference_recursion():
    record = _Record()
    module = DiffusionModule(_config(ema_decay=0.25, learning_rate=1e-2), seed=3)
    _fit(module, steps=4, callbacks=[record])
    # After step n the decay is min(0.25, n / (9 + n)), and the first step only copies.
    decays = [0.0, 2 / 11, 3 / 12, 0.25]
    expected = [torch.zeros_like(p) for p in record.weights[0]]
    for decay, weights in zip(decays, record.weights, strict=True):
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
    for found, value in zip(module.ema.shadow_params, expected, strict=True):
        assert torch.allclose(found, value, atol=1e-6)
    assert not torch.equal(module.ema.shadow_params[0], record.weights[-1][0])


def test_learning_rate_rises_then_falls_to_zero_at_the_last_step():
    record = _Record()
    module = DiffusionModule(_config(steps=6, warmup_steps=2, learning_rate=1.0), seed=3)
    _fit(module, steps=6, callbacks=[record])
    expected = [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]
    assert record.rates == pytest.approx(expected, abs=1e-6)


def test_a_loss_that_is_not_finite_moves_no_weight():
    module = DiffusionModule(_config(learning_rate=1e-3), seed=2)
    with torch.no_grad():
        module.network.get_parameter(A_WEIGHT).view(-1)[0] = float("inf")
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    expected = r"loss is inf at step 0 \(learning rate 0.001\); lower generator.learning_rate"
    with pytest.raises(NonFiniteLossError, match=expected):
        _fit(module, steps=STEPS)
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weights_that_the_last_step_ruins_are_noticed():
    class Ruined(DiffusionModule):
        def on_train_batch_end(self, *_: object) -> None:
            if self.global_step == 2:
                self.network.state_dict()[A_WEIGHT].view(-1)[0] = float("inf")

    with pytest.raises(NonFiniteLossError, match="a weight is nan at step 2"):
        _fit(Ruined(_config()), steps=2)


def test_batch_of_eight_equals_two_of_four_accumulated():
    once = DiffusionModule(_config(), seed=3)
    _fit(once, steps=2, batch_size=8)
    twice = DiffusionModule(_config(), seed=3)
    _fit(twice, steps=2, batch_size=4, accumulate=2)
    assert twice.ema.optimization_step == 2
    for mine, theirs in zip(once.ema.shadow_params, twice.ema.shadow_params, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_bf16_mixed_trains_float32_weights():
    module = DiffusionModule(_config(precision="bf16-mixed"))
    before = [p.detach().clone() for p in module.network.parameters()]
    _fit(module, steps=2)
    for parameter, old in zip(module.network.parameters(), before, strict=True):
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, old)


def test_bf16_output_is_near_float32_s(trained: DiffusionModule):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 1, 32, 48, generator=generator)
    timesteps, condition = torch.tensor([5, 300, 700, 999]), torch.ones(4, 1, 32, 48)
    with torch.no_grad():
        full = trained(inputs, timesteps, condition)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = trained(inputs, timesteps, condition)
    assert mixed.dtype == torch.float32
    error = (mixed - full).square().mean((1, 2, 3)).sqrt()
    assert (error < 0.03 * full.square().mean((1, 2, 3)).sqrt()).all()


# Sampling.


def test_solver_returns_the_image_that_a_perfect_network_sees():
    config = _config(snr_shift=0.5)
    image = to_model_range(_batch()["image"], config=config)
    alphas_cumprod = DiffusionModule(config).alphas_cumprod

    def perfect(noisy: torch.Tensor, *, timesteps: torch.Tensor, condition: torch.Tensor):
        alpha, sigma = alphas_sigmas(alphas_cumprod, timesteps)
        noise = (noisy - alpha * image.repeat(len(noisy) // 4, 1, 1, 1)) / sigma
        return velocity((noisy - sigma * noise) / alpha, noise=noise, alpha=alpha, sigma=sigma)

    sampler = SamplerConfig(num_inference_steps=10, guidance_scale=2.0, batch_size=4)
    found = draw_samples(
        perfect, torch.zeros(4, 1, 32, 48), seeds=range(4), config=config, sampler=sampler
    )
    # The first step divides by alpha = 5e-5 in float32; later ones forget its rounding.
    assert torch.allclose(found, image, atol=1e-3)


def test_images_follow_new_masks(trained: DiffusionModule):
    masks = torch.stack([_pair(index)[1] for index in range(100, 106)])
    images = trained.sample(masks, seeds=range(6), sampler=SamplerConfig(num_inference_steps=10))
    assert images.shape == (6, 1, 32, 48)
    assert images.min() >= 0
    assert images.max() <= 1
    found = (images > 0.25).float()
    dice = 2 * (found * masks).sum((1, 2, 3)) / (found + masks).sum((1, 2, 3))
    assert dice.mean() > 0.9
    shuffled = masks.roll(1, 0)
    chance = 2 * (found * shuffled).sum((1, 2, 3)) / (found + shuffled).sum((1, 2, 3))
    assert chance.mean() < dice.mean() - 0.1


def test_an_image_does_not_depend_on_its_batch(trained: DiffusionModule):
    masks = torch.stack([_pair(index)[1] for index in range(5)])
    seeds = [11, 12, 13, 14, 2**40]
    sampler = SamplerConfig(num_inference_steps=5, batch_size=5)
    whole = trained.sample(masks, seeds=seeds, sampler=sampler)
    again = trained.sample(masks, seeds=seeds, sampler=sampler)
    assert torch.equal(whole, again)
    pairs = SamplerConfig(num_inference_steps=5, batch_size=2)
    assert torch.allclose(trained.sample(masks, seeds=seeds, sampler=pairs), whole, atol=1e-4)
    alone = trained.sample(masks[4:], seeds=seeds[4:], sampler=sampler)
    assert torch.allclose(alone, whole[4:], atol=1e-4)
    other = trained.sample(masks[4:], seeds=[5], sampler=sampler)
    assert (other - alone).abs().mean() > 1e-3


def test_guidance_of_one_is_the_conditional_output_and_two_is_not(trained: DiffusionModule):
    noisy = torch.randn(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    condition = mask_condition(torch.stack([_pair(i)[1] for i in range(2)]))
    timestep = torch.tensor(700)
    with torch.no_grad():
        plain = trained.network(noisy, timesteps=timestep.expand(2), condition=condition)
        found = {
            scale: guided_velocity(
                trained.network,
                noisy,
                timestep=timestep,
                condition=condition,
                sampler=SamplerConfig(guidance_scale=scale),
            )
            for scale in (1.0, 1.0 + 1e-6, 2.0)
        }
    assert torch.equal(found[1.0], plain)
    assert torch.allclose(found[1.0 + 1e-6], plain, atol=1e-4)
    assert (found[2.0] - plain).abs().max() > 1e-2


def test_sampling_uses_averaged_weights_and_leaves_the_others(trained: DiffusionModule):
    before = [p.detach().clone() for p in trained.network.parameters()]
    mask, sampler = _pair(0)[1][None], SamplerConfig(num_inference_steps=2)
    averaged = trained.sample(mask, seeds=[0], sampler=sampler)
    for mine, theirs in zip(trained.network.parameters(), before, strict=True):
        assert torch.equal(mine, theirs)
    raw = draw_samples(trained.network, mask, seeds=[0], config=trained.config, sampler=sampler)
    assert not torch.equal(from_model_range(raw, config=trained.config), averaged)


def test_progress_counts_network_passes_and_empty_input_gives_none(trained: DiffusionModule):
    calls = []
    sampler = SamplerConfig(num_inference_steps=3, batch_size=2)
    masks = torch.zeros(3, 1, 32, 48)
    trained.sample(
        masks,
        seeds=[0, 1, 2],
        sampler=sampler,
        progress=lambda done, all_: calls.append((done, all_)),
    )
    assert calls == [(done, 6) for done in range(1, 7)]
    assert trained.sample(masks[:0], seeds=[], sampler=sampler).shape == (0, 1, 32, 48)


def test_wrong_masks_and_seeds_are_refused(trained: DiffusionModule):
    sampler = SamplerConfig(num_inference_steps=2)
    with pytest.raises(ValueError, match="masks have shape"):
        trained.sample(torch.zeros(1, 1, 48, 32), seeds=[0], sampler=sampler)
    with pytest.raises(ValueError, match="2 seeds for 1 masks"):
        trained.sample(torch.zeros(1, 1, 32, 48), seeds=[0, 1], sampler=sampler)


# Saving.


def test_saved_generator_samples_bit_equal(trained: DiffusionModule, tmp_path: Path):
    trained.save_generator(tmp_path / "generator")
    loaded = load_generator(tmp_path / "generator")
    assert loaded.config == trained.config
    mask, sampler = _pair(0)[1][None], SamplerConfig(num_inference_steps=3)
    expected = trained.sample(mask, seeds=[4], sampler=sampler)
    assert torch.equal(loaded.sample(mask, seeds=[4], sampler=sampler), expected)


def test_missing_and_damaged_generators_are_named(tmp_path: Path):
    with pytest.raises(WeightsError, match="no generator here"):
        load_generator(tmp_path)
    module = DiffusionModule(_config())
    module.save_generator(tmp_path)
    settings = tmp_path / "generator.json"
    wider = {**asdict(_config()), "block_out_channels": [32, 32]}
    settings.write_text(json.dumps({"config": wider, "seed": 0}))
    with pytest.raises(WeightsError, match="damaged generator"):
        load_generator(tmp_path)
    settings.write_text("{")
    with pytest.raises(WeightsError, match="damaged generator"):
        load_generator(tmp_path)
    module.save_generator(tmp_path)
    (tmp_path / "generator.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="damaged generator"):
        load_generator(tmp_path)


DDP_SCRIPT = """
import sys
import lightning as L
import torch
from torch.utils.data import DataLoader
from test_diffusion import _Stream, _in_64_bits

# Rank r takes items r, r + 2, ...: together they are the batches of one process.
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    use_distributed_sampler=False, precision="64-true",
)
module = _in_64_bits()
rank = trainer.global_rank
trainer.fit(module, DataLoader(_Stream(range(rank, 16, 2)), batch_size=4))
if rank == 0:
    torch.save([*module.ema.shadow_params, *module.network.parameters()], sys.argv[1])
"""


def _in_64_bits() -> DiffusionModule:
    """Adam makes much of a rounding; in 64 bits what is left is what sharing changes."""
    module = DiffusionModule(_config(), seed=3).double()
    module.ema = EMAModel(module.network.parameters(), decay=module.config.ema_decay, foreach=True)
    return module


@pytest.mark.long
def test_two_processes_equal_one(tmp_path: Path):
    script, result = tmp_path / "script.py", tmp_path / "weights.pt"
    script.write_text(DDP_SCRIPT)
    root = Path(__file__).parents[4]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)]),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        [sys.executable, script, result], cwd=root, env=environment, check=True, timeout=300
    )
    once = _in_64_bits()
    before = [p.detach().clone() for p in once.network.parameters()]
    _fit(once, steps=2, batch_size=8, precision="64-true")
    mine = [*once.ema.shadow_params, *once.network.parameters()]
    theirs = torch.load(result)
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert other.dtype == torch.float64
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
    moved = [(a - b).abs().max() for a, b in zip(before, once.network.parameters(), strict=True)]
    assert max(moved) > 1e-4
