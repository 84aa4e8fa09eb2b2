"""What a store holds, what it costs, and which sweeps refer to it. Nothing is changed here."""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datamodules.embeddings import INDEX_NAME
from datamodules.errors import InputError
from experiments.store.guard import has_trials, is_held, is_used
from experiments.store.plan_file import NewerLayoutError, PlanFile, read_plan

State = Literal["done", "unfinished", "held", "cache", "temporary"]
EMBEDDINGS, PREPARED, TEMPORARY = "embeddings", "prepared", "temporary"
SHARED = (EMBEDDINGS, PREPARED, TEMPORARY)
"""Folders of files that any stage may be reading, as against a stage's own directory."""
REMOVED_PREFIX = ".removed-"
"""Directories on their way out: renamed, so that nothing believes in them any more."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Something in the store that is removed as a whole or not at all."""

    stage: str
    """Name of the stage, or one of `SHARED`."""
    name: str
    """Id of the run, key of the embedding, or name of the folder or file."""
    paths: tuple[Path, ...]
    state: State
    n_bytes: int
    last_use: float
    """Time of the last file written in it, or of the last start of a sweep that refers to it."""
    sweeps: frozenset[str] = frozenset()
    """Sweeps whose plan refers to it."""
    users: frozenset[str] = frozenset()
    """Of an embedding: the stages, as `embed/id`, whose index names it."""

    @property
    def key(self) -> str:
        """`stage/name`."""
        return f"{self.stage}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class KnownSweep:
    """A sweep beside the store."""

    plan: PlanFile | None
    """None where it is missing or damaged: what the sweep refers to is not known."""
    last_start: float
    is_used: bool
    """Whether a process leads it now."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything in a store."""

    root: Path
    artefacts: tuple[Artefact, ...]
    sweeps: dict[str, KnownSweep] = field(default_factory=dict)
    has_trials: bool = False
    """Whether trials run that belong to no sweep: what they need is in no plan."""
    open_embeds: frozenset[str] = frozenset()
    """Stages that may own embeddings which no index names: they have written no index yet."""
    half_removed: tuple[Path, ...] = ()
    """What an earlier, interrupted removal left."""

    @property
    def unknown_sweeps(self) -> list[str]:
        """Sweeps of which it is not known what they refer to."""
        return sorted(name for name, sweep in self.sweeps.items() if sweep.plan is None)

    @property
    def is_in_use(self) -> bool:
        """Whether a sweep or a stage runs on the store."""
        is_led = any(sweep.is_used for sweep in self.sweeps.values())
        return is_led or any(each.state == "held" for each in self.artefacts)


def take_inventory(root: Path) -> Inventory:
    """Look at everything in a store. Links are neither followed nor counted.

    Args:
        root: Folder of the store and of the sweeps beside it. A missing one holds nothing.

    Raises:
        InputError: If a newer version wrote one of the sweeps.
    """
    store = root / "store"
    sweeps = _sweeps(root)
    runs = [
        run
        for folder in _folders(store)
        if folder.name not in SHARED
        for run in _runs(folder, sweeps=sweeps)
    ]
    embeds = [run for run in runs if run.stage == "embed"]
    indexes = [(run, index_of(run.paths[0])) for run in embeds]
    half_removed = [path for path in _entries(store) if path.name.startswith(REMOVED_PREFIX)]
    return Inventory(
        root=root,
        artefacts=(*runs, *_embeddings(store, indexes=indexes), *_caches(store)),
        sweeps=sweeps,
        has_trials=has_trials(root),
        open_embeds=frozenset(
            run.key for run, keys in indexes if run.state != "done" or keys is None
        ),
        half_removed=tuple(half_removed),
    )


def index_of(run_dir: Path) -> set[str] | None:
    """Keys of the embeddings that a stage uses; None where it wrote none that can be read."""
    try:
        content = json.loads((run_dir / INDEX_NAME).read_text())
        return {key for views in content.values() for key in views}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _sweeps(root: Path) -> dict[str, KnownSweep]:
    found = {}
    for folder in _folders(root):
        if folder.name == "store" or not any(
            (folder / name).is_file() for name in ("plan.json", "config.yaml")
        ):
            continue
        plan, last_start = None, 0.0
        try:
            plan = read_plan(folder)
            last_start = (folder / "plan.json").stat().st_mtime
        except NewerLayoutError:
            raise
        except (InputError, FileNotFoundError):
            pass
        found[folder.name] = KnownSweep(plan=plan, last_start=last_start, is_used=is_used(folder))
    return found


def _runs(folder: Path, *, sweeps: dict[str, KnownSweep]) -> Iterator[Artefact]:
    """The stage directories of one kind."""
    plans = {name: known.plan.keys for name, known in sweeps.items() if known.plan is not None}
    for run_dir in _folders(folder):
        key = f"{folder.name}/{run_dir.name}"
        referring = frozenset(name for name, keys in plans.items() if key in keys)
        n_bytes, written = _size(run_dir)
        state: State = "done" if (run_dir / "DONE.json").is_file() else "unfinished"
        yield Artefact(
            stage=folder.name,
            name=run_dir.name,
            paths=(run_dir,),
            state="held" if is_held(run_dir) else state,
            n_bytes=n_bytes,
            last_use=max([written, *(sweeps[name].last_start for name in referring)]),
            sweeps=referring,
        )


def _embeddings(
    store: Path, *, indexes: list[tuple[Artefact, set[str] | None]]
) -> Iterator[Artefact]:
    """One artefact a key: the embedding, and the view that it is of."""
    users: dict[str, list[Artefact]] = {}
    for run, keys in indexes:
        for key in keys or ():
            users.setdefault(key, []).append(run)
    for folder in _folders(store / EMBEDDINGS):
        files: dict[str, list[Path]] = {}
        for path in _entries(folder):
            if path.name.startswith("."):
                yield _file_artefact(TEMPORARY, path)
            elif path.name.endswith(".npy"):
                key = path.name.removesuffix(".npy").removesuffix(".view")
                files.setdefault(key, []).append(path)
        for key, paths in files.items():
            using = users.get(key, [])
            sizes = [_size(path) for path in paths]
            yield Artefact(
                stage=EMBEDDINGS,
                name=key,
                # The embedding goes before its view: without it the view is made anew.
                paths=tuple(sorted(paths, key=lambda path: path.name.endswith(".view.npy"))),
                state="cache",
                n_bytes=sum(n for n, _ in sizes),
                last_use=max([*(t for _, t in sizes), *(run.last_use for run in using)]),
                sweeps=frozenset(name for run in using for name in run.sweeps),
                users=frozenset(run.key for run in using),
            )


def _caches(store: Path) -> Iterator[Artefact]:
    """Prepared images, and what interrupted writers left among them."""
    for folder in _folders(store / PREPARED):
        is_temporary = folder.name.startswith(".")
        yield _file_artefact(TEMPORARY if is_temporary else PREPARED, folder)


def _file_artefact(stage: str, path: Path) -> Artefact:
    n_bytes, written = _size(path)
    return Artefact(
        stage=stage,
        name=path.name,
        paths=(path,),
        state="temporary" if stage == TEMPORARY else "cache",
        n_bytes=n_bytes,
        last_use=written,
    )


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, without links; nothing where it is missing."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder. Hidden ones are somebody's working place, except among prepared ones."""
    hidden = folder.name == PREPARED
    return [p for p in _entries(folder) if p.is_dir() and (hidden or not p.name.startswith("."))]


def _size(path: Path) -> tuple[int, float]:
    """Bytes of all files below a path, and when the last one was written; links are not followed.

    What vanishes meanwhile counts nothing.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0, 0.0
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size, found.st_mtime
    n_bytes, written = 0, found.st_mtime
    try:
        with os.scandir(path) as entries:
            children = [Path(entry.path) for entry in entries]
    except FileNotFoundError:
        return 0, written
    for child in children:
        if not child.is_symlink():
            size, time = _size(child)
            n_bytes, written = n_bytes + size, max(written, time)
    return n_bytes, written
