"""Which code a run was made with: a repository counts only where it holds the package's files."""

import subprocess

import pytest

from experiments.store import provenance
from experiments.store.provenance import code_name, code_state


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package inside another project's repository, which does not track it."""
    site = tmp_path / "venv" / "site-packages"
    module = site / "experiments" / "store" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("A = 1\n")
    git(tmp_path, "init", "-q")
    (tmp_path / "own.py").write_text("1\n")
    git(tmp_path, "add", "own.py")
    git(tmp_path, "commit", "-qm", "theirs")
    (tmp_path / "own.py").write_text("2\n")
    monkeypatch.setattr(provenance, "ROOT", site)
    monkeypatch.setattr(provenance, "__file__", str(module))
    code_state.cache_clear()
    yield tmp_path, module
    code_state.cache_clear()


def test_another_projects_repository_is_not_the_codes(installed):
    folder, module = installed
    first = code_state()
    assert (first["git_sha"], first["git_dirty_sha256"]) == (None, None)
    assert "files" in first["installed"]
    assert code_name(first) == first["installed"]
    code_state.cache_clear()
    module.write_text("A = 2\n")
    assert code_state()["installed"] != first["installed"]
    # Once it is that repository's own code, its commit counts.
    git(folder, "add", str(module))
    git(folder, "commit", "-qm", "ours")
    code_state.cache_clear()
    found = code_state()
    assert found["git_sha"] == git(folder, "rev-parse", "HEAD")
    # The difference of what lies beside it is not its own.
    assert found["git_dirty_sha256"] is None
    assert code_name(found) == found["git_sha"][:10]
