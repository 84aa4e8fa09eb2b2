"""The diffusion module: training, resume, averaging; on 32x48 images."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import ModelCheckpoint
from pixel_parts import (
    STEPS,
    assert_same_state,
    fit,
    make_batch,
    make_config,
)

from lightning_modules.errors import NonFiniteLossError
from lightning_modules.generators.pixel.module import (
    DiffusionModule,
    from_model_range,
    to_model_range,
)
from lightning_modules.noise import alphas_sigmas, velocity

A_WEIGHT = "unet.conv_out.bias"


def test_range_of_hand_values_and_its_inverse():
    config = make_config(intensity_gamma=0.5, intensity_mean=0.3, intensity_std=0.2)
    found = to_model_range(torch.tensor([0.0, 0.25, 1.0]), config=config)
    assert torch.allclose(found, torch.tensor([-1.5, 1.0, 3.5]))
    image = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    again = from_model_range(to_model_range(image, config=config), config=config)
    assert torch.allclose(again, image, atol=1e-6)
    beyond = from_model_range(torch.tensor([-9.0, 9.0]), config=config)
    assert beyond.tolist() == [0.0, 1.0]


def test_overfits_one_batch():
    module = DiffusionModule(make_config(flip_probability=0.0, mask_dropout=0.0), seed=1)
    optimizer = torch.optim.AdamW(module.network.parameters(), lr=3e-3)
    batch = make_batch()
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
    config = make_config(flip_probability=0.0, max_rotation_deg=0.0, max_scale=1.0, max_shift=0.0)
    module, batch, seen = DiffusionModule(config, seed=1), make_batch(), {}

    def perfect(noisy: torch.Tensor, *, timesteps: torch.Tensor, condition: torch.Tensor):
        alpha, sigma = alphas_sigmas(module.network.alphas_cumprod, timesteps)
        image = to_model_range(batch["image"], config=config)
        noise = (noisy - alpha * image) / sigma
        target = velocity(image, noise=noise, alpha=alpha, sigma=sigma)
        seen.update(target=target, timesteps=timesteps, condition=condition)
        return target * seen.get("share", 1.0)

    module.network.forward = perfect
    assert module.training_step(batch).item() < 1e-8
    seen["share"] = 0.0
    signal = module.network.alphas_cumprod[seen["timesteps"]]
    snr = signal / (1 - signal)
    expected = (snr.clamp(max=5) / (snr + 1) * seen["target"].square().mean((1, 2, 3))).mean()
    assert module.training_step(batch).item() == pytest.approx(expected.item(), rel=1e-4)


def test_mask_dropout_drops_its_share_and_nothing_else():
    for share, expected in ((0.0, 0.0), (1.0, 1.0), (0.25, 0.25)):
        module = DiffusionModule(make_config(mask_dropout=share), seed=1)
        seen = []

        def spy(noisy: torch.Tensor, *, timesteps: object, condition: torch.Tensor, seen=seen):
            seen.append((condition == 0).all(dim=(1, 2, 3)))
            return noisy

        module.network.forward = spy
        for first in range(0, 400, 100):
            module.training_step(make_batch(100, first_draw=first))
        assert torch.cat(seen).float().mean().item() == pytest.approx(expected, abs=0.06)


def test_items_noise_depends_on_seed_and_draw_alone():
    seen = []

    def spy(noisy: torch.Tensor, *, timesteps: torch.Tensor, condition: torch.Tensor):
        seen.append(noisy)
        return noisy

    for seed, first, count in ((1, 0, 4), (1, 2, 2), (2, 0, 4)):
        module = DiffusionModule(make_config(), seed=seed)
        module.network.forward = spy
        torch.manual_seed(seed * 7)
        module.training_step(make_batch(count, first_draw=first))
    assert torch.equal(seen[0][2:], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("batches", [2, 8], ids=["epoch_boundary", "mid_epoch"])
def test_four_steps_equal_two_and_two_resumed(tmp_path: Path, batches: int):
    straight = DiffusionModule(make_config(), seed=3)
    whole = fit(straight, steps=4, batches=batches)
    # Saved as a run saves it, within the loop: a finished loop has counted its epoch as done.
    keep = ModelCheckpoint(dirpath=tmp_path, filename="half", every_n_train_steps=2)
    fit(DiffusionModule(make_config(), seed=3), steps=2, batches=batches, callbacks=[keep])
    torch.manual_seed(99)
    resumed = DiffusionModule(make_config(), seed=3)
    rest = fit(resumed, steps=4, batches=batches, ckpt_path=tmp_path / "half.ckpt")
    assert whole.global_step == rest.global_step == 4
    assert_same_state(straight, resumed)
    mine, theirs = (t.optimizers[0].state_dict()["state"] for t in (whole, rest))
    for key, state in mine.items():
        for name, value in state.items():
            assert torch.equal(value, theirs[key][name])


def test_checkpoint_holds_plain_types_and_rebuilds_the_module(tmp_path: Path):
    module = DiffusionModule(make_config(), seed=3)
    fit(module, steps=2).save_checkpoint(tmp_path / "two.ckpt")
    checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == {"config": asdict(make_config()), "seed": 3}
    again = DiffusionModule.load_from_checkpoint(tmp_path / "two.ckpt")
    assert again.config == make_config()
    assert_same_state(module, again)


class Record(L.Callback):
    def __init__(self):
        self.weights: list[list[torch.Tensor]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append([p.detach().clone() for p in pl_module.network.parameters()])


def test_averaged_weights_equal_a_reference_recursion():
    record = Record()
    module = DiffusionModule(make_config(ema_decay=0.25, learning_rate=1e-2), seed=3)
    fit(module, steps=4, callbacks=[record])
    # After step n the decay is min(0.25, n / (9 + n)), and the first step only copies.
    decays = [0.0, 2 / 11, 3 / 12, 0.25]
    expected = [torch.zeros_like(p) for p in record.weights[0]]
    for decay, weights in zip(decays, record.weights, strict=True):
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
    for found, value in zip(module.ema.shadow_params, expected, strict=True):
        assert torch.allclose(found, value, atol=1e-6)
    assert not torch.equal(module.ema.shadow_params[0], record.weights[-1][0])


def test_learning_rate_rises_then_falls_to_zero_at_the_last_step():
    record = Record()
    module = DiffusionModule(make_config(steps=6, warmup_steps=2, learning_rate=1.0), seed=3)
    fit(module, steps=6, callbacks=[record])
    expected = [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]
    assert record.rates == pytest.approx(expected, abs=1e-6)


def test_a_loss_that_is_not_finite_moves_no_weight():
    module = DiffusionModule(make_config(learning_rate=1e-3), seed=2)
    with torch.no_grad():
        module.network.get_parameter(A_WEIGHT).view(-1)[0] = float("inf")
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    expected = r"loss is inf at step 0 \(learning rate 0.001\); lower generator.learning_rate"
    with pytest.raises(NonFiniteLossError, match=expected):
        fit(module, steps=STEPS)
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weights_that_the_last_step_ruins_are_noticed():
    class Ruined(DiffusionModule):
        def on_train_batch_end(self, *_: object) -> None:
            if self.global_step == 2:
                self.network.state_dict()[A_WEIGHT].view(-1)[0] = float("inf")

    with pytest.raises(NonFiniteLossError, match="a weight is nan at step 2"):
        fit(Ruined(make_config()), steps=2)


def test_batch_of_eight_equals_two_of_four_accumulated():
    once = DiffusionModule(make_config(), seed=3)
    fit(once, steps=2, batch_size=8)
    twice = DiffusionModule(make_config(), seed=3)
    fit(twice, steps=2, batch_size=4, accumulate=2)
    assert twice.ema.optimization_step == 2
    for mine, theirs in zip(once.ema.shadow_params, twice.ema.shadow_params, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_bf16_mixed_trains_float32_weights():
    module = DiffusionModule(make_config(precision="bf16-mixed"))
    before = [p.detach().clone() for p in module.network.parameters()]
    fit(module, steps=2)
    for parameter, old in zip(module.network.parameters(), before, strict=True):
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, old)


DDP_SCRIPT = """
import sys
import lightning as L
import torch
from torch.utils.data import DataLoader
from pixel_parts import Stream
from test_diffusion import in_64_bits

# Rank r takes items r, r + 2, ...: together they are the batches of one process.
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    use_distributed_sampler=False, precision="64-true",
)
module = in_64_bits()
rank = trainer.global_rank
trainer.fit(module, DataLoader(Stream(range(rank, 16, 2)), batch_size=4))
if rank == 0:
    torch.save([*module.ema.shadow_params, *module.network.parameters()], sys.argv[1])
"""


def in_64_bits() -> DiffusionModule:
    """Adam makes much of a rounding; in 64 bits what is left is what sharing changes."""
    module = DiffusionModule(make_config(), seed=3).double()
    module.ema = EMAModel(module.network.parameters(), decay=module.config.ema_decay, foreach=True)
    return module


@pytest.mark.long
def test_two_processes_equal_one(tmp_path: Path):
    script, result = tmp_path / "script.py", tmp_path / "weights.pt"
    script.write_text(DDP_SCRIPT)
    root = Path(__file__).parents[4]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            map(str, [root, root / "tests" / "parts", Path(__file__).parent])
        ),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        [sys.executable, script, result], cwd=root, env=environment, check=True, timeout=300
    )
    once = in_64_bits()
    before = [p.detach().clone() for p in once.network.parameters()]
    fit(once, steps=2, batch_size=8, precision="64-true")
    mine = [*once.ema.shadow_params, *once.network.parameters()]
    theirs = torch.load(result)
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert other.dtype == torch.float64
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
    moved = [(a - b).abs().max() for a, b in zip(before, once.network.parameters(), strict=True)]
    assert max(moved) > 1e-4
