"""A run's lines of `sonosweep doctor`: weights, data, store, W&B, SLURM and the code itself."""

import errno
import fcntl
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.config.paths import ROOT
from experiments.config.schema import ExperimentConfig
from experiments.config.wandb_mode import is_logged_in, resolve_mode, server_answers, server_url
from experiments.doctor.checks import Check, ask, from_message
from experiments.store.disk import disk_need_gib, filesystem
from lightning_modules.errors import WeightsError

NETWORK_KINDS = ("nfs", "cifs", "smb", "fuse.sshfs", "9p")
"""Filesystems on which a lock may reach no further than this machine."""
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "sinfo")


def check_weights(config: ExperimentConfig) -> Check:
    """The backbone's file, and the base model where the recipe fine-tunes one."""
    from lightning_modules.segmenters.sam.weights import FILES, find_lite_weights, find_weights

    backbone, given = config.segmenter.backbone, config.segmenter.weights_path
    facts: dict[str, Any] = {}
    try:
        if backbone == "lite":
            path = find_lite_weights(given)
            text = f"LiteMedSAM, checksum right ({path.name})"
            facts["path"] = str(path)
        elif backbone in FILES:
            path = find_weights(backbone, given)
            text = f"{backbone}: {path.name}"
            facts["path"] = str(path)
        else:
            text = f"segmenter.backbone={backbone} needs none"
        if config.synthesis.generator == "stable_diffusion":
            text += f"; {_base_model(config)}"
    except WeightsError as error:
        return from_message("weights", error)
    if "unet" in config.sweep.condition and config.unet.encoder_weights is not None:
        remedy = "have them downloaded once where there is a network"
        text += f"; the U-Net's {config.unet.encoder_weights} weights come from the network"
        return Check(name="weights", mark="warn", text=text, remedy=remedy, facts=facts)
    return Check(name="weights", mark="ok", text=text, facts=facts)


def _base_model(config: ExperimentConfig) -> str:
    """What is known of the base model without loading it; WeightsError where it is missing."""
    from lightning_modules.generators.stable_diffusion.weights import find_base, is_hub_name

    name = config.stable_diffusion.base_model
    if is_hub_name(name):
        return f"base model {name} from the hub or its cache, asked for when a sweep starts"
    return f"base model {find_base(name).path.name}, whole"


def check_data(config: ExperimentConfig, *, may_draw: bool = False) -> Check:
    """Layout and counts of the folders, by names and CSV; no image is decoded.

    Args:
        config: Its `data`, `split.file` and `synthesis.folder`.
        may_draw: Whether the command draws phantoms where no folder is given, as the demo does.
    """
    if may_draw and config.data.root is None and not os.environ.get("HC18_ROOT"):
        return Check(
            name="data",
            mark="warn",
            text="no folder is given: sonosweep demo draws phantoms",
            remedy="HC18_ROOT=/path/to/hc18, or data.root=/path/to/hc18, for the real images",
        )
    try:
        root = config.data_root()
        facts = _look_at_data(config, root)
    except InputError as error:
        return from_message("data", error)
    except OSError as error:
        text = f"{error.filename}: {(error.strerror or 'cannot be read').lower()}"
        remedy = "check who may read it, or give another data.root"
        return Check(name="data", mark="missing", text=text, remedy=remedy)
    text = f"{facts['images']} images with annotations, {facts['exams']} exams ({facts['cohort']}"
    text += f" in {config.data.layout} layout) in {root}"
    if facts["unlabelled_test_images"]:
        text += f"; {facts['unlabelled_test_images']} unlabelled test images"
    for name, count in facts["test_cohorts"].items():
        text += f"; {count} of {name}"
    if facts["empty_files"]:
        text = f"{facts['empty_files'][0]} is empty, one of {len(facts['empty_files'])} such"
        remedy = "copy or download them again"
        return Check(name="data", mark="missing", text=text, remedy=remedy, facts=facts)
    wanted = config.data.subset.n_images
    if wanted is not None and wanted > facts["images"]:
        text = f"data.subset.n_images={wanted}: {root} holds {facts['images']} images"
        remedy = "data.subset.n_images=null, or another folder"
        return Check(name="data", mark="missing", text=text, remedy=remedy, facts=facts)
    return Check(name="data", mark="ok", text=text, facts=facts)


def _look_at_data(config: ExperimentConfig, root: Path) -> dict[str, Any]:
    """Counts of all folders, after checking that their parts belong together."""
    from datamodules.samples import HC18_FOLDER, read_cohort, read_hc18
    from datamodules.split_file import read_split_file
    from datamodules.synthetic import read_synthetic

    is_hc18 = config.data.layout == "hc18"
    samples = read_hc18(root) if is_hc18 else read_cohort(root)
    cohorts = {folder: read_cohort(Path(folder)) for folder in config.data.test_cohorts}
    if config.split.file is not None:
        read_split_file(Path(config.split.file)).check_against(samples)
    if config.synthesis.folder is not None:
        read_synthetic(Path(config.synthesis.folder))
    paths = [
        path
        for sample in [*samples, *(s for members in cohorts.values() for s in members)]
        for path in (sample.image_path, sample.annotation_path)
        if path is not None
    ]
    # One byte of the first: names may be listed where files may not be read.
    with paths[0].open("rb") as file:
        file.read(1)
    has_test = is_hc18 and (root / HC18_FOLDER["test"]).is_dir()
    return {
        "root": str(root),
        "cohort": samples[0].cohort,
        "images": len(samples),
        "exams": len({sample.exam_id for sample in samples}),
        "unlabelled_test_images": len(read_hc18(root, part="test")) if has_test else 0,
        "test_cohorts": {members[0].cohort: len(members) for members in cohorts.values()},
        "empty_files": [str(path) for path in paths if path.stat().st_size == 0],
    }


def check_store(config: ExperimentConfig) -> Check:
    """Whether the store can be written and locked, and whether a sweep fits on its disk.

    Nothing is left behind: a store that is not there yet is tried in the folder above it.
    """
    from experiments.runner.sweep import ROOM_MIB
    from experiments.store.guard import check_version

    root = Path(config.store.root).absolute()
    try:
        check_version(root)
        folder = next(p for p in (root, *root.parents) if p.exists())
        trouble, has_locks = _try_folder(folder)
        free_gib = shutil.disk_usage(folder).free / 2**30
    except InputError as error:
        return from_message("store", error)
    except OSError as error:
        trouble, has_locks, free_gib = (error.strerror or "cannot be read").lower(), None, 0.0
    if trouble:
        text = f"store.root={config.store.root}: {trouble}"
        remedy = "choose a folder that you may write, with store.root="
        return Check(name="store", mark="missing", text=text, remedy=remedy)
    kind, options = filesystem(folder)
    need_gib = disk_need_gib(config)
    facts = {
        "root": str(root),
        "exists": root.is_dir(),
        "free_gib": round(free_gib, 1),
        "sweep_gib": round(need_gib, 1),
        "filesystem": kind,
        "has_locks": has_locks,
    }
    text = f"{root} is writable{'' if root.is_dir() else ' (made by the first run)'}, "
    text += f"{kind}, {free_gib:.1f} GiB free; this sweep from nothing: about {need_gib:.1f}"
    room_gib = ROOM_MIB / 1024
    if free_gib < room_gib:
        text = f"{free_gib:.2f} GiB free in {folder}: sweeps pause below {room_gib:g}"
        remedy = "free some (sonosweep clean), or choose another disk with store.root="
        return Check(name="store", mark="missing", text=text, remedy=remedy, facts=facts)
    warnings = []
    if free_gib < need_gib:
        warnings.append(("", "free some space, or choose another disk with store.root="))
    warnings += _filesystem_warnings(kind, options, has_locks=has_locks)
    text += "".join(f"; {what}" for what, _ in warnings if what)
    return Check(
        name="store",
        mark="warn" if warnings else "ok",
        text=text,
        remedy="; ".join(remedy for _, remedy in warnings),
        facts=facts,
    )


def _filesystem_warnings(
    kind: str, options: Sequence[str], *, has_locks: bool | None
) -> list[tuple[str, str]]:
    """What a store should not be on, each with what to do."""
    if kind in ("tmpfs", "ramfs"):
        lost = "it is in memory, and gone after a restart"
        return [(lost, "choose a disk with store.root= for what must last")]
    if not has_locks:
        remedy = "start one sweep at a time, or choose a local disk with store.root="
        return [("flock does not work there", remedy)]
    is_far = kind.startswith(NETWORK_KINDS)
    if is_far and {"nolock", "local_lock=all", "local_lock=flock"} & set(options):
        remedy = "start sweeps on this store from one machine alone"
        return [("its locks end at this machine", remedy)]
    return []


def _try_folder(folder: Path) -> tuple[str, bool | None]:
    """Why a folder cannot be written ("" where it can), and whether flock works in it."""
    if not folder.is_dir():
        return f"{folder} is not a folder", None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.") as first:
            first.write(b"sonosweep")
            first.flush()
            os.fsync(first.fileno())
            return "", _excludes(first.fileno(), Path(first.name))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{folder}: the disk or the quota is full", None
        return f"{folder} cannot be written ({error.strerror})", None


def _excludes(descriptor: int, path: Path) -> bool:
    """Whether a lock on a file keeps a second one from it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    with path.open("rb+") as second:
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def check_wandb(config: ExperimentConfig) -> Check:
    """The mode that a run would have, and what stands behind it."""
    mode, has_key = resolve_mode(config.wandb), is_logged_in()
    facts: dict[str, Any] = {"mode": mode, "logged_in": has_key, "server": server_url()}
    if mode == "disabled":
        return Check(name="wandb", mark="ok", text="disabled", facts=facts)
    if mode == "offline":
        text = "offline, in the runs' folders"
        if not has_key:
            text += "; not logged in (`wandb login` for online)"
        return Check(name="wandb", mark="ok", text=text, facts=facts)
    facts["answers"] = server_answers()
    if not has_key:
        text = f"online is asked for, without a key for {server_url()}: runs are logged offline"
        remedy = "wandb login, or wandb.mode=offline"
        return Check(name="wandb", mark="warn", text=text, remedy=remedy, facts=facts)
    if not facts["answers"]:
        text = f"{server_url()} does not answer: runs are logged offline"
        remedy = "nothing, or wandb.mode=offline to save the waits"
        return Check(name="wandb", mark="warn", text=text, remedy=remedy, facts=facts)
    text = f"online, logged in, {server_url()} answers"
    return Check(name="wandb", mark="ok", text=text, facts=facts)


def check_slurm(config: ExperimentConfig) -> Check:
    """SLURM's commands and its partitions; needed where `sweep.launcher` is slurm."""
    is_asked = config.sweep.launcher == "slurm"
    there = [command for command in SLURM_COMMANDS if shutil.which(command)]
    facts: dict[str, Any] = {"commands": there, "partitions": []}
    lost = "missing" if is_asked else "warn"
    if not there:
        text = "not on this machine" + ("" if is_asked else "; local runs need none")
        remedy = "run on a cluster's login node, or sweep.launcher=local" if is_asked else ""
        mark = "missing" if is_asked else "ok"
        return Check(name="slurm", mark=mark, text=text, remedy=remedy, facts=facts)
    absent = [command for command in SLURM_COMMANDS if command not in there]
    if absent:
        text, remedy = f"{', '.join(absent)} not on the PATH", "load the cluster's SLURM module"
        return Check(name="slurm", mark=lost, text=text, remedy=remedy, facts=facts)
    answer = ask("sinfo", "--noheader", "--format=%R|%a|%l|%D|%G")
    if answer.code != 0:
        complaint = answer.complaint.removeprefix("sinfo: error: ")
        text, remedy = f"sinfo fails: {complaint}", "ask the cluster's support, or try later"
        return Check(name="slurm", mark=lost, text=text, remedy=remedy, facts=facts)
    facts["partitions"] = _partitions(answer.out)
    names = list(dict.fromkeys(row["name"] for row in facts["partitions"]))
    wanted = config.slurm.partition
    if is_asked and wanted is not None and wanted not in names:
        text = f"slurm.partition={wanted}: there is none of that name"
        remedy = f"choose one of {', '.join(names) or 'none'}"
        return Check(name="slurm", mark="missing", text=text, remedy=remedy, facts=facts)
    if is_asked and importlib.util.find_spec("submitit") is None:
        text, remedy = "submitit is not installed", "pip install submitit"
        return Check(name="slurm", mark="missing", text=text, remedy=remedy, facts=facts)
    down = [row["name"] for row in facts["partitions"] if row["state"] != "up"]
    text = f"answers; partitions: {', '.join(names) or 'none'}"
    if down:
        text += f" (not up: {', '.join(dict.fromkeys(down))})"
    if not names or set(names) <= set(down):
        remedy = "ask the cluster's support"
        return Check(name="slurm", mark=lost, text=text, remedy=remedy, facts=facts)
    return Check(name="slurm", mark="ok", text=text, facts=facts)


def _partitions(listed: str) -> list[dict[str, Any]]:
    keys = ("name", "state", "time_limit", "nodes", "gres")
    rows: Sequence[list[str]] = [line.strip().split("|") for line in listed.splitlines()]
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def check_code(_: ExperimentConfig) -> Check:
    """Commit and uncommitted changes, which every result carries."""
    here = ROOT
    commit = ask("git", "rev-parse", "--short=12", "HEAD", cwd=here)
    remedy = ""
    if commit.code != 0:
        text = f"no commit can be named in results: {commit.complaint}"
        if "dubious ownership" in commit.complaint:
            remedy = f"git config --global --add safe.directory {here.parent}"
        elif "not a git repository" in commit.complaint:
            text = "not a git checkout: results carry the package's version alone"
        else:
            remedy = "install git, for results that name their code"
        return Check(name="code", mark="warn", text=text, remedy=remedy)
    branch = ask("git", "rev-parse", "--abbrev-ref", "HEAD", cwd=here).out.strip()
    listed = ask("git", "status", "--porcelain", "--untracked-files=no", cwd=here)
    changed = [line for line in listed.out.splitlines() if line.strip()]
    facts = {"commit": commit.out.strip(), "branch": branch, "changed_files": len(changed)}
    text = f"{facts['commit']} on {branch}"
    if changed:
        text += f", uncommitted changes in {len(changed)} file{'s' if len(changed) != 1 else ''}"
        remedy = "commit them, for results that others can make again"
        return Check(name="code", mark="warn", text=text, remedy=remedy, facts=facts)
    return Check(name="code", mark="ok", text=text + ", nothing uncommitted", facts=facts)
