"""Whether W&B is on: what its own commands and variables switch off is off."""

import pytest
from toy_recipe import TOY
from wandb.sdk.lib.wbauth.wbnetrc import read_netrc_auth, write_netrc_auth

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.config.running import WandbConfig
from experiments.config.wandb_mode import (
    is_logged_in,
    mode_and_source,
    resolve_mode,
    server_answers,
    server_url,
)
from experiments.doctor.needs import check_wandb


@pytest.fixture(autouse=True)
def logged_in(tmp_path, monkeypatch):
    """A user with a key, in an empty folder."""
    names = ("BASE_URL", "CONFIG_DIR", "DIR", "IDENTITY_TOKEN_FILE", "MODE")
    for name in ("NETRC", *(f"WANDB_{name}" for name in names)):
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


def test_a_server_of_ones_own_as_wandb_login_writes_it(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    url, home = "http://wandb.lab:8080", tmp_path / "home"
    settings = home / ".config/wandb/settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\nbase_url = {url}\n")
    assert server_url() == url
    assert resolve_mode(WandbConfig()) == "offline"
    write_netrc_auth(host=url, api_key=40 * "0")
    (home / ".netrc").chmod(0o644)
    assert read_netrc_auth(host=url), "W&B itself finds it"
    assert mode_and_source(WandbConfig()) == ("online", "logged in")
    (home / ".netrc").rename(tmp_path / "keys")
    assert not is_logged_in()
    monkeypatch.setenv("NETRC", str(tmp_path / "keys"))
    assert is_logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "http://other")
    assert server_url() == "http://other"
    assert not is_logged_in()
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    assert is_logged_in()


def test_an_address_or_a_file_that_cannot_be_read_is_no_server_and_no_key(tmp_path, monkeypatch):
    for url in ("http://wandb.lab:eighty", "http://" + 70 * "a" + ".lab", "http://[::1"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert not server_answers()
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "keys").write_bytes("# f\u00fcr".encode("latin-1"))
    monkeypatch.setenv("NETRC", str(tmp_path / "keys"))
    assert mode_and_source(WandbConfig()) == ("offline", "not logged in")


def test_a_key_in_wandbs_own_settings_is_one(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert not is_logged_in()
    (tmp_path / "settings").write_text(f"[default]\napi_key = {40 * 'a'}\n")
    assert is_logged_in()


def test_doctor_names_a_mode_that_nobody_knows(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offlin")
    found = check_wandb(load_config(TOY, []))
    assert found.mark == "missing"
    assert found.text.startswith("WANDB_MODE=offlin: W&B has no such mode")
