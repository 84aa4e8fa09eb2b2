"""Run directories: `<root>/store/<stage>/<id>`, complete or resumable.

`manifest.json` is written first, results follow, `DONE.json` comes last by a rename and names size
and hash of each file. A directory with `DONE.json` is never touched again, unless it is damaged;
one without it is resumed or made anew.
"""

import contextlib
import csv
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datamodules.embeddings import INDEX_NAME, EmbeddingStore, first_absent
from datamodules.errors import InputError
from datamodules.integrity import FILES, damaged_file, file_facts, read_object, read_sealed, sealed
from datamodules.storage import fsync_path, make_readable, write_json
from experiments.store.layout import check_version

DONE_NAME, MANIFEST_NAME, RESULTS_NAME = "DONE.json", "manifest.json", "results.csv"
READ_FOR_TABLES = (MANIFEST_NAME, "per_image.csv", "metadata.jsonl", "fidelity.json")
"""Files of a run that a sweep's outputs are made from."""
REQUEST_NAME = "request.pkl"
"""What the further processes of a training are to do."""
_UNNAMED = (
    DONE_NAME,
    "FAILED.json",
    "log.txt",
    "status.json",
    "wandb",
    "checkpoints",
    REQUEST_NAME,
)
"""What no marker names: it is no result, or comes and goes."""
_OWN_NAMES = (".lock", DONE_NAME, "FAILED.json", "log.txt", "status.json")
"""Of these a run has one from its first moment, before its manifest."""


class RunStore:
    """Paths below one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def run_dir(self, stage: str, run_id: str) -> Path:
        """Directory of a run, whether it exists or not."""
        return self.root / "store" / stage / run_id

    def sweep_dir(self, name: str) -> Path:
        """Directory of a sweep's outputs."""
        return self.root / name


def is_run_key(key: object) -> bool:
    """Whether something is the text `stage/id`, which leads nowhere but into the store."""
    return isinstance(key, str) and bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", key))


def is_stage_folder(folder: Path, run_dirs: Iterable[Path]) -> bool:
    """Whether a folder holds runs of a stage: the manifest of one names it."""
    manifests = (read_object(run_dir / MANIFEST_NAME) or {} for run_dir in run_dirs)
    return any(manifest.get("stage") == folder.name for manifest in manifests)


def is_run(run_dir: Path) -> bool:
    """Whether a directory of a stage is a run's: one that was stopped early has no manifest."""
    has_id = re.fullmatch(r"[0-9a-f]{16}", run_dir.name) is not None
    own = (MANIFEST_NAME, *(_OWN_NAMES if has_id else ()))
    return any((run_dir / name).is_file() for name in own)


def upstream_of(run_dir: Path) -> set[str]:
    """Keys of a run's inputs, as its manifest names them; none where it cannot be read."""
    upstream = (read_object(run_dir / MANIFEST_NAME) or {}).get("upstream")
    return set(filter(is_run_key, upstream.values())) if isinstance(upstream, dict) else set()


def read_result_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a sweep's results.csv as text; none where there is no such file."""
    path = folder / RESULTS_NAME
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}), so it is not known what it refers to; "
            f"`sonosweep report {folder / 'config.yaml'}` writes it again, or move it away"
        ) from error


def sweeps_with_results(root: Path) -> list[str]:
    """Names of the sweeps in a folder that have results."""
    return sorted(path.parent.name for path in root.glob("*/results.csv"))


def is_done(run_dir: Path) -> bool:
    """Whether a run has a marker that can be read."""
    return read_sealed(run_dir / DONE_NAME) is not None


def read_result(run_dir: Path) -> dict[str, Any]:
    """What a run wrote as its result; FileNotFoundError where it has no marker that can be read."""
    content = read_sealed(run_dir / DONE_NAME)
    if content is None:
        raise FileNotFoundError(run_dir / DONE_NAME)
    return {key: value for key, value in content.items() if key != FILES}


def damage(run_dir: Path, *, names: Sequence[str] | None = READ_FOR_TABLES) -> str | None:
    """What is wrong with a finished run, in a few words; None where nothing is, or no marker is.

    Of its files those of `names` are compared, with None all and the embeddings that it names.
    """
    if not (run_dir / DONE_NAME).exists():
        return None
    marker = read_sealed(run_dir / DONE_NAME)
    if marker is None:
        return f"{DONE_NAME} cannot be read"
    facts = marker.get(FILES, {})
    chosen = facts if names is None else {name: facts[name] for name in names if name in facts}
    found = damaged_file(run_dir, chosen)
    if found is None and names is None:
        key = first_absent(run_dir, store=EmbeddingStore(run_dir.parent.parent / "embeddings"))
        found = key and f"{INDEX_NAME} names the embedding {key}, which is missing or damaged"
    manifest = run_dir / MANIFEST_NAME
    # A marker of before names no files.
    is_unread = found is None and MANIFEST_NAME not in facts and manifest.exists()
    if is_unread and read_object(manifest) is None:
        found = f"{MANIFEST_NAME} cannot be read"
    return found


@contextlib.contextmanager
def hold(run_dir: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a run directory alone; the lock ends with its holder, however that ends.

    `on_wait` is called once where another process holds it, before waiting for that one.
    """
    path = run_dir / ".lock"
    while True:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("w")
        except FileNotFoundError:
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            # `clean` may have taken the directory away meanwhile: then this locks nothing.
            if _is_at(file.fileno(), path):
                yield
                return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_started(run_dir: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and forget an earlier failure."""
    write_json(run_dir / MANIFEST_NAME, manifest)
    (run_dir / "FAILED.json").unlink(missing_ok=True)


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Read manifest.json of a run, `runs/store/STAGE/ID` or a copy of it; else InputError."""
    if run_dir.is_file():
        raise InputError(f"{run_dir}: a file; give the run's directory, {run_dir.parent}")
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such directory; give a run's, as runs/store/STAGE/ID")
    store, path = run_dir.resolve().parent.parent, run_dir / MANIFEST_NAME
    # A copy that lies elsewhere is of no store.
    if store.name == "store":
        check_version(store.parent)
    if not path.is_file():
        raise InputError(
            f"{run_dir}: manifest.json is missing, so this is no run; give a directory as "
            "runs/store/STAGE/ID"
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: cannot be read ({error}); make the run again") from error
    if not isinstance(manifest, dict) or "stage" not in manifest:
        raise InputError(f"{path}: names no stage, so this is no run of this program")
    return manifest


def read_sound(run_dir: Path) -> dict[str, Any]:
    """`read_manifest` of a run whose files are what it wrote; else InputError.

    All of them are read; a copy of before, which does not say what they were, passes.
    """
    manifest = read_manifest(run_dir)
    if (found := damage(run_dir.resolve(), names=None)) is not None:
        raise InputError(f"{run_dir / found}; its sweep makes it again")
    return manifest


def write_done(run_dir: Path, result: dict[str, Any]) -> None:
    """Put everything in the directory on the disk, then mark it done and say what the files are;
    ValueError for a result that JSON cannot hold.
    """
    names = []
    for path in sorted(run_dir.rglob("*")):
        parts = path.relative_to(run_dir).parts
        # W&B's own files come and go while it runs; they are a view, not a result.
        if "wandb" in parts:
            continue
        with contextlib.suppress(FileNotFoundError):
            make_readable(path)
            fsync_path(path)
            is_result = parts[0] not in _UNNAMED and not path.name.startswith(".")
            if is_result and path.is_file():
                names.append("/".join(parts))
    write_json(run_dir / DONE_NAME, sealed({**result, FILES: file_facts(run_dir, names)}))


FailureKind = Literal["error", "out_of_memory", "disk_full", "data_changed"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended without a result, in one line."""

    reason: str
    kind: FailureKind
    """`error` will come again; after the others another attempt may succeed."""


def discard_results(run_dir: Path) -> None:
    """Remove what an attempt made from what is not its input, its checkpoints included."""
    for path in run_dir.iterdir():
        if path.name not in (*_OWN_NAMES, MANIFEST_NAME, "wandb"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_failed(run_dir: Path, reason: str, *, kind: FailureKind = "error") -> None:
    """Record why a run failed, in one line."""
    content = {"reason": " ".join(reason.split()), "kind": kind, "time": time.time()}
    write_json(run_dir / "FAILED.json", content)


def read_failure(run_dir: Path) -> Failure | None:
    """Why the last attempt failed, or None."""
    content = read_object(run_dir / "FAILED.json")
    if content is None:
        return None
    reason = " ".join(str(content.get("reason", "no reason is known")).split())
    return Failure(reason=reason, kind=content.get("kind", "error"))


class Status(NamedTuple):
    """What a running stage does, and how far it is."""

    what: str
    done: int
    total: int
    time: float
    """When it said so, seconds since 1970."""


class StatusFile:
    """`status.json` of a running stage, written at most twice a second."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "status.json"
        self._last = 0.0

    def update(self, what: str, *, done: int, total: int) -> None:
        """Write the status, unless the last one is younger than half a second."""
        now = time.monotonic()
        if now - self._last < 0.5 and done < total:
            return
        self._last = now
        # No name of a result, should the process end here.
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(Status(what, done, total, time.time())._asdict()))
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def read_status(run_dir: Path) -> Status | None:
    """The latest status of a run, or None."""
    try:
        return Status(**read_object(run_dir / "status.json") or {})
    except TypeError:
        return None
