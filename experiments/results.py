"""From finished stages to a sweep's outputs. What is written here can always be written again."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.storage import write_atomic
from experiments.columns import PER_IMAGE
from experiments.statistics import KEYS, add_trials, aggregate
from experiments.sweep import NodeRun, Sweep

CONTROL = "box_only"


def collect_per_image(sweep: Sweep) -> pd.DataFrame:
    """Rows of every finished trial and of the control, with their axes; may be empty."""
    parts = []
    for spec in sweep.plan.trials:
        run = sweep.runs[spec.node_key]
        if run.state in ("done", "reused"):
            parts.append(_rows(sweep, run).assign(**_axes(spec_axes(spec))))
    if sweep.plan.control_key is not None:
        run = sweep.runs[sweep.plan.control_key]
        if run.state in ("done", "reused"):
            axes = dict.fromkeys(KEYS, None) | {
                "trial_id": run.node.id,
                "condition": CONTROL,
                "n_real": 0,
                "n_generator_labels": 0,
                "n_val_labels": 0,
                "n_total_labels": 0,
            }
            parts.append(_rows(sweep, run).assign(**_axes(axes)))
    if not parts:
        return pd.DataFrame(columns=[*KEYS, *PER_IMAGE])
    # A column without any value must not decide the type of the others.
    frame = pd.concat([part.dropna(axis="columns", how="all") for part in parts], ignore_index=True)
    first = [*dict.fromkeys([*KEYS, *PER_IMAGE])]
    return frame.reindex(columns=first)


def spec_axes(spec: Any) -> dict[str, Any]:
    """The axes of a trial as columns."""
    return {
        "trial_id": spec.name + "-" + spec.node_key.split("/")[1][:8],
        "condition": spec.condition,
        "real_fraction": spec.real_fraction,
        "n_real": spec.n_real,
        "n_generator_labels": spec.n_generator_labels,
        "n_val_labels": spec.n_val_labels,
        "n_total_labels": spec.n_total_labels,
        "support": spec.support,
        "seed": spec.seed,
        "generator_seed": spec.generator_seed,
    }


def collect_trials(sweep: Sweep) -> pd.DataFrame:
    """A row a trial: axes, status, reason, cost."""
    rows = []
    for spec in sweep.plan.trials:
        run = sweep.runs[spec.node_key]
        finished = run.state in ("done", "reused")
        result = sweep.store.result("trial", run.node.id) if finished else {}
        broken = run.state in ("failed", "blocked")
        status = "done" if finished else "failed" if broken else "pending"
        rows.append(
            spec_axes(spec)
            | {
                "status": status,
                "reason": run.reason,
                "steps": result.get("steps"),
                "seconds": result.get("seconds"),
                "peak_memory_mib": result.get("peak_memory_mib"),
            }
        )
    return pd.DataFrame(rows)


def write_tables_csv(sweep: Sweep, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write per_image.csv and results.csv, and give both back."""
    per_image = collect_per_image(sweep)
    aggregated = aggregate(per_image, n_boot=sweep.config.evaluation.bootstrap_samples)
    results = add_trials(aggregated, trials=collect_trials(sweep))
    write_atomic(folder / "per_image.csv", per_image.to_csv(index=False))
    write_atomic(folder / "results.csv", results.to_csv(index=False))
    return per_image, results


def _rows(sweep: Sweep, run: NodeRun) -> pd.DataFrame:
    path = sweep.store.run_dir(run.node.stage, run.node.id) / "per_image.csv"
    return pd.read_csv(path, dtype={"sample_id": str, "exam_id": str, "test_cohort": str})


def _axes(axes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in axes.items() if key not in ("test_cohort", "prompt")}


def manifest_of(sweep: Sweep, run: NodeRun) -> dict[str, Any]:
    """The manifest of a stage."""
    path = sweep.store.run_dir(run.node.stage, run.node.id) / "manifest.json"
    return json.loads(path.read_text())


def write_outputs(sweep: Sweep, console) -> None:
    folder = sweep.store.sweep_dir(sweep.config.name)
    per_image, results = write_tables_csv(sweep, folder)
    console.print(results.to_string())
