"""Jobs that a cluster does not take: for good, for the moment, or for want of room."""

import pytest
from slurm_parts import LOST, look, node, start

from datamodules.errors import InputError
from experiments.runner import slurm
from experiments.runner.slurm import SlurmLauncher
from experiments.runner.slurm_job import read_ledger


def test_the_first_refusal_ends_the_sweep_in_sbatchs_words(fake, make, capfd):
    said = ("invalid partition specified: nosuch", "Batch job submission failed: Invalid name")
    (fake.folder / "refuse").write_text("".join(f"sbatch: error: {line}\n" for line in said))
    launcher = make()
    with pytest.raises(InputError) as caught:
        start(launcher, [node("a")])
    assert str(caught.value) == f"sweep.launcher=slurm: sbatch: {'; '.join(said)}"
    assert read_ledger(launcher.folder) == []
    assert capfd.readouterr().err == ""


def test_a_later_refusal_fails_its_stages_or_is_tried_again(fake, make, monkeypatch):
    monkeypatch.setattr(slurm, "RETRY_S", 0.0)
    launcher, refusal = make(), fake.folder / "refuse"
    refusal.write_text("sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
    (job,) = start(launcher, [node("a")])
    assert job.ended() is None
    assert launcher.leave([job]) == "", "it is in no queue yet"
    refusal.unlink()
    look(launcher)
    assert job.job_id == "101"
    fake.show(j101="RUNNING 0")
    refusal.write_text("sbatch: error: Requested node configuration\n")
    (job,) = start(launcher, [node("b")])
    refused = "its job was refused: sbatch: Requested node configuration"
    assert job.ended() == (refused, False)
    assert launcher.free() == 64, "neither is in the queue"


def test_a_batch_whose_sending_timed_out_is_not_in_the_queue_twice(fake, make, monkeypatch):
    """SLURM may have taken it all the same."""
    monkeypatch.setattr(slurm, "RETRY_S", 0.0)
    launcher, sbatch, lost = make(), fake.bin / "sbatch", fake.folder / "lost"
    start(launcher, [node("a")])
    said = "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"
    sbatch.write_text(f"{sbatch.read_text()}if [ -e {lost} ]; then rm {lost}; {said}; fi\n")
    lost.touch()
    (job,) = start(launcher, [node("b")])
    assert job.ended() is None
    fake.show(j101="RUNNING 0", j102="PENDING 0")
    (fake.folder / "squeue_fails").write_text(LOST)
    look(launcher)
    assert job.job_id == "103"
    assert fake.name_of(103) == fake.name_of(102)
    assert fake.calls("scancel") == [f"--name={fake.name_of(102)}"]


FULL = [
    *("QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit"),
    *("QOSGrpSubmitJobsLimit", "AssocGrpSubmitJobsLimit"),
]
"""SLURM's own words, of a user's limit and of a group's."""


@pytest.mark.parametrize("limit", FULL)
def test_a_limit_on_jobs_in_the_queue_is_waited_for_as_long_as_it_holds(
    fake, make, monkeypatch, capsys, limit
):
    monkeypatch.setattr(slurm, "RETRY_S", 0.0)
    monkeypatch.setattr(slurm, "GIVE_UP_AFTER_S", 0.0)
    launcher, refusal = make(), fake.folder / "refuse"
    refusal.write_text(f"sbatch: error: {limit}\nsbatch: error: Batch job submission failed\n")
    jobs = start(launcher, [node("a")])
    for _ in range(3):
        look(launcher)
    assert jobs[0].ended() is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"SLURM takes no more jobs for now (sbatch: {limit}; ")
    refusal.unlink()
    look(launcher)
    assert jobs[0].job_id == "101"


def test_an_array_above_the_limit_is_sent_in_parts(fake, make, monkeypatch):
    """There is room for two jobs at a time."""
    monkeypatch.setattr(slurm, "RETRY_S", 0.0)
    said = "echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1"
    few = f"if grep -q 'array=0-[2-9]' \"$SCRIPT\"; then {said}; fi\n"
    sbatch = fake.bin / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("if [ -e refuse ]", f"{few}if [ -e refuse ]"))
    launcher = make()
    jobs = start(launcher, *[[node(f"n{i}")] for i in range(5)])
    assert [job.job_id for job in jobs] == [None] * 5
    silent = fake.folder / "squeue_fails"
    silent.write_text(LOST)
    look(launcher)
    assert [job.job_id for job in jobs] == ["101_0", "101_1", None, None, None]
    look(launcher)
    assert [job.job_id for job in jobs[2:]] == ["102", "103_0", "103_1"]
    silent.unlink()
    states = {"j101_0": "RUNNING 0", "j101_1": "RUNNING 0"}
    # Each knows the name that its part was sent under.
    fake.show(**states, j102="PENDING 0", j103_0="PENDING 0", j103_1="TIMEOUT 0")
    look(launcher)
    assert [job.end is None for job in jobs] == [True] * 4 + [False]
    adopted = SlurmLauncher(launcher._config).adopt().values()
    assert [job.job_id for job in adopted] == ["101_0", "101_1", "102", "103_0"]
