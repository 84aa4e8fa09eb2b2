"""What the tests of `sonosweep doctor` share: a machine with nothing on it."""

import pytest


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Leave nothing on the PATH but what the fixture writes; no W&B, no GPU variables."""
    for name in ("HC18_ROOT", "CUDA_VISIBLE_DEVICES", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put
