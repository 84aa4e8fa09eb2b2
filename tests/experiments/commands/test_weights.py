"""`sonosweep weights`, and a sweep that starts without its weights, against a server of our own."""

import hashlib
import io
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
from file_server import Server
from rich.console import Console
from toy_recipe import TOY

from datamodules import download
from datamodules.download import RetryPolicy
from datamodules.errors import InputError
from experiments.commands.weights import fetch_weights
from experiments.config.recipe import load_config
from lightning_modules.errors import MissingWeightsError, WeightsError
from lightning_modules.generators.stable_diffusion.weights import base_id
from lightning_modules.segmenters.sam.weights import (
    encoder_id,
    find_weights,
    missing_weights_named,
)
from lightning_modules.weights_table import DEFAULT_BASE, WEIGHTS, checkpoints_folder

QUICK = RetryPolicy(attempts=3, timeout_s=5.0, backoff_s=0.001)
QUIET = Console(quiet=True)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves vit_b and medsam; the cache is empty."""
    for name in ("HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("data", bytes(range(256)) * 64)
    body = made.getvalue()
    served = Server()
    served.files["weights"] = body
    url = f"{served.url}/weights"
    facts = {"url": url, "size_bytes": len(body), "md5": hashlib.md5(body).hexdigest()[:6]}
    monkeypatch.setitem(WEIGHTS, "vit_b", replace(WEIGHTS["vit_b"], **facts))
    monkeypatch.setitem(WEIGHTS, "medsam", replace(WEIGHTS["medsam"], url=url))
    yield served
    served.close()


def test_names_of_sams_files_carry_the_checksum_and_the_base_is_a_commit():
    for name in ("vit_b", "vit_l", "vit_h"):
        assert WEIGHTS[name].file.endswith(f"_{WEIGHTS[name].md5}.pth")
        assert WEIGHTS[name].url.endswith(f"/{WEIGHTS[name].file}")
    assert len(DEFAULT_BASE.revision) == 40
    config = load_config(TOY, []).stable_diffusion
    assert base_id(config.base_model) == f"{DEFAULT_BASE.repo}@{DEFAULT_BASE.revision}"
    # A name that is given gets its commit before a sweep is planned.
    given = load_config(TOY, [f"stable_diffusion.base_model={DEFAULT_BASE.repo}"]).stable_diffusion
    assert base_id(given.base_model, revision=given.revision) == f"{DEFAULT_BASE.repo}@main"


def test_a_fetch_goes_on_where_it_broke_and_is_not_repeated(server, capsys):
    server.script["weights"], body = ["cut"], server.files["weights"]
    path = fetch_weights("vit_b", Console(), retry=QUICK)
    assert server.asked == [("weights", None), ("weights", f"bytes={len(body) // 2}-")]
    assert path == checkpoints_folder() / "sam_vit_b_01ec64.pth"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert encoder_id("vit_b") == hashlib.sha256(server.files["weights"]).hexdigest()
    assert find_weights("vit_b", None) == path
    assert fetch_weights("vit_b", Console()) == path
    assert len(server.asked) == 2
    assert capsys.readouterr().out.count("Apache-2.0") == 1


def test_other_content_is_refused_and_never_takes_the_name(server, monkeypatch):
    monkeypatch.setitem(WEIGHTS, "vit_b", replace(WEIGHTS["vit_b"], md5="01ec64"))
    with pytest.raises(InputError, match="damaged twice, its MD5 is not the record's 01ec64"):
        fetch_weights("vit_b", QUIET, retry=QUICK)
    assert list(checkpoints_folder().iterdir()) == []
    path = checkpoints_folder() / "sam_vit_b_01ec64.pth"
    body = server.files["weights"]
    path.write_bytes(body)
    asked = len(server.asked)
    for look in (encoder_id, lambda name: fetch_weights(name, QUIET)):
        with pytest.raises(WeightsError, match=r"not the published .* not 01ec64.*move it away"):
            look("vit_b")
    path.write_bytes(body[:-1])
    with pytest.raises(WeightsError, match=f"{len(body) - 1} bytes instead of"):
        find_weights("vit_b", None)
    assert len(server.asked) == asked


def test_a_proxys_page_and_a_full_disk_give_no_file(server, monkeypatch):
    server.script["weights"] = ["html"]
    with pytest.raises(InputError, match="answers with a web page; look at it in a browser"):
        fetch_weights("vit_b", QUIET, retry=QUICK)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="are free; make room"):
        fetch_weights("vit_b", QUIET, retry=QUICK)
    assert not (checkpoints_folder() / "sam_vit_b_01ec64.pth").exists()


def test_without_a_published_checksum_the_first_one_is_kept(server, capsys):
    path, found = (
        fetch_weights("medsam", Console()),
        hashlib.sha256(server.files["weights"]).hexdigest(),
    )
    assert found in " ".join(capsys.readouterr().out.split())
    assert (path.parent / "medsam_vit_b.pth.sha256").read_text() == f"{found}  {path.name}\n"
    assert encoder_id("medsam") == found
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "another model")
    with pytest.raises(WeightsError, match="SHA-256"):
        encoder_id("medsam")


def test_a_plan_alone_names_what_is_missing_and_fetches_nothing(server):
    with missing_weights_named() as missing:
        assert encoder_id("vit_b") == "not fetched: vit_b"
    assert missing == ["vit_b"]
    with pytest.raises(MissingWeightsError, match="vit_b needs sam_vit_b"):
        encoder_id("vit_b")
    assert server.asked == []


def test_offline_says_what_is_missing_where_and_how_to_get_it(server, sonosweep, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for words in (["fetch", "vit_b"], ["path", "vit_b"]):
        code, _, err = sonosweep("weights", *words)
        (line,) = err.splitlines()
        assert code == 2
        assert line.startswith("error: vit_b needs sam_vit_b_01ec64.pth")
        assert f"not in {checkpoints_folder()}, and HF_HUB_OFFLINE forbids the network" in line
        assert "`sonosweep weights fetch vit_b`" in line
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fetch_weights("vit_b", QUIET)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(server.asked)
    path = checkpoints_folder() / "sam_vit_b_01ec64.pth"
    assert sonosweep("weights", "path", "vit_b")[:2] == (0, f"{path}\n")
    code, said, _ = sonosweep("weights", "list")
    assert code == 0
    assert f"vit_b: {path}\n" in said
    assert "vit_h: missing (HF_HUB_OFFLINE is set)\n" in said
    assert len(server.asked) == asked


def test_an_unknown_name_gets_the_nearest(server, sonosweep):
    said = "error: weights vit-b: unknown; did you mean vit_b?\n"
    assert sonosweep("weights", "fetch", "vit-b") == (2, "", said)


def test_a_sweep_fetches_what_its_plan_names(server, tmp_path, hc18_folder, monkeypatch):
    from experiments.commands.run import prepare
    from experiments.runner.forecast import print_dry_run

    words = [f"data.root={hc18_folder}", f"store.root={tmp_path}/runs", "segmenter.backbone=vit_b"]
    words += ["data.subset.n_images=null", "split.test=3", "split.val=2", "split.train=null"]
    words += ["sweep.condition=[real]", "sweep.real_fraction=[1.0]", "wandb.mode=disabled"]
    config = load_config(TOY, words)
    print_dry_run(config, retry_failed=False, as_json=True)
    with pytest.raises(MissingWeightsError):
        prepare(config, QUIET, fetches=False)
    assert server.asked == []
    _, plan = prepare(config, QUIET)
    assert server.asked == [("weights", None)]
    ids = {n.content["weights_sha256"] for n in plan.nodes.values() if n.stage == "fit"}
    assert ids == {hashlib.sha256(server.files["weights"]).hexdigest()}
    checkpoints_folder().joinpath("sam_vit_b_01ec64.pth").unlink()
    # Set back after the test: `offline` reaches all that comes after it.
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(MissingWeightsError, match="HF_HUB_OFFLINE forbids"):
        prepare(replace(config, offline=True), QUIET)
    assert server.asked == [("weights", None)]


def test_a_sweep_without_the_encoders_package_does_not_start(
    tmp_path, hc18_folder, monkeypatch, sonosweep
):
    monkeypatch.setattr("lightning_modules.segmenters.unet.pretrained.PACKAGE", "no_such_package")
    words = [f"data.root={hc18_folder}", f"store.root={tmp_path}/runs"]
    code, _, errors = sonosweep("sweep", str(TOY), *words, "sweep.segmenter=[unet]")
    assert (code, errors.count("\n")) == (2, 1)
    assert "the package no-such-package, which carries the encoder's weights" in errors
    assert not (tmp_path / "runs").exists()
