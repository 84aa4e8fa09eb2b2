"""What a trial costs beside its stages, and the start of a process that could run one."""

import itertools
import json
from pathlib import Path

from experiments.bench.child import run_program
from experiments.bench.measure import Bench, Found, Timing, Way
from experiments.bench.stages import common_overrides, run_sweep

IMPORTS = "import torch, lightning, segment_anything, torchmetrics"
"""What a training script of its own imports before its first step."""
STAGES_A_TRIAL = 2
"""A fit and a score, each a process."""
GAP = "from a stage's end to the next one's begin"


def bench_startup(bench: Bench, found: Found) -> None:
    """Seconds a trial that a real sweep takes beside its stages' own, and a process's imports."""
    n = found.sizes["trials"]
    words = (
        "name=startup segmenter.steps=2 sweep.workers=1 "
        "sweep.condition=[real] sweep.real_fraction=[] sweep.real_count=[3] "
        f"sweep.seed=[{','.join(map(str, range(n)))}] statistics.primary.prompt=jittered_box"
    )
    words = [*common_overrides(bench, name="startup", backbone="tiny"), *words.split()]
    sweep = Way(f"a whole sweep of {n} small trials", lambda _: run_sweep(words), unit="sweep")
    (whole,) = found.measure(sweep, repeats=1, warm_up=False)
    gaps, window_s = stage_gaps(bench.work / "startup")
    gap = Timing(label=GAP, unit="stage", wall_s=gaps)
    found.timings.append(gap)
    imports = lambda _: run_program(["-c", IMPORTS])  # noqa: E731
    script = Way("imports of a script a trial", imports, unit="process")
    (alone,) = found.measure(script, warm_up=False)
    label, trial_s = "the sweep's own time a trial", STAGES_A_TRIAL * gap.per_unit_s
    formula = f"{STAGES_A_TRIAL} stages x the median {GAP}"
    found.value(label, trial_s, "s", how="composed", formula=formula)
    what = "imports, data, plan, tables, figures, report"
    formula, once_s = f"before the first stage and after the last: {what}", whole.wall_s[0]
    found.value("the sweep's own time once", once_s - window_s, "s", formula=formula)
    label = "start of a trial: a process of its own"
    found.ratio(label, alone.per_unit_s, trial_s, how="measured")


def stage_gaps(root: Path) -> tuple[list[float], float]:
    """Seconds from each stage's end to the next one's begin, and from first begin to last end.

    Args:
        root: Parent of the store of a sweep that ran at least two stages, one at a time.
    """
    spans = sorted(
        (float(json.loads((path.parent / "manifest.json").read_text())["started"]), ended)
        for path in root.glob("store/*/*/DONE.json")
        # Prepared images have a marker too, and are no stage.
        if (path.parent / "manifest.json").is_file()
        for ended in [path.stat().st_mtime]
    )
    gaps = [max(0.0, begun - ended) for (_, ended), (begun, _) in itertools.pairwise(spans)]
    return gaps, spans[-1][1] - spans[0][0]
