"""Where stages run: jobs of a SLURM cluster, sent as arrays through submitit. Torch-free."""

import contextlib
import functools
import io
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.config.paths import ROOT
from experiments.config.schema import ExperimentConfig
from experiments.config.words import counted
from experiments.runner.launchers import Job
from experiments.runner.slurm_job import Batch, SlurmJob, read_ledger, write_ledger
from experiments.runner.slurm_queue import (
    ENDED,
    Seen,
    SlurmError,
    cancel,
    in_one_line,
    max_array_size,
    missing_command,
    read_queue,
)
from experiments.stages.context import StageContext
from experiments.store.runs import RunStore, hold

GIVE_UP_AFTER_S = 3600.0
"""How long squeue may fail, and a batch be refused for the moment, before that is an error. A limit
on jobs in the queue is waited for as long as it holds."""
RETRY_S = 30.0
"""Seconds between two attempts to send what was refused for the moment."""
LIMIT = "submitjob"
"""In sbatch's words for a limit on jobs in the queue, of a user or of a group, which other jobs may
have reached: `QOSMaxSubmitJobPerUserLimit`, `AssocGrpSubmitJobsLimit`."""
PASSING = (
    *("unable to contact slurm controller", "socket timed out", "temporarily"),
    *("zero bytes were transmitted", "connection refused"),
)
"""Words of sbatch for what passes by itself."""


class SlurmLauncher:
    """Jobs of a SLURM cluster: one array a start, split where it is too large.

    The jobs outlive the sweep: one that is started again takes up those still in the queue. Raises
    `InputError` on a machine without SLURM.
    """

    chains = True

    def __init__(self, config: ExperimentConfig, *, say: Callable[[str], None] = print) -> None:
        missing = missing_command()
        if missing is not None:
            raise InputError(
                f"sweep.launcher=slurm: {missing} is not found on this machine; start the sweep "
                "on a login node of the cluster, or leave sweep.launcher out to run here"
            )
        self._config, self._settings, self._say = config, config.slurm, say
        root = os.path.abspath(config.store.root)  # noqa: PTH100 - resolve would follow links
        self._store = RunStore(Path(root))
        self.folder = self._store.sweep_dir(config.name) / "slurm"
        self.poll_s = min(1.0, self._settings.poll_s)
        self._array_size = min(self._settings.array_size, max_array_size() or sys.maxsize)
        self._jobs: dict[str, list[SlurmJob]] = {}
        """Jobs by the name of their batch."""
        self._batches: dict[str, Batch] = {}
        self._unsent: dict[str, float] = {}
        """Batches that were refused for the moment, and since when."""
        self._stuck: set[str] = set()
        """Jobs that could not start by themselves at the last look, which was said."""
        self._has_sent = False
        self._next_look = self._next_try = 0.0
        self._failing_since: float | None = None

    def adopt(self, known: Collection[str] | None = None) -> dict[str, Job]:
        """Take up the jobs that an earlier start of the sweep left in the queue, by their stages.

        A batch that was just being sent when the sweep was killed is cancelled: its jobs may lack
        what they need. So are jobs that have not begun and name a stage that is not among `known`:
        they read the recipe when they begin, and would refuse the whole chain.

        Args:
            known: Keys of all stages of the recipe; None for any.

        Raises:
            InputError: If the queue cannot be asked.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        adopted: dict[str, Job] = {}
        # The process that sends holds the folder: a batch without an id was never fully sent.
        with hold(self.folder):
            batches = read_ledger(self.folder)
            try:
                queue = read_queue([batch.name for batch in batches])
                here = {key: seen for key, seen in queue.items() if seen.state not in ENDED}
                unknown = {batch.name for batch in batches if batch.job_id is None}
                broken = {key.split("_")[0] for key, seen in here.items() if seen.name in unknown}
                if broken:
                    cancel(*sorted(broken))
                if known is not None:
                    self._cancel_old(batches, here=here, known=known)
            except SlurmError as error:
                raise InputError(
                    f"sweep.launcher=slurm: {error}; {self.folder / 'jobs.json'} names jobs that "
                    "may still run, try again when SLURM answers"
                ) from error
            for batch in batches:
                if batch.job_id is not None:
                    adopted |= self._adopt(batch, here=here)
            write_ledger(self.folder, list(self._batches.values()))
        return adopted

    def _cancel_old(
        self, batches: Sequence[Batch], *, here: dict[str, Seen], known: Collection[str]
    ) -> None:
        """End the jobs that wait for stages which the recipe has no more, and take them out."""
        old = [
            job_id
            for batch in batches
            if batch.job_id is not None
            for number, chain in enumerate(batch.stages)
            if (job_id := batch.id_of(number)) in here
            and here[job_id][:2] == (batch.name, "PENDING")
            and not set(chain).issubset(known)
        ]
        if old:
            # By ids alone: with --state=PENDING scancel ends all of an array that has not begun.
            cancel(*old)
            n_jobs = counted(len(old), "job")
            self._say(f"cancelled in SLURM's queue: {n_jobs} of stages that the recipe has no more")
        for job_id in old:
            del here[job_id]

    def _adopt(self, batch: Batch, *, here: dict[str, Seen]) -> dict[str, Job]:
        jobs: dict[str, Job] = {}
        for number, chain in enumerate(batch.stages):
            job_id = batch.id_of(number)
            if job_id in here and here[job_id].name == batch.name:
                job = self._job(batch, chain)
                job.sent_as(job_id)
                self._jobs.setdefault(batch.name, []).append(job)
                self._batches[batch.name] = batch
                jobs |= dict.fromkeys(chain, job)
                self._has_sent = True
        return jobs

    def free(self) -> int:
        """Jobs of `slurm.max_jobs` that are not in the queue."""
        self.look()
        return self._settings.max_jobs - len(self._alive())

    def start(self, jobs: Sequence[Sequence[StageContext]]) -> list[Job]:
        """Send jobs as one array, or as few as their number allows.

        Raises:
            InputError: If the very first one is refused.
        """
        started: list[Job] = []
        for first in range(0, len(jobs), self._array_size):
            part = jobs[first : first + self._array_size]
            chains = [[context.node.key for context in chain] for chain in part]
            batch = Batch(name=self._new_name(), stages=chains)
            for chain in part:
                for context in chain:
                    context.run_dir.mkdir(parents=True, exist_ok=True)
                # The job's own words follow, so this must be there before it starts.
                chain[0].status().update("in the queue", done=0, total=0)
            self._batches[batch.name] = batch
            self._jobs[batch.name] = [self._job(batch, chain) for chain in chains]
            started += self._jobs[batch.name]
            self._send(batch)
        return started

    def leave(self, jobs: Sequence[Job]) -> str:
        """Leave the jobs in the queue, and say how they are ended."""
        left = [job for job in self._alive() if job in jobs and job.job_id is not None]
        if not left:
            return ""
        arrays = dict.fromkeys(str(job.job_id).split("_")[0] for job in left)
        n_jobs = "1 job stays" if len(left) == 1 else f"{len(left)} jobs stay"
        return (
            f"{n_jobs} in SLURM's queue, and the same command takes up what is left of them; "
            f"to end them: scancel {' '.join(arrays)}"
        )

    def look(self) -> None:
        """Ask the queue for all jobs, unless that was just done.

        Raises:
            InputError: If it has not answered for an hour.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._settings.poll_s
        if self._unsent and now >= self._next_try:
            for name in list(self._unsent):
                # A batch whose sending timed out may have been taken, without what its jobs need.
                with contextlib.suppress(SlurmError):
                    cancel(f"--name={name}")
                self._send(self._batches[name])
                if name in self._unsent:
                    # What stops this one stops the others.
                    break
        alive = self._alive()
        asked = time.monotonic()
        try:
            queue = read_queue({job.name for job in alive if job.job_id is not None})
        except SlurmError as error:
            self._failing_since = asked if self._failing_since is None else self._failing_since
            if asked - self._failing_since > GIVE_UP_AFTER_S:
                raise InputError(
                    f"sweep.launcher=slurm: {error}, for {GIVE_UP_AFTER_S / 60:.0f} minutes; the "
                    "jobs are left alone, the same command takes them up again"
                ) from error
            return
        self._failing_since = None
        for job in alive:
            seen = queue.get(str(job.job_id))
            # SLURM may count from 1 again: an id alone is not enough.
            job.look(seen if seen and seen.name == job.name else None, asked=asked)
        self._say_stuck({key: seen for key, seen in queue.items() if seen.is_stuck})

    def _say_stuck(self, stuck: dict[str, Seen]) -> None:
        for reason in dict.fromkeys(stuck[key].reason for key in stuck.keys() - self._stuck):
            ids = sorted(key for key, seen in stuck.items() if seen.reason == reason)
            remedy = "scancel {}, and start again with less in slurm.*"
            if stuck[ids[0]].is_held:
                remedy = "scontrol release {}"
            self._say(
                f"{counted(len(ids), 'job')} in SLURM's queue cannot start ({reason}): "
                + remedy.format(" ".join(ids))
            )
        self._stuck = set(stuck)

    def _alive(self) -> list[SlurmJob]:
        return [job for jobs in self._jobs.values() for job in jobs if job.end is None]

    def _new_name(self) -> str:
        return f"{self._config.name}-{secrets.token_hex(4)}"

    def _job(self, batch: Batch, chain: Sequence[str]) -> SlurmJob:
        run_dirs = [self._store.root / "store" / key for key in chain]
        # A folder shared over a network shows what a node wrote after a while: by NFS's defaults
        # after up to 60 s (acdirmax), and this is 75.
        settle_s = 5 * self._settings.poll_s
        return SlurmJob(name=batch.name, run_dirs=run_dirs, ask=self.look, settle_s=settle_s)

    def _send(self, batch: Batch) -> None:
        """Give a batch to the cluster, and write it down before and after."""
        with hold(self.folder):
            self._write_down(batch)
            try:
                batch.job_id = self._submit(batch)
            except SlurmError as error:
                self._write_down(None)
                self._refused(batch, str(error))
                return
            self._write_down(batch)
        self._has_sent = True
        self._unsent.pop(batch.name, None)
        for number, job in enumerate(self._jobs[batch.name]):
            job.sent_as(batch.id_of(number))

    def _write_down(self, batch: Batch | None) -> None:
        """Write our batches that may be in the queue, and those of a sweep beside this one."""
        others = [each for each in read_ledger(self.folder) if each.name not in self._batches]
        names = {job.name for job in self._alive() if job.job_id is not None}
        ours = [self._batches[name] for name in self._batches if name in names]
        write_ledger(self.folder, [*others, *ours, *([batch] if batch else [])])

    def _refused(self, batch: Batch, words: str) -> None:
        now, is_new = time.monotonic(), batch.name not in self._unsent
        is_limit = LIMIT in words.lower()
        is_passing = any(word in words.lower() for word in PASSING)
        # What else stops the first one, the user can fix best now.
        if not self._has_sent and is_new and not is_limit:
            raise InputError(f"sweep.launcher=slurm: {words}")
        if (is_limit or is_passing) and not self._unsent:
            self._say(f"SLURM takes no more jobs for now ({words}); they are sent when it does")
        since = self._unsent.setdefault(batch.name, now)
        if is_limit or (is_passing and now - since < GIVE_UP_AFTER_S):
            self._next_try = now + RETRY_S
            if is_limit and len(batch.stages) > 1:
                self._halve(batch)
            return
        del self._unsent[batch.name]
        for job in self._jobs[batch.name]:
            job.refused(words)

    def _halve(self, batch: Batch) -> None:
        """Make two of a batch that was refused as a whole: for a part of it there may be room."""
        half = len(batch.stages) // 2
        rest = Batch(name=self._new_name(), stages=batch.stages[half:])
        batch.stages = batch.stages[:half]
        jobs = self._jobs[batch.name]
        self._jobs[batch.name], self._jobs[rest.name] = jobs[:half], jobs[half:]
        for job in jobs[half:]:
            job.name = rest.name
        self._batches[rest.name] = rest
        self._unsent[rest.name] = self._unsent[batch.name]

    def _submit(self, batch: Batch) -> str:
        """Send a batch; gives the id of the array or of the one job."""
        # Half a second, which a local run should not pay.
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        # The job's own process becomes our command: SLURM's signals then reach it directly.
        executor = submitit.SlurmExecutor(self.folder, python=f"exec {shlex.quote(sys.executable)}")
        executor.update_parameters(job_name=batch.name, **self._parameters(len(batch.stages)))
        functions = [
            functools.partial(os.execv, sys.executable, [sys.executable, *self._arguments(chain)])
            for chain in batch.stages
        ]
        try:
            # It also prints what it raises.
            with contextlib.redirect_stderr(io.StringIO()):
                jobs = executor.submit_array(functions)
        except (FailedJobError, FailedSubmissionError) as error:
            raise SlurmError(f"sbatch: {in_one_line(str(error))}") from error
        return jobs[0].job_id.split("_")[0]

    def _arguments(self, chain: Sequence[str]) -> list[str]:
        """What the interpreter is given to run the stages of a job."""
        config_path = self.folder.parent / "config.yaml"
        chosen = [word for key in chain for word in ("--stage", key)]
        here = [f"store.root={self._store.root}", "sweep.launcher=local", "sweep.workers=1"]
        here.append("sweep.devices=[]")
        if self._config.trainer.threads is None:
            here.append(f"trainer.threads={self._settings.cpus}")
        return ["-m", "experiments", "trial", str(config_path), *chosen, *here]

    def _parameters(self, n_jobs: int) -> dict[str, Any]:
        """What sbatch is told, in submitit's names."""
        settings, trainer = self._settings, self._config.trainer
        gpus = 0 if trainer.accelerator == "cpu" else settings.gpus
        path = f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
        return {
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "time": settings.time_min,
            "mem": f"{settings.mem_gb}GB",
            "cpus_per_task": settings.cpus,
            "gpus_per_node": max(gpus, trainer.devices) if gpus else None,
            "setup": [*settings.setup, path],
            "array_parallelism": n_jobs,
            "wckey": None,
            "stderr_to_stdout": True,
            "use_srun": False,
            "additional_parameters": {"requeue": True, "signal": f"B:TERM@{settings.grace_s}"},
        }
