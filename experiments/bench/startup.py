"""What a trial costs beside its stages, and the start of a process that could run one."""

import itertools
import json
from pathlib import Path

from experiments.bench.child import run_program
from experiments.bench.context import Bench, Way
from experiments.bench.results import Ratio, Result, Timing, Value
from experiments.bench.stages import common_overrides, run_sweep

IMPORTS = "import torch, lightning, segment_anything, torchmetrics"
"""What a training script of its own imports before its first step."""
STAGES_A_TRIAL = 2
"""A fit and a score, each a process."""
GAP = "from a stage's end to the next one's begin"


def bench_startup(bench: Bench, found: Result) -> None:
    """Seconds a trial that a real sweep takes beside its stages' own, and a process's imports."""
    n_trials, repeats = bench.size(quick=(2, 1), cpu=(3, 3), gpu=(3, 3))
    words = (
        "name=startup segmenter.backbone=tiny segmenter.steps=2 sweep.workers=1 "
        "sweep.condition=[real] sweep.real_fraction=[] sweep.real_count=[3] "
        f"sweep.seed=[{','.join(map(str, range(n_trials)))}] statistics.primary.prompt=jittered_box"
    )
    words = [*common_overrides(bench, name="startup"), *words.split()]
    label = f"a whole sweep of {n_trials} small trials"
    sweep = Way(label, lambda _: run_sweep("demo", words), unit="sweep")
    (whole,) = bench.measure(found, [sweep], repeats=1, warm_up=False)
    gaps, window_s = stage_gaps(bench.work / "startup")
    gap = Timing(label=GAP, unit="stage", units=1, wall_s=gaps, cpu_s=[])
    found.timings.append(gap)
    label = "imports of a script a trial"
    script = Way(label, lambda _: run_program(["-c", IMPORTS]), unit="process")
    (alone,) = bench.measure(found, [script], repeats=repeats, warm_up=False)
    trial_s = STAGES_A_TRIAL * gap.per_unit_s
    label, formula = "the sweep's own time a trial", f"{STAGES_A_TRIAL} stages x the median {GAP}"
    found.values.append(Value(label, trial_s, "s", "composed", formula, bench.target(found)))
    label, once_s = "the sweep's own time once", whole.wall_s[0] - window_s
    formula = "before the first stage and after the last: imports, data, plan, tables, figures, "
    found.values.append(Value(label, once_s, "s", formula=f"{formula}report"))
    label = "start of a trial: a process of its own"
    found.ratios.append(Ratio(label, alone.per_unit_s, trial_s, "measured"))
    found.notes.append(
        "A real sweep of the test backbone through the runner, one stage at a time, without W&B. "
        "Begins are those of the stages' manifests, ends those of their markers: what lies between "
        "is the sweep's, the start of the process included. A trial is a fit and a score, two "
        "processes."
    )


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
