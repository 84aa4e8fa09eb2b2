"""Every network trains and predicts where its weights lie, and what it computes is the same there.

The device pretends (`elsewhere.py`), so that a tensor left on the CPU is found without a GPU.
"""

import pixel_parts
import pytest
import sam_parts
import sd_parts
import torch
import unet_parts
from elsewhere import ELSEWHERE, Elsewhere, elsewhere, there

from datamodules.augment import augment_batch
from lightning_modules.generators.pixel.config import SamplerConfig
from lightning_modules.generators.pixel.module import DiffusionModule
from lightning_modules.generators.stable_diffusion.base import load_base
from lightning_modules.generators.stable_diffusion.config import StableDiffusionSamplerConfig
from lightning_modules.prompts import boxes_from_masks
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.unet.module import UnetModule


@pytest.fixture
def device():
    with elsewhere():
        yield ELSEWHERE


def moved(batch):
    """A batch as the datamodule brings it: the stream's positions are not moved."""
    return {key: value if key == "draw" else there(value) for key, value in batch.items()}


def assert_same(found, expected):
    assert isinstance(found, Elsewhere)
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), rtol=1e-4, atol=1e-5)


def train(here, other, batch):
    """A step's loss and gradients of a module here and of its like there."""
    expected, found = here.train().training_step(batch), other.train().training_step(moved(batch))
    assert_same(found, expected)
    expected.backward()
    found.backward()
    pairs = zip(here.parameters(), other.parameters(), strict=True)
    gradients = [(a.grad, b.grad) for a, b in pairs if a.grad is not None]
    assert gradients
    for gradient, counterpart in gradients:
        assert_same(counterpart, gradient)


def test_the_device_keeps_its_tensors_apart(device):
    one, other = torch.ones(3, device=device), torch.ones(3)
    assert (one + 1).sum().item() == 6
    with pytest.raises(RuntimeError, match="two devices"):
        one + other
    assert type(one.cpu()) is torch.Tensor
    assert isinstance(torch.tensor([1, 2], device=device), Elsewhere)
    # Numbers and indices may be of the CPU, as on a GPU.
    assert (one * torch.tensor(2.0))[torch.tensor([0, 2])].tolist() == [2, 2]


@pytest.mark.parametrize("light", [True, False])
def test_the_unet(device, light):
    def make():
        return UnetModule(unet_parts.make_config(light_augmentation=light), seed=0)

    batch = unet_parts.make_batch()
    train(make(), make().to(device), batch)
    make().to(device).validation_step(moved(batch))
    here, there_ = make().eval(), make().to(device).eval()
    with torch.no_grad():
        assert_same(there_.predict(batch), here.predict(batch))


@pytest.mark.parametrize(
    ("backbone", "tuning"),
    [("tiny", "decoder"), ("tiny", "full"), ("vit_tiny", "lora"), ("vit_tiny", "late_lora")],
)
def test_sam(device, backbone, tuning):
    def make():
        return SamModule(sam_parts.make_config(backbone=backbone, tuning=tuning), seed=0)

    batch = sam_parts.make_batch()
    if backbone == "vit_tiny":
        # Masks of 32x32 px, images four times as large.
        batch["mask"], batch["valid_hw"] = batch["mask"][:, :, ::2, ::2], batch["valid_hw"] // 2
        batch["image"] = batch["image"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    train(make(), make().to(device), batch)
    make().to(device).validation_step(moved(batch))
    boxes = boxes_from_masks(batch["mask"] > 0, valid_hw=batch["valid_hw"])
    with torch.no_grad():
        found, expected = (
            m.eval().predict(dict(batch), boxes) for m in (make().to(device), make())
        )
    assert_same(found, expected)


@pytest.mark.parametrize("strength", ["weak", "moderate", "strong"])
def test_augmentation(device, strength):
    batch = sam_parts.make_batch()
    settings = {"strength": strength, "seeds": [3, 1, 4, 1]}
    if strength == "strong":
        settings["extra"] = ("edge_fill", "cut_out")
    found, expected = (
        augment_batch(b["image"], b["mask"], valid_hw=b["valid_hw"], **settings)
        for b in (moved(batch), batch)
    )
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_the_pixel_generator(device):
    def make():
        return DiffusionModule(pixel_parts.make_config(), seed=0)

    image, mask = (
        torch.stack(each) for each in zip(*map(pixel_parts.make_pair, range(4)), strict=True)
    )
    batch = {"image": image, "mask": mask, "draw": torch.arange(4)}
    train(make(), make().to(device), batch)
    sampler = SamplerConfig(num_inference_steps=2)
    found, expected = (
        module.draw_on_masks(masks, seeds=[5, 6, 7, 8], prompts=[""] * 4, sampler=sampler)
        for module, masks in ((make().to(device), there(mask)), (make(), mask))
    )
    assert_same(found, expected)


@pytest.mark.parametrize("route", sd_parts.ROUTES)
def test_stable_diffusion(tmp_path, route):
    sd_parts.tiny_pipeline(tmp_path)
    modules = [sd_parts.moved(sd_parts.small_module(tmp_path, route=route)) for _ in range(2)]
    for module in modules:
        module.keep_base(load_base(str(tmp_path)))
    _, masks = sd_parts.pictures()
    sampler = StableDiffusionSamplerConfig(num_inference_steps=2, batch_size=2)
    settings = {"prompts": sd_parts.PROMPTS, "seeds": [5, 6, 7, 8], "sampler": sampler}
    batch = {"index": torch.tensor([11, 12, 17, 14]), "draw": torch.arange(4)}
    with elsewhere():
        here, other = modules[0], modules[1].to(ELSEWHERE)
        train(here, other, batch)
        expected = here.eval().draw(masks=masks if route == "sd_mask" else None, **settings)
        masks = there(masks) if route == "sd_mask" else None
        found = other.eval().draw(masks=masks, **settings)
        # Thousands of images do not fit beside the networks.
        assert found.device.type == "cpu"
        assert torch.allclose(found, expected, atol=1e-5)
