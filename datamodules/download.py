"""Download of one file over HTTP: resumed, retried and verified by checksum.

A file grows as NAME.part and gets its name when size and MD5 are right.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.storage import fsync_path

GO_ON = "run the same command again: it continues where it stopped"
_CHUNK_BYTES = 1 << 18
_JSON_LIMIT_BYTES = 1 << 22
_AGAIN_STATUS = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT_S = 60.0
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a record, with its expected size and checksum."""

    name: str
    size_bytes: int
    md5: str
    """Hexadecimal; may be its beginning alone, empty where none is published."""
    url: str


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Retries and timeouts."""

    attempts: int = 5
    """Failed attempts in a row before giving up; one that receives bytes resets the count."""
    timeout_s: float = 30.0
    """Longest wait for data on an open connection, s."""
    backoff_s: float = 1.0
    """Wait before the second attempt, s; doubles with each further one."""


class _Retryable(Exception):
    """A failure after which a retry may succeed."""

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


# Not every OSError: a full disk is not the server's fault.
_PASSING = (
    _Retryable,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    urllib.error.URLError,
    http.client.HTTPException,
)


def fetch_json(url: str, *, retry: RetryPolicy) -> Any:
    """Read JSON from a server.

    Raises:
        InputError: It cannot be reached, refuses, or answers something else.
    """
    for tried in range(1, retry.attempts + 1):
        try:
            with _open(url, start=0, retry=retry) as answer:
                return json.loads(answer.read(_JSON_LIMIT_BYTES))
        except _PASSING as error:
            _wait(error, url=url, tried=tried, retry=retry)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{url}: answers no JSON; look at it in a browser") from error
    raise AssertionError("the last attempt waits for none")


def download(
    file: RemoteFile,
    folder: Path,
    *,
    retry: RetryPolicy,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Download a file into a folder; does nothing where it is there already.

    Args:
        file: What to fetch.
        folder: Where to; made where it is missing. Holds NAME.part until the file is whole.
        retry: Retries and timeouts.
        progress: Told how many bytes are there.

    Returns:
        Path of the file, whose size and MD5 are those that were given.

    Raises:
        InputError: The server cannot be reached or refuses, or the file came damaged twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / file.name, folder / f"{file.name}.part"
    if is_that_file(target, file):
        return target
    for _ in range(2):
        part.touch()
        tried, most = 0, size_of(part)
        while size_of(part) != file.size_bytes:
            try:
                _attempt(file, part, retry=retry, progress=progress)
            except _PASSING as error:
                # More than ever: a server without ranges starts again, and would seem to advance.
                tried, most = (1, size_of(part)) if size_of(part) > most else (tried + 1, most)
                _wait(error, url=file.url, tried=tried, retry=retry)
        if is_that_file(part, file):
            fsync_path(part)
            part.replace(target)
            return target
        part.unlink()
    raise InputError(
        f"{file.url}: damaged twice, its MD5 is not the record's {file.md5}; try again later"
    )


def remote_size(url: str, *, retry: RetryPolicy) -> int:
    """Bytes of a file on a server.

    Raises:
        InputError: It cannot be reached, refuses, or does not say.
    """
    for tried in range(1, retry.attempts + 1):
        try:
            with _open(url, start=0, retry=retry) as answer:
                said = answer.headers.get("Content-Length") or ""
        except _PASSING as error:
            _wait(error, url=url, tried=tried, retry=retry)
            continue
        if said.isdigit():
            return int(said)
        raise InputError(f"{url}: the server does not say its size; fetch it by hand")
    raise AssertionError("the last attempt waits for none")


def is_that_file(path: Path, file: RemoteFile) -> bool:
    """Whether a path holds a file of this size and MD5."""
    is_its_size = path.is_file() and size_of(path) == file.size_bytes
    return is_its_size and file_md5(path).startswith(file.md5)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; the system releases it when the process ends, however it ends.

    Raises:
        InputError: Another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(f"{folder}: another fetch is at work in it; wait until it ends") from error
    finally:
        os.close(descriptor)


def require_free(folder: Path, *, need_bytes: int) -> None:
    """Refuse what a disk has no room for.

    Raises:
        InputError: Less than `need_bytes` is free.
    """
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise InputError(
            f"{folder}: {need_bytes / _MIB:.0f} MiB are needed, {free / _MIB:.0f} MiB are free; "
            "make room, or give a folder on another disk"
        )


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _attempt(
    file: RemoteFile, part: Path, *, retry: RetryPolicy, progress: Callable[[int], None] | None
) -> None:
    """Append the body of one response to `part`; a part that cannot be resumed is removed.

    Raises:
        _Retryable: The body ended early, is of another size, or starts at another byte.
    """
    if size_of(part) > file.size_bytes:
        # Of another version of the file.
        part.unlink()
    with _open(file.url, start=size_of(part), retry=retry) as answer:
        if answer.status == 416:
            part.unlink(missing_ok=True)
            raise _Retryable("the server has no such part of it")
        # A server without ranges sends everything again, under 200.
        size = size_of(part) if answer.status == 206 else 0
        # "bytes FIRST-LAST/TOTAL"
        span, _, total = (answer.headers.get("Content-Range") or "").partition("/")
        if answer.status != 206:
            total = answer.headers.get("Content-Length") or ""
        elif not span.startswith(f"bytes {size}-"):
            part.unlink(missing_ok=True)
            raise _Retryable("the server sent another part than it was asked for")
        if total.isdigit() and int(total) != file.size_bytes:
            part.unlink(missing_ok=True)
            raise _Retryable(f"{total} bytes on the server, {file.size_bytes} in the record")
        with part.open("ab" if size else "wb") as handle:
            while chunk := answer.read(min(_CHUNK_BYTES, file.size_bytes - size)):
                handle.write(chunk)
                size += len(chunk)
                if progress is not None:
                    progress(size)
    if size < file.size_bytes:
        raise _Retryable(f"the connection ended at {size} of {file.size_bytes} bytes")


def _open(
    url: str, *, start: int, retry: RetryPolicy
) -> AbstractContextManager[http.client.HTTPResponse]:
    """Request a file from byte `start` on; a response of status 416 is returned.

    Raises:
        InputError: The address is no HTTP, or the server refuses for good.
        _Retryable: It refuses for now.
    """
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{url}: not an http address; the record is not as expected")
    headers = {"User-Agent": "sonosweep", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=retry.timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return error
        error.close()
        reason = f"HTTP {error.code} {error.reason}"
        if error.code not in _AGAIN_STATUS:
            raise InputError(f"{url}: {reason}; look at it in a browser") from error
        said = error.headers.get("Retry-After") or ""
        raise _Retryable(reason, wait_s=float(said) if said.isdigit() else 0.0) from error
    if answer.headers.get_content_type() == "text/html":
        answer.close()
        raise InputError(
            f"{url}: answers with a web page; look at it in a browser, the login page of a proxy "
            "may be in between"
        )
    return answer


def _wait(error: Exception, *, url: str, tried: int, retry: RetryPolicy) -> None:
    """Wait before the next attempt.

    Raises:
        InputError: There is none.
    """
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise InputError(
            f"{url}: its certificate is not trusted ({reason.verify_message}); check the clock and "
            "the proxy"
        ) from error
    if tried >= retry.attempts:
        words = " ".join(str(reason).split()) or type(error).__name__
        raise InputError(f"{url}: {words}, {tried} times in a row; {GO_ON}") from error
    backoff = retry.backoff_s * 2 ** (tried - 1)
    time.sleep(min(_LONGEST_WAIT_S, max(backoff, getattr(error, "wait_s", 0.0))))
