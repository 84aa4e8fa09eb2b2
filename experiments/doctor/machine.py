"""The machine's lines of `sonosweep doctor`: versions, cores, memory, GPUs, torch, SLURM."""

import csv
import json
import os
import platform
import re
import shutil
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.config.paths import ROOT
from experiments.config.schema import ExperimentConfig
from experiments.doctor.cgroups import cgroup_limit, usable_cores
from experiments.doctor.checks import Answer, Check, ask, from_message

SHOWN = ("torch", "torchvision", "lightning", "diffusers", "wandb", "numpy")
STAGE_GIB = 2.0
"""Memory of a stage. The hungriest one of an ablation on HC18 with LiteMedSAM took 1.6 GiB."""
SHARED_MIB = 256
"""Shared memory that a loader's processes want."""
PROBE_TIMEOUT_S = 120.0
"""A first import of torch takes tens of seconds from a network disk or beside busy programs."""
_QUERY = ("name", "memory.total", "memory.used", "driver_version", "compute_cap")


def check_python(_: ExperimentConfig) -> Check:
    """Python's version against `requires-python`."""
    from packaging.specifiers import SpecifierSet

    needed, _ = _requirements()
    found = platform.python_version()
    facts = {"version": found, "needed": needed, "executable": sys.executable}
    if not SpecifierSet(needed).contains(found, prereleases=True):
        text = f"{found}, but {needed} is needed"
        remedy = "make setup PYTHON=python3.12"
        return Check(name="python", mark="missing", text=text, remedy=remedy, facts=facts)
    return Check(name="python", mark="ok", text=f"{found} ({sys.executable})", facts=facts)


def check_libraries(_: ExperimentConfig) -> Check:
    """What is installed against the ranges that are needed, then against the lock file."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in _requirements()[1]]
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    found = {requirement.name: _version(requirement.name) for requirement in needed}
    wrong = []
    for requirement in needed:
        installed = found[requirement.name]
        if installed is None:
            wrong.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    facts: dict[str, Any] = {"versions": found, "wrong": wrong}
    if wrong:
        text, remedy = _few(wrong), "make setup, or install what is named with pip"
        return Check(name="libraries", mark="missing", text=text, remedy=remedy, facts=facts)
    pins = _pins(ROOT / "requirements.lock")
    differ = {
        name: pins[name.lower()]
        for name, installed in found.items()
        if name.lower() in pins and _public(installed) != _public(pins[name.lower()])
    }
    facts["differ_from_lock"] = differ
    shown = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
    if differ:
        pairs = _few([f"{name} {found[name]} (locked: {pin})" for name, pin in differ.items()])
        return Check(
            name="libraries",
            mark="warn",
            text=f"in range; not as in requirements.lock: {pairs}",
            remedy="nothing, or make setup for the published numbers' versions",
            facts=facts,
        )
    state = "as locked" if pins else "no requirements.lock here"
    return Check(name="libraries", mark="ok", text=f"{shown}; in range, {state}", facts=facts)


def check_cores(config: ExperimentConfig) -> Check:
    """Cores by affinity, and what a control group allows of them."""
    # Here, not above: these import numpy, which may be what is broken.
    from experiments.runner.launchers import slots_of

    cores, quota = usable_cores(), cgroup_limit("cpu")
    n_slots = len(slots_of(config))
    facts = {"cores": cores, "machine_cores": os.cpu_count(), "cgroup_cores": quota}
    text = f"{cores} core{'s' if cores != 1 else ''}"
    if cores != os.cpu_count():
        text += f" of {os.cpu_count()} by affinity"
    allowed = cores
    if quota is not None and quota < cores:
        allowed = max(1, int(quota))
        text += f", {quota:g} by the control group"
    if not _is_local(config):
        return Check(name="cpu", mark="ok", text=text, facts=facts)
    threads = config.trainer.threads or max(1, cores // n_slots)
    facts |= {"stages_at_once": n_slots, "threads_each": threads}
    text += f"; {n_slots} stage{'s' if n_slots != 1 else ''} at once, threads each: {threads}"
    mark, remedy = "ok", ""
    if threads * n_slots > allowed:
        mark = "warn"
        remedy = f"trainer.threads={max(1, allowed // n_slots)}"
        if n_slots > allowed and not config.sweep.devices:
            remedy = f"sweep.workers={allowed} trainer.threads=1"
    return Check(name="cpu", mark=mark, text=text, remedy=remedy, facts=facts)


def check_memory(config: ExperimentConfig) -> Check:
    """Memory that is free, within the control group's limit, against the stages at once."""
    import psutil

    from experiments.runner.launchers import slots_of

    total, free = (psutil.virtual_memory().total, psutil.virtual_memory().available)
    limit, used = cgroup_limit("memory"), cgroup_limit("memory_used")
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - (used or 0))
    total_gib, free_gib = total / 2**30, max(0, free) / 2**30
    need_gib = STAGE_GIB * len(slots_of(config))
    facts = {"total_gib": round(total_gib, 1), "free_gib": round(free_gib, 1)}
    text = f"{free_gib:.1f} GiB free of {total_gib:.1f}"
    if not _is_local(config):
        return Check(name="memory", mark="ok", text=text, facts=facts)
    text += f"; stages take up to {need_gib:.0f}"
    if free_gib < need_gib:
        remedy = "fewer stages at once (sweep.workers, sweep.per_device), or end other programs"
        return Check(name="memory", mark="warn", text=text, remedy=remedy, facts=facts)
    shared = Path("/dev/shm")
    if config.trainer.num_workers and shared.is_dir():
        shared_mib = shutil.disk_usage(shared).free / 2**20
        if shared_mib < SHARED_MIB:
            text += f"; {shared_mib:.0f} MiB in /dev/shm for loader processes"
            remedy = "trainer.num_workers=0, or start the container with --shm-size=2g"
            return Check(name="memory", mark="warn", text=text, remedy=remedy, facts=facts)
    return Check(name="memory", mark="ok", text=text, facts=facts)


def check_gpus(config: ExperimentConfig) -> Check:
    """What nvidia-smi lists, and whether the devices asked for are among it."""
    from experiments.runner.gpus import check_devices

    gpus, complaint = list_gpus()
    facts = {"gpus": gpus, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    if complaint:
        text = f"nvidia-smi fails: {complaint}"
        remedy = "mend the driver (often a restart after its update); runs use the CPU"
        return Check(name="gpu", mark="warn", text=text, remedy=remedy, facts=facts)
    try:
        check_devices(config)
    except InputError as error:
        return from_message("gpu", error)
    if not gpus:
        text = "no NVIDIA GPU" + ("; runs use the CPU" if _is_local(config) else " on this machine")
        return Check(name="gpu", mark="ok", text=text, facts=facts)
    kinds = Counter((g["name"], g["memory_gib"], g["compute_capability"]) for g in gpus)
    text = ", ".join(
        f"{count} x {name} ({_number(gib)} GiB, capability {capability or 'unknown'})"
        for (name, gib, capability), count in kinds.items()
    )
    text += f", driver {gpus[0]['driver']}"
    if facts["visible"] is not None:
        text += f"; CUDA_VISIBLE_DEVICES={facts['visible']}"
    busy = [
        f"GPU {number}: {gpu['used_gib']:.0f} GiB are taken"
        for number, gpu in enumerate(gpus)
        if gpu["used_gib"] and gpu["memory_gib"] and gpu["used_gib"] > gpu["memory_gib"] / 2
    ]
    if busy:
        remedy = "nvidia-smi names the processes; choose others with sweep.devices=[...]"
        text += f"; {_few(busy)}"
        return Check(name="gpu", mark="warn", text=text, remedy=remedy, facts=facts)
    return Check(name="gpu", mark="ok", text=text, facts=facts)


def check_torch(config: ExperimentConfig) -> Check:
    """Whether torch can be imported and has code for the GPUs; asked in another process."""
    # -P: this folder's own module names must not stand before the standard library's.
    script = Path(__file__).with_name("torch_probe.py")
    answer = ask(sys.executable, "-P", str(script), timeout_s=PROBE_TIMEOUT_S)
    if answer.code is None:
        text = f"could not be asked: {answer.complaint}"
        remedy = "try again; look for a slow disk below the Python environment, or busy cores"
        return Check(name="torch", mark="warn", text=text, remedy=remedy)
    found = _probed(answer)
    error = found.get("error")
    if error:
        remedy = "make setup installs torch and torchvision of one build"
        text = f"cannot be imported: {error}"
        return Check(name="torch", mark="missing", text=text, remedy=remedy, facts=found)
    build = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}"
    if not (found["cuda"] or found["hip"]):
        build = "CPU only"
    text = f"{found['torch']}, {build}"
    devices = found["devices"]
    without = [device["name"] for device in devices if not device["has_code"]]
    needs_gpu = _is_local(config) and (
        bool(config.sweep.devices) or config.trainer.accelerator == "gpu"
    )
    mark = "missing" if needs_gpu else "warn"
    if without:
        text += f"; has no code for {_few(sorted(set(without)))}"
        remedy = "install a build of torch for this GPU, or trainer.accelerator=cpu"
        return Check(name="torch", mark=mark, text=text, remedy=remedy, facts=found)
    if devices:
        text += f"; uses {len(devices)} GPU{'s' if len(devices) != 1 else ''}"
        return Check(name="torch", mark="ok", text=text, facts=found)
    if _is_local(config):
        text += "; runs use the CPU"
    if list_gpus()[0] and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        text += f"; it cannot use the GPU ({found['warning'] or 'without a word why'})"
        remedy = "a torch whose CUDA the driver supports, or a newer driver"
        return Check(name="torch", mark=mark, text=text, remedy=remedy, facts=found)
    # A GPU that is asked for and not there at all is the line above's.
    return Check(name="torch", mark="ok", text=text, facts=found)


def list_gpus() -> tuple[list[dict[str, Any]], str]:
    """All GPUs by nvidia-smi, and what it complains about where it fails.

    Returns:
        Name, memory_gib, used_gib, driver and compute_capability of each, None where it is not
        said; and "" or the complaint. No nvidia-smi gives an empty list and no complaint.
    """
    if shutil.which("nvidia-smi") is None:
        return [], ""
    # Drivers before 510 do not know compute_cap.
    for names in (_QUERY, _QUERY[:-1]):
        query = f"--query-gpu={','.join(names)}"
        answer = ask("nvidia-smi", query, "--format=csv,noheader,nounits")
        if answer.code == 0:
            rows = csv.reader(answer.out.splitlines(), skipinitialspace=True)
            return [_gpu(dict(zip(names, row, strict=False))) for row in rows if row], ""
    return [], answer.complaint


def _is_local(config: ExperimentConfig) -> bool:
    return config.sweep.launcher == "local"


def _requirements() -> tuple[str, list[str]]:
    """Python's range and the libraries', of the checkout or else of the installed package."""
    import tomllib

    path = ROOT / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text())["project"]
        if project.get("name") == "sonosweep":
            return project["requires-python"], project["dependencies"]
    found = metadata("sonosweep")
    return found["Requires-Python"], found.get_all("Requires-Dist") or []


def _pins(lock: Path) -> dict[str, str]:
    """Versions by name in a lock file, of those lines that count on this machine."""
    from packaging.requirements import Requirement

    try:
        lines = lock.read_text().splitlines()
    except OSError:
        return {}
    pins = {}
    for line in lines:
        if match := re.match(r"[A-Za-z0-9][\w.-]*==[^\\#]+", line):
            requirement = Requirement(match[0].strip())
            if requirement.marker is None or requirement.marker.evaluate():
                pins[requirement.name.lower()] = str(requirement.specifier).removeprefix("==")
    return pins


def _public(found: str | None) -> str:
    """A version without the build's name: 2.11.0+cu128 is 2.11.0."""
    return (found or "").split("+", 1)[0]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _probed(answer: Answer) -> dict[str, Any]:
    try:
        return json.loads(answer.out.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": answer.complaint}


def _gpu(row: dict[str, str]) -> dict[str, Any]:
    def gib(key: str) -> float | None:
        text = row.get(key, "")
        return round(float(text) / 1024, 1) if re.fullmatch(r"[\d.]+", text) else None

    return {
        "name": row.get("name", ""),
        "memory_gib": gib("memory.total"),
        "used_gib": gib("memory.used"),
        "driver": row.get("driver_version", "unknown"),
        "compute_capability": row.get("compute_cap"),
    }


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


def _few(words: list[str], *, most: int = 4) -> str:
    rest = len(words) - most
    return ", ".join(words[:most]) + (f" and {rest} more" if rest > 0 else "")
