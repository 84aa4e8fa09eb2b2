"""Stable Diffusion by LoRA: networks, loss, training, resume; tiny, on 64x128 images."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel, compute_snr
from lightning.pytorch.callbacks import ModelCheckpoint
from sd_parts import (
    ROUTES,
    ROWS,
    moved,
    small_module,
    tiny_pipeline,
    unet_inputs,
)
from torch.utils.data import DataLoader, Dataset

from lightning_modules.errors import NonFiniteLossError, WeightsError
from lightning_modules.generators.stable_diffusion.base import load_base
from lightning_modules.generators.stable_diffusion.config import Route
from lightning_modules.generators.stable_diffusion.module import (
    StableDiffusionModule,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("base"))


class _Stream(Dataset):
    def __init__(self, draws: range):
        self.draws = draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        draw = self.draws[position]
        return {"index": torch.tensor(sorted(ROWS)[draw % 4]), "draw": torch.tensor(draw)}


def _batch(draws: range = range(4)) -> dict[str, torch.Tensor]:
    stream = _Stream(draws)
    return torch.utils.data.default_collate([stream[i] for i in range(len(draws))])


class _Data(L.LightningDataModule):
    """One epoch of numbered items, which continues where a resumed run stopped."""

    def __init__(self, *, items: int, batch_size: int):
        super().__init__()
        self.items, self.batch_size = items, batch_size

    def train_dataloader(self) -> DataLoader:
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed if loop.restarting else 0
        return DataLoader(
            _Stream(range(done * self.batch_size, self.items)), batch_size=self.batch_size
        )


def _fit(
    module: StableDiffusionModule,
    *,
    steps: int,
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
        accumulate_grad_batches=accumulate,
        precision=precision or module.config.precision,
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    data = _Data(items=64, batch_size=batch_size)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


# Networks.


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("route", ROUTES)
def test_before_training_it_is_the_base_model(folder: Path, route: Route, precision: str):
    module, base = small_module(folder, route=route, precision=precision), load_base(str(folder))
    latents, timesteps, channels = unet_inputs()
    embeddings = module.bank.embeddings
    channels = channels if route == "sd_mask" else None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
        found = module(latents, timesteps, prompt_embeddings=embeddings, mask_channels=channels)
        expected = base.unet(latents, timesteps, encoder_hidden_states=embeddings).sample
    assert torch.equal(found, expected)
    if route == "sd_mask":
        assert module.unet.config.in_channels == module.unet.conv_in.in_channels == 68


def test_lora_lies_on_all_attention_and_the_seed_keys_it(folder: Path):
    first, same, other = (small_module(folder, seed=seed, lora_rank=5) for seed in (3, 3, 4))
    names = [name for name, p in first.unet.named_parameters() if p.requires_grad]
    # Each of 10 transformers has 2 attentions of 4 layers of 2 matrices: 3 on the way down, 1 in
    # the middle, 6 on the way up.
    assert len([name for name in names if ".lora_" in name]) == 10 * 2 * 4 * 2
    assert names[:2] == ["conv_in.weight", "conv_in.bias"]
    assert len(names) == 162
    shapes = {tuple(p.shape) for n, p in first.unet.named_parameters() if "to_k.lora_A" in n}
    assert shapes == {(5, 8), (5, 16)}
    for mine, theirs in zip(first.trained_parameters(), same.trained_parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert any(
        not torch.equal(mine, theirs)
        for mine, theirs in zip(first.trained_parameters(), other.trained_parameters(), strict=True)
    )


@pytest.mark.parametrize("route", ROUTES)
def test_gradient_checkpointing_changes_no_gradient(folder: Path, route: Route):
    gradients = []
    for checkpointing in (False, True):
        module = moved(small_module(folder, route=route, gradient_checkpointing=checkpointing))
        assert module.unet.is_gradient_checkpointing == checkpointing
        module.training_step(_batch()).backward()
        gradients.append([p.grad for p in module.trained_parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-7)


# Training.


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_is_that_of_diffusers_script(tmp_path: Path, prediction_type: str, gamma: float):
    folder = tiny_pipeline(tmp_path, prediction_type=prediction_type)
    module = small_module(folder, noise_offset=0.0, min_snr_gamma=gamma)
    seen = {}

    def silent(latents, timesteps, *, encoder_hidden_states, return_dict):
        seen.update(noisy=latents[:, :4], timesteps=timesteps)
        return (torch.zeros_like(latents[:, :4]),)

    module.unet.forward = silent
    batch = _batch(range(8))
    loss = module.training_step(batch)
    latents, *_ = module._inputs(batch)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    t = seen["timesteps"]
    signal = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    noise = (seen["noisy"] - signal.sqrt() * latents) / (1 - signal).sqrt()
    torch.testing.assert_close(
        scheduler.add_noise(latents, noise, t), seen["noisy"], rtol=0, atol=1e-4
    )
    is_v = prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, t) if is_v else noise
    errors = target.square().mean(dim=(1, 2, 3))
    if gamma is not None:
        # As in train_text_to_image_lora.py.
        snr = compute_snr(scheduler, t)
        errors = errors * torch.minimum(snr, torch.tensor(gamma)) / (snr + 1 if is_v else snr)
    assert loss.item() == pytest.approx(errors.mean().item(), rel=2e-3)
    assert len(set(t.tolist())) == 8


def test_noise_offset_shifts_whole_channels(folder: Path):
    noises = []
    for offset in (0.0, 0.5):
        module, seen = small_module(folder, noise_offset=offset), []
        module.unet.forward = lambda x, t, seen=seen, **_: (seen.append(x[:, :4]) or x[:, :4],)
        module.training_step(_batch())
        noises.append(seen[0])
    shift = noises[1] - noises[0]
    assert shift.std(dim=(2, 3)).max() < 1e-5
    assert shift.mean(dim=(2, 3)).std() > 0.05


@pytest.mark.parametrize(("route", "reached"), [("sd_mask", 0.86), ("sd_in_channel", 0.94)])
def test_overfits_one_batch(folder: Path, route: Route, reached: float):
    settings = {"caption_dropout": 0.0, "mask_dropout": 0.0, "min_snr_gamma": None}
    module = small_module(folder, route=route, lora_rank=8, lora_alpha=32, **settings)
    optimizer = torch.optim.AdamW(module.trained_parameters(), lr=5e-3)
    losses = []
    for _ in range(24):
        loss = module.training_step(_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The batch's noise is keyed by its draws and so stays the same: 1.065 falls to 0.81 and 0.89.
    # The frozen weights around LoRA are random, which keeps it from zero.
    assert losses[0] > 1.05
    assert losses[-1] < reached


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("route", ROUTES)
def test_trained_weights_move_and_frozen_ones_stay(folder: Path, route: Route, precision: str):
    module = small_module(folder, route=route, precision=precision)
    before = {name: p.detach().clone() for name, p in module.unet.named_parameters()}
    _fit(module, steps=3)
    frozen = torch.float32 if precision == "32-true" else torch.bfloat16
    for name, parameter in module.unet.named_parameters():
        is_trained = ".lora_" in name or (route == "sd_mask" and name.startswith("conv_in."))
        assert parameter.requires_grad == is_trained, name
        assert parameter.dtype == (torch.float32 if is_trained else frozen), name
        assert torch.equal(parameter, before[name]) != is_trained, name


def test_learning_rate_follows_the_schedule(folder: Path):
    class Record(L.Callback):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    for schedule, expected in (
        ("cosine", [0.5, 1.0, 1.0, 0.75, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
    ):
        record = Record()
        module = small_module(
            folder, lr_schedule=schedule, learning_rate=1e-3, steps=5, warmup_steps=2
        )
        _fit(module, steps=5, callbacks=[record])
        assert record.rates == pytest.approx([1e-3 * share for share in expected], rel=1e-6)


def test_a_loss_that_is_not_finite_is_named(folder: Path):
    module = small_module(folder)
    with torch.no_grad():
        module.trained_parameters()[0].fill_(float("nan"))
    with pytest.raises(
        NonFiniteLossError, match=r"loss is nan at step 0 .*lower stable_diffusion.learning_rate"
    ):
        _fit(module, steps=1)


def test_weights_that_the_last_step_ruins_are_noticed(folder: Path):
    class Ruin(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object):
            module.trained_parameters()[0].data.view(-1)[0] = float("inf")

    with pytest.raises(NonFiniteLossError, match=r"a weight is nan at step 1 .*lower stable_diff"):
        _fit(small_module(folder), steps=1, callbacks=[Ruin()])


def _assert_same_training(first: StableDiffusionModule, second: StableDiffusionModule) -> None:
    mine, theirs = (
        [*m.unet.state_dict().values(), *(m.ema.shadow_params if m.ema else [])]
        for m in (first, second)
    )
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)
    if first.ema is not None:
        assert first.ema.optimization_step == second.ema.optimization_step == 4


@pytest.mark.parametrize(
    ("route", "ema_decay", "precision"),
    [
        ("sd_mask", 0.9, "32-true"),
        ("sd_in_channel", 0.0, "32-true"),
        ("sd_mask", 0.9, "bf16-mixed"),
    ],
)
def test_four_steps_equal_two_and_two_resumed(
    folder: Path, tmp_path: Path, route: Route, ema_decay: float, precision: str
):
    options = {"route": route, "ema_decay": ema_decay, "precision": precision}
    whole = small_module(folder, **options)
    optimizers = _fit(whole, steps=4).optimizers
    half = ModelCheckpoint(dirpath=tmp_path, filename="half", every_n_train_steps=2)
    _fit(small_module(folder, **options), steps=2, callbacks=[half])
    path = tmp_path / "half.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    resumed = small_module(folder, **options)
    assert checkpoint["state_dict"].keys() == resumed._trained_names()
    assert ("ema" in checkpoint) == (ema_decay > 0)
    again = _fit(resumed, steps=4, ckpt_path=path).optimizers
    _assert_same_training(whole, resumed)
    for mine, theirs in zip(
        optimizers[0].state_dict()["state"].values(),
        again[0].state_dict()["state"].values(),
        strict=True,
    ):
        for name, value in mine.items():
            assert torch.equal(value, theirs[name])


def test_a_checkpoint_of_another_generator_is_refused(folder: Path):
    def trained(module: StableDiffusionModule) -> dict[str, torch.Tensor]:
        return {name: p for name, p in module.named_parameters() if p.requires_grad}

    masked, plain = small_module(folder), small_module(folder, route="sd_in_channel")
    with pytest.raises(WeightsError, match=r"sd_in_channel, rank 3\): 1 weights .*conv_in.weight"):
        plain.load_state_dict(trained(masked))
    with pytest.raises(WeightsError, match=r"sd_mask, rank 3\): 2 weights .*unet.conv_in.bias"):
        masked.load_state_dict(trained(plain))
    with pytest.raises(WeightsError, match=r"1 weights are .*extra"):
        plain.load_state_dict({**trained(plain), "extra": torch.zeros(1)})
    wider = small_module(folder, route="sd_in_channel", lora_rank=4)
    with pytest.raises(WeightsError, match=f"{len(trained(plain))} weights are"):
        plain.load_state_dict(trained(wider))
    plain.load_state_dict(trained(plain))


def _in_64_bits(folder: Path, route: Route) -> StableDiffusionModule:
    """Adam makes much of a rounding; in 64 bits what is left is what sharing changes."""
    module = small_module(folder, route=route).double()
    module.ema = EMAModel(module.trained_parameters(), decay=0.9, foreach=True)
    return module


@pytest.mark.parametrize("route", ROUTES)
def test_batch_of_eight_equals_two_of_four_accumulated(folder: Path, route: Route):
    once, twice = _in_64_bits(folder, route), _in_64_bits(folder, route)
    before = [p.detach().clone() for p in once.trained_parameters()]
    _fit(once, steps=2, batch_size=8, precision="64-true")
    _fit(twice, steps=2, batch_size=4, accumulate=2, precision="64-true")
    assert twice.ema.optimization_step == 2
    mine, theirs = ([*m.trained_parameters(), *m.ema.shadow_params] for m in (once, twice))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    moved = zip(before, once.trained_parameters(), strict=True)
    assert max((a - b).abs().max() for a, b in moved) > 1e-4


DDP_SCRIPT = """
import sys
from pathlib import Path
import lightning as L
import torch
from torch.utils.data import DataLoader
from test_stable_diffusion import _Stream, _in_64_bits

# Rank r takes items r, r + 2, ...: together they are the batches of one process.
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    use_distributed_sampler=False, precision="64-true",
)
module = _in_64_bits(Path(sys.argv[1]), sys.argv[2])
rank = trainer.global_rank
trainer.fit(module, DataLoader(_Stream(range(rank, 16, 2)), batch_size=4))
if rank == 0:
    torch.save([*module.ema.shadow_params, *module.trained_parameters()], sys.argv[3])
"""


@pytest.mark.long
@pytest.mark.parametrize("route", ROUTES)
def test_two_processes_equal_one(folder: Path, tmp_path: Path, route: Route):
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
        [sys.executable, script, folder, route, result],
        cwd=root,
        env=environment,
        check=True,
        timeout=300,
    )
    once = _in_64_bits(folder, route)
    _fit(once, steps=2, batch_size=8, precision="64-true")
    mine, theirs = [*once.ema.shadow_params, *once.trained_parameters()], torch.load(result)
    start = _in_64_bits(folder, route).trained_parameters()
    for one, other in zip(mine, theirs, strict=True):
        assert other.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    moved = [(a - b).abs().max() for a, b in zip(start, once.trained_parameters(), strict=True)]
    assert max(moved) > 1e-4
