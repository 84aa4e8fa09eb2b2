"""Whether W&B is on: what its own commands and variables switch off is off."""

import pytest
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.config.running import WandbConfig
from experiments.config.wandb_mode import mode_and_source, resolve_mode
from experiments.doctor.needs import check_wandb


@pytest.fixture(autouse=True)
def logged_in(tmp_path, monkeypatch):
    """A user with a key, in an empty folder."""
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def write_mode(folder, mode):
    folder.mkdir(parents=True)
    (folder / "settings").write_text(f"[default]\nmode = {mode}\n")


@pytest.mark.parametrize(
    ("said", "mode"),
    [("dryrun", "offline"), ("DryRun", "offline"), ("OFFLINE", "offline"), ("run", "online"),
     ("Disabled", "disabled"), ("disabled", "disabled"), ("", "online"), ("online", "online")],
)  # fmt: skip
def test_the_variable_in_any_case(monkeypatch, said, mode):
    monkeypatch.setenv("WANDB_MODE", said)
    assert resolve_mode(WandbConfig()) == mode
    assert resolve_mode(WandbConfig(mode="online")) == "online"


@pytest.mark.parametrize("where", ["wandb", ".wandb", "home/.config/wandb"])
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_what_wandbs_commands_wrote(tmp_path, monkeypatch, where, mode):
    write_mode(tmp_path / where, mode)
    found, source = mode_and_source(WandbConfig())
    assert found == mode
    assert source.endswith(f"{where}/settings")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert mode_and_source(WandbConfig()) == ("online", "WANDB_MODE=online")


def test_the_folders_file_stands_above_the_users(tmp_path):
    write_mode(tmp_path / "home/.config/wandb", "disabled")
    write_mode(tmp_path / "wandb", "online")
    assert mode_and_source(WandbConfig()) == ("online", "logged in")


def test_a_mode_that_nobody_knows_is_refused(tmp_path, monkeypatch):
    write_mode(tmp_path / "wandb", "maybe")
    with pytest.raises(InputError, match=r"wandb/settings: mode=maybe: W&B has no such mode"):
        resolve_mode(WandbConfig())
    monkeypatch.setenv("WANDB_MODE", "offlin")
    with pytest.raises(InputError, match=r"WANDB_MODE=offlin: .* use online, offline or disabled"):
        resolve_mode(WandbConfig())


def test_doctor_names_a_mode_that_nobody_knows(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offlin")
    found = check_wandb(load_config(TOY, []))
    assert found.mark == "missing"
    assert found.text.startswith("WANDB_MODE=offlin: W&B has no such mode")
