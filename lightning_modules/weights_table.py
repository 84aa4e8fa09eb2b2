"""Published weights by name: where they come from, where they lie, whether they are whole.

Free of torch, and of the network: who fetches them is `sonosweep weights` and a sweep's start.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lightning_modules.errors import MissingWeightsError, WeightsError

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A checkpoint that is one file."""

    file: str
    """As it is published."""
    url: str
    size_bytes: int | None
    """None where it is not published."""
    md5: str
    """How its MD5 begins, hexadecimal; empty where none is published: then the SHA-256 of what
    came first is kept beside the file."""
    licence: str

    @property
    def what(self) -> str:
        """Its name and size for people."""
        size = "size unknown" if self.size_bytes is None else f"{self.size_bytes / _MIB:.0f} MiB"
        return f"{self.file} ({size})"


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model of several files on Hugging Face's hub."""

    repo: str
    revision: str
    """A commit, so that the name stands for one content."""
    licence: str


@dataclass(frozen=True, kw_only=True)
class StartWeights:
    """The file or model that a network of some settings starts from."""

    what: str
    """For people."""
    find: Callable[[], Path | None]
    """Where it lies, None where it is to be fetched; WeightsError where it cannot be used."""
    fetch: str = ""
    """What `sonosweep weights fetch` calls it; "" where that does not have it."""


_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM_LICENCE = "Segment Anything (Meta AI): Apache-2.0"

WEIGHTS: dict[str, WeightsFile] = {
    "vit_b": WeightsFile(
        file="sam_vit_b_01ec64.pth",
        url=f"{_SAM_URL}/sam_vit_b_01ec64.pth",
        size_bytes=375_042_383,
        md5="01ec64",
        licence=_SAM_LICENCE,
    ),
    "vit_l": WeightsFile(
        file="sam_vit_l_0b3195.pth",
        url=f"{_SAM_URL}/sam_vit_l_0b3195.pth",
        size_bytes=1_249_524_607,
        md5="0b3195",
        licence=_SAM_LICENCE,
    ),
    "vit_h": WeightsFile(
        file="sam_vit_h_4b8939.pth",
        url=f"{_SAM_URL}/sam_vit_h_4b8939.pth",
        size_bytes=2_564_550_879,
        md5="4b8939",
        licence=_SAM_LICENCE,
    ),
    "medsam": WeightsFile(
        file="medsam_vit_b.pth",
        url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth?download=1",
        size_bytes=None,
        md5="",
        licence="MedSAM (Ma et al.): Apache-2.0",
    ),
}
"""By `segmenter.backbone`. The names of SAM's files end in the beginning of their MD5."""
HUB: dict[str, HubModel] = {
    "stable-diffusion-v1-5": HubModel(
        repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        licence="Stable Diffusion 1.5: CreativeML OpenRAIL-M, with restrictions on its use",
    ),
}
DEFAULT_BASE = HUB["stable-diffusion-v1-5"]
"""What `stable_diffusion.base_model` is where nothing is given."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network, as the hub's own library reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def checkpoints_folder() -> Path:
    """The cache that `torch.hub` shares between projects."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def find_cached(name: str) -> Path:
    """Find a file of the table in the cache; of its content only the size is looked at.

    Raises:
        MissingWeightsError: It is not there.
        WeightsError: A file of another size has its name.
    """
    row, path = WEIGHTS[name], checkpoints_folder() / WEIGHTS[name].file
    if not path.is_file():
        where = f"{name} needs {row.what}, which is not in {path.parent}"
        if is_offline():
            remedy = f"`sonosweep weights fetch {name}` without it fetches the file"
            where = f"{where}, and HF_HUB_OFFLINE forbids the network"
        else:
            remedy = f"`sonosweep weights fetch {name}` fetches it"
        raise MissingWeightsError(
            f"{where}; {remedy}, segmenter.weights_path=/path/to/it names a file of yours",
            name=name,
        )
    size = path.stat().st_size
    if row.size_bytes is not None and size != row.size_bytes:
        raise _not_that_file(path, name, f"{size} bytes instead of {row.size_bytes}")
    return path


def verify_cached(name: str) -> Path:
    """Find a file of the table in the cache and read it whole: its MD5, or the SHA-256 beside it.

    Raises:
        MissingWeightsError: It is not there.
        WeightsError: It is another file.
    """
    row, path = WEIGHTS[name], find_cached(name)
    if row.md5:
        found = file_digest(path, "md5")
        if not found.startswith(row.md5):
            raise _not_that_file(path, name, f"its MD5 is {found}, not {row.md5}...")
    elif (kept := sha256_file(path)).is_file():
        found, wanted = file_digest(path, "sha256"), kept.read_text().split()[:1]
        if [found] != wanted:
            raise _not_that_file(path, name, f"its SHA-256 is {found}, not that of {kept.name}")
    return path


def packaged_path(package: str, *parts: str, what: str) -> Path:
    """Where a file lies in a package that carries weights; the package is not imported.

    Raises:
        WeightsError: The package is not installed.
    """
    # A package's own __init__ may import torch.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"the package {package.replace('_', '-')}, which carries {what}, is not installed: "
            "run `make setup`"
        )
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


def sha256_file(path: Path) -> Path:
    """Where the SHA-256 of a file without a published checksum is kept, as sha256sum writes it."""
    return path.with_name(f"{path.name}.sha256")


def file_digest(path: Path, kind: str) -> str:
    """Checksum of a file, computed once in this process while size and time of change stay.

    Raises:
        WeightsError: Not readable.
    """
    try:
        stat = path.stat()
        return _digest(path, kind, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}; make it readable") from error


@lru_cache(maxsize=64)
def _digest(path: Path, kind: str, size: int, changed_ns: int) -> str:  # noqa: ARG001 - a new file
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _not_that_file(path: Path, name: str, why: str) -> WeightsError:
    return WeightsError(
        f"{path}: not the published weights of {name} ({why}); move it away, then "
        f"`sonosweep weights fetch {name}`"
    )
