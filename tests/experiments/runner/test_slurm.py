"""Jobs of a cluster: what is sent, how ends are told apart, and what a restart takes up."""

import io
import json
import re
import sys
import time

import pytest
from rich.console import Console
from runner_parts import make_sweep
from slurm_parts import LOST, look, node, slurm_config, start
from store_parts import finish, plan_sweep, run_command, stage, trial
from submitit.core.utils import DelayedSubmission
from sweep_parts import SETTINGS

from datamodules.errors import InputError
from experiments.commands.run import report_failures, run_sweep
from experiments.config.running import SlurmConfig
from experiments.runner import slurm
from experiments.runner.slurm import SlurmLauncher
from experiments.runner.slurm_job import Batch, read_ledger, refuse_queued, write_ledger
from experiments.store.plan_file import PlanFile
from experiments.store.runs import write_done, write_failed


def test_jobs_that_start_together_are_one_array_of_single_commands(tmp_path, fake, make):
    fit, other = node("a"), node("b")
    score = node("s", fit, stage="score")
    asked = ("partition=gpu", "account=us", "qos=long", "time_min=90", "mem_gb=7", "cpus=3")
    launcher = make("slurm.setup=[module load cuda]", *(f"slurm.{word}" for word in asked))
    start(launcher, [fit, score], [other])
    (script,) = fake.scripts()
    options, rest = script.split("\n# setup\n")
    assert sorted(re.findall(r"^#SBATCH --(.+)", options, re.MULTILINE)) == [
        *("account=us", "array=0-1%2", "cpus-per-task=3", "gpus-per-node=1"),
        *(f"job-name={fake.name_of(101)}", "mem=7GB", "nodes=1", "open-mode=append"),
        *(f"output={tmp_path}/toy/slurm/%A_%a_0_log.out", "partition=gpu", "qos=long"),
        *("requeue", "signal=B:TERM@120", "time=90"),
    ]
    assert rest.startswith("module load cuda\n")
    # SLURM's signal reaches the command only where the shell has become it.
    assert script.splitlines()[-1].startswith(f"exec {sys.executable} ")
    called = DelayedSubmission.load(tmp_path / "toy" / "slurm" / "101_0_submitted.pkl").function
    program, words = called.args
    assert (called.func.__name__, program, words[0]) == ("execv", sys.executable, sys.executable)
    assert words[1:] == [
        *("-m", "experiments", "trial", str(tmp_path / "toy" / "config.yaml")),
        *("--stage", fit.key, "--stage", score.key, f"store.root={tmp_path}"),
        *("sweep.launcher=local", "sweep.workers=1", "sweep.devices=[]", "sweep.per_device=1"),
        "trainer.threads=3",
    ]


def test_gpus_of_a_job(fake, make):
    for words in ("slurm.gpus=2 trainer.accelerator=cpu", "slurm.gpus=2", "trainer.devices=2"):
        start(make(*words.split()), [node("a")])
    asked = [re.findall(r"#SBATCH --(gpus\S*)", script) for script in fake.scripts()]
    assert asked == [[], ["gpus-per-node=2"], ["gpus-per-node=2"]]


@pytest.mark.parametrize(
    ("setting", "cluster", "ids"),
    [
        (2, "1001", "101_0 101_1 102_0 102_1 103"),
        (1000, "4", "101_0 101_1 101_2 102_0 102_1"),
        (1000, "0", "101 102 103 104 105"),
    ],
)
def test_arrays_are_split_under_both_limits(fake, make, setting, cluster, ids):
    (fake.folder / "max_array").write_text(cluster)
    jobs = start(make(f"slurm.array_size={setting}"), *[[node(f"n{i}")] for i in range(5)])
    assert [job.job_id for job in jobs] == ids.split()


LOG = "log slurm/{}_0_log.out in the sweep's folder"
"""Where the script sends what a job prints."""


@pytest.mark.parametrize(
    ("shown", "was_killed", "words"),
    [
        ("TIMEOUT 0", True, f"ended as TIMEOUT (slurm.time_min), {LOG}"),
        ("FAILED 33280", True, "was preempted, or near its time limit"),
        ("FAILED 0:9", True, f"ended as FAILED (exit code -9), {LOG}"),
        ("FAILED 1:0", False, f"ended as FAILED (exit code 1), {LOG}"),
        ("CANCELLED 15", False, f"ended as CANCELLED (by scancel), {LOG}"),
        ("OUT_OF_MEMORY 9", False, f"ended as OUT_OF_MEMORY (raise slurm.mem_gb), {LOG}"),
        ("PREEMPTED 0, PREEMPTED 0", True, f"ended as PREEMPTED, {LOG}"),
        # SLURM queues it again.
        ("RUNNING 0, PREEMPTED 0, COMPLETING 0, PREEMPTED 0, PENDING 0, RUNNING 0", False, None),
    ],
)
def test_ends_after_which_the_same_job_may_succeed(fake, make, shown, was_killed, words):
    launcher = make()
    (job,) = start(launcher, [node("a")])
    for state in shown.split(", "):
        assert job.end is None
        fake.show(j101=state)
        look(launcher)
    time.sleep(0.01)
    assert job.ended() == (words and (f"its job 101 {words}".format(101), was_killed))


def test_an_end_waits_for_the_markers_of_all_stages_or_for_a_failure(tmp_path, fake, make):
    fit, score, other = node("a"), node("s", stage="score"), node("b")
    launcher = make("slurm.poll_s=60")
    both, failed = start(launcher, [fit, score], [other, score])
    fake.show(j101_0="FAILED 256", j101_1="FAILED 256")
    look(launcher)
    for each in (fit, score):
        assert both.ended() is None
        write_done(tmp_path / "store" / each.key, {"seconds": 1})
    assert (
        both.ended().words == f"its job 101_0 ended as FAILED (exit code 1), {LOG.format('101_0')}"
    )
    assert failed.ended() is None
    write_failed(tmp_path / "store" / other.key, "ValueError: no")
    assert (
        failed.ended().words
        == f"its job 101_1 ended as FAILED (exit code 1), {LOG.format('101_1')}"
    )


def test_an_end_waits_for_as_long_as_nfs_may_hide_a_marker(fake, make):
    """60 s by its defaults; else a stage that is done counts as failed, and what needs it too."""
    (job,) = start(make(f"slurm.poll_s={SlurmConfig().poll_s}"), [node("a")])
    assert job.settle_s > 60


def test_squeue_may_fail_for_a_while(fake, make, monkeypatch):
    launcher = make()
    (job,) = start(launcher, [node("a")])
    (fake.folder / "squeue_fails").write_text(LOST)
    look(launcher)
    assert job.ended() is None
    # Jobs that cannot be asked for are not sent twice.
    with pytest.raises(InputError, match=r"squeue: .*Unable to contact.*jobs\.json"):
        SlurmLauncher(launcher._config).adopt()
    (fake.folder / "squeue_fails").unlink()
    fake.show(j101="RUNNING 0")
    look(launcher)
    monkeypatch.setattr(slurm, "GIVE_UP_AFTER_S", 0.0)
    (fake.folder / "squeue_fails").write_text(LOST)
    look(launcher)
    with pytest.raises(InputError, match=r"Unable to contact.* takes them up again"):
        look(launcher)


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        # As those that a broken node could not start.
        ("launch failed requeued held", "scontrol release 101_0 101_1"),
        ("JobHeldUser", "scontrol release 101_0 101_1"),
        ("JobHoldMaxRequeue", "scontrol release 101_0 101_1"),
        ("PartitionTimeLimit", "scancel 101_0 101_1, and start again with less in slurm.*"),
        ("QOSMaxCpuPerJobLimit", "scancel 101_0 101_1, and start again with less in slurm.*"),
    ],
)
def test_jobs_that_cannot_start_by_themselves_are_named_once(fake, make, capsys, why, remedy):
    launcher = make()
    jobs = start(launcher, [node("a")], [node("b")], [node("c")])
    stuck = {f"j101_{i}": f"PENDING 0 {why}" for i in (0, 1)}
    waits = {"j101_2": "PENDING 0 ReqNodeNotAvail, UnavailableNodes:n1"}
    fake.show(**stuck, **waits)
    for _ in range(2):
        look(launcher)
    said = f"2 jobs in SLURM's queue cannot start ({why}): {remedy}\n"
    assert capsys.readouterr().out == said
    assert [job.end for job in jobs] == [None] * 3
    fake.show(j101_0="RUNNING 0 None", j101_1=stuck["j101_1"], **waits)
    look(launcher)
    assert capsys.readouterr().out == ""


def test_a_restart_takes_up_what_is_still_in_the_queue(fake, make):
    fit, other, last = node("a"), node("b"), node("c")
    score = node("s", fit, stage="score")
    first = make()
    for chains in ([[fit, score], [other]], [[last]], [[node("d")], [node("e")]]):
        start(first, *chains)
    states = {"j101_0": "RUNNING 0", "j101_1": "TIMEOUT 0", "j102": "PENDING 0"}
    fake.show(**states, j103_0="RUNNING 0", j103_1="PENDING 0")
    # The third batch was just being sent, and SLURM gave the id of a fourth to another's.
    batches = read_ledger(first.folder)
    assert [batch.job_id for batch in batches] == ["101", "102", "103"]
    batches[2].job_id = None
    forgotten = Batch(name="toy-0000", stages=[["fit/dddd"]], job_id="102")
    write_ledger(first.folder, [*batches, forgotten])
    second = SlurmLauncher(first._config)
    adopted = {key: job.job_id for key, job in second.adopt().items()}
    assert adopted == {fit.key: "101_0", score.key: "101_0", last.key: "102"}
    assert fake.calls("scancel") == ["103"]
    assert second.free() == 62
    # What has ended is forgotten with its batch, and what is sent now comes beside it.
    start(second, [other])
    names = [batch.name for batch in read_ledger(second.folder)]
    assert names == [fake.name_of(number) for number in (101, 102, 104)]
    (second.folder / "jobs.json").write_text(json.dumps({"batches": [{"name": "x"}]}))
    with pytest.raises(InputError, match=r"jobs\.json: damaged .*remove it"):
        second.adopt()


def test_jobs_that_wait_for_stages_of_an_earlier_recipe_are_cancelled(fake, make, capsys):
    """They would read the new recipe, and refuse what is still wanted with what is not."""
    fit, score, old = node("a"), node("s", stage="score"), node("old", stage="score")
    first = make()
    start(first, [fit, score], [node("b"), old], [node("c"), old])
    start(first, [old])
    states = {"j101_0": "PENDING 0", "j101_1": "PENDING 0", "j101_2": "RUNNING 0"}
    fake.show(**states, j102="PENDING 0")
    second = SlurmLauncher(first._config)
    known = {fit.key, score.key, node("b").key, node("c").key}
    adopted = {key: job.job_id for key, job in second.adopt(known).items()}
    # What has begun has read the recipe that it was sent with.
    running = {node("c").key: "101_2", old.key: "101_2"}
    assert adopted == {fit.key: "101_0", score.key: "101_0", **running}
    assert fake.calls("scancel") == ["101_1 102"]
    assert second.free() == 62
    said = "cancelled in SLURM's queue: 2 jobs of stages that the recipe has no more\n"
    assert capsys.readouterr().out == said
    # Nothing is cancelled where all are known.
    SlurmLauncher(first._config).adopt({*known, old.key})
    assert len(fake.calls("scancel")) == 1


def test_a_sweep_whose_jobs_are_in_the_queue_is_not_cleaned(
    tmp_path, fake, make, monkeypatch, capsys
):
    """No process leads them, and what waits holds nothing."""
    launcher, score = make(), stage("score/a")
    plan_sweep(tmp_path, "toy", PlanFile(stages=(score,), trials=(trial("real", 4, score.key),)))
    finish(tmp_path, score.key)
    start(launcher, [node("a")], [node("b")])
    words = ("clean", "--root", tmp_path, "--sweep", "toy", "--yes")
    fake.show(j101_0="COMPLETED 0", j101_1="PENDING 0")
    said = "toy: it has 1 job in SLURM's queue; wait for them, or end them first: scancel 101"
    assert run_command(monkeypatch, capsys, *words) == (2, "", f"error: {said}\n")
    (fake.folder / "squeue_fails").write_text(LOST)
    code, _, said = run_command(monkeypatch, capsys, *words)
    assert (code, "jobs may still be in the queue" in said) == (2, True)
    (fake.folder / "squeue_fails").unlink()
    fake.show(j101_0="COMPLETED 0", j101_1="COMPLETED 0")
    code, out, _ = run_command(monkeypatch, capsys, *words)
    assert (code, out.startswith("removed 1 score")) == (0, True)


def test_a_store_is_cleaned_on_a_machine_without_slurm(tmp_path, fake, make, monkeypatch):
    start(make(), [node("a")])
    monkeypatch.setenv("PATH", "/nowhere")
    refuse_queued(tmp_path / "toy")


def test_a_batch_is_written_down_before_it_is_sent(fake, make):
    """A start after a kill in between ends it: its jobs may lack what they need."""
    fit, other = node("a"), node("b")
    launcher = make()
    ledger, seen, sbatch = launcher.folder / "jobs.json", fake.folder / "seen", fake.bin / "sbatch"
    sbatch.write_text(f"{sbatch.read_text()}cp {ledger} {seen}\n")
    start(launcher, [fit], [other])
    (batch,) = json.loads(seen.read_text())["batches"]
    stages = [[fit.key], [other.key]]
    assert batch == {"name": fake.name_of(101), "stages": stages, "job_id": None}
    assert [batch.job_id for batch in read_ledger(launcher.folder)] == ["101"]
    seen.replace(ledger)
    fake.show(j101_0="RUNNING 0", j101_1="PENDING 0")
    second = SlurmLauncher(launcher._config)
    assert second.adopt() == {}
    assert fake.calls("scancel") == ["101"]
    assert read_ledger(second.folder) == []


def test_what_is_in_the_queue_is_counted_and_leaving_says_how_it_is_ended(fake, make):
    launcher = make("slurm.max_jobs=4", "slurm.poll_s=60")
    assert (launcher.free(), launcher.leave([])) == (4, "")
    jobs = start(launcher, [node("a")], [node("b")])
    jobs += start(launcher, [node("c")])
    fake.show(j101_0="RUNNING 0", j101_1="COMPLETED 0", j102="PENDING 0")
    look(launcher)
    (call,) = fake.calls("squeue")
    assert f"--name={','.join(sorted([fake.name_of(101), fake.name_of(102)]))}" in call
    assert "--states=all" in call
    assert launcher.free() == 2
    assert re.fullmatch(r"2 jobs stay .*; to end them: scancel 101 102", launcher.leave(jobs))
    assert fake.calls("scancel") == []
    # SLURM counts from 1 again: what has the number of ours is another's.
    (fake.folder / "queue").write_text("102 another-sweep RUNNING 0\n")
    look(launcher)
    assert jobs[2].end == ("its job 102 has left the queue", True)


def test_a_sweep_sends_an_interrupted_stage_again_and_no_other(tmp_path, fake, make):
    fit, other = node("a"), node("b")
    sweep, _, lines = make_sweep(tmp_path, [fit, other], act=None)
    sweep.launcher = make()

    def act() -> None:
        """The first job is cut off, the others end well."""
        n_sent = len(fake.scripts())
        if n_sent == 1:
            write_done(tmp_path / "store" / other.key, {"seconds": 1})
            fake.show(j101_0="TIMEOUT 0", j101_1="COMPLETED 0")
        elif n_sent == 2:
            write_done(tmp_path / "store" / fit.key, {"seconds": 1})
            fake.show(j102="COMPLETED 0")

    sweep.run(act)
    assert {run.state for run in sweep.runs.values()} == {"done"}
    assert len(fake.scripts()) == 2
    (line,) = lines
    assert re.match("a: its job 101_0 ended as TIMEOUT.*; it continues from its checkpoint", line)


def test_a_job_that_ended_before_its_stage_began_names_the_log_that_there_is(tmp_path, fake, make):
    fit = node("a")
    sweep, _, _ = make_sweep(tmp_path, [fit], act=None)
    sweep.launcher = make()
    sweep.run(lambda: fake.scripts() and fake.show(j101="FAILED 512"))
    told = f"its job 101 ended as FAILED (exit code 2), {LOG.format(101)}"
    assert sweep.runs[fit.key].reason == told
    # The log.txt of the stage is not there.
    console = Console(file=io.StringIO(), width=500)
    assert report_failures(sweep, console)
    assert console.file.getvalue() == f"failed: a: {told}\n"


def test_no_slurm_is_said_before_anything_is_written(tmp_path, hc18_folder, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    small = ["sweep.condition=[real]", f"data.root={hc18_folder}"]
    config = slurm_config(tmp_path / "runs", *SETTINGS, *small)
    said = r"^sweep\.launcher=slurm: sbatch is not found on this machine; start the sweep on"
    with pytest.raises(InputError, match=said):
        run_sweep(config, Console(quiet=True))
    assert not (tmp_path / "runs" / "toy").exists()
