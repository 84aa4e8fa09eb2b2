"""A sweep's summary for W&B: a run a trial, and one with its table, figure and report.

W&B is used in a process of its own, for a limited time: whatever it does, the sweep ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.integrity import read_object
from datamodules.storage import content_key
from experiments.config.schema import resolved
from experiments.config.wandb_mode import resolve_mode
from experiments.plan.nodes import Node, TrialSpec
from experiments.runner.sweep import Sweep

N_OVERLAYS = 4
"""Test images whose predictions are shown, the same ones in every trial of a fold."""
LOGGED_NAME = "wandb.json"
LOG_NAME = "wandb.log"


def log_sweep(sweep: Sweep, *, key: str, finding: str) -> str | None:
    """Log what W&B does not have yet of a sweep's outcome, of which `key` is a hash.

    Returns:
        One line on what went wrong, or None.
    """
    if resolve_mode(sweep.config.wandb) == "disabled":
        return None
    folder = sweep.store.sweep_dir(sweep.config.name)
    known = logged(folder)
    trials = [trial for spec in sweep.plan.trials if (trial := _trial(sweep, spec)) is not None]
    new = [trial for trial in trials if known.get(trial["id"]) != trial["key"]]
    if not new and known.get("analysis") == key:
        return None
    analysis = {
        "id": "analysis",
        "name": f"analysis of {sweep.config.name}",
        "job_type": "analysis",
        "tags": [sweep.data.name],
        "config": {},
        "key": key,
    }
    request = {
        "config": resolved(sweep.config),
        "finding": finding,
        "trials": trials,
        "jobs": [*new, analysis],
    }
    return _in_child(folder, request, timeout_s=90.0 + 5.0 * len(new))


def logged(folder: Path) -> dict[str, str]:
    """Hash of what was logged for each trial, and under `analysis` for the sweep's outputs."""
    return read_object(folder / LOGGED_NAME) or {}


def _trial(sweep: Sweep, spec: TrialSpec) -> dict[str, Any] | None:
    """What is logged of a trial; None where it is not done."""
    if not all(sweep.runs[key].is_done for key in spec.keys):
        return None
    first = spec.fit_key or min(spec.score_keys.values())
    manifest = sweep.store.root / "store" / first / "manifest.json"
    made_by = json.loads(manifest.read_text()).get("sweep", "")
    kind = "trial" if made_by == sweep.config.name else "reused"
    content = {
        **spec.axes,
        "arm": spec.arm,
        "output": sweep.config.evaluation.output,
        "made_by": made_by,
        "fit_id": spec.fit_key,
        "score_ids": {"/".join(place): key for place, key in spec.score_keys.items()},
    }
    return {
        "id": spec.id,
        "name": spec.name,
        "job_type": "control" if spec.is_control else kind,
        "tags": [sweep.data.name, *sorted(spec.tags)],
        "config": content,
        "overlays": _shown(sweep, spec),
        "key": content_key([content, kind]),
    }


def _shown(sweep: Sweep, spec: TrialSpec) -> dict[str, Any]:
    """The predictions of a trial that are shown, of the first prompt that it was scored under."""
    scored = [prompt for cohort, prompt in spec.score_keys if cohort == sweep.data.name]
    if not scored:
        return {}
    # A control may have a prompt of its own.
    known = [prompt for prompt in sweep.config.evaluation.prompts if prompt in scored]
    prompt = (known or scored)[0]
    node = sweep.plan.nodes[spec.score_keys[sweep.data.name, prompt]]
    return {
        "run_dir": sweep.store.run_dir(node.stage, node.id),
        "prompt": prompt,
        "images": [asdict(sweep.data.samples[name]) for name in fixed_images(node)],
    }


def fixed_images(node: Node) -> list[str]:
    """Ids of the test images of a scoring stage that are shown: evenly spaced, at most four."""
    ids = sorted(sample_id for sample_id, _ in node.content["test"])
    n = min(N_OVERLAYS, len(ids))
    return [ids[number * len(ids) // n] for number in range(n)]


def _in_child(folder: Path, request: dict[str, Any], *, timeout_s: float) -> str | None:
    path, log = folder / "wandb-request.json", folder / LOG_NAME
    path.write_text(json.dumps(request, default=str))
    with (
        log.open("a") as output,
        # W&B's exit handlers, which would remove what it leaves, are not waited for.
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary,
    ):
        # A session of its own: W&B starts processes that must end with it.
        child = subprocess.Popen(
            [sys.executable, "-m", "experiments.tracking.child", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": temporary},
            start_new_session=True,
        )
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            path.unlink(missing_ok=True)
    if code == 0:
        return None
    why = "took too long" if code is None else "did not take all of it"
    return f"W&B {why}: the sweep's summary continues at the next start ({os.path.relpath(log)})"
