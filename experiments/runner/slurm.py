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
from experiments.runner.launchers import End, Job
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
from experiments.store.runs import hold

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
        self._root = Path(os.path.abspath(config.store.root))  # noqa: PTH100 - follows no links
        self.folder = self._root / config.name / "slurm"
        self.poll_s = min(1.0, self._settings.poll_s)
        self._array_size = min(self._settings.array_size, max_array_size() or sys.maxsize)
        self._batches: dict[str, Batch] = {}
        """By name."""
        self._stuck: set[str] = set()
        """Jobs that could not start by themselves at the last look, which was said."""
        self._next_look = self._next_try = 0.0
        self._failing_since: float | None = None

    def adopt(self, known: Collection[str] | None = None) -> dict[str, Job]:
        """Take up the jobs that an earlier start of the sweep left in the queue, by their stages.

        A batch that was just being sent when the sweep was killed is cancelled: its jobs may lack
        what they need. So are jobs that have not begun and name a stage that is not among `known`,
        the keys of the recipe's stages: they would refuse the whole chain when they read it.
        InputError if the queue cannot be asked.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        adopted: dict[str, Job] = {}
        # The process that sends holds the folder: a batch without an id was never fully sent.
        with hold(self.folder):
            try:
                left = self._left_in_queue(read_ledger(self.folder), known=known)
            except SlurmError as error:
                raise InputError(
                    f"sweep.launcher=slurm: {error}; {self.folder / 'jobs.json'} names jobs that "
                    "may still run, try again when SLURM answers"
                ) from error
            for job_id, (batch, chain) in left.items():
                job = self._job(chain)
                job.job_id = job_id
                batch.jobs.append(job)
                self._batches[batch.name] = batch
                adopted |= dict.fromkeys(chain, job)
            write_ledger(self.folder, list(self._batches.values()))
        return adopted

    def _left_in_queue(
        self, batches: Sequence[Batch], *, known: Collection[str] | None
    ) -> dict[str, tuple[Batch, list[str]]]:
        """Batch and stages of each job that is left, after cancelling what is not to run."""
        queue = read_queue([batch.name for batch in batches])
        here = {key: seen for key, seen in queue.items() if seen.state not in ENDED}
        unsent = {batch.name for batch in batches if batch.job_id is None}
        broken = {key.split("_")[0] for key, seen in here.items() if seen.name in unsent}
        if broken:
            cancel(*sorted(broken))
        left = {
            job_id: (batch, chain)
            for batch in batches
            for job_id, chain in batch.chains().items()
            if job_id in here and here[job_id].name == batch.name
        }
        old = [
            job_id
            for job_id, (_, chain) in left.items()
            if here[job_id].state == "PENDING"
            and known is not None
            and not set(chain).issubset(known)
        ]
        if old:
            # By ids alone: with --state=PENDING scancel ends all of an array that has not begun.
            cancel(*old)
            n_jobs = counted(len(old), "job")
            self._say(f"cancelled in SLURM's queue: {n_jobs} of stages that the recipe has no more")
        return {job_id: found for job_id, found in left.items() if job_id not in old}

    def free(self) -> int:
        """Jobs of `slurm.max_jobs` that are not in the queue."""
        self.look()
        return self._settings.max_jobs - sum(len(each.alive) for each in self._batches.values())

    def start(self, jobs: Sequence[Sequence[StageContext]]) -> list[Job]:
        """Send jobs as one array, or as few as their number allows; InputError if the very first
        one is refused.
        """
        started: list[Job] = []
        for first in range(0, len(jobs), self._array_size):
            part = jobs[first : first + self._array_size]
            for chain in part:
                for context in chain:
                    context.run_dir.mkdir(parents=True, exist_ok=True)
                # The job's own words follow, so this must be there before it starts.
                chain[0].status().update("in the queue", done=0, total=0)
            chains = [[context.node.key for context in chain] for chain in part]
            batch = self._batch(chains, list(map(self._job, chains)))
            started += batch.jobs
            self._send(batch)
        return started

    def keep_alone(self, _: Job) -> bool:
        """False: SLURM gives no job a GPU that another has."""
        return False

    def leave(self, jobs: Sequence[Job]) -> str:
        """Leave the jobs in the queue, and say how they are ended."""
        left = {each.job_id: len({*each.alive} & {*jobs}) for each in self._in_queue()}
        arrays, n = [job_id for job_id, n_left in left.items() if n_left], sum(left.values())
        if not arrays:
            return ""
        n_jobs = "1 job stays" if n == 1 else f"{n} jobs stay"
        return (
            f"{n_jobs} in SLURM's queue, and the same command takes up what is left of them; "
            f"to end them: scancel {' '.join(arrays)}"
        )

    def look(self) -> None:
        """Ask the queue for all jobs, unless that was just done; InputError if it has not answered
        for an hour.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._settings.poll_s
        if now >= self._next_try:
            self._send_again()
        try:
            queue = read_queue({batch.name for batch in self._in_queue()})
        except SlurmError as error:
            self._failing_since = now if self._failing_since is None else self._failing_since
            if now - self._failing_since > GIVE_UP_AFTER_S:
                raise InputError(
                    f"sweep.launcher=slurm: {error}, for {GIVE_UP_AFTER_S / 60:.0f} minutes; the "
                    "jobs are left alone, the same command takes them up again"
                ) from error
            return
        self._failing_since = None
        for batch in self._in_queue():
            for job in batch.alive:
                seen = queue.get(str(job.job_id))
                # SLURM may count from 1 again: an id alone is not enough.
                job.look(seen if seen and seen.name == batch.name else None)
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

    def _in_queue(self) -> list[Batch]:
        """Batches that were sent and of which some jobs have not ended."""
        return [each for each in self._batches.values() if each.job_id is not None and each.alive]

    def _refused(self) -> list[Batch]:
        """Batches that are to be sent again."""
        return [each for each in self._batches.values() if each.refused_since is not None]

    def _batch(self, stages: list[list[str]], jobs: list[SlurmJob]) -> Batch:
        name = f"{self._config.name}-{secrets.token_hex(4)}"
        self._batches[name] = Batch(name=name, stages=stages, jobs=jobs)
        return self._batches[name]

    def _job(self, chain: Sequence[str]) -> SlurmJob:
        run_dirs = [self._root / "store" / key for key in chain]
        # A folder shared over a network shows what a node wrote after a while: by NFS's defaults
        # after up to 60 s (acdirmax), and this is 75.
        settle_s = 5 * self._settings.poll_s
        return SlurmJob(run_dirs=run_dirs, ask=self.look, settle_s=settle_s)

    def _send(self, batch: Batch) -> None:
        """Give a batch to the cluster, and write it down before and after."""
        refusal = ""
        with hold(self.folder):
            self._write_down(batch)
            try:
                batch.job_id = self._submit(batch)
            except SlurmError as error:
                refusal = str(error)
            self._write_down()
        if refusal:
            self._take_refusal(batch, refusal)
            return
        batch.refused_since = None
        for job, job_id in zip(batch.jobs, batch.chains(), strict=True):
            job.job_id = job_id

    def _send_again(self) -> None:
        for batch in self._refused():
            # A batch whose sending timed out may have been taken, without what its jobs need.
            with contextlib.suppress(SlurmError):
                cancel(f"--name={batch.name}")
            self._send(batch)
            if batch.refused_since is not None:
                # What stops this one stops the others.
                break

    def _write_down(self, *sending: Batch) -> None:
        """Write our batches that may be in the queue, and those of a sweep beside this one."""
        others = [each for each in read_ledger(self.folder) if each.name not in self._batches]
        write_ledger(self.folder, [*others, *self._in_queue(), *sending])

    def _take_refusal(self, batch: Batch, words: str) -> None:
        now, is_new = time.monotonic(), batch.refused_since is None
        is_limit = LIMIT in words.lower()
        is_passing = is_limit or any(word in words.lower() for word in PASSING)
        has_sent = any(each.job_id is not None for each in self._batches.values())
        # What else stops the first one, the user can fix best now.
        if is_new and not has_sent and not is_limit:
            raise InputError(f"sweep.launcher=slurm: {words}")
        if is_passing and not self._refused():
            self._say(f"SLURM takes no more jobs for now ({words}); they are sent when it does")
        since = now if is_new else batch.refused_since
        if is_limit or (is_passing and now - since < GIVE_UP_AFTER_S):
            batch.refused_since, self._next_try = since, now + RETRY_S
            if is_limit and len(batch.stages) > 1:
                self._halve(batch)
            return
        batch.refused_since = None
        for job in batch.jobs:
            job.end_as(End(f"its job was refused: {words}", was_killed=False))

    def _halve(self, batch: Batch) -> None:
        """Make two of a batch that was refused as a whole: for a part of it there may be room."""
        half = len(batch.stages) // 2
        rest = self._batch(batch.stages[half:], batch.jobs[half:])
        batch.stages, batch.jobs = batch.stages[:half], batch.jobs[:half]
        rest.refused_since = batch.refused_since

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
        here = [f"store.root={self._root}", "sweep.launcher=local"]
        here += ["sweep.workers=1", "sweep.devices=[]", "sweep.per_device=1"]
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
