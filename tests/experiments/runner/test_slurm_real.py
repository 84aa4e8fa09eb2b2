"""A real SLURM of this machine: states as it gives them, preemption, and a sweep through it."""

import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from slurm_parts import HAS_SLURM, answer, node, real_slurm, slurm_config, start, wait_for
from sweep_parts import LEAN, command, environment, run, scores, weights

from datamodules.errors import InputError
from experiments.runner.slurm import SlurmLauncher

pytestmark = [
    pytest.mark.skipif(not HAS_SLURM, reason="needs root, and the packages slurm-wlm and munge"),
    pytest.mark.usefixtures("cluster"),
]
SETTINGS = ["sweep.launcher=slurm", "slurm.mem_gb=1", "slurm.cpus=1", "slurm.gpus=0"]
SETTINGS += ["slurm.poll_s=0.5", "slurm.time_min=5"]
STAND_IN = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "starts").open("a") as file:
    file.write("start\\n")
while not (folder / "go").exists():
    time.sleep(0.1)
(folder / "DONE.json").write_text("{}")
"""
"""What stands in for a stage: it says that it runs, and is done when a test lets it continue."""


@pytest.fixture(scope="module")
def cluster():
    with real_slurm():
        yield


def n_starts(run_dir: Path) -> int:
    path = run_dir / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def run_now(job_id: str) -> None:
    """A job that is queued again waits for two minutes otherwise."""
    update = ["scontrol", "update", f"jobid={job_id}", "StartTime=now"]
    subprocess.run(update, capture_output=True, check=False)


def test_jobs_of_an_array_through_kill_requeue_and_restart(tmp_path, monkeypatch):
    monkeypatch.setattr(
        SlurmLauncher,
        "_arguments",
        lambda _, chain: ["-c", STAND_IN, str(tmp_path / "store" / chain[0])],
    )
    config = slurm_config(tmp_path, *SETTINGS)
    again, killed = node("again"), node("killed")
    dirs = [tmp_path / "store" / each.key for each in (again, killed)]
    launcher = SlurmLauncher(config)
    launcher.adopt()
    jobs = start(launcher, [again], [killed])
    wait_for(lambda: [n_starts(each) for each in dirs] == [1, 1])
    assert [job.ended() for job in jobs] == [None, None]

    subprocess.run(["scontrol", "requeue", jobs[0].job_id], check=True)
    subprocess.run(["scancel", "--batch", "--signal=KILL", jobs[1].job_id], check=True)
    wait_for(lambda: jobs[1].ended() is not None)
    assert jobs[1].ended().was_killed
    wait_for(lambda: answer("squeue", "-h", f"--jobs={jobs[0].job_id}", "-o", "%T") == "PENDING")
    launcher.look()
    assert jobs[0].ended() is None, "SLURM queues it again by itself"

    restarted = SlurmLauncher(config)
    adopted = restarted.adopt()
    assert list(adopted) == [again.key]
    run_now(jobs[0].job_id)
    wait_for(lambda: n_starts(dirs[0]) == 2)
    (dirs[0] / "go").touch()
    wait_for(lambda: adopted[again.key].ended() is not None)
    assert "COMPLETED" in adopted[again.key].ended().words
    assert restarted.free() == config.slurm.max_jobs


def test_a_part_of_a_waiting_array_is_cancelled(tmp_path, monkeypatch):
    """Where a changed recipe has some of its stages no more."""
    monkeypatch.setattr(
        SlurmLauncher, "_arguments", lambda *_: ["-c", "import time; time.sleep(99)"]
    )
    config, nodes = slurm_config(tmp_path, *SETTINGS, "slurm.cpus=2"), [*map(node, "abcd")]
    launcher = SlurmLauncher(config)
    launcher.adopt()
    jobs = start(launcher, *[[each] for each in nodes])
    # One has both cores.
    wait_for(lambda: answer("squeue", "-h", f"--jobs={jobs[0].job_id}", "-o", "%T") == "RUNNING")
    restarted = SlurmLauncher(config)
    adopted = restarted.adopt({each.key for each in nodes[:3]})
    assert list(adopted) == [each.key for each in nodes[:3]]
    waiting = [job.job_id for job in jobs[1:3]]
    wait_for(
        lambda: sorted(answer("squeue", "-h", "-r", "-t", "PD", "-o", "%i").split()) == waiting
    )
    restarted.look()
    assert restarted.free() == config.slurm.max_jobs - 3
    answer("scancel", jobs[0].job_id.split("_")[0])
    wait_for(lambda: not answer("squeue", "-h"))


def test_a_partition_that_does_not_exist_is_refused_at_once(tmp_path):
    launcher = SlurmLauncher(slurm_config(tmp_path, *SETTINGS, "slurm.partition=nosuch"))
    launcher.adopt()
    with pytest.raises(InputError, match=r"sbatch: .*[Ii]nvalid partition"):
        start(launcher, [node("a")])


def jobs_of(partition: str, *, state: str = "PENDING,RUNNING") -> list[str]:
    words = ("-r", f"--partition={partition}", f"--states={state}", "-o", "%i")
    return answer("squeue", "-h", *words).split()


SMALL = [
    *LEAN,
    *("sweep.condition=[real]", "sweep.real_fraction=[1.0]", "wandb.mode=disabled"),
    *("segmenter.steps=300", "trainer.checkpoint_every=20"),
]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same sweep without a cluster: its data and its store."""
    folder = tmp_path_factory.mktemp("local")
    data = write_hc18_folder(folder / "hc18")
    ended = run(data, folder / "runs", *SMALL)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return data, folder / "runs"


@pytest.mark.long
@pytest.mark.parametrize("partition", ["low", "now"])
def test_a_preempted_fit_goes_on_to_the_same_weights(local, tmp_path, partition):
    """`low` asks the job to end, and the sweep sends it again; `now` is SLURM's own requeue."""
    data, finished = local
    words = command(data, tmp_path, *SMALL, *SETTINGS, f"slurm.partition={partition}")
    printed, fits = tmp_path / "printed.txt", tmp_path / "store" / "fit"
    with printed.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment())
    try:
        wait_for(lambda: list(fits.glob("*/checkpoints/*.ckpt")), timeout_s=300)
        urgent = ["sbatch", "--partition=high", "--exclusive", "--output=/dev/null"]
        subprocess.run([*urgent, "--wrap=sleep 2"], check=True)
        wait_for(lambda: jobs_of("high") and not jobs_of(partition, state="RUNNING"))
        deadline = time.monotonic() + 400
        while process.poll() is None and time.monotonic() < deadline:
            for job_id in jobs_of(partition, state="PENDING"):
                run_now(job_id)
            time.sleep(1)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, printed.read_text()
    resumes = "it continues from its checkpoint" in printed.read_text()
    assert resumes == (partition == "low")
    (log,) = fits.glob("*/log.txt")
    assert "Restoring states from the checkpoint" in log.read_text()
    assert weights(tmp_path) == weights(finished)
    assert len(weights(tmp_path)) == 1
    pd.testing.assert_frame_equal(scores(tmp_path), scores(finished), check_exact=True)
