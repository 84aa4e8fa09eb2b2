"""Fixtures of the tests of SLURM."""

import pytest
from slurm_parts import FakeSlurm, slurm_config

from experiments.runner.slurm import SlurmLauncher


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeSlurm:
    made = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    return made


@pytest.fixture
def make(tmp_path, fake):
    """Gives the launcher of a sweep `toy`, under some settings."""

    def launcher(*overrides: str) -> SlurmLauncher:
        made = SlurmLauncher(slurm_config(tmp_path, *overrides))
        made.adopt()
        return made

    return launcher
