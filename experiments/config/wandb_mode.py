"""Whether W&B is used online, offline or not at all. Free of wandb and torch."""

import configparser
import netrc
import os
import socket
from pathlib import Path
from urllib.parse import urlparse

from datamodules.errors import InputError
from experiments.config.schema import WandbConfig

CONNECT_TIMEOUT_S = 3.0
MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
MODES |= {"disabled": "disabled"}
"""W&B's words for its modes, and what they stand for."""


def server_url() -> str:
    """W&B's server: WANDB_BASE_URL's, or that of `wandb login --host`, or the public one."""
    found = [os.environ.get("WANDB_BASE_URL"), *(_said(f, "base_url") for f in _settings_files())]
    return next(filter(None, found), "https://api.wandb.ai")


def server_answers() -> bool:
    """Whether the server takes a connection; asked first, because wandb itself waits minutes."""
    try:
        url = urlparse(server_url())
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError):  # The latter where the address is none: its port, its host.
        return False
    return True


def is_logged_in() -> bool:
    """Whether W&B has a key or a token: of the environment, of ~/.netrc or what NETRC names, or of
    its own settings."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    if any(_said(path, "api_key") for path in _settings_files()):
        return True
    # As W&B does: under the server's name and port, and in a file that others may read too, which
    # Python refuses where it finds the file by itself.
    path = os.path.expanduser(os.environ.get("NETRC") or "~/.netrc")  # noqa: PTH111
    try:
        return netrc.netrc(path).authenticators(urlparse(server_url()).netloc) is not None
    except (OSError, ValueError, netrc.NetrcParseError):  # The second where it is not in UTF-8.
        return False


def resolve_mode(config: WandbConfig) -> str:
    """online, offline or disabled, see `mode_and_source`."""
    return mode_and_source(config)[0]


def mode_and_source(config: WandbConfig) -> tuple[str, str]:
    """The mode, online, offline or disabled, and in a few words what decided it.

    Where the recipe says `auto`, it is W&B's own: WANDB_MODE in any case, then what `wandb offline`
    or `wandb disabled` wrote for this folder, then for this user. Where these say nothing, or the
    file says online, the login decides.

    Raises:
        InputError: For a mode that W&B does not have.
    """
    if config.mode != "auto":
        return config.mode, f"wandb.mode={config.mode}"
    said = os.environ.get("WANDB_MODE", "").strip()
    if said:
        return _known_mode(said, where="WANDB_MODE"), f"WANDB_MODE={said}"
    for path in _settings_files():
        said = _said(path, "mode")
        if said:
            mode = _known_mode(said, where=f"{path}: mode")
            if mode != "online":
                return mode, str(path)
            break
    return ("online", "logged in") if is_logged_in() else ("offline", "not logged in")


def _known_mode(said: str, *, where: str) -> str:
    if said.lower() not in MODES:
        raise InputError(f"{where}={said}: W&B has no such mode; use online, offline or disabled")
    return MODES[said.lower()]


def _settings_files() -> list[Path]:
    """Where W&B's own commands keep settings: of this folder first, then of the user."""
    folder = Path(os.environ.get("WANDB_DIR") or ".")
    hidden = folder / ".wandb"
    own = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    return [
        (hidden if hidden.exists() else folder / "wandb") / "settings",
        Path(os.path.expanduser(own)) / "settings",  # noqa: PTH111 - Path's raises without a home
    ]


def _said(path: Path, name: str) -> str:
    """A setting of a settings file; empty where it says none or cannot be read."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text())
        return parser.get("default", name, fallback="").strip()
    except (OSError, ValueError, configparser.Error):
        return ""
