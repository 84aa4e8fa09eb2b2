"""What a trial costs beside its stages, and the start of a process that could run one."""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.context import Bench
from experiments.bench.measure import Ratio, Result, Timing, Value, Way
from experiments.bench.real_stages import common_overrides
from experiments.config.paths import ROOT

IMPORTS = "import torch, lightning, segment_anything, torchmetrics"
"""What a training script of its own imports before its first step."""
STAGES_A_TRIAL = 2
"""A fit and a score, each a process."""
GAP = "from a stage's end to the next one's begin"


def bench_startup(bench: Bench) -> Result:
    """Seconds a trial that a real sweep takes beside its stages' own, and a process's imports."""
    found = Result(name="startup")
    n_trials = 2 if bench.quick else 3
    root, whole = _sweep(bench, n_trials=n_trials)
    gaps, window_s = stage_gaps(root)
    gap = Timing(label=GAP, unit="stage", units=1, wall_s=gaps, cpu_s=[])
    alone = bench.measure(
        [Way(label="imports of a script a trial", unit="process", units=1, call=_import)],
        repeats=1 if bench.quick else 3,
        warm_up=False,
    )[0]
    found.timings += [whole, gap, alone]
    a_trial = STAGES_A_TRIAL * gap.per_unit_s
    found.values += [
        Value(
            label="the sweep's own time a trial",
            value=a_trial,
            unit="s",
            how="composed",
            formula=f"{STAGES_A_TRIAL} stages x the median {GAP}",
            at_most=2.0,
        ),
        Value(
            label="the sweep's own time once",
            value=whole.wall_s[0] - window_s,
            unit="s",
            formula="before the first stage and after the last: imports, data, plan, tables, "
            "figures, report",
        ),
    ]
    found.ratios.append(
        Ratio(
            label="start of a trial: a process of its own",
            published_s=alone.per_unit_s,
            ours_s=a_trial,
            how="measured",
        )
    )
    found.notes.append(
        "A real sweep of the test backbone through the runner, one stage at a time, without W&B. "
        "Begins are those of the stages' manifests, ends those of their markers: what lies between "
        "is the sweep's, the start of the process included. A trial is a fit and a score, two "
        "processes."
    )
    return found


def stage_gaps(root: Path) -> tuple[list[float], float]:
    """What a sweep of one stage at a time did between its stages.

    Args:
        root: Its store's parent.

    Returns:
        Seconds from each stage's end to the next one's begin, and from the first begin to the last
        end.

    Raises:
        ValueError: Fewer than two stages are done.
    """
    spans = sorted(
        (float(json.loads((path.parent / "manifest.json").read_text())["started"]), ended)
        for path in root.glob("store/*/*/DONE.json")
        for ended in [path.stat().st_mtime]
    )
    if len(spans) < 2:
        raise ValueError(f"{root}: {len(spans)} finished stages, gaps need two")
    gaps = [max(0.0, begun - ended) for (_, ended), (begun, _) in itertools.pairwise(spans)]
    return gaps, spans[-1][1] - spans[0][0]


def _sweep(bench: Bench, *, n_trials: int) -> tuple[Path, Timing]:
    """Run a sweep in a store of its own; that store's parent, and the time of all."""
    root = bench.work / f"startup-{n_trials}"
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
    wall_s, cpu_s = run_sonosweep(["sweep", "demo", *words])
    label = f"a whole sweep of {n_trials} small trials"
    return root, Timing(label=label, unit="sweep", units=1, wall_s=[wall_s], cpu_s=[cpu_s])


def _import(_: int) -> None:
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)


def run_sonosweep(words: Sequence[str]) -> tuple[float, float]:
    """Run the command line in a process of its own; seconds of wall clock and of the processor.

    The processor's are those of every process that it started and waited for.
    """
    package = str(ROOT)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    started, before = time.perf_counter(), _children_cpu_s()
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
    return time.perf_counter() - started, _children_cpu_s() - before


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
