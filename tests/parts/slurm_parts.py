"""What the tests of SLURM share: commands that only pretend, and a real SLURM of one machine."""

import functools
import os
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import Node
from experiments.runner.slurm import SlurmJob, SlurmLauncher
from experiments.stages.context import StageContext
from experiments.store.runs import RunStore

SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
DAEMONS = ("slurmctld", "slurmd", "munged")
HAS_SLURM = os.geteuid() == 0 and all(
    shutil.which(name, path=SBIN) for name in (*DAEMONS, "sbatch", "squeue", "srun")
)
SBATCH = """
if [ -e refuse ]; then cat refuse >&2; exit 1; fi
n=$(($(cat count 2>/dev/null || echo 100) + 1)); echo $n > count
cp "$SCRIPT" sbatch.$n; echo "Submitted batch job $n"
"""
SQUEUE = """
echo "$*" >> squeue.calls
if [ -e squeue_fails ]; then cat squeue_fails >&2; exit 1; fi
cat queue 2>/dev/null || true
"""
SCONTROL = 'echo "MaxArraySize            = $(cat max_array 2>/dev/null || echo 1001)"'
SCANCEL = 'echo "$*" >> scancel.calls'


@functools.cache
def _config(*overrides: str) -> ExperimentConfig:
    toy = ["sweep.launcher=slurm", "slurm.poll_s=0.001", "name=toy"]
    return load_config(TOY, [*toy, *overrides])


def slurm_config(root: Path, *overrides: str) -> ExperimentConfig:
    """The demo as a sweep `toy` on a cluster; the same settings are read once."""
    made = _config(*overrides)
    return replace(made, store=replace(made.store, root=str(root)))


def node(label: str, *upstream: Node, stage: str = "fit") -> Node:
    """A stage without content."""
    inputs = {f"in{i}": each.key for i, each in enumerate(upstream)}
    return Node(stage=stage, content={"label": label}, upstream=inputs, label=label)


def start(launcher: SlurmLauncher, *chains: list[Node]) -> list[SlurmJob]:
    """Send jobs, each of a chain of stages."""
    config = launcher._config
    shared = {"config": config, "store": RunStore(Path(config.store.root)), "sweep": "toy"}
    images = {"samples": {}, "rows": {}, "content": {}}
    return launcher.start(
        [[StageContext(node=each, **shared, **images) for each in chain] for chain in chains]
    )


class FakeSlurm:
    """Commands on the PATH that write down how they are called and say what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        commands = {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "scancel": SCANCEL}
        for name, text in {**commands, "srun": "exit 9"}.items():
            path = self.bin / name
            path.write_text(f'#!/bin/sh\nset -e\nSCRIPT="$1"\ncd {folder}\n{text}\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def scripts(self) -> list[str]:
        """What was given to sbatch, in order."""
        return [path.read_text() for path in sorted(self.folder.glob("sbatch.*"))]

    def name_of(self, job_id: int) -> str:
        """Job name of a batch."""
        (line,) = [
            line
            for line in (self.folder / f"sbatch.{job_id}").read_text().splitlines()
            if line.startswith("#SBATCH --job-name=")
        ]
        return line.partition("=")[2]

    def show(self, **states: str) -> None:
        """Let squeue show jobs: `j101_0="RUNNING 0"`, state and exit_code."""
        lines = []
        for key, words in states.items():
            job_id = key.removeprefix("j")
            lines.append(f"{job_id} {self.name_of(int(job_id.split('_')[0]))} {words}\n")
        (self.folder / "queue").write_text("".join(lines))

    def calls(self, command: str) -> list[str]:
        """How squeue or scancel was called."""
        path = self.folder / f"{command}.calls"
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def real_slurm() -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd on free ports; give the variables to reach them.

    Partitions: `low` (default, preempted after a grace), `now` (preempted at once) and `high`.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)
    for name in ("spool", "state", "munge"):
        (folder / name).mkdir()
    key = folder / "munge" / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(_conf(folder))
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = {name: folder / "munge" / f"munged.{name}" for name in ("pid", "log", "seed")}
    started = []
    try:
        socket_option = f"--socket={folder / 'munge' / 'munge.sock'}"
        files = [f"--{name}-file={path}" for name, path in munge.items()]
        started.append(_start("munged", "-F", f"--key-file={key}", socket_option, *files))
        _wait(lambda: (folder / "munge" / "munge.sock").exists())
        started.append(_start("slurmctld", "-D", "-c", **environment))
        _wait(lambda: _answer(environment, "scontrol", "ping").startswith("Slurmctld(primary)"))
        started.append(_start("slurmd", "-D", **environment))
        _wait(lambda: "idle" in _answer(environment, "sinfo", "-h", "-o", "%T"))
        yield environment
    finally:
        _answer(environment, "scancel", f"--user={os.getuid()}")
        _end(started, environment)
        shutil.rmtree(folder, ignore_errors=True)


def _end(started: list[subprocess.Popen], environment: dict[str, str]) -> None:
    if len(started) == len(DAEMONS):
        deadline = time.monotonic() + 30
        while _answer(environment, "squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.2)
    for process in reversed(started):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(name: str, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [shutil.which(name, path=SBIN), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _answer(environment: dict[str, str], *words: str) -> str:
    ended = subprocess.run(
        words,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.stdout.strip()


def _wait(is_there, *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_there():
        assert time.monotonic() < deadline, "SLURM does not start"
        time.sleep(0.2)


def _free_ports() -> list[int]:
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        return [first.getsockname()[1], second.getsockname()[1]]


def _conf(folder: Path) -> str:
    host = socket.gethostname().split(".")[0]
    controller, node = _free_ports()
    return f"""ClusterName=solo
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/spool
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=now Nodes={host} State=UP PriorityTier=1 GraceTime=0
PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""
