"""A hand-made store: a small plan, and its stages in the states that a test needs."""

import fcntl
import json
import re
import time
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.store.plan_file import PlanFile, PlannedStage, PlannedTrial, write_plan
from experiments.store.runs import write_done, write_failed, write_started


def stage(key: str, *upstream: str, label: str = "", steps: int = 10) -> PlannedStage:
    return PlannedStage(
        key=key,
        label=label or key.replace("/", " "),
        stage=key.split("/")[0],
        steps=steps,
        upstream=upstream,
    )


def trial(condition: str, n_real: int, *keys: str, seed: int = 0, is_control: bool = False):
    name = f"{condition}-n{n_real}-s{seed}"
    return PlannedTrial(
        id=f"{name}-{keys[0].split('/')[1]}",
        name=name,
        condition=condition,
        real_fraction=None,
        n_real=n_real,
        support=0,
        seed=seed,
        generator_seed=0,
        fold=0,
        is_control=is_control,
        keys=keys,
    )


def small_plan() -> PlanFile:
    """Two real trials at 4 images, one at 8, one with pairs, and a control."""
    return PlanFile(
        stages=(
            stage("embed/e1", label="embed 8 train images"),
            stage("generator/g1", label="fit generator on 4 images"),
            stage("gate/p1", "generator/g1", label="gate 4 candidates"),
            stage("fit/a0", "embed/e1", label="fit real, 4 images, seed 0"),
            stage("score/a0", "fit/a0", "embed/e1", label="score real 4 seed 0"),
            stage("fit/a1", "embed/e1", label="fit real, 4 images, seed 1"),
            stage("score/a1", "fit/a1", "embed/e1", label="score real 4 seed 1"),
            stage("fit/b0", "embed/e1", label="fit real, 8 images, seed 0"),
            stage("score/b0", "fit/b0", "embed/e1", label="score real 8 seed 0"),
            stage("fit/s0", "embed/e1", "gate/p1", label="fit synthetic, 4 images"),
            stage("score/s0", "fit/s0", "embed/e1", label="score synthetic 4"),
            stage("control/c0", label="control mean_mask"),
        ),
        trials=(
            trial("real", 8, "fit/b0", "score/b0"),
            trial("real", 4, "fit/a0", "score/a0"),
            trial("real", 4, "fit/a1", "score/a1", seed=1),
            trial("synthetic", 4, "fit/s0", "score/s0"),
            trial("mean_mask", 0, "control/c0", is_control=True),
        ),
    )


def plan_sweep(root: Path, name: str, plan: PlanFile) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"name: {name}\n")
    write_plan(folder, plan)
    return folder


def begin(root: Path, key: str, *, log: str = "", status: dict | None = None) -> Path:
    """A stage that began and left no marker."""
    run_dir = root / "store" / key
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / ".lock").touch()
    (run_dir / "log.txt").write_text(log)
    write_started(run_dir, {"stage": run_dir.parent.name})
    if status is not None:
        (run_dir / "status.json").write_text(json.dumps(status))
    return run_dir


def finish(root: Path, *keys: str, size: int = 0) -> None:
    for key in keys:
        run_dir = begin(root, key)
        (run_dir / "weights.bin").write_bytes(bytes(size))
        write_done(run_dir, {"seconds": 1.0})


def fail(root: Path, key: str, reason: str, *, log: str = "") -> Path:
    run_dir = begin(root, key, log=log)
    write_failed(run_dir, reason)
    return run_dir


class Held:
    """Another process's lock, as far as a lock can tell: it belongs to the open file."""

    def __init__(self, folder: Path, *, kind: int = fcntl.LOCK_EX) -> None:
        self._file = (folder / ".lock").open("a")
        fcntl.flock(self._file, kind)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._file.close()


def progress(done: int, total: int, *, ago_s: float = 0.0) -> dict:
    return {"what": "steps", "done": done, "total": total, "time": time.time() - ago_s}


def run_command(monkeypatch, capsys, *words: object) -> tuple[int, str, str]:
    """Run a command in this process at 60 columns; gives its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.argv", ["sonosweep", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    # A folded line ends with the space at which it was folded.
    return ended.value.code, re.sub(r" +\n", "\n", out), err
