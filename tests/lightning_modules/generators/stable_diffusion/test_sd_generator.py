"""Fitted Stable Diffusion: drawing, files for diffusers and for us; tiny, on 64x128 images."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from sd_parts import (
    ROUTES,
    SIZE_HW,
    moved,
    pictures,
    small_config,
    small_module,
    tiny_pipeline,
    unet_inputs,
)

from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.base import load_base
from lightning_modules.generators.stable_diffusion.config import Route, StableDiffusionSamplerConfig
from lightning_modules.generators.stable_diffusion.lora import load_trained
from lightning_modules.generators.stable_diffusion.module import (
    StableDiffusionModule,
    load_stable_diffusion,
)
from lightning_modules.generators.stable_diffusion.pipeline import save_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("base"))


def _sampler(**changes: object) -> StableDiffusionSamplerConfig:
    return StableDiffusionSamplerConfig(**({"num_inference_steps": 2} | changes))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_saved_generator_draws_the_same(
    folder: Path, tmp_path: Path, route: Route, precision: str
):
    module = moved(small_module(folder, route=route, precision=precision))
    module.save_generator(tmp_path / "generator")
    module.keep_base(load_base(str(folder)))
    loaded = load_stable_diffusion(tmp_path / "generator", base_model=str(folder))
    assert (loaded.config, loaded.seed, loaded.prompts) == (module.config, 3, module.prompts)
    masks, calls = (pictures()[1][:3] if route == "sd_mask" else None), []
    settings = {"seeds": [5, 6, 2**40], "masks": masks, "sampler": _sampler(batch_size=2)}
    drawn = loaded.draw(
        ["first", "new", ""], **settings, progress=lambda done, total: calls.append((done, total))
    )
    assert drawn.shape == (3, 3, *SIZE_HW)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < drawn.max() <= 1
    assert calls == [(done, 4) for done in range(1, 5)]
    assert torch.equal(module.draw(["first", "new", ""], **settings), drawn)
    again = load_stable_diffusion(tmp_path / "generator")
    assert torch.equal(again.draw(["first", "new", ""], **settings), drawn)
    changed = loaded.draw(["first", "other words", ""], **settings)
    assert torch.equal(changed[2], drawn[2])
    assert not torch.equal(changed[1], drawn[1])
    none = {"seeds": [], "masks": None if masks is None else masks[:0], "sampler": _sampler()}
    assert loaded.draw([], **none).shape == (0, 3, *SIZE_HW)


def test_drawing_uses_averaged_weights_and_leaves_the_others(folder: Path):
    module = moved(small_module(folder))
    module.keep_base(load_base(str(folder)))
    settings = {"seeds": [1], "masks": pictures()[1][:1], "sampler": _sampler()}
    averaged = module.draw(["first"], **settings)
    with torch.no_grad():
        for parameter in module.trained_parameters():
            parameter.zero_()
    assert torch.equal(module.draw(["first"], **settings), averaged)
    assert not any(p.any() for p in module.trained_parameters())
    module.ema = None
    assert not torch.equal(module.draw(["first"], **settings), averaged)


def test_what_cannot_be_drawn_is_refused(folder: Path):
    masked, plain = small_module(folder), small_module(folder, route="sd_in_channel")
    masks = pictures()[1]
    with pytest.raises(RuntimeError, match="no VAE"):
        masked.draw(["a"], seeds=[1], masks=masks[:1], sampler=_sampler())
    for module in (masked, plain):
        module.keep_base(load_base(str(folder)))
    for module, given, seeds in (
        (masked, None, [1]),
        (masked, masks[:2], [1]),
        (masked, masks[:1, :, :, :64], [1]),
        (masked, masks[:1], [1, 2]),
        (plain, masks[:1], [1]),
    ):
        with pytest.raises(ValueError, match="takes masks of shape"):
            module.draw(["a"], seeds=seeds, masks=given, sampler=_sampler())
    with pytest.raises(WeightsError, match="shorter prompt"):
        plain.draw(["x" * 99], seeds=[1], masks=None, sampler=_sampler())


@pytest.mark.parametrize("lora_alpha", [3, 12])
def test_lora_loads_into_diffusers_pipeline(folder: Path, tmp_path: Path, lora_alpha: int):
    module = moved(small_module(folder, route="sd_in_channel", lora_alpha=lora_alpha))
    module.save_generator(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "generator.json",
        "pytorch_lora_weights.safetensors",
    ]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    latents, timesteps, _ = unet_inputs()
    embeddings = module.bank.embeddings
    with torch.no_grad():
        plain = pipeline.unet(latents, timesteps, encoder_hidden_states=embeddings).sample
        pipeline.load_lora_weights(tmp_path)
        found = pipeline.unet(latents, timesteps, encoder_hidden_states=embeddings).sample
        expected = module(latents, timesteps, prompt_embeddings=embeddings, mask_channels=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - plain).abs().max() > 1e-2


@pytest.mark.parametrize("route", ROUTES)
def test_a_whole_pipeline_is_written(folder: Path, tmp_path: Path, route: Route):
    sampler = _sampler(lora_scale=0.9)
    module = moved(small_module(folder, route=route, precision="32-true", sampler=sampler))
    save_pipeline(module, load_base(str(folder)), tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    latents, timesteps, channels = unet_inputs()
    embeddings = module.bank.embeddings
    channels = channels if route == "sd_mask" else None
    seen = latents if channels is None else torch.cat([latents, channels], dim=1)
    with torch.no_grad():
        found = pipeline.unet(seen, timesteps, encoder_hidden_states=embeddings).sample
        # As the generator draws, and not as it is trained.
        drawing = {"encoder_hidden_states": embeddings, "cross_attention_kwargs": {"scale": 0.9}}
        expected = module.unet(seen, timesteps, **drawing).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if route == "sd_in_channel":
        settings = {"height": 64, "width": 128, "num_inference_steps": 2, "output_type": "pt"}
        assert pipeline("first", **settings).images.shape == (1, 3, 64, 128)
    base = load_base(str(folder))
    StableDiffusionModule(small_config(folder), base=base)
    with pytest.raises(ValueError, match="load the base anew"):
        save_pipeline(module, base, tmp_path)


def test_generators_that_cannot_be_used_are_refused(folder: Path, tmp_path: Path):
    generator = tmp_path / "generator"

    def refused(said: str, base_model: Path | None = folder) -> None:
        given = None if base_model is None else str(base_model)
        with pytest.raises(WeightsError, match=said) as caught:
            load_stable_diffusion(generator, base_model=given)
        assert "\n" not in str(caught.value)

    refused("no generator here")
    small_module(folder).save_generator(generator)
    refused("fitted on another base model", tiny_pipeline(tmp_path / "other", seed=1))
    settings = generator / "generator.json"
    content = json.loads(settings.read_text())
    for base_model, said in (
        (None, "another base model than stable-diffusion-v1-5/stable-diffusion-v1-5"),
        (str(tmp_path / "gone"), "gone: not there"),
        (str(tmp_path / "other"), "fitted on another base model"),
    ):
        config = {**content["config"], "base_model": base_model}
        settings.write_text(json.dumps({**content, "config": config}))
        refused(said, None)
    assert content["config"]["size_hw"] == list(SIZE_HW)
    assert content["prompts"] == ["", "first", "second"]
    settings.write_text(json.dumps({**content, "config": {**content["config"], "lora_rank": 4}}))
    refused("another UNet, rank or route")
    settings.write_text(json.dumps({**content, "config": {"unknown": 1}}))
    refused(r"generator\.json: damaged")
    settings.write_text("{")
    refused(r"generator\.json: not readable")


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "conv_in.safetensors"])
def test_weights_that_cannot_be_used_are_refused(folder: Path, tmp_path: Path, name: str):
    module = moved(small_module(folder))
    module.save_generator(tmp_path)
    unet, path = small_module(folder, seed=4).unet, tmp_path / name
    content, state = path.read_bytes(), load_file(path)

    def refused(said: str) -> None:
        with pytest.raises(WeightsError, match=said) as caught:
            load_trained(unet, tmp_path)
        assert "\n" not in str(caught.value)

    path.unlink()
    refused(f"{name} is missing")
    path.write_bytes(content[:-5])
    refused("damaged or cut short")
    torch.save(state, path)
    refused("damaged or cut short")
    first, *others = state
    save_file({key: state[key] for key in others}, path)
    refused(f"another UNet, rank or route: 1 names or shapes do not fit, such as {first}")
    save_file({**state, "extra": torch.zeros(1)}, path)
    refused("1 names or shapes do not fit, such as extra")
    save_file({**state, first: state[first].flatten()[:2]}, path)
    refused(f"1 names or shapes do not fit, such as {first}")
    path.write_bytes(content)
    load_trained(unet, tmp_path)
    for mine, theirs in zip(unet.parameters(), module.unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)
