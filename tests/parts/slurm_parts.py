"""What the tests of SLURM share: commands that only pretend, and a real SLURM of one machine."""

import functools
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import Node
from experiments.runner.slurm import SlurmJob, SlurmLauncher
from experiments.stages.context import StageContext
from experiments.store.runs import RunStore

LOST = "slurm_load_jobs error: Unable to contact\n"
"""What squeue says while its server does not answer."""

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
echo a line of another kind
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
    shared = {"config": config, "store": RunStore(Path(config.store.root))}
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
            (self.bin / name).write_text(f'#!/bin/sh\nset -e\nSCRIPT="$1"\ncd {folder}\n{text}\n')
            (self.bin / name).chmod(0o755)

    def scripts(self) -> list[str]:
        """What was given to sbatch, in order."""
        return [path.read_text() for path in sorted(self.folder.glob("sbatch.*"))]

    def name_of(self, job_id: int) -> str:
        """Job name of a batch, the first of which is 101."""
        return self.scripts()[job_id - 101].split("#SBATCH --job-name=")[1].splitlines()[0]

    def show(self, **states: str) -> None:
        """Let squeue show jobs: `j101_0="RUNNING 0"`, state and exit_code."""
        ids = {key.removeprefix("j"): words for key, words in states.items()}
        lines = [f"{i} {self.name_of(int(i.split('_')[0]))} {words}\n" for i, words in ids.items()]
        (self.folder / "queue").write_text("".join(lines))

    def calls(self, command: str) -> list[str]:
        """How squeue or scancel was called."""
        path = self.folder / f"{command}.calls"
        return path.read_text().splitlines() if path.exists() else []


def wait_for(is_there: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Look ten times a second."""
    deadline = time.monotonic() + timeout_s
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answer(*words: str) -> str:
    """What a command prints, without the end of its last line; nothing where it fails."""
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return ended.stdout.strip()


@contextmanager
def real_slurm() -> Iterator[None]:
    """Start munged, slurmctld and slurmd on free ports, which this process then reaches.

    Partitions: `low` (default, preempted after a grace), `now` (preempted at once) and `high`.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)
    for name in ("spool", "state", "munge"):
        (folder / name).mkdir()
    munge = {
        n: folder / "munge" / n for n in ("key-file", "socket", "pid-file", "log-file", "seed-file")
    }
    munge["key-file"].write_bytes(secrets.token_bytes(1024))
    munge["key-file"].chmod(0o400)
    (folder / "slurm.conf").write_text(_conf(folder))
    daemons = {
        "munged": (["-F", *(f"--{n}={path}" for n, path in munge.items())], munge["socket"].exists),
        "slurmctld": (["-D", "-c"], lambda: "is UP" in answer("scontrol", "ping")),
        "slurmd": (["-D"], lambda: answer("sinfo", "-h", "-o", "%T").startswith("idle")),
    }
    with ExitStack() as at_end, pytest.MonkeyPatch.context() as patch:
        at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for name, (options, is_up) in daemons.items():
            silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            words = [shutil.which(name, path=SBIN), *options]
            process = subprocess.Popen(words, start_new_session=True, **silent)
            # The last one first.
            at_end.callback(process.kill)
            at_end.callback(process.wait, 20)
            at_end.callback(process.terminate)
            wait_for(is_up)
        try:
            yield
        finally:
            answer("scancel", f"--user={os.getuid()}")
            wait_for(lambda: not answer("squeue", "-h"), timeout_s=30)


def _conf(folder: Path) -> str:
    host = socket.gethostname().split(".")[0]
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        controller, node = one.getsockname()[1], other.getsockname()[1]
    return f"""ClusterName=solo
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=now Nodes={host} State=UP PriorityTier=1 GraceTime=0
PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""


def look(launcher: SlurmLauncher) -> None:
    """Look at the queue, however short a time ago that was done."""
    launcher._next_look = 0.0
    launcher.look()
