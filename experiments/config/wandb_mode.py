"""Whether W&B is used online, offline or not at all. Free of wandb and torch."""

import netrc
import os
import socket
from urllib.parse import urlparse

from experiments.config.schema import WandbConfig

CONNECT_TIMEOUT_S = 3.0


def server_url() -> str:
    """W&B's server: the public one, or that of WANDB_BASE_URL."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def server_answers() -> bool:
    """Whether the server takes a connection; asked first, because wandb itself waits minutes."""
    url = urlparse(server_url())
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def is_logged_in() -> bool:
    """Whether a key for W&B's host is in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(server_url()).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def resolve_mode(config: WandbConfig) -> str:
    """online, offline or disabled; the environment's WANDB_MODE decides where config is auto."""
    if config.mode != "auto":
        return config.mode
    mode = os.environ.get("WANDB_MODE")
    if mode in ("online", "offline", "disabled"):
        return mode
    return "online" if is_logged_in() else "offline"
