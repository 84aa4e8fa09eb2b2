"""Latents of Stable Diffusion encoded once, and what an item of the training takes of them."""

from pathlib import Path

import pytest
import torch
from sd_parts import (
    PROMPTS,
    ROUTES,
    ROWS,
    encoded_bank,
    pictures,
    small_config,
    tiny_pipeline,
)

from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.base import encode_prompts, load_base
from lightning_modules.generators.stable_diffusion.config import Route
from lightning_modules.generators.stable_diffusion.latents import training_inputs
from lightning_modules.generators.stable_diffusion.module import (
    LatentBank,
    StableDiffusionModule,
    encode_bank,
)
from lightning_modules.generators.stable_diffusion.sampling import mask_channels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("route", ROUTES)
def test_cached_latents_equal_fresh_ones(folder: Path, route: Route):
    base = load_base(str(folder))
    bank = encoded_bank(base, route)
    images, masks = pictures()
    third = images if route == "sd_mask" else 1 - masks
    for row in range(4):
        picture = torch.cat([images[row], images[row], third[row]])[None] * 2 - 1
        for side, seen in enumerate((picture, torch.flip(picture, dims=[3]))):
            with torch.no_grad():
                posterior = base.vae.encode(seen).latent_dist
            assert bank.mean[row, side].shape == (4, 8, 16)
            torch.testing.assert_close(bank.mean[row, side], posterior.mean[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(bank.std[row, side], posterior.std[0], rtol=1e-4, atol=1e-6)
    assert (bank.mean[:, 0] - bank.mean[:, 1]).abs().max() > 1e-2
    assert bank.prompts == ("", "first", "second")
    assert bank.prompt_rows.tolist() == [1, 2, 1, 0]
    assert torch.equal(bank.embeddings, encode_prompts(base, ["", "first", "second"]))
    assert torch.equal(bank.masks.float(), masks)
    assert torch.equal(encoded_bank(base, route, batch_size=4).masks, bank.masks)


def test_a_saved_bank_is_the_same_bank(folder: Path, tmp_path: Path):
    bank = encoded_bank(load_base(str(folder)))
    path = tmp_path / "latents.safetensors"
    bank.save(path)
    loaded = LatentBank.load(path, rows=ROWS)
    for name in ("mean", "std", "masks", "prompt_rows", "embeddings"):
        mine, theirs = getattr(bank, name), getattr(loaded, name)
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    assert (loaded.prompts, loaded.rows) == (bank.prompts, ROWS)
    assert [p.name for p in tmp_path.iterdir()] == ["latents.safetensors"]
    with pytest.raises(WeightsError, match="latents of 4 images, not of 1"):
        LatentBank.load(path, rows={11: 0})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="damaged latents"):
        LatentBank.load(path, rows=ROWS)


def test_inputs_that_do_not_belong_together_are_refused(folder: Path):
    base, (images, masks) = load_base(str(folder)), pictures()
    good = {
        "images": images,
        "masks": masks,
        "outlines": None,
        "prompts": PROMPTS,
        "rows": ROWS,
        "route": "sd_mask",
        "batch_size": 2,
    }
    for change, said in (
        ({"outlines": masks}, "takes no outlines"),
        ({"route": "sd_in_channel"}, "takes outlines"),
        ({"masks": masks[:, :, :32]}, "do not belong together"),
        ({"prompts": PROMPTS[:3]}, "and 3 prompts"),
    ):
        with pytest.raises(ValueError, match=said):
            encode_bank(base, **(good | change))
    with pytest.raises(WeightsError, match="takes 77; use a shorter prompt"):
        encode_bank(base, **(good | {"prompts": ["x" * 99] * 4}))
    none = {"images": images[:0], "masks": masks[:0], "prompts": [], "rows": {}}
    empty = encode_bank(base, **(good | none))
    assert empty.mean.shape == (0, 2, 4, 8, 16)
    assert empty.prompts == ("",)
    with pytest.raises(ValueError, match="which needs"):
        StableDiffusionModule(small_config(folder, size_hw=(64, 64)), base=base).set_bank(empty)


def test_each_item_is_resampled_mirrored_and_dropped_by_its_draw(folder: Path):
    bank = encoded_bank(load_base(str(folder)))
    config = small_config(folder, flip_probability=0.5, caption_dropout=0.3, mask_dropout=0.2)
    draws, index = torch.arange(400), torch.full((400,), 12)
    key = {"seed": 5, "config": config, "scaling_factor": 2.0}
    latents, embeddings, channels = training_inputs(bank, index=index, draws=draws, **key)
    is_empty = (embeddings == bank.embeddings[0]).all(dim=(1, 2))
    is_dropped = ~channels.any(dim=(1, 2, 3))
    straight, mirrored = (mask_channels(m) for m in (bank.masks[1:2], bank.masks[1:2].flip(-1)))
    is_straight = (channels == straight).all(dim=(1, 2, 3))
    is_mirrored = (channels == mirrored).all(dim=(1, 2, 3))
    assert (is_straight | is_mirrored | is_dropped).all()
    assert (embeddings[~is_empty] == bank.embeddings[2]).all()
    # Masks are dropped only where captions are.
    assert is_empty[is_dropped].all()
    for share, found in ((0.3, is_empty), (0.2, is_dropped), (0.4, is_straight)):
        assert found.float().mean().item() == pytest.approx(share, abs=0.08)
    # Latents go with their mask, and scatter around the posterior's mean by its spread.
    for side, chosen in ((0, is_straight), (1, is_mirrored)):
        scores = (latents[chosen] / 2 - bank.mean[1, side]) / bank.std[1, side]
        assert scores.mean().item() == pytest.approx(0, abs=0.02)
        assert scores.std().item() == pytest.approx(1, abs=0.02)
    part = training_inputs(bank, index=index[7:9], draws=draws[7:9], **key)
    for mine, whole in zip(part, (latents, embeddings, channels), strict=True):
        assert torch.equal(mine, whole[7:9])
    none = training_inputs(bank, index=index[:0], draws=draws[:0], **key)
    assert [len(each) for each in none] == [0, 0, 0]
    with pytest.raises(ValueError, match="index 99 has no latents"):
        training_inputs(bank, index=torch.tensor([99]), draws=draws[:1], **key)
