"""Files and folders that are there whole or not at all, and names from content."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import InputError


def content_key(content: Any) -> str:
    """First 16 hex digits of the SHA-256 over the canonical JSON of `content`."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(*paths: Path) -> str:
    """Hash over the bytes of several files, in their order; names and places do not count."""
    return content_key([file_sha256(path) for path in paths])


def fsync_path(path: Path) -> None:
    """Ask the system to put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_readable(path: Path) -> None:
    """Let all who may read the folder read a file: some libraries write for the owner alone."""
    mode = path.stat().st_mode
    # Another one's, linked from a shared store, is not ours to change.
    with contextlib.suppress(PermissionError):
        if mode & 0o444 != 0o444:
            path.chmod(mode | 0o444)


def is_array(path: Path) -> bool:
    """Whether a .npy file is there with as many bytes as its header says; no value is read."""
    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


@contextlib.contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Let an error name the path that was asked for, not the temporary one beside it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a power cut, sees the old one or the new one."""
    with told_of(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; results are for all who may read the folder.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        # What write and fsync raise, such as on a full disk, names no file.
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = error.filename or str(path)
        raise
    fsync_path(path.parent)


def write_json(path: Path, content: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def require_new(path: Path, *, kind: str = "folder") -> None:
    """Refuse to write over what is there, or below what is no folder.

    Raises:
        InputError: It exists, or the nearest of its parents that does is a file.
    """
    # A link to nothing is in the way too.
    if os.path.lexists(path):
        raise InputError(f"{path}: exists; choose another {kind}, or remove it")
    parent = next(filter(os.path.lexists, path.parents), None)
    if parent is not None and not parent.is_dir():
        raise InputError(f"{path}: {parent} is no folder; choose another one")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """`commit_folder` for a name that a user chose.

    Raises:
        InputError: See `require_new`; or another command made the folder meanwhile.
    """
    require_new(folder)
    with commit_folder(folder, is_named_by_content=False) as temporary:
        try:
            yield temporary
        except OSError as error:
            # What writing raises on a full disk names no file, or one that is gone by then.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                error.filename = str(folder)
            raise


@contextlib.contextmanager
def commit_folder(folder: Path, *, is_named_by_content: bool = True) -> Iterator[Path]:
    """Give a temporary folder that becomes `folder` when the block ends without an exception.

    Without one, nothing is left, parents that were missing included. If another process finished
    the same folder meanwhile, that one stays where the name stands for the content.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with told_of(folder):
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            make_readable(path)
            fsync_path(path)
        fsync_path(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            if not is_named_by_content:
                raise InputError(
                    f"{folder}: another command made it meanwhile; choose another folder"
                ) from None
        fsync_path(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:
            # It fails where something is in it.
            with contextlib.suppress(OSError):
                parent.rmdir()
