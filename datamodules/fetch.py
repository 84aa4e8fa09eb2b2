"""HC18 from its official record: four files, checked, unpacked into the official layout.

    ROOT/training_set/  ROOT/test_set/  ROOT/training_set_pixel_size_and_HC.csv
    ROOT/test_set_pixel_size.csv

What is on the way lies in ROOT/.fetch; a part of the layout appears whole or not at all.
"""

import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datamodules.attribution import HC18_RECORD
from datamodules.download import (
    RemoteFile,
    RetryPolicy,
    download,
    fetch_json,
    file_md5,
    locked,
    require_free,
    size_of,
)
from datamodules.errors import InputError
from datamodules.samples import HC18_CSV, HC18_FOLDER, read_hc18
from datamodules.storage import commit_folder, fsync_path

RECORD_URL = f"https://zenodo.org/api/records/{HC18_RECORD}"
HC18_MD5 = {
    "training_set.zip": "00eb8198",
    "test_set.zip": "8402af5d",
    "training_set_pixel_size_and_HC.csv": "c0761518",
    "test_set_pixel_size.csv": "8476dc19",
}
"""How the MD5 of each file begins, as published."""
WORK_FOLDER = ".fetch"
# PNG hardly shrinks in an archive.
_UNPACKED_FACTOR = 2
_UNPACKED_LIMIT_FACTOR = 20
_MIB = 2**20
# What macOS and Windows add by themselves.
_CLUTTER = re.compile(r"__MACOSX/.*|(.*/)?(\.DS_Store|Thumbs\.db)")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a fetch did."""

    root: Path
    files: tuple[str, ...]
    """Fetched now; empty where all was there."""
    n_training: int
    n_test: int


def fetch_hc18(
    root: Path,
    *,
    record_url: str = RECORD_URL,
    known_md5: Mapping[str, str] = HC18_MD5,
    retry: RetryPolicy | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Fetched:
    """Fetch what is missing of HC18.

    Args:
        root: Folder to fill; made where it is missing.
        record_url: The record as JSON.
        known_md5: How the MD5 of each file begins.
        retry: Retries and timeouts.
        progress: Told name, bytes there and size of the file at work.

    Returns:
        What was fetched, and how many images there are.

    Raises:
        InputError: The folder holds something else, another fetch is at work in it, the disk is
            too small, the server cannot be reached, or the files are not the published ones.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: a file; give a folder")
    root.mkdir(parents=True, exist_ok=True)
    retry = retry or RetryPolicy()
    with locked(root):
        missing = _missing(root, known_md5=known_md5)
        files = _record_files(record_url, known_md5, retry=retry) if missing else {}
        require_free(root, need_bytes=_need_bytes(root, [files[name] for name in missing]))
        for name in missing:
            _bring(root, files[name], retry=retry, progress=progress)
        fsync_path(root)
        counts = [len(read_hc18(root, part=part)) for part in ("training", "test")]
        shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
    return Fetched(root=root, files=tuple(missing), n_training=counts[0], n_test=counts[1])


def _bring(
    root: Path,
    file: RemoteFile,
    *,
    retry: RetryPolicy,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Download a file of the record and move it, or the folder in it, into place."""

    def told(done: int) -> None:
        if progress is not None:
            progress(file.name, done, file.size_bytes)

    path = download(file, root / WORK_FOLDER, retry=retry, progress=told)
    if path.suffix == ".zip":
        # What a killed attempt leaves goes with the work folder.
        unpack(path, path.with_suffix(""))
        path.with_suffix("").replace(root / path.stem)
        path.unlink()
    else:
        path.replace(root / path.name)


def _missing(root: Path, *, known_md5: Mapping[str, str]) -> list[str]:
    """Files of the record that are yet to be fetched, the small ones first.

    Raises:
        InputError: Something of the layout is there that is not the official file or is not whole.
    """
    missing = []
    for part in ("training", "test"):
        csv_path, folder = root / HC18_CSV[part], root / HC18_FOLDER[part]
        if not csv_path.is_file():
            missing.append(csv_path.name)
        elif not file_md5(csv_path).startswith(known_md5[csv_path.name]):
            raise InputError(
                f"{csv_path}: not the official file, its MD5 is another; move it away, or give "
                "another folder"
            )
        if not folder.exists():
            missing.append(f"{folder.name}.zip")
        elif csv_path.is_file():
            try:
                read_hc18(root, part=part)
            except InputError as error:
                raise InputError(
                    f"{folder}: is there, but not whole ({error}); move it away, then fetch again"
                ) from error
    return sorted(missing, key=lambda name: name.endswith(".zip"))


def _record_files(
    record_url: str, known_md5: Mapping[str, str], *, retry: RetryPolicy
) -> dict[str, RemoteFile]:
    """The record's files by name.

    Raises:
        InputError: The record is not as expected, or no longer holds the published files.
    """
    record = fetch_json(record_url, retry=retry)
    try:
        entries = record["files"]
        # Zenodo lists them; its software, InvenioRDM, keeps them by name.
        entries = list(entries["entries"].values()) if isinstance(entries, dict) else entries
        files = {
            entry["key"]: RemoteFile(
                name=entry["key"],
                size_bytes=int(entry["size"]),
                md5=entry["checksum"].removeprefix("md5:").lower(),
                url=entry["links"].get("content") or entry["links"]["self"],
            )
            for entry in entries
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{record_url}: not a record with files ({error!r}); fetch the files by hand, "
            "docs/data.md says how"
        ) from error
    for name, begin in known_md5.items():
        if name not in files:
            raise InputError(f"{record_url}: the record holds no {name}; has it changed?")
        if not files[name].md5.startswith(begin):
            raise InputError(
                f"{record_url}: the MD5 of {name} is {files[name].md5}, the published one begins "
                f"with {begin}; the record has changed, nothing was fetched"
            )
    return files


def _need_bytes(root: Path, files: list[RemoteFile]) -> int:
    """What is yet to come of the files, and room to unpack them."""
    there = {file.name: size_of(root / WORK_FOLDER / f"{file.name}.part") for file in files}
    to_come = sum(max(0, file.size_bytes - there[file.name]) for file in files)
    zipped = sum(file.size_bytes for file in files if file.name.endswith(".zip"))
    return to_come + _UNPACKED_FACTOR * zipped


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the PNG files of an archive into one folder, which is there whole or not at all.

    Args:
        archive: A zip whose files lie at its top, or in one folder named like `folder`.
        folder: To write; must not exist.

    Raises:
        InputError: No zip, damaged, a name that leads elsewhere, or far more than its size lets
            expect.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            entries = _entries(source, archive=archive, folder_name=folder.name)
            total = sum(entry.file_size for entry in entries.values())
            if total > _UNPACKED_LIMIT_FACTOR * archive.stat().st_size:
                raise InputError(
                    f"{archive}: would unpack to {total / _MIB:.0f} MiB, far more than a set of "
                    "PNG files; not unpacked"
                )
            require_free(archive.parent, need_bytes=total)
            with commit_folder(folder) as temporary:
                for name, entry in entries.items():
                    # The reader stops at the entry's stated size, and checks its CRC.
                    with source.open(entry) as old, (temporary / name).open("wb") as new:
                        shutil.copyfileobj(old, new)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise InputError(
            f"{archive}: cannot be unpacked ({error}); remove it, then fetch again"
        ) from error


def _entries(
    source: zipfile.ZipFile, *, archive: Path, folder_name: str
) -> dict[str, zipfile.ZipInfo]:
    """PNG files of an archive by their bare name."""
    # Nothing that leads elsewhere: no other folder, no backslash.
    expected = re.compile(rf"(?:{re.escape(folder_name)}/)?([^/\\]+\.png)")
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in source.infolist():
        if entry.is_dir() or _CLUTTER.fullmatch(entry.filename):
            continue
        match = expected.fullmatch(entry.filename)
        is_link = stat.S_ISLNK(entry.external_attr >> 16)
        if match is None or is_link or match[1] in found:
            raise InputError(f"{archive}: {entry.filename!r} is not expected there; not unpacked")
        found[match[1]] = entry
    if not found:
        raise InputError(f"{archive}: holds no PNG file; remove it, then fetch again")
    return found
