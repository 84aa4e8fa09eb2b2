"""Which code a run was made with: a repository counts only where it holds the package's files."""

import subprocess

import pytest

from experiments.store import provenance
from experiments.store.provenance import code_name, code_state, processor


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


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC", "AMD EPYC (family 26, model 2)"),
        ("cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7763", "AMD EPYC 7763"),
        (
            "cpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.20GHz",
            "Intel(R) Xeon(R) CPU @ 2.20GHz (family 6, model 85)",
        ),
        ("model name\t: Some core", "Some core"),
    ],
)
def test_a_processor_is_told_from_one_of_another_generation(tmp_path, lines, name):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\n{lines}\nflags\t\t: fpu: vme\n\n")
    assert processor(path) == name


def test_a_system_without_that_file_names_its_processor_too(tmp_path):
    assert processor(tmp_path / "none")
