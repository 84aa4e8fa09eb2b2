"""The machine's lines of `sonosweep doctor`: Python, cores and memory, GPUs, torch."""

import json
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from experiments.config.schema import ExperimentConfig
from experiments.doctor.checks import Check, ask

STAGE_GIB = 2.0
"""Memory of a stage. The largest one of an ablation on HC18 with LiteMedSAM took 1.6 GiB."""
ENOUGH_SHARED_MIB, LEAST_SHARED_MIB = 256, 8
"""Memory that loader processes hand batches over by: four batches of eight images with masks at
256x256 take 16 MiB, with embeddings of LiteMedSAM 80 MiB."""
PROBE_TIMEOUT_S = 120.0
"""A first import of torch takes tens of seconds from a network disk or beside busy programs."""
# Segmenters import torchvision, which fails beside a torch of another build. No memory is taken
# on a device: a sweep may be running there. torch warns of old drivers and of GPUs that it has no
# code for.
PROBE = """
import json, warnings
try:
    import torch, torchvision
except Exception as error:
    raise SystemExit(f"{type(error).__name__}: {error}")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(number).name for number in range(count)]
warning = " ".join(str(said[-1].message).split()) if said else ""
build = torch.version.cuda or torch.version.hip
print(json.dumps({"torch": torch.__version__, "cuda": build, "gpus": gpus, "warning": warning}))
"""


def check_python(_: ExperimentConfig) -> Check:
    """Python and the libraries against the ranges that are needed."""
    from packaging.requirements import Requirement

    package = metadata("sonosweep")
    lines = [f"python{package['Requires-Python']}", *package.get_all("Requires-Dist")]
    rows = [Requirement(line) for line in lines]
    needed = [row for row in rows if row.marker is None or row.marker.evaluate({"extra": ""})]
    facts = {row.name: _version(row.name) for row in needed}
    wrong = [
        f"{row.name} is {facts[row.name] or 'not installed'}, not {row.specifier}"
        for row in needed
        if not row.specifier.contains(facts[row.name] or "0", prereleases=True)
    ]
    if wrong:
        return Check("missing", ", ".join(wrong), "make -B setup [PYTHON=python3.12]", facts)
    text = f"{facts['python']} ({sys.executable}), torch {facts['torch']}; libraries in range"
    return Check("ok", text, facts=facts)


def _version(name: str) -> str | None:
    try:
        return platform.python_version() if name == "python" else version(name)
    except PackageNotFoundError:
        return None


def cgroup_limits(
    *, base: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> tuple[float, float]:
    """Cores and bytes that control groups (version 2) leave this process, inf for no limit."""

    def numbers(file: Path) -> list[int]:
        words = file.read_text().split() if file.is_file() else []
        return [int(word) for word in words if word.isdigit()]

    cores, memory = [float("inf")], [float("inf")]
    path = own.read_text().rpartition("0::")[2].strip() if own.is_file() else ""
    # In a container the path may be the host's; the mount's own top is then the limit.
    group = base / path.strip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(base):
            quota = numbers(folder / "cpu.max")
            cores += [quota[0] / quota[1]] if len(quota) == 2 else []
            memory += numbers(folder / "memory.max")
    return min(cores), min(memory)


def check_cores(config: ExperimentConfig) -> Check:
    """Cores and memory that affinity and control groups leave, against the stages at once."""
    import psutil

    from experiments.runner.slots import slots_of, threads_of

    quota, limit = cgroup_limits()
    cores = max(1, int(min(len(os.sched_getaffinity(0)), quota)))
    free_gib = min(psutil.virtual_memory().available, limit) / 2**30
    facts = {"cores": cores, "machine_cores": os.cpu_count(), "free_gib": round(free_gib, 1)}
    text = f"{cores} of {os.cpu_count()} cores, {free_gib:.1f} GiB of memory free"
    if config.sweep.launcher != "local":
        return Check("ok", text, facts=facts)
    stages, threads, remedies = len(slots_of(config)), threads_of(config), []
    need_gib = STAGE_GIB * stages
    text += f"; stages at once: {stages}, threads each: {threads}, {need_gib:.0f} GiB for all"
    if stages > cores and not config.sweep.devices:
        remedies.append(f"sweep.workers={cores} trainer.threads=1")
    elif threads * stages > cores:
        remedies.append(f"trainer.threads={max(1, cores // stages)}")
    if free_gib < need_gib:
        remedies.append("for the memory fewer sweep.workers or sweep.per_device")
    if config.trainer.num_workers and Path("/dev/shm").is_dir():
        shared_mib = shutil.disk_usage("/dev/shm").free / 2**20
        facts["shared_mib"] = round(shared_mib, 2)
        if shared_mib < ENOUGH_SHARED_MIB:
            text += f"; {shared_mib:.3g} MiB in /dev/shm for loader processes"
            remedies.append("trainer.num_workers=0, or start the container with --shm-size=2g")
        if shared_mib < LEAST_SHARED_MIB:
            return Check("missing", text, "; ".join(remedies), facts)
    return Check("warn" if remedies else "ok", text, "; ".join(remedies), facts)


def check_temporary(_: ExperimentConfig) -> Check:
    """The folder for temporary files, and the one for sockets, whose paths are short."""
    from experiments.runner.server import socket_folder

    folder = tempfile.gettempdir()
    facts = {"folder": folder, "sockets": socket_folder()}
    text = f"{folder} can be written"
    if facts["sockets"] != folder:
        text += f"; its path is too long for sockets, which go to {facts['sockets']}"
    return Check("ok", text, facts=facts)


def check_gpus(config: ExperimentConfig) -> Check:
    """What nvidia-smi lists, and whether the devices asked for are among it."""
    from experiments.runner.gpus import check_devices

    check_devices(config)
    if shutil.which("nvidia-smi") is None:
        return Check("ok", "no NVIDIA GPU on this machine", facts={"gpus": []})
    query = "--query-gpu=index,name,memory.used,memory.total,driver_version"
    code, said = ask("nvidia-smi", query, "--format=csv,noheader,nounits")
    if code != 0:
        remedy = "repair the driver (often a restart after its update); runs use the CPU"
        return Check("warn", f"nvidia-smi fails: {said}", remedy)
    keys = ("index", "name", "used_mib", "memory_mib", "driver")
    gpus = [dict(zip(keys, line.split(", "), strict=True)) for line in said.splitlines()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    text = ", ".join(f"{g['index']}: {g['name']} ({g['memory_mib']} MiB)" for g in gpus)
    text += "" if visible is None else f"; CUDA_VISIBLE_DEVICES={visible}"
    # Memory may be told as [N/A].
    known = [g for g in gpus if g["used_mib"].isdigit() and g["memory_mib"].isdigit()]
    busy = [g["index"] for g in known if int(g["used_mib"]) > int(g["memory_mib"]) / 2]
    if busy:
        text += f"; more than half of the memory is taken on {', '.join(busy)}"
        remedy = "nvidia-smi names the processes; choose others with sweep.devices=[...]"
        return Check("warn", text, remedy, {"gpus": gpus})
    return Check("ok", text, facts={"gpus": gpus})


def check_torch(config: ExperimentConfig) -> Check:
    """Whether torch can be imported and use the GPUs; asked in a process that may crash."""
    from experiments.runner.gpus import gpu_names

    code, said = ask(sys.executable, "-P", "-c", PROBE, timeout_s=PROBE_TIMEOUT_S)
    if code is None:
        remedy = "try again; look for a slow disk below the Python environment, or busy cores"
        return Check("warn", f"could not be asked: {said}", remedy)
    if code != 0:
        remedy = "make -B setup installs torch and torchvision of one build"
        return Check("missing", f"cannot be imported: {said}", remedy)
    found = json.loads(said.splitlines()[-1])
    text = f"{found['torch']}, CUDA {found['cuda']}, GPUs: {', '.join(found['gpus']) or 'none'}"
    is_local = config.sweep.launcher == "local"
    if found["warning"] or (gpu_names() and not found["gpus"]):
        is_asked = config.sweep.devices or config.trainer.accelerator == "gpu"
        text += f"; it cannot use every GPU: {found['warning'] or 'its build is without CUDA'}"
        remedy = "a torch for this GPU and driver, a newer driver, or trainer.accelerator=cpu"
        return Check("missing" if is_local and is_asked else "warn", text, remedy, found)
    return Check("ok", text + ("" if found["gpus"] else "; runs use the CPU"), facts=found)
