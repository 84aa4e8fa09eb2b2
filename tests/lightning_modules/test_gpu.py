"""What only a GPU runs: captured graphs, half-precision attention, items that lie there."""

import copy

import lightning as L
import pytest
import torch
from peft import LoraConfig
from sd_parts import UNET
from torch.utils.data import DataLoader, Dataset

from lightning_modules.captured import MOST_SHAPES, CapturedCall
from lightning_modules.generators.stable_diffusion import sampling as sd_sampling
from lightning_modules.generators.stable_diffusion.base import SCHEDULER_SETTINGS
from lightning_modules.generators.stable_diffusion.config import StableDiffusionSamplerConfig
from lightning_modules.segmenters.sam.attention import use_stock_attention
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.sam.network import random_vit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = 6


class Embedded(Dataset):
    """Random embeddings with ellipses; the last batch has fewer rows of image."""

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        mask = ((y - 20 - index % 5) / 11) ** 2 + ((x - 30) / 17) ** 2 <= 1
        return {
            "embedding": torch.randn(256, 16, 16, generator=generator).half(),
            "mask": mask[None].float(),
            "valid_hw": torch.tensor([43 - (index > 20), 64]),
            "draw": index,
        }

    def __len__(self) -> int:
        return 4 * STEPS


class Kept(L.LightningDataModule):
    """Draws stay on the CPU, as `HC18DataModule` leaves them."""

    def train_dataloader(self):
        return DataLoader(Embedded(), batch_size=4)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved | {"draw": batch["draw"]}


def fitted(tmp_path, *, captures: bool, precision: str) -> tuple[SamModule, list[float]]:
    config = SegmenterConfig(
        backbone="tiny", steps=STEPS, learning_rate=1e-3, warmup_steps=1, batch_size=4
    )
    module = SamModule(config, seed=3, captures=captures)
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            losses.append(outputs["loss"].item())

    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="gpu",
        devices=1,
        precision=precision,
        max_epochs=1,
        logger=False,
        callbacks=[Losses()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=Kept())
    return module.cpu(), losses


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 2e-2)])
def test_a_captured_training_gives_the_same_weights(tmp_path, precision, tolerance):
    eager, expected = fitted(tmp_path, captures=False, precision=precision)
    captured, losses = fitted(tmp_path, captures=True, precision=precision)
    assert len(captured._captured._captured) == 1
    assert not eager._captured._captured
    assert losses == pytest.approx(expected, rel=tolerance)
    start = SamModule(captured.config).state_dict()
    moved = 0
    for name, value in captured.state_dict().items():
        assert torch.allclose(value, eager.state_dict()[name], atol=tolerance), name
        moved += not torch.equal(value, start[name])
    assert moved > 20


def test_a_captured_training_repeats_bit_by_bit(tmp_path):
    one, first = fitted(tmp_path, captures=True, precision="32-true")
    other, second = fitted(tmp_path, captures=True, precision="32-true")
    assert first == second
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_attention_in_half_precision_is_the_stock_one():
    fast = random_vit("vit_b").image_encoder.eval().cuda()
    for block in fast.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_h, std=0.05)
        torch.nn.init.normal_(block.attn.rel_pos_w, std=0.05)
    stock = use_stock_attention(copy.deepcopy(fast))
    image = torch.randn(2, 3, 1024, 1024, device="cuda")
    with torch.no_grad():
        expected = stock(image)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            half, stock_half = fast(image).float(), stock(image).float()
    scale = expected.abs().max()
    own = (half - expected).abs().max() / scale
    # No further from float32 than the stock attention in the same precision.
    assert own < 1.5 * (stock_half - expected).abs().max() / scale
    assert own < 0.05


def test_a_captured_call_takes_new_values_and_shapes():
    calls = []

    def function(a, b):
        calls.append(a.shape)
        return (a * b).sum(dim=1)

    captured = CapturedCall(function)
    for n in range(1, MOST_SHAPES + 2):
        for value in (1.0, 2.0):
            a = torch.full((n, 3), value, device="cuda")
            assert captured(a, a).tolist() == [3 * value**2] * n
    # Three calls to capture each shape, and eager ones beyond the last.
    assert len(calls) == 3 * MOST_SHAPES + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drawing_by_a_graph_equals_drawing_without(monkeypatch, dtype):
    torch.manual_seed(0)
    unet = sd_sampling.UNet2DConditionModel(**UNET).eval()
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"]))
    unet.to("cuda", dtype)
    given = {
        "seeds": range(5),
        "prompt_embeddings": torch.randn(5, 7, 16),
        "empty_embedding": torch.randn(1, 7, 16),
        "mask_channels": None,
        "latent_hw": (8, 16),
        "sampler": StableDiffusionSamplerConfig(
            num_inference_steps=4, guidance_scale=3.0, lora_scale=0.9, batch_size=2
        ),
        "scheduler_config": SCHEDULER_SETTINGS,
    }
    found = sd_sampling.draw_latents(unet, **given)
    monkeypatch.setattr(sd_sampling, "CapturedCall", lambda function: function)
    expected = sd_sampling.draw_latents(unet, **given)
    assert found.shape == (5, 4, 8, 16)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(found, expected, atol=tolerance)
    monkeypatch.undo()
    monkeypatch.setattr(sd_sampling, "COMPILING_PAYS_FROM", 0)
    compiled = sd_sampling.draw_latents(unet, **given)
    assert torch.allclose(compiled, expected, atol=10 * tolerance)
