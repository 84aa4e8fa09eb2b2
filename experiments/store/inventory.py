"""What a store holds, what it costs, and which sweeps refer to it. Nothing is changed here."""

import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from datamodules.embeddings import INDEX_NAME
from datamodules.errors import InputError
from experiments.store.guard import TRIALS_LOCK, is_held, is_used
from experiments.store.layout import PLAN_NAME, NewerLayoutError
from experiments.store.plan_file import read_plan
from experiments.store.runs import (
    RESULTS_NAME,
    is_done,
    is_run,
    is_run_key,
    is_stage_folder,
    read_result_rows,
    upstream_of,
)

State = Literal["done", "unfinished", "held"]
EMBEDDINGS, PREPARED, TEMPORARY = "embeddings", "prepared", "temporary"
INDEX = "index"
"""Folder of what the data's files are; small, and never removed."""
SHARED = (EMBEDDINGS, PREPARED, TEMPORARY)
"""Folders of files that any stage may be reading, as against a stage's own directory."""
REMOVED_PREFIX = ".removed-"
"""Directories being removed: renamed, so that nothing reads them any more."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Something in the store that is removed as a whole or not at all."""

    stage: str
    """Name of the stage, or one of `SHARED`."""
    name: str
    """Id of the run, key of the embedding, or name of the folder or file."""
    paths: tuple[Path, ...]
    state: State
    """Of a stage's own directory; `done` for what several share."""
    n_bytes: int
    last_use: float
    """Time of the last file written in it, or of the last start of a sweep that refers to it."""
    sweeps: frozenset[str] = frozenset()
    """Sweeps whose plan or results refer to it."""
    users: frozenset[str] = frozenset()
    """Of an embedding: the stages, as `embed/id`, whose index names it."""
    owners: frozenset[str] = frozenset()
    """Of an embedding that no index names: the unfinished stages, which may own it."""

    @property
    def key(self) -> str:
        """`stage/name`."""
        return f"{self.stage}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class KnownSweep:
    """A sweep beside the store."""

    keys: set[str] | None
    """Stages that its plan and its results refer to; None where that is not known."""
    last_start: float
    is_used: bool
    """Whether a process leads it now."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything in a store."""

    root: Path
    artefacts: tuple[Artefact, ...]
    sweeps: dict[str, KnownSweep]
    has_trials: bool
    """Whether trials run that belong to no sweep: what they need is in no plan."""
    half_removed: list[Path]
    """What an earlier, interrupted removal left."""
    foreign: list[Path]
    """Folders in the store that the program did not make: they are left alone."""

    @property
    def unknown_sweeps(self) -> list[str]:
        """Sweeps of which it is not known what they refer to."""
        return sorted(name for name, sweep in self.sweeps.items() if sweep.keys is None)

    @cached_property
    def running_since(self) -> float:
        """The earliest start of the sweeps that run now; infinite where none does."""
        starts = [sweep.last_start for sweep in self.sweeps.values() if sweep.is_used]
        return min(starts, default=math.inf)

    @cached_property
    def is_in_use(self) -> bool:
        """Whether a sweep or a stage runs on the store."""
        return self.running_since < math.inf or any(a.state == "held" for a in self.artefacts)

    def orphans(self) -> list[Artefact]:
        """What no sweep refers to, as far as that is known: neither prepared images, which no plan
        names, nor embeddings that an unfinished stage may own.
        """
        free = [a for a in self.artefacts if not a.sweeps and not a.owners and a.state != "held"]
        return [artefact for artefact in free if artefact.stage != PREPARED]


def take_inventory(root: Path) -> Inventory:
    """Look at everything in a store and the sweeps beside it; links are not followed or counted.

    InputError if a newer version wrote one of the sweeps, or its results cannot be read.
    """
    store = root / "store"
    sweeps = _sweeps(root)
    foreign, runs = [], []
    for folder in _folders(store):
        if folder.name in (EMBEDDINGS, PREPARED, INDEX):
            continue
        run_dirs = _folders(folder)
        if is_stage_folder(folder, run_dirs):
            foreign += [run_dir for run_dir in run_dirs if not is_run(run_dir)]
            runs += [_run(run_dir, sweeps=sweeps) for run_dir in run_dirs if is_run(run_dir)]
        else:
            foreign.append(folder)
    prepared = _folders(store / PREPARED, hidden=True)
    return Inventory(
        root=root,
        artefacts=(*runs, *_embeddings(store, runs=runs), *map(_prepared, prepared)),
        sweeps=sweeps,
        has_trials=is_used(store, lock=TRIALS_LOCK),
        half_removed=[path for path in _entries(store) if path.name.startswith(REMOVED_PREFIX)],
        foreign=foreign,
    )


def _index(run_dir: Path) -> set[str] | None:
    """Keys of the embeddings that a stage uses; None where it wrote none that can be read."""
    try:
        content = json.loads((run_dir / INDEX_NAME).read_text())
        return {key for views in content.values() for key in views}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _sweeps(root: Path) -> dict[str, KnownSweep]:
    found = {}
    # A folder that was moved to another disk, and linked, is a sweep all the same.
    for folder in sorted(path for path in root.glob("[!.]*") if path.is_dir()):
        path, results = folder / PLAN_NAME, folder / RESULTS_NAME
        has_recipe = path.is_file() or (folder / "config.yaml").is_file()
        if folder.name == "store" or not (has_recipe or results.is_file()):
            continue
        # Results alone, as a report keeps them, need no plan.
        keys, last_start = set(), 0.0
        if has_recipe:
            try:
                keys, last_start = read_plan(folder).keys, path.stat().st_mtime
            except NewerLayoutError:
                raise
            except (InputError, FileNotFoundError):
                keys = None
        found[folder.name] = KnownSweep(
            keys=None if keys is None else keys | _results_keys(root, folder),
            last_start=last_start,
            is_used=is_used(folder),
        )
    return found


def _results_keys(root: Path, folder: Path) -> set[str]:
    """Runs that a sweep's results were made from, and all that went into these."""
    rows = read_result_rows(folder)
    new = {row.get(column) for row in rows for column in ("fit_id", "score_id")}
    new, found = set(filter(is_run_key, new)), set()
    while new:
        found |= new
        new = {key for each in new for key in upstream_of(root / "store" / each)} - found
    return found


def _run(run_dir: Path, *, sweeps: dict[str, KnownSweep]) -> Artefact:
    stage = run_dir.parent.name
    key = f"{stage}/{run_dir.name}"
    referring = frozenset(name for name, known in sweeps.items() if key in (known.keys or ()))
    state: State = "done" if is_done(run_dir) else "unfinished"
    made = _artefact(stage, run_dir, used=[sweeps[name].last_start for name in referring])
    return replace(made, state="held" if is_held(run_dir) else state, sweeps=referring)


def _embeddings(store: Path, *, runs: Sequence[Artefact]) -> Iterator[Artefact]:
    """One artefact a key: the embedding, and the view that it is of."""
    users: dict[str, list[Artefact]] = {}
    is_open: set[str] = set()
    for run in (run for run in runs if run.stage == "embed"):
        keys = _index(run.paths[0])
        if run.state != "done" or keys is None:
            is_open.add(run.key)
        for key in keys or ():
            users.setdefault(key, []).append(run)
    for folder in _folders(store / EMBEDDINGS):
        files: dict[str, list[Path]] = {}
        for path in _entries(folder):
            if path.name.startswith("."):
                yield _artefact(TEMPORARY, path)
            elif path.name.endswith(".npy"):
                key = path.name.removesuffix(".npy").removesuffix(".view")
                files.setdefault(key, []).append(path)
        for key, paths in files.items():
            # The embedding goes before its view: without it the view is made anew.
            paths.sort(key=lambda path: path.name.endswith(".view.npy"))
            using = users.get(key, [])
            yield replace(
                _artefact(EMBEDDINGS, *paths, used=[run.last_use for run in using]),
                name=key,
                sweeps=frozenset(name for run in using for name in run.sweeps),
                users=frozenset(run.key for run in using),
                owners=frozenset() if using else frozenset(is_open),
            )


def _prepared(folder: Path) -> Artefact:
    """Prepared images, or what an interrupted writer left among them."""
    return _artefact(TEMPORARY if folder.name.startswith(".") else PREPARED, folder)


def _artefact(stage: str, *paths: Path, used: Sequence[float] = ()) -> Artefact:
    sizes = [_size(path) for path in paths]
    return Artefact(
        stage=stage,
        name=paths[0].name,
        paths=paths,
        state="done",
        n_bytes=sum(n_bytes for n_bytes, _ in sizes),
        last_use=max(*used, *(written for _, written in sizes), 0.0),
    )


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, without links; nothing where it is missing."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path, *, hidden: bool = False) -> list[Path]:
    """Folders in a folder. Hidden ones are temporary."""
    return [p for p in _entries(folder) if p.is_dir() and (hidden or not p.name.startswith("."))]


def _size(path: Path) -> tuple[int, float]:
    """Bytes of all files at or below a path, and when the last one was written; no links.

    What vanishes meanwhile counts nothing.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0, 0.0
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size, found.st_mtime
    sizes = [_size(child) for child in _entries(path)]
    return sum(n for n, _ in sizes), max([found.st_mtime, *(written for _, written in sizes)])
