"""HC18 from its official record: four files, checked, unpacked into the official layout.

    ROOT/training_set/  ROOT/test_set/  ROOT/training_set_pixel_size_and_HC.csv
    ROOT/test_set_pixel_size.csv

What is on the way lies in ROOT/.fetch; a part of the layout appears whole or not at all.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datamodules.attribution import HC18_RECORD
from datamodules.download import Patience, RemoteFile, download, fetch_json, file_md5
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
    patience: Patience | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Fetched:
    """Fetch what is missing of HC18.

    Args:
        root: Folder to fill; made where it is missing.
        record_url: The record as JSON.
        known_md5: How the MD5 of each file begins.
        patience: For the server.
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
    with _alone(root):
        missing = _missing(root, known_md5=known_md5)
        if missing:
            files = _record_files(record_url, known_md5=known_md5, patience=patience or Patience())
            _check_disk(root, [files[name] for name in missing])
        for name in missing:
            file = files[name]
            path = download(
                file,
                root / WORK_FOLDER,
                patience=patience or Patience(),
                progress=_named(progress, file),
            )
            if name.endswith(".zip"):
                # What a killed attempt leaves goes with the work folder.
                folder = path.with_suffix("")
                unpack(path, folder)
                folder.replace(root / folder.name)
                path.unlink()
            else:
                path.replace(root / name)
        fsync_path(root)
        counts = [len(read_hc18(root, part=part)) for part in ("training", "test")]
        shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
    return Fetched(root=root, files=tuple(missing), n_training=counts[0], n_test=counts[1])


def _named(
    progress: Callable[[str, int, int], None] | None, file: RemoteFile
) -> Callable[[int], None] | None:
    if progress is None:
        return None
    return lambda done: progress(file.name, done, file.size_bytes)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it when the process ends, however it ends."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{root}: another fetch is at work in it; wait until it has ended"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _missing(root: Path, *, known_md5: Mapping[str, str]) -> list[str]:
    """Files of the record that are yet to be fetched, the small ones first.

    Raises:
        InputError: Something of the layout is there that is not the official file or is not whole.
    """
    missing = []
    for part in ("training", "test"):
        csv_path, folder = root / HC18_CSV[part], root / HC18_FOLDER[part]
        has_csv = csv_path.is_file()
        if not has_csv:
            missing.append(csv_path.name)
        elif not file_md5(csv_path).startswith(known_md5[csv_path.name]):
            raise InputError(
                f"{csv_path}: not the official file, its MD5 is another; move it away, or give "
                "another folder"
            )
        if not folder.exists():
            missing.append(f"{folder.name}.zip")
        elif has_csv:
            _require_whole(root, part=part)
    return sorted(missing, key=lambda name: name.endswith(".zip"))


def _require_whole(root: Path, *, part: str) -> None:
    try:
        read_hc18(root, part=part)
    except InputError as error:
        raise InputError(
            f"{root / HC18_FOLDER[part]}: is there, but not whole ({error}); move it away, then "
            "fetch again"
        ) from error


def _record_files(
    record_url: str, *, known_md5: Mapping[str, str], patience: Patience
) -> dict[str, RemoteFile]:
    """The record's files by name.

    Raises:
        InputError: The record is not as expected, or no longer holds the published files.
    """
    record = fetch_json(record_url, patience=patience)
    files = {}
    try:
        entries = record["files"]
        # Zenodo lists them; its software, InvenioRDM, keeps them by name.
        for entry in entries["entries"].values() if isinstance(entries, dict) else entries:
            kind, _, md5 = entry["checksum"].partition(":")
            links = entry["links"]
            if kind == "md5":
                files[entry["key"]] = RemoteFile(
                    name=entry["key"],
                    size_bytes=int(entry["size"]),
                    md5=md5.lower(),
                    url=links.get("content") or links["self"],
                )
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


def _check_disk(root: Path, files: list[RemoteFile]) -> None:
    need = 0
    for file in files:
        part = root / WORK_FOLDER / f"{file.name}.part"
        need += file.size_bytes - min(file.size_bytes, part.stat().st_size if part.exists() else 0)
        need += file.size_bytes * _UNPACKED_FACTOR if file.name.endswith(".zip") else 0
    _require_free(root, need_bytes=need)


def _require_free(folder: Path, *, need_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise InputError(
            f"{folder}: {need_bytes / _MIB:.0f} MiB are needed, {free / _MIB:.0f} MiB are free; "
            "make room, or give a folder on another disk"
        )


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
            _require_free(archive.parent, need_bytes=total)
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
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in source.infolist():
        path = PurePosixPath(entry.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or _is_link(entry):
            raise _strange(archive, entry, why="leads out of the folder")
        # What macOS and Windows add by themselves.
        is_clutter = path.parts[:1] == ("__MACOSX",) or path.name in (".DS_Store", "Thumbs.db")
        if entry.is_dir() or is_clutter:
            continue
        if path.suffix != ".png" or path.parts[:-1] not in ((), (folder_name,)):
            raise _strange(archive, entry, why="is not expected there")
        if path.name in found:
            raise _strange(archive, entry, why="is there twice")
        found[path.name] = entry
    if not found:
        raise InputError(f"{archive}: holds no PNG file; remove it, then fetch again")
    return found


def _is_link(entry: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(entry.external_attr >> 16)


def _strange(archive: Path, entry: zipfile.ZipInfo, *, why: str) -> InputError:
    return InputError(f"{archive}: {entry.filename!r} {why}; not unpacked")
