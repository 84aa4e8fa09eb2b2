"""`sonosweep paper`: cohorts by their variables, every GPU, a dry run without weights."""

import pytest

from datamodules.errors import InputError
from experiments.commands.paper import _use_gpus, cohort_words
from experiments.config.recipe import load_config
from experiments.results.deviations import deviations
from experiments.stages.data import _cohorts


@pytest.fixture
def cohorts(monkeypatch):
    """Without the paper's cohorts; gives what names their folders."""
    for variable in ("ES_ROOT", "AF_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    return lambda **folders: [
        monkeypatch.setenv(f"{name.upper()}_ROOT", str(folder)) for name, folder in folders.items()
    ]


def write_cohort(folder, stem="one"):
    for part, name in (("image", f"{stem}.png"), ("mask", f"{stem}_Annotation.png")):
        (folder / part).mkdir(parents=True)
        (folder / part / name).write_bytes(b"")
    return folder


def test_cohorts_are_called_as_the_paper_calls_them(cohorts, tmp_path, hc18_folder):
    assert cohort_words([]) == []
    # A folder's own name, a comma and a quote mean nothing.
    es = write_cohort(tmp_path / "spanish, 'x'")
    cohorts(es=es, af=write_cohort(tmp_path / "b", stem="two"))
    config = load_config("paper_hc18", [*cohort_words([]), f"data.root={hc18_folder}"])
    assert config.data.cohorts() == [("es", es), ("af", tmp_path / "b")]
    assert list(_cohorts(config)) == ["hc18", "es", "af"]
    assert any("the external cohorts es, af;" in line for line in deviations(config))
    assert cohort_words(["data.test_cohorts=[]"]) == []


def test_a_cohort_without_masks_is_named_by_its_variable(cohorts, tmp_path):
    folder = write_cohort(tmp_path / "es")
    (folder / "mask" / "one_Annotation.png").unlink()
    cohorts(es=folder)
    with pytest.raises(InputError, match=rf"ES_ROOT: {folder}/mask: no PNG masks, and evaluation"):
        cohort_words([])
    (folder / "mask").rmdir()
    with pytest.raises(InputError, match=rf"ES_ROOT: {folder}: mask/ is missing"):
        cohort_words([])
    cohorts(es=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"ES_ROOT: .*nowhere"):
        cohort_words([])


def test_every_gpu_is_used_where_the_recipe_names_none(pretend, monkeypatch):
    def used(*words):
        config = load_config("paper_hc18", list(words))
        _use_gpus(config)
        return config.sweep.devices

    pretend("H100", "H100", "H100")
    assert used() == [0, 1, 2]
    assert used("sweep.devices=[1]") == [1]
    assert used("trainer.accelerator=cpu") == []
    pretend(code=9)
    assert used() == []


def test_a_dry_run_needs_neither_weights_nor_a_gpu(
    cohorts, pretend, tmp_path, hc18_folder, monkeypatch, sonosweep
):
    pretend(code=9)
    for variable in ("TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    words = [f"data.root={hc18_folder}", f"store.root={tmp_path}/runs", "sweep.real_count=[4]"]
    words += ["statistics.primary.real_count=4", "synthesis.generator_count=4"]
    words += ["split.test=3", "split.val=2"]
    code, printed, err = sonosweep("paper", "--dry-run", *words)
    assert code == 0, err
    assert "paper-hc18: hc18" in printed
    assert "4 trials, 0 done, real 1, weak 1, strong 1, synthetic stable_diffusion 1" in printed
    out = " ".join(printed.split())
    for gpu in ("H200", "H100", "RTX 4090"):
        assert f"on one {gpu} about " in out
    assert "times 1.4, the ratio of published bandwidth; nothing measured" in out
    assert "sam_vit_b_01ec64.pth (358 MiB) is not here yet" in " ".join(err.split())
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in err
    assert not (tmp_path / "runs").exists()
