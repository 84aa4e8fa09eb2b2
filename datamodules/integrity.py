"""What files were when they were written, so that damage is found before they are read again.

Torch-free. Size and SHA-256 of each file stand in the marker of a run or of prepared images
(`DONE.json`) and of a sweep's outputs (`outputs.json`), which names a hash of itself; files of
before have neither, and are taken as they are.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datamodules.storage import content_key, file_sha256

FILES, SELF = "files", "content_key"
"""Keys of a marker: facts of files by name, and the hash of all else in it."""
HASHED_BELOW = 64 * 2**20
"""A run's files from this size on, bytes, are compared by their size alone."""


def file_facts(
    folder: Path, names: Iterable[str], *, hashed_below: float = HASHED_BELOW
) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of files in a folder; what vanishes meanwhile is left out."""
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        path = folder / name
        try:
            size = path.stat().st_size
            known = {"bytes": size}
            facts[name] = known | ({"sha256": file_sha256(path)} if size < hashed_below else {})
        except FileNotFoundError:
            continue
    return facts


def damaged_file(folder: Path, facts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first file that is missing or other than it was, with what is wrong; None for none."""
    for name, known in facts.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != known["bytes"]:
                return f"{name} has {size} bytes instead of {known['bytes']}"
            if "sha256" in known and file_sha256(path) != known["sha256"]:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
    return None


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a marker with the hash of itself; ValueError for what JSON cannot hold."""
    # As it will be read: keys that are numbers are text then.
    plain = json.loads(json.dumps(dict(content), allow_nan=False))
    return plain | {SELF: content_key(plain)}


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where it is missing, half written or something else."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_sealed(path: Path) -> dict[str, Any] | None:
    """A marker without its hash; None where it is missing, cannot be read or is not that hash's."""
    content = read_object(path)
    return None if content is None else unsealed(content)


def unsealed(content: dict[str, Any]) -> dict[str, Any] | None:
    """What `sealed` was given; None where it is not that any more. Without a hash all passes."""
    plain = {key: value for key, value in content.items() if key != SELF}
    return None if content_key(plain) != content.get(SELF, content_key(plain)) else plain
