"""A run's lines of `sonosweep doctor`: weights, data, store, W&B, SLURM."""

import fcntl
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.config.schema import ExperimentConfig
from experiments.config.wandb_mode import is_logged_in, resolve_mode, server_answers, server_url
from experiments.doctor.checks import Check, ask, refused
from experiments.store.disk import disk_need_gib
from lightning_modules.errors import WeightsError
from lightning_modules.generators.table import row_of as generator_row
from lightning_modules.segmenters.table import row_of as segmenter_row
from lightning_modules.weights_table import StartWeights, is_offline

SLURM_COMMANDS = ("sbatch", "srun", "squeue", "sinfo")


def check_weights(config: ExperimentConfig) -> Check:
    """Each of the sweep's weights: present, fetchable when the sweep starts, or missing."""
    offline = config.offline or is_offline()
    checks = {}
    for name, start in _starts(config).items():
        try:
            check = None if start is None else _weights_of(start, offline=offline)
        except WeightsError as error:
            check = refused(error)
            check = replace(check, text=f"missing, {check.text}")
        is_known = name == "gate.judge" and check in checks.values()
        if check is not None and not is_known:
            checks[name] = check
    marks = {check.mark for check in checks.values()} | {"ok"}
    remedies = dict.fromkeys(check.remedy for check in checks.values() if check.remedy)
    return Check(
        next(mark for mark in ("missing", "warn", "ok") if mark in marks),
        ", ".join(f"{name}: {check.text}" for name, check in checks.items()) or "none needed",
        "; ".join(remedies),
        {name: check.facts["found"] for name, check in checks.items() if check.facts},
    )


def _starts(config: ExperimentConfig) -> dict[str, StartWeights | None]:
    """What each block of settings starts from, the judge last."""
    segmenters = {name: config.segmenter_named(name) for name in config.segmenter_names()}
    generators = {name: config.generator_named(name) for name in config.generator_names()}
    found = {name: segmenter_row(each).starts_from(each) for name, each in segmenters.items()}
    found |= {name: generator_row(each).starts_from(each) for name, each in generators.items()}
    if any(config.condition(name).is_gated for _, name in config.arms()):
        judge = config.judge()
        found["gate.judge"] = segmenter_row(judge).starts_from(judge)
    return found


def _weights_of(start: StartWeights, *, offline: bool) -> Check:
    """Whether weights are here; WeightsError for a file that cannot be used."""
    path = start.find()
    if path is not None:
        return Check("ok", f"{start.what} present", facts={"found": str(path)})
    if not start.fetch:
        # Nothing tells whether they lie in the cache.
        remedy = "have them downloaded once where there is a network"
        state = "not fetched offline, perhaps cached" if offline else "fetchable"
        return Check("warn", f"{start.what} {state}", remedy, {"found": state})
    mark, state = ("missing", "missing, offline") if offline else ("warn", "fetchable")
    remedy = f"sonosweep weights fetch {start.fetch} fetches it beforehand"
    return Check(mark, f"{start.what} {state}", remedy, {"found": state})


def check_demo_data(config: ExperimentConfig) -> Check:
    """As `check_data`, but `sonosweep demo` draws phantoms where no folder is given."""
    if config.data.root is None and not os.environ.get("HC18_ROOT"):
        remedy = "HC18_ROOT=/path/to/hc18, or data.root=/path/to/hc18, for the real images"
        return Check("warn", "no folder is given: sonosweep demo draws phantoms", remedy)
    return check_data(config)


def check_data(config: ExperimentConfig) -> Check:
    """Counts of the folders, by names and CSV; no image is decoded."""
    root, wanted = config.data_root(), config.data.subset.n_images
    try:
        facts, empty = _count_data(config, root)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}"
        return Check("missing", text, "check who may read it, or give another data.root")
    text = f"in {root}: " + ", ".join(f"{count} {name}" for name, count in facts.items() if count)
    if empty:
        text = f"{empty[0]} is empty, one of {len(empty)} such"
        return Check("missing", text, "copy or download them again", facts)
    if wanted is not None and wanted > facts["annotated images"]:
        text = f"data.subset.n_images={wanted}, {text}"
        return Check("missing", text, "data.subset.n_images=null, or another folder", facts)
    return Check("ok", text, facts=facts)


def _count_data(config: ExperimentConfig, root: Path) -> tuple[dict[str, int], list[Path]]:
    """What the folders hold, and which files are empty; InputError where parts do not belong."""
    from datamodules.cohort import read_cohort
    from datamodules.layouts import LAYOUTS
    from datamodules.split_file import read_split_file
    from datamodules.synthetic import read_synthetic

    layout = LAYOUTS[config.data.layout]
    samples = layout.read(root)
    cohorts = [read_cohort(folder, name=name) for name, folder in config.data.cohorts()]
    if config.split.file is not None:
        read_split_file(Path(config.split.file)).check_against(samples)
    if config.synthesis.folder is not None:
        read_synthetic(Path(config.synthesis.folder))
    # One byte of the first: names may be listed where files may not be read.
    with samples[0].image_path.open("rb") as file:
        file.read(1)
    facts = {"annotated images": len(samples), "exams": len({s.exam_id for s in samples})}
    if unlabelled := layout.unlabelled(root):
        facts["unlabelled test images"] = len(unlabelled)
    facts |= {f"of test cohort {members[0].cohort}": len(members) for members in cohorts}
    paths = [p for s in sum(cohorts, samples) for p in (s.image_path, s.annotation_path) if p]
    return facts, [path for path in paths if path.stat().st_size == 0]


def check_store(config: ExperimentConfig) -> Check:
    """Whether the store can be written and locked, and whether a sweep fits on its disk.

    Nothing is left behind: a store that is not there yet is tried in the folder above it.
    """
    from experiments.runner.sweep import ROOM_MIB
    from experiments.store.layout import check_version

    root = Path(config.store.root).absolute()
    check_version(root)
    try:
        folder = next(path for path in (root, *root.parents) if path.exists())
        has_locks = _try_folder(folder)
    except OSError as error:
        text = f"store.root={root} cannot be written ({error.strerror})"
        return Check("missing", text, "choose a folder that you may write, with store.root=")
    free_gib, need_gib = shutil.disk_usage(folder).free / 2**30, disk_need_gib(config)
    facts = {"root": str(root), "free_gib": round(free_gib, 1), "sweep_gib": round(need_gib, 1)}
    facts["has_locks"] = has_locks
    text = f"{root} can be written, {free_gib:.1f} GiB free; "
    text += f"this sweep from nothing: about {need_gib:.1f} GiB"
    if free_gib < ROOM_MIB / 1024:
        text = f"{free_gib:.2f} GiB free in {folder}: sweeps pause below {ROOM_MIB / 1024:g}"
        remedy = "free some (sonosweep clean), or choose another disk with store.root="
        return Check("missing", text, remedy, facts)
    remedies = ["free some space, or choose another disk"] if free_gib < need_gib else []
    if not has_locks:
        remedies.append("flock does not work there: start one sweep at a time")
    return Check("warn" if remedies else "ok", text, "; ".join(remedies), facts)


def _try_folder(folder: Path) -> bool:
    """Whether a lock on a file in a folder keeps a second one from it; OSError if unwritable."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.") as first:
        first.write(b"sonosweep")
        first.flush()
        # A full disk or quota may be told only here.
        os.fsync(first.fileno())
        # NFS locks nothing that is open for reading alone.
        with Path(first.name).open("rb+") as second:
            try:
                fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return False
    return False


def check_wandb(config: ExperimentConfig) -> Check:
    """The mode that a run would have, and what stands behind it."""
    try:
        mode, has_key, server = resolve_mode(config.wandb), is_logged_in(), server_url()
    except InputError as error:
        return Check("missing", str(error), "correct it, or give wandb.mode=")
    facts: dict[str, Any] = {"mode": mode, "logged_in": has_key, "server": server}
    if mode != "online":
        note = "" if has_key or mode == "disabled" else "; not logged in (wandb login for online)"
        return Check("ok", mode + note, facts=facts)
    if not has_key:
        text = f"online is asked for, without a key for {server}: runs are logged offline"
        return Check("warn", text, "wandb login, or wandb.mode=offline", facts)
    if not server_answers():
        text = f"{server} does not answer: runs are logged offline"
        return Check("warn", text, "nothing, or wandb.mode=offline to save the waits", facts)
    return Check("ok", f"online, logged in, {server} answers", facts=facts)


def check_slurm(config: ExperimentConfig) -> Check:
    """SLURM's commands and its partitions; needed where `sweep.launcher` is slurm."""
    is_asked, wanted = config.sweep.launcher == "slurm", config.slurm.partition
    absent = [command for command in SLURM_COMMANDS if not shutil.which(command)]
    if len(absent) == len(SLURM_COMMANDS) and not is_asked:
        return Check("ok", "not on this machine; local runs need none")
    lost = "missing" if is_asked else "warn"
    if absent:
        remedy = "load the cluster's SLURM module, run on its login node, or sweep.launcher=local"
        return Check(lost, f"not on the PATH: {', '.join(absent)}", remedy)
    code, said = ask("sinfo", "--noheader", "--format=%R|%a")
    if code != 0:
        return Check(lost, f"sinfo fails: {said}", "ask the cluster's support, or try later")
    states = dict(line.strip().split("|") for line in said.splitlines())
    facts, names = {"partitions": states}, ", ".join(states) or "none"
    if is_asked and wanted is not None and wanted not in states:
        text = f"slurm.partition={wanted}: there is none of that name"
        return Check("missing", text, f"choose one of {names}", facts)
    down = [name for name, state in states.items() if state != "up"]
    text = f"answers; partitions: {names}" + (f" (not up: {', '.join(down)})" if down else "")
    if len(down) == len(states):
        return Check(lost, text, "ask the cluster's support", facts)
    return Check("ok", text, facts=facts)
