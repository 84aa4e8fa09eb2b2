"""The script of docs/lightning.md, as a user has it, on phantoms and with fewer steps."""

import re
import subprocess
import sys

from sweep_parts import environment

from datamodules.phantom import write_phantom
from experiments.config.paths import ROOT

DOCUMENT = ROOT / "docs" / "lightning.md"
FEWER = {
    "UnetConfig(steps=500)": "UnetConfig(steps=2, batch_size=2, size_hw=(32, 64))",
    "val_check_interval=100": 'val_check_interval=1, accelerator="cpu"',
    "train[:20]": "train[:4]",
}


def run(words, *, cwd):
    return subprocess.run(
        words,
        cwd=cwd,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_script_trains_tests_and_saves(tmp_path):
    command, script = re.findall(r"```(?:python)?\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    for shown, fewer in FEWER.items():
        assert script.count(shown) == 1
        script = script.replace(shown, fewer)
    write_phantom(tmp_path / "hc18", n_exams=24, seed=0, size_hw=(135, 200))
    words = [sys.executable, "-m", "experiments", *command.split()[1:]]
    split = run(words, cwd=tmp_path)
    assert split.returncode == 0, split.stderr
    found = run([sys.executable, "-c", script], cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert re.search(r"test/dice\W+0\.\d", found.stdout)
    assert (tmp_path / "unet.safetensors").is_file()
    assert not (tmp_path / "runs").exists()
