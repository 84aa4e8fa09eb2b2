"""Which GPUs there are, by a command that pretends, and what is refused of those that are not."""

import pytest
from rich.console import Console
from sweep_parts import SETTINGS
from toy_recipe import TOY

from datamodules.errors import InputError
from experiments.commands.run import prepare
from experiments.config.recipe import load_config
from experiments.runner.gpus import check_devices, device_environment, gpu_names


def test_names_in_the_order_of_ids(pretend):
    pretend("H200", "A100")
    assert gpu_names() == ["H200", "A100"]


def test_a_tool_that_fails_or_is_missing_means_none(pretend, monkeypatch, tmp_path):
    pretend("No devices were found", code=6)
    assert gpu_names() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert gpu_names() == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        *[("1", ["b"]), ("2,0", ["c", "a"]), ("GPU-8f,0", ["GPU-8f", "a"]), ("", [])],
        # A UUID, whole or its beginning.
        *[("GPU-222,GPU-000", ["c", "a"]), ("GPU-1", ["b"])],
        ("MIG-1a,MIG-1b", ["MIG-1a", "MIG-1b"]),
        # CUDA takes none from the first on that it does not know.
        *[("-1", []), ("NoDevFiles", []), ("1,-1,0", ["b"]), ("0,3,1", ["a"])],
    ],
)
def test_what_the_user_hides_is_not_there(pretend, monkeypatch, visible, expected):
    pretend("a", "b", "c")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_names() == expected


@pytest.mark.parametrize(
    ("gpus", "overrides", "words"),
    [
        (2, "sweep.devices=[0,2]", r"there is no GPU 2; this machine has 2, use 0 to 1"),
        (2, "trainer.devices=4 sweep.workers=1", r"trainer.devices=4: this machine has 2 GPUs"),
        (2, "trainer.devices=4 sweep.workers=1 trainer.accelerator=gpu", r"machine has 2 GPUs"),
        (0, "sweep.devices=[0]", r"sweep\.devices=\[0\]: this machine has no NVIDIA GPU"),
        (0, "trainer.accelerator=gpu", r"trainer\.accelerator=gpu: .* has no NVIDIA GPU"),
        # What would be passed over.
        (2, "sweep.per_device=2", r"per_device=2: .* sweep\.devices, which names none"),
        (2, "sweep.per_device=2 sweep.launcher=slurm", r"sweep\.per_device=2: .*leave it out"),
        (2, "sweep.devices=[0] trainer.accelerator=cpu", r"trainer\.accelerator=cpu uses no GPU"),
    ],
)
def test_gpus_that_are_not_there_or_not_used_are_refused(pretend, gpus, overrides, words):
    pretend(*"ab"[:gpus], code=0 if gpus else 9)
    with pytest.raises(InputError, match=words):
        check_devices(load_config(TOY, overrides.split()))


@pytest.mark.parametrize(
    ("gpus", "overrides"),
    [
        *[(2, ""), (2, "sweep.devices=[0,1] sweep.per_device=2"), (2, "trainer.accelerator=cpu")],
        *[(2, f"trainer.devices={n} sweep.workers=1") for n in (1, 2)],
        (2, "trainer.devices=4 sweep.workers=1 trainer.accelerator=cpu"),
        # Spread over processes of the CPU.
        (0, "trainer.devices=4 sweep.workers=1"),
    ],
)
def test_what_is_there_is_taken(pretend, gpus, overrides):
    pretend(*"ab"[:gpus], code=0 if gpus else 9)
    check_devices(load_config(TOY, overrides.split()))


def test_the_outputs_of_a_sweep_need_none_of_its_gpus(pretend, hc18_folder, tmp_path):
    """As on the login node of a cluster."""
    pretend(code=9)
    words = [f"data.root={hc18_folder}", f"store.root={tmp_path}/runs", *SETTINGS]
    config = load_config(TOY, [*words, "sweep.devices=[0]"])
    prepare(config, Console(quiet=True), fetches=False)
    with pytest.raises(InputError, match="has no NVIDIA GPU"):
        prepare(config, Console(quiet=True))


def test_a_process_is_held_to_its_devices(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    assert device_environment(()) == {}
    # Ids are those of nvidia-smi, where GPUs differ too.
    by_bus = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert device_environment((2,)) == {"CUDA_VISIBLE_DEVICES": "2"} | by_bus
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert device_environment((2,))["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    # Ids count among those that the user left visible.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert device_environment((2, 0)) == {"CUDA_VISIBLE_DEVICES": "7,4"}
