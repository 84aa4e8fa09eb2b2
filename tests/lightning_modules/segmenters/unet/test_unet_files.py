"""A U-Net's files come back as they were, and its settings are checked."""

import math
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from unet_parts import (
    FIRST_WEIGHT,
    make_batch,
    make_config,
)

import lightning_modules.segmenters.unet.module as unet
from lightning_modules.errors import WeightsError
from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.segmenters.unet.module import (
    UnetModule,
)


def test_saved_unet_predicts_bit_equal(tmp_path):
    config = make_config()
    module = UnetModule(config, seed=5)
    # Statistics that differ from the initial ones, so that they must be in the file.
    module.train()(make_batch()["image"])
    module.save(tmp_path / "unet.safetensors")
    loaded = UnetModule.load(tmp_path / "unet.safetensors", config)
    assert loaded.config == config
    assert loaded.seed == 5
    assert not loaded.training
    image = make_batch(first=50)["image"]
    assert torch.equal(loaded(image), module.eval()(image))


def test_loading_does_not_ask_for_pretrained_weights(tmp_path, monkeypatch):
    config = make_config()
    module = UnetModule(config)
    module.config = replace(config, encoder_weights="imagenet")
    module.save(tmp_path / "unet.safetensors")
    asked = []
    build = unet.smp.Unet
    monkeypatch.setattr(
        unet.smp, "Unet", lambda **key: asked.append(key["encoder_weights"]) or build(**key)
    )
    loaded = UnetModule.load(tmp_path / "unet.safetensors", module.config)
    assert asked == [None]
    assert loaded.config.encoder_weights == "imagenet"


def test_pretrained_weights_that_cannot_be_had_are_one_line(monkeypatch):
    def fail(**_):
        raise OSError("no route\nto host")

    monkeypatch.setattr(unet.smp, "Unet", fail)
    with pytest.raises(
        WeightsError, match="imagenet of tu-resnet10t cannot be loaded: no route to host"
    ):
        UnetModule(make_config(encoder_weights="imagenet"))


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    config, path = make_config(), tmp_path / "unet.safetensors"
    with pytest.raises(WeightsError, match="no U-Net here"):
        UnetModule.load(path, config)
    UnetModule(config).save(path)
    with pytest.raises(WeightsError, match=r"fitted with steps=4, not 5"):
        UnetModule.load(path, replace(config, steps=5))
    settings = {"config": unet.json.dumps(asdict(config)), "seed": "0"}
    state = load_file(path)
    state.pop(FIRST_WEIGHT)
    save_file(state, path, metadata=settings)
    with pytest.raises(WeightsError, match="damaged U-Net"):
        UnetModule.load(path, config)
    save_file(state, path)
    with pytest.raises(WeightsError, match="damaged U-Net"):
        UnetModule.load(path, config)
    path.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="damaged U-Net"):
        UnetModule.load(path, config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_name", "resnet19"),
        ("encoder_weights", "instagram"),
        ("precision", "16"),
        ("size_hw", (54, 80)),
        ("size_hw", (64,)),
        ("size_hw", (0, 64)),
        ("decoder_channels", (8, 8)),
        ("decoder_channels", (8, 8, 8, 8, 0)),
        ("steps", 0),
        ("batch_size", 0),
        ("warmup_steps", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("weight_decay", -1.0),
        ("flip_probability", 1.5),
        ("max_rotation_deg", -1.0),
        ("max_scale", 0.9),
        ("max_shift", 0.6),
        ("max_brightness_gamma", 0.5),
        ("max_contrast", math.nan),
    ],
)
def test_settings_that_cannot_run_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"^{key}=.*: (unknown|(height and width )?must be)"):
        UnetConfig(**{key: value})


def test_settings_pass_through_omegaconf_and_json():
    merged = OmegaConf.merge(
        OmegaConf.structured(UnetConfig),
        OmegaConf.from_dotlist(["size_hw=[64, 96]", "encoder_weights=imagenet"]),
    )
    config = OmegaConf.to_object(merged)
    assert config == UnetConfig(size_hw=(64, 96), encoder_weights="imagenet")
    assert UnetConfig(**unet.json.loads(unet.json.dumps(asdict(config)))) == config


def test_settings_are_free_of_torch():
    code = "import sys, lightning_modules.segmenters.unet.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
