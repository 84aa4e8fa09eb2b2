"""Fixtures that all tests share: a tiny HC18 folder, and the real one where it is at hand."""

import os
from pathlib import Path

import pytest
from folder_parts import write_hc18_folder

pytest_plugins = ["deliver_parts", "doctor_parts", "gpu_parts"]


LONGEST = ("test_sweep", "test_extending", "test_stage_logger", "test_sweep_tuning")
"""Files that start sweeps, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none runs alone at the end of two processes."""
    places = {stem: place for place, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def hc18_folder(tmp_path: Path) -> Path:
    """Return a fresh HC18 folder: 8 exams, 12 training pairs and 2 test images of 54x80."""
    return write_hc18_folder(tmp_path / "hc18")


@pytest.fixture(scope="session")
def real_hc18_root() -> Path:
    """Return the real HC18 folder, or skip the test."""
    root = os.environ.get("HC18_ROOT", "")
    if not root:
        pytest.skip("set HC18_ROOT to the real HC18 folder to run this test")
    return Path(root)
