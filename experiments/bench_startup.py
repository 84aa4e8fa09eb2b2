"""What a trial costs beside its stages, and the start of a process that could run one."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.bench_context import Bench
from experiments.bench_measure import Ratio, Result, Timing, Value, Way
from experiments.bench_stages import common_overrides

IMPORTS = "import torch, lightning, segment_anything, torchmetrics"
"""What a training script of its own imports before its first step."""


def bench_startup(bench: Bench) -> Result:
    """Seconds a trial that real sweeps take beside their stages' own, and a process's imports."""
    found = Result(name="startup")
    n_repeats, few, many = (1, 1, 2) if bench.quick else (1, 1, 5)
    beside: dict[int, list[float]] = {few: [], many: []}
    for number in range(n_repeats):
        for n_trials in (few, many):
            beside[n_trials].append(_sweep_beside_s(bench, n_trials=n_trials, number=number))
    for n_trials, seconds in beside.items():
        found.timings.append(
            Timing(
                label=f"a sweep of {n_trials} trials, beside its stages",
                unit="sweep",
                units=1,
                wall_s=seconds,
                cpu_s=seconds,
            )
        )
    medians = {n_trials: statistics.median(seconds) for n_trials, seconds in beside.items()}
    a_trial = per_trial(medians[few], medians[many], few=few, many=many)
    alone = bench.measure(
        [Way(label="imports of a script a trial", unit="process", units=1, call=_import)],
        repeats=1 if bench.quick else 3,
    )[0]
    found.timings.append(alone)
    found.values += [
        Value(
            label="the sweep's own time a trial",
            value=a_trial,
            unit="s",
            how="composed",
            formula=f"(beside stages at {many} - at {few} trials) / {many - few}",
            at_most=2.0,
        ),
        Value(
            label="the sweep's own time once",
            value=max(0.0, medians[few] - few * a_trial),
            unit="s",
            how="composed",
            formula="the rest: imports, data, plan, tables, figures, report",
        ),
    ]
    found.ratios.append(
        Ratio(
            label="start of a trial: a process of its own",
            published_s=alone.per_unit_s,
            # Noise may make it nothing; a look at the jobs four times a second is the least.
            ours_s=max(a_trial, 0.01),
            how="measured",
        )
    )
    found.notes.append(
        "Real sweeps of the test backbone through the runner, one stage at a time, without W&B. A "
        "stage's own seconds are those of its marker; starting its process, waiting for it and "
        "writing outputs are the sweep's. A trial is a fit and a score, two processes."
    )
    return found


def per_trial(few_s: float, many_s: float, *, few: int, many: int) -> float:
    """Seconds that each further trial adds; 0 where noise made the larger sweep the shorter."""
    return max(0.0, (many_s - few_s) / (many - few))


def _sweep_beside_s(bench: Bench, *, n_trials: int, number: int) -> float:
    """Wall clock of a sweep less the seconds of its stages, in a store of its own."""
    root = bench.work / f"startup-{n_trials}-{number}"
    words = [
        *common_overrides(bench, name=root.name),
        "name=startup",
        "segmenter.backbone=tiny",
        "segmenter.steps=2",
        "sweep.workers=1",
        "sweep.condition=[real]",
        "sweep.real_fraction=[]",
        "sweep.real_count=[3]",
        f"sweep.seed=[{','.join(map(str, range(n_trials)))}]",
        "statistics.primary.prompt=jittered_box",
    ]
    wall_s = run_sonosweep(["sweep", "demo", *words])
    return wall_s - stage_seconds(root)


def stage_seconds(root: Path) -> float:
    """Sum of the seconds in the markers of a store's finished runs."""
    markers = root.glob("store/*/*/DONE.json")
    return sum(float(json.loads(path.read_text())["seconds"]) for path in markers)


def _import(_: int) -> None:
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)


def run_sonosweep(words: Sequence[str]) -> float:
    """Run the command line in a process of its own; its seconds of wall clock."""
    package = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "experiments", *words],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        lines = (ended.stdout + ended.stderr).strip().splitlines() or ["no words"]
        raise RuntimeError(f"sonosweep {words[0]} ended with {ended.returncode}: {lines[-1]}")
    return time.perf_counter() - started
