"""Whether W&B is used online, offline or not at all. Free of wandb and torch."""

import netrc
import os
from urllib.parse import urlparse

from experiments.config import WandbConfig


def is_logged_in() -> bool:
    """Whether a key for W&B's host is in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
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
