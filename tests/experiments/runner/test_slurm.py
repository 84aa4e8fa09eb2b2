"""Jobs of a cluster: what is sent, how ends are told apart, and what a restart takes up."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
from slurm_parts import FakeSlurm
from submitit.core.utils import DelayedSubmission

from datamodules.errors import InputError
from experiments.config.recipe import load_config
from experiments.config.running import SlurmConfig
from experiments.plan.nodes import Node, Plan
from experiments.runner import slurm
from experiments.runner.slurm import SlurmLauncher
from experiments.runner.slurm_ledger import Batch, read_ledger, write_ledger
from experiments.runner.slurm_queue import Seen, in_one_line, max_array_size, read_queue
from experiments.runner.sweep import Sweep
from experiments.stages.context import StageContext
from experiments.store.runs import RunStore, write_done, write_failed

QUICK = ["sweep.launcher=slurm", "slurm.poll_s=0.001", "name=toy"]


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeSlurm:
    made = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    return made


def node(label: str, *upstream: Node, stage: str = "fit") -> Node:
    inputs = {f"in{i}": each.key for i, each in enumerate(upstream)}
    return Node(stage=stage, content={"label": label}, upstream=inputs, label=label)


def make(tmp_path, *overrides: str) -> SlurmLauncher:
    launcher = SlurmLauncher(load_config("demo", [*QUICK, f"store.root={tmp_path}", *overrides]))
    launcher.adopt()
    return launcher


def context(tmp_path, of: Node) -> StageContext:
    return StageContext(
        config=load_config("demo", [f"store.root={tmp_path}"]),
        node=of,
        store=RunStore(tmp_path),
        samples={},
        rows={},
        content={},
        sweep="toy",
    )


def start(launcher, tmp_path, *chains):
    return launcher.start([[context(tmp_path, of) for of in chain] for chain in chains])


def next_look(launcher) -> None:
    time.sleep(0.005)
    launcher.look()


def test_jobs_that_start_together_are_one_array_of_single_commands(tmp_path, fake):
    fit, other = node("a"), node("b")
    score = node("s", fit, stage="score")
    settings = [
        "slurm.partition=gpu",
        "slurm.account=us",
        "slurm.qos=long",
        "slurm.time_min=90",
        "slurm.mem_gb=7",
        "slurm.cpus=3",
        "slurm.gpus=1",
        "slurm.setup=[module load cuda]",
    ]
    launcher = make(tmp_path, *settings)
    jobs = start(launcher, tmp_path, [fit, score], [other])
    (script,) = fake.scripts()
    lines = script.splitlines()
    for option in (
        "array=0-1%2",
        "partition=gpu",
        "account=us",
        "qos=long",
        "time=90",
        "mem=7GB",
        "cpus-per-task=3",
        "gpus-per-node=1",
        "requeue",
        "signal=B:TERM@120",
        "open-mode=append",
        f"output={tmp_path}/toy/slurm/%A_%a_0_log.out",
    ):
        assert f"#SBATCH --{option}" in lines
    assert "module load cuda" in lines
    assert "srun" not in script
    assert "wckey" not in script
    # SLURM's signal reaches the command only where the shell has become it.
    assert lines[-1].startswith(f"exec {sys.executable} ")
    sent = DelayedSubmission.load(tmp_path / "toy" / "slurm" / "101_0_submitted.pkl").function
    assert sent.func.__name__ == "execv"
    program, words = sent.args
    assert program == sys.executable
    assert words[1:5] == ["-m", "experiments", "trial", str(tmp_path / "toy" / "config.yaml")]
    assert words[5:9] == ["--stage", fit.key, "--stage", score.key]
    assert "sweep.launcher=local" in words
    assert words[-1] == "trainer.threads=3"
    assert [job.job_id for job in jobs] == ["101_0", "101_1"]
    (batch,) = read_ledger(launcher.folder)
    assert batch.job_id == "101"
    assert batch.chains == [[fit.key, score.key], [other.key]]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["slurm.gpus=0"], None),
        (["slurm.gpus=2", "trainer.accelerator=cpu"], None),
        (["trainer.devices=2"], "2"),
        (["slurm.gpus=2"], "2"),
    ],
)
def test_gpus_of_a_job(tmp_path, fake, overrides, expected):
    start(make(tmp_path, *overrides), tmp_path, [node("a")])
    (script,) = fake.scripts()
    asked = [line for line in script.splitlines() if line.startswith("#SBATCH --gpus")]
    assert asked == ([f"#SBATCH --gpus-per-node={expected}"] if expected else [])


@pytest.mark.parametrize(
    ("setting", "cluster", "sizes"),
    [(1000, "1001", [5]), (2, "1001", [2, 2, 1]), (1000, "4", [3, 2]), (1000, "0", [1] * 5)],
)
def test_arrays_are_split_under_both_limits(tmp_path, fake, setting, cluster, sizes):
    (fake.folder / "max_array").write_text(cluster)
    launcher = make(tmp_path, f"slurm.array_size={setting}")
    jobs = start(launcher, tmp_path, *[[node(f"n{i}")] for i in range(5)])
    assert [len(batch.chains) for batch in read_ledger(launcher.folder)] == sizes
    expected = [
        f"{101 + number}_{index}" if size > 1 else f"{101 + number}"
        for number, size in enumerate(sizes)
        for index in range(size)
    ]
    assert [job.job_id for job in jobs] == expected


def test_no_more_in_the_queue_than_asked_for(tmp_path, fake):
    launcher = make(tmp_path, "slurm.max_jobs=3")
    assert launcher.free() == 3
    start(launcher, tmp_path, [node("a")], [node("b")])
    fake.show(j101_0="RUNNING 0", j101_1="PENDING 0")
    next_look(launcher)
    assert launcher.free() == 1
    fake.show(j101_0="RUNNING 0", j101_1="COMPLETED 0")
    next_look(launcher)
    assert launcher.free() == 2


@pytest.mark.parametrize(
    ("words", "was_killed", "said"),
    [
        ("TIMEOUT 0", True, "slurm.time_min"),
        ("FAILED 33280", True, "time limit"),
        ("FAILED 36608", True, "time limit"),
        ("FAILED 0:9", True, "exit code -9"),
        ("FAILED 15", True, "exit code -15"),
        ("FAILED 256", False, "exit code 1"),
        ("COMPLETED 0", False, "COMPLETED"),
        ("CANCELLED 15", False, "scancel"),
        ("OUT_OF_MEMORY 9", False, "slurm.mem_gb"),
        ("NODE_FAIL 0", True, "NODE_FAIL"),
        ("PREEMPTED 0", True, "PREEMPTED"),
    ],
)
def test_ends_that_the_same_again_may_mend(tmp_path, fake, words, was_killed, said):
    (job,) = start(make(tmp_path), tmp_path, [node("a")])
    fake.show(j101=words)
    ended = None
    deadline = time.monotonic() + 20
    while ended is None and time.monotonic() < deadline:
        time.sleep(0.005)
        ended = job.ended()
    assert "its job 101 " in ended
    assert said in ended
    assert job.was_killed is was_killed


def test_a_job_that_slurm_queues_again_has_not_ended(tmp_path, fake):
    launcher = make(tmp_path)
    (job,) = start(launcher, tmp_path, [node("a")])
    for state in ("RUNNING", "PREEMPTED", "COMPLETING", "PREEMPTED", "PENDING", "RUNNING"):
        fake.show(j101=f"{state} 0")
        next_look(launcher)
        assert job.end is None
    fake.show(j101="PREEMPTED 0")
    next_look(launcher)
    next_look(launcher)
    assert job.end is not None


def test_a_job_that_has_left_the_queue_has_ended(tmp_path, fake):
    launcher = make(tmp_path)
    (job,) = start(launcher, tmp_path, [node("a")])
    (fake.folder / "queue").write_text("101 another-sweep RUNNING 0\n")
    next_look(launcher)
    time.sleep(0.01)
    assert job.ended() == "its job 101 has left the queue"
    assert job.was_killed


def test_a_marker_may_come_after_the_end(tmp_path, fake):
    fit, score = node("a"), node("s", stage="score")
    launcher = make(tmp_path, "slurm.poll_s=0.5")
    (job,) = start(launcher, tmp_path, [fit, score])
    fake.show(j101="COMPLETED 0")
    time.sleep(0.6)
    assert job.ended() is None, "it waits for two markers"
    for each in (fit, score):
        (tmp_path / "store" / each.key).mkdir(parents=True, exist_ok=True)
        write_done(tmp_path / "store" / each.key, {"seconds": 1})
    assert job.ended() is not None
    assert job.end.was_killed is False


def test_a_failed_stage_ends_the_wait_for_those_behind_it(tmp_path, fake):
    fit, score = node("a"), node("s", stage="score")
    launcher = make(tmp_path, "slurm.poll_s=60")
    (job,) = start(launcher, tmp_path, [fit, score])
    fake.show(j101="FAILED 256")
    launcher._next_look = 0.0
    assert job.ended() is None
    write_failed(tmp_path / "store" / fit.key, "ValueError: no")
    assert "exit code 1" in job.ended()


def test_one_call_asks_for_all_jobs_and_none_without_jobs(tmp_path, fake):
    launcher = make(tmp_path, "slurm.poll_s=0.2")
    assert fake.calls("squeue") == []
    jobs = start(launcher, tmp_path, *[[node(f"n{i}")] for i in range(4)])
    jobs += start(launcher, tmp_path, [node("last")])
    fake.show(j101_0="RUNNING 0")
    time.sleep(0.25)
    for job in jobs:
        job.ended()
    (call,) = fake.calls("squeue")
    assert f"--name={','.join(sorted([fake.name_of(101), fake.name_of(102)]))}" in call
    assert "--states=all" in call


def test_squeue_may_fail_for_a_while(tmp_path, fake, monkeypatch):
    launcher = make(tmp_path)
    (job,) = start(launcher, tmp_path, [node("a")])
    (fake.folder / "squeue_fails").write_text("slurm_load_jobs error: Unable to contact\n")
    for _ in range(3):
        next_look(launcher)
        assert job.ended() is None
    (fake.folder / "squeue_fails").unlink()
    fake.show(j101="RUNNING 0")
    next_look(launcher)
    assert job.ended() is None
    monkeypatch.setattr(slurm, "PATIENCE_S", 0.0)
    (fake.folder / "squeue_fails").write_text("slurm_load_jobs error: Unable to contact\n")
    next_look(launcher)
    with pytest.raises(InputError, match=r"Unable to contact.* takes them up again"):
        next_look(launcher)


def test_a_restart_takes_up_what_is_still_in_the_queue(tmp_path, fake):
    fit, other, last = node("a"), node("b"), node("c")
    score = node("s", fit, stage="score")
    first = make(tmp_path)
    start(first, tmp_path, [fit, score], [other])
    start(first, tmp_path, [last])
    fake.show(j101_0="RUNNING 0", j101_1="TIMEOUT 0", j102="PENDING 0")
    # A third batch, whose id SLURM gave to somebody else after it had forgotten ours.
    stranger = Batch(name="toy-0000", chains=[["fit/dddd"]], job_id="102")
    write_ledger(first.folder, [*read_ledger(first.folder), stranger])
    second = SlurmLauncher(first._config)
    adopted = second.adopt()
    assert {key: job.job_id for key, job in adopted.items()} == {
        fit.key: "101_0",
        score.key: "101_0",
        last.key: "102",
    }
    assert second.free() == 62
    assert len(fake.scripts()) == 2
    # What has ended is forgotten with its batch, and what is sent now comes beside it.
    start(second, tmp_path, [other])
    names = [batch.name for batch in read_ledger(second.folder)]
    assert names == [fake.name_of(number) for number in (101, 102, 103)]


def test_a_batch_that_was_just_being_sent_is_cancelled(tmp_path, fake):
    launcher = make(tmp_path)
    start(launcher, tmp_path, [node("a")], [node("b")])
    (batch,) = read_ledger(launcher.folder)
    batch.job_id = None
    write_ledger(launcher.folder, [batch])
    fake.show(j101_0="RUNNING 0", j101_1="PENDING 0")
    assert SlurmLauncher(launcher._config).adopt() == {}
    assert fake.calls("scancel") == ["101"]
    assert read_ledger(launcher.folder) == []


def test_jobs_that_cannot_be_asked_for_are_not_sent_twice(tmp_path, fake):
    launcher = make(tmp_path)
    start(launcher, tmp_path, [node("a")])
    (fake.folder / "squeue_fails").write_text("slurm_load_jobs error: Unable to contact\n")
    with pytest.raises(InputError, match=r"squeue: .*Unable to contact.*jobs\.json"):
        SlurmLauncher(launcher._config).adopt()


def test_a_damaged_ledger_is_named(tmp_path, fake):
    launcher = make(tmp_path)
    (launcher.folder / "jobs.json").write_text(json.dumps({"batches": [{"name": "x"}]}))
    with pytest.raises(InputError, match=r"jobs\.json: damaged .*remove it"):
        launcher.adopt()


def test_leaving_says_how_the_jobs_are_ended(tmp_path, fake):
    launcher = make(tmp_path)
    assert launcher.leave([]) == ""
    jobs = start(launcher, tmp_path, [node("a")], [node("b")])
    jobs += start(launcher, tmp_path, [node("c")])
    fake.show(j101_0="RUNNING 0", j101_1="COMPLETED 0", j102="PENDING 0")
    next_look(launcher)
    line = launcher.leave(jobs)
    assert line.startswith("2 jobs stay in SLURM's queue")
    assert line.endswith("scancel 101 102")
    assert fake.calls("scancel") == []


def test_the_first_refusal_ends_the_sweep_in_sbatchs_words(tmp_path, fake, capfd):
    (fake.folder / "refuse").write_text(
        "sbatch: error: invalid partition specified: nosuch\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    launcher = make(tmp_path)
    with pytest.raises(InputError) as caught:
        start(launcher, tmp_path, [node("a")])
    assert str(caught.value) == (
        "sweep.launcher=slurm: sbatch: invalid partition specified: nosuch; "
        "Batch job submission failed: Invalid partition name specified"
    )
    assert read_ledger(launcher.folder) == []
    assert capfd.readouterr().err == ""


def test_a_later_refusal_fails_its_stages(tmp_path, fake):
    launcher = make(tmp_path)
    start(launcher, tmp_path, [node("a")])
    fake.show(j101="RUNNING 0")
    (fake.folder / "refuse").write_text("sbatch: error: Requested node configuration\n")
    (job,) = start(launcher, tmp_path, [node("b")])
    assert job.ended() == "its job was refused: sbatch: Requested node configuration"
    assert not job.was_killed
    assert launcher.free() == 63


def test_what_is_refused_for_the_moment_is_sent_later(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(slurm, "RETRY_S", 0.0)
    launcher = make(tmp_path)
    (fake.folder / "refuse").write_text("sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
    (job,) = start(launcher, tmp_path, [node("a")])
    assert job.ended() is None
    assert launcher.leave([job]) == "", "it is in no queue yet"
    (fake.folder / "refuse").unlink()
    (fake.folder / "queue").write_text("")
    next_look(launcher)
    assert job.job_id == "101"
    assert len(fake.scripts()) == 1


def test_a_refusal_that_lasts_fails(tmp_path, fake, monkeypatch):
    launcher = make(tmp_path)
    start(launcher, tmp_path, [node("a")])
    monkeypatch.setattr(slurm, "PATIENCE_S", 0.0)
    (fake.folder / "refuse").write_text("sbatch: error: Socket timed out on send/recv\n")
    (job,) = start(launcher, tmp_path, [node("b")])
    assert "Socket timed out" in job.ended()


def test_a_job_is_asked_to_stop_and_cancelled_after_that(tmp_path, fake):
    launcher = make(tmp_path)
    (job,) = start(launcher, tmp_path, [node("a")])
    fake.show(j101="RUNNING 0")
    job.stop()
    job.kill(after_s=0.05)
    assert fake.calls("scancel") == ["--batch --signal=TERM 101", "101"]


def test_a_sweep_sends_an_interrupted_stage_again_and_no_other(tmp_path, fake):
    fit, other = node("a"), node("b")
    launcher = make(tmp_path)
    view = SimpleNamespace(content={})
    data = SimpleNamespace(name="hc18", samples={}, rows={}, view=view)
    plan = Plan(nodes={each.key: each for each in (fit, other)}, trials=[])
    lines = []
    sweep = Sweep(launcher._config, data=data, plan=plan, launcher=launcher, say=lines.append)

    def act() -> None:
        sent = len(fake.scripts())
        if sent == 1:
            write_done(tmp_path / "store" / other.key, {"seconds": 1})
            fake.show(j101_0="TIMEOUT 0", j101_1="COMPLETED 0")
        elif sent == 2:
            write_done(tmp_path / "store" / fit.key, {"seconds": 1})
            fake.show(j101_0="TIMEOUT 0", j101_1="COMPLETED 0", j102="COMPLETED 0")

    sweep.run(act)
    assert {run.state for run in sweep.runs.values()} == {"done"}
    assert len(fake.scripts()) == 2
    assert len(lines) == 1
    assert lines[0].startswith("a: its job 101_0 ended as TIMEOUT")
    assert "it goes on from its checkpoint" in lines[0]


def test_no_slurm_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch is not found on this machine"):
        SlurmLauncher(load_config("demo", [*QUICK, f"store.root={tmp_path}"]))
    assert list(tmp_path.iterdir()) == []


def test_no_slurm_is_said_before_anything_is_written(tmp_path, hc18_folder, monkeypatch):
    from rich.console import Console

    from experiments.commands.run import run_sweep

    monkeypatch.setenv("PATH", str(tmp_path))
    settings = [*QUICK, f"data.root={hc18_folder}", f"store.root={tmp_path / 'runs'}"]
    toy = ["data.subset.n_images=null", "split.test=4", "split.val=2", "split.train=null"]
    toy += ["segmenter.backbone=tiny", "sweep.condition=[real]", "sweep.real_fraction=[1.0]"]
    config = load_config("demo", [*settings, *toy])
    with pytest.raises(InputError, match=r"sweep\.launcher=slurm: sbatch is not found"):
        run_sweep(config, Console(quiet=True))
    assert not (tmp_path / "runs" / "toy").exists()
    assert not list((tmp_path / "runs" / "store").glob("fit*"))


def test_words_of_the_commands(fake):
    fake.folder.joinpath("queue").write_text(
        "7_0 toy-1 RUNNING 0\n7_[1-3] toy-1 PENDING 0\n8 toy-1 FAILED 2:0\nbroken line\n"
    )
    assert read_queue([]) == {}
    assert fake.calls("squeue") == []
    queue = read_queue(["toy-1"])
    assert queue["7_0"] == Seen(name="toy-1", state="RUNNING", code=0)
    assert queue["8"] == Seen(name="toy-1", state="FAILED", code=2)
    assert max_array_size() == 1000
    assert in_one_line("sbatch: error: one\n\nsbatch: error: two\n") == "one; two"
    assert in_one_line("") == ""


def test_the_grace_lies_within_the_time_limit():
    assert SlurmConfig(time_min=2, grace_s=119).grace_s == 119
    with pytest.raises(ValueError, match=r"slurm\.grace_s=120: less than slurm\.time_min=2"):
        SlurmConfig(time_min=2)


def test_a_signal_that_ends_the_loader_too_is_no_failure(tmp_path):
    """SLURM may signal every process of a job; torch then misses its loader's."""
    from experiments.stages.training import fit

    def lose_loader(*_, **__):
        raise RuntimeError("DataLoader worker is killed by signal: Terminated")

    trainer = SimpleNamespace(fit=lose_loader, received_sigterm=True)
    with pytest.raises(InterruptedError, match="stopped by a signal"):
        fit(trainer, None, None, run_dir=tmp_path)
    trainer.received_sigterm = False
    with pytest.raises(RuntimeError, match="worker is killed"):
        fit(trainer, None, None, run_dir=tmp_path)


def test_lightning_does_not_take_a_job_for_its_own(tmp_path, monkeypatch):
    from lightning.pytorch.plugins.environments import LightningEnvironment

    from experiments.stages.training import make_trainer

    for name, value in (("SLURM_NTASKS", "4"), ("SLURM_PROCID", "3"), ("SLURM_JOB_NAME", "toy")):
        monkeypatch.setenv(name, value)
    config = load_config("demo", ["trainer.accelerator=cpu"]).trainer
    status = context(tmp_path, node("a")).status()
    trainer = make_trainer(
        run_dir=tmp_path,
        config=config,
        precision="32-true",
        steps=1,
        logger=None,
        status=status,
        what="steps",
    )
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, LightningEnvironment)
    assert (trainer.world_size, trainer.global_rank) == (1, 0)
