"""Base models from a folder, a single file and the hub's cache; each mistake refused in a line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from sd_parts import TEXT, UNET, VAE, single_file, tiny_pipeline
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion import base as sd_base
from lightning_modules.generators.stable_diffusion.base import Base, encode_prompts, load_base
from lightning_modules.generators.stable_diffusion.weights import base_id
from lightning_modules.weights_table import DEFAULT_BASE

PROMPT = "An ultrasound image of a fetal head, second trimester."
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copied")


@pytest.fixture
def file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny pipeline as a single file, and its sizes instead of Stable Diffusion 1.5's."""
    for name, settings in (("UNET", UNET), ("VAE", VAE), ("TEXT", TEXT)):
        monkeypatch.setattr(sd_base, f"{name}_SETTINGS", settings)
    shutil.copytree(folder / "tokenizer", tmp_path / "single" / "tokenizer")
    return single_file(folder, tmp_path / "single" / "v1-5.safetensors")


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def _assert_same_networks(first: Base, second: Base) -> None:
    for name in ("unet", "vae", "text_encoder"):
        mine, theirs = (getattr(each, name).state_dict() for each in (first, second))
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, theirs[key]), key


def _refused(base_model: Path | str, said: str) -> None:
    """Refused alike by what loads and by what only names; in one line that says what helps."""
    for refuse in (load_base, base_id):
        with pytest.raises(WeightsError, match=said) as caught:
            refuse(str(base_model))
        assert "\n" not in str(caught.value)


def test_a_folder_is_loaded_frozen_in_eval_mode_and_float32(folder: Path):
    base = load_base(str(folder))
    saved = load_file(folder / UNET_FILE)
    assert base.unet.state_dict().keys() == saved.keys()
    for network in (base.unet, base.vae, base.text_encoder):
        assert not network.training
        for parameter in network.parameters():
            assert parameter.dtype == torch.float32
            assert not parameter.requires_grad
    assert torch.equal(base.unet.conv_in.weight, saved["conv_in.weight"])
    assert base.scheduler_config["beta_end"] == 0.012
    assert base.id == base_id(str(folder))


def test_half_precision_files_are_read_as_float32(copied: Path):
    halved = {name: tensor.half() for name, tensor in load_file(copied / UNET_FILE).items()}
    save_file(halved, copied / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (copied / UNET_FILE).unlink()
    unet = load_base(str(copied)).unet
    assert torch.equal(unet.conv_in.weight, halved["conv_in.weight"].float())


def test_the_vae_s_old_names_are_read(copied: Path, folder: Path):
    """As the hub's Stable Diffusion 1.5 has them."""
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in load_file(path).items():
        for new_part, old_part in old.items():
            name = name.replace(f"attentions.0.{new_part}", f"attentions.0.{old_part}")
        state[name] = tensor
    assert sum("proj_attn" in name for name in state) == 4
    save_file(state, path)
    _assert_same_networks(load_base(str(copied)), load_base(str(folder)))


def test_a_single_file_gives_the_folder_s_networks(folder: Path, file: Path):
    base = load_base(str(file))
    _assert_same_networks(base, load_base(str(folder)))
    assert not any(p.requires_grad for p in base.vae.parameters())
    assert torch.equal(encode_prompts(base, [PROMPT]), encode_prompts(base, [PROMPT, ""])[:1])


def test_the_settings_of_a_single_file_are_those_of_stable_diffusion_1_5():
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in network.parameters())
            for network in (
                UNet2DConditionModel(**sd_base.UNET_SETTINGS),
                AutoencoderKL(**sd_base.VAE_SETTINGS),
                CLIPTextModel(CLIPTextConfig(**sd_base.TEXT_SETTINGS)),
            )
        ]
    # Published sizes: 860M, 84M and 123M.
    assert sizes == [859_520_964, 83_653_863, 123_060_480]


def test_a_hub_name_is_read_from_the_cache(folder: Path, offline_hub: Path):
    model = offline_hub / "models--owner--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    base = load_base("owner/tiny")
    _assert_same_networks(base, load_base(str(folder)))
    assert base.id == base_id("owner/tiny") == "owner/tiny@main"
    assert load_base("owner/tiny", revision=commit).id == f"owner/tiny@{commit}"


def test_a_hub_out_of_reach_is_refused(offline_hub: Path):
    with pytest.raises(WeightsError, match=r"owner/tiny@fp16: no such path.*\.safetensors") as e:
        load_base("owner/tiny", revision="fp16")
    assert "\n" not in str(e.value)


def test_the_id_is_of_the_content(copied: Path, folder: Path, file: Path):
    first = base_id(str(folder))
    assert len(first) == 64
    assert base_id(str(copied)) == first
    assert base_id(str(file)) != first
    (copied / "README.md").write_text("Read by nothing.")
    assert base_id(str(copied)) == first
    state = load_file(copied / UNET_FILE)
    state["conv_in.bias"] += 1
    save_file(state, copied / UNET_FILE)
    changed = base_id(str(copied))
    assert changed != first
    (copied / "tokenizer" / "merges.txt").write_text("#version: 0.2\na n\n")
    assert base_id(str(copied)) not in (first, changed)


def test_naming_needs_no_torch(folder: Path):
    script = (
        "import sys\nfrom lightning_modules.generators.stable_diffusion.weights import base_id\n"
        "print(base_id(sys.argv[1]), 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[4]
    found = subprocess.run(
        [sys.executable, "-c", script, folder], cwd=root, check=True, capture_output=True, text=True
    )
    assert found.stdout.split() == [base_id(str(folder)), "False"]


def test_nothing_given_is_the_default_at_its_commit(
    offline_hub: Path, monkeypatch: pytest.MonkeyPatch
):
    name = f"{DEFAULT_BASE.repo}@{DEFAULT_BASE.revision}"
    assert base_id(None) == name
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = rf"{name}: no such path.*{offline_hub}, and HF_HUB_OFFLINE.*`sonosweep weights fetch"
    with pytest.raises(WeightsError, match=said):
        load_base(None)


def test_a_path_that_is_not_there(tmp_path: Path):
    _refused(tmp_path / "gone", "gone: not there; set stable_diffusion.base_model to a folder")


@pytest.mark.parametrize(
    "missing",
    ["unet/config.json", "scheduler/scheduler_config.json", UNET_FILE, "tokenizer/vocab.json"],
)
def test_a_folder_that_is_not_whole(copied: Path, missing: str):
    (copied / missing).unlink()
    _refused(copied, "missing")


def test_pickles_are_not_run(copied: Path, tmp_path: Path):
    torch.save({}, copied / "unet" / "diffusion_pytorch_model.bin")
    (copied / UNET_FILE).unlink()
    _refused(copied, "its pickles are not run")
    torch.save({}, tmp_path / "v1-5.ckpt")
    _refused(tmp_path / "v1-5.ckpt", "pickles are not run")


def test_files_cut_short(copied: Path, file: Path):
    for path, given in ((copied / UNET_FILE, copied), (file, file)):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        _refused(given, "damaged, cut short")
        path.write_bytes(b"no weights")
        _refused(given, "damaged, cut short")


def _two_encoders(folder: Path) -> None:
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_2")


def _setting(component: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        path = folder / component / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_two_encoders, "two text encoders, as SDXL"),
        (_setting("unet", in_channels=9), "takes 9 channels"),
        (_setting("unet", addition_embed_type="text_time"), "as SDXL"),
        (_setting("unet", cross_attention_dim=24), "another width"),
        (_setting("vae", latent_channels=16), "other latents"),
        (_setting("vae", block_out_channels=[4, 8, 8]), "other latents"),
        (_setting("scheduler", num_train_timesteps=50), "50 steps"),
        (_setting("scheduler", prediction_type="flow"), "predicts flow"),
    ],
)
def test_other_layouts(copied: Path, change: Callable[[Path], None], said: str):
    change(copied)
    _refused(copied, said)


def test_a_config_that_is_no_json(copied: Path):
    (copied / "unet" / "config.json").write_text("{")
    _refused(copied, r"unet/config.json: not readable")


def test_weights_that_do_not_fit_their_config(copied: Path):
    state = load_file(copied / UNET_FILE)
    bias = state.pop("conv_in.bias")
    save_file(state, copied / UNET_FILE)
    with pytest.raises(WeightsError, match=r"1 weights are missing.*conv_in.bias"):
        load_base(str(copied))
    save_file({**state, "conv_in.bias": bias[:4]}, copied / UNET_FILE)
    with pytest.raises(WeightsError) as caught:
        load_base(str(copied))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {"lora_unet_up.weight": torch.zeros(1)}, "no UNet is in it"),
        (lambda s: s | {"conditioner.embedders.0.x": torch.zeros(1)}, "SDXL"),
        (lambda s: {k: v for k, v in s.items() if "cond_stage" not in k}, "CLIP's text encoder"),
        (lambda s: {k: v for k, v in s.items() if "first_stage" not in k}, "the VAE is not in it"),
        (
            lambda s: (
                s | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}
            ),
            "not for 4 channels",
        ),
    ],
)
def test_single_files_of_other_layouts(file: Path, change: Callable[[dict], dict], said: str):
    save_file(change(load_file(file)), file)
    _refused(file, said)


def test_a_single_file_of_another_size(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sd_base, "UNET_SETTINGS", UNET | {"cross_attention_dim": 24})
    with pytest.raises(WeightsError, match="not loadable as Stable Diffusion") as caught:
        load_base(str(file))
    assert "\n" not in str(caught.value)


def test_a_single_file_without_a_tokenizer(file: Path):
    shutil.rmtree(file.parent / "tokenizer")
    _refused(file, r"tokenizer is missing .*vocab.json and merges.txt.*whole folder")


def test_prompts_are_embedded_as_the_pipeline_does(folder: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    prompts = ["", PROMPT, "head"]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
    found = encode_prompts(load_base(str(folder)), prompts)
    assert found.shape == (3, 77, 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found[0] - found[1]).abs().max() > 0.1


def test_prompts_too_long_are_refused_and_none_give_none(folder: Path):
    base = load_base(str(folder))
    # Each letter is a token of the tiny vocabulary; start and end take two.
    assert encode_prompts(base, ["a" * 75]).shape == (1, 77, 16)
    with pytest.raises(WeightsError, match=r"has 78 tokens.* takes 77") as caught:
        encode_prompts(base, ["a" * 76])
    assert "\n" not in str(caught.value)
    assert encode_prompts(base, []).shape == (0, 77, 16)
