"""A machine with the GPUs that a test wants, by a command that pretends."""

import pytest


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Put an nvidia-smi that lists these GPUs, or fails, first on the path."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*names: str, code: int = 0, memory: str = "[N/A]", mode: str = "Default") -> None:
        script = tmp_path / "nvidia-smi"
        uuids = [f"GPU-{k}{k}{k}" for k in range(len(names))]
        lines, sizes, modes = (
            "".join(f"echo '{pair[0]}, {pair[1]}'\n" for pair in zip(uuids, values, strict=True))
            for values in (names, [memory] * len(names), [mode] * len(names))
        )
        answers = f"*memory*) {sizes}exit {code};; *mode*) {modes}exit {code};;"
        asked = f'case "$1" in {answers} esac\n'
        script.write_text(f"#!/bin/sh\n{asked}{lines}exit {code}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install
