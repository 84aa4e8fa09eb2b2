"""Base models that a recipe names by a branch of the hub, against a hub of our own."""

from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from huggingface_hub import constants
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.plan.bases import pin_bases
from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.weights import base_id

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
WORDS = ["synthesis.generator=stable_diffusion", "sweep.condition=[synthetic]"]


class Hub(BaseHTTPRequestHandler):
    """Has owner/model; asks for a login for owner/gated; owner/proxy is a proxy's page."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer(b"{}")

    def answer(self, body=b""):
        headers = {"X-Repo-Commit": OTHER if "/dev/" in self.path else COMMIT, "ETag": '"e"'}
        code, headers = {
            "model": (200, headers),
            "gated": (401, {"X-Error-Code": "GatedRepo"}),
            "none": (401, {"X-Error-Code": "RepoNotFound"}),
            "proxy": (200, {"Content-Type": "text/html"}),
        }.get(self.path.split("/")[2], (404, {}))
        self.send_response(code)
        for name, value in {**headers, "Content-Length": "2"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, an empty cache, and the network; gives what sets them."""

    def reach(address):
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    reach(f"http://127.0.0.1:{server.server_port}")
    yield reach
    server.shutdown()
    server.server_close()


@pytest.fixture
def pinned(hub, tmp_path):
    """The revision of a recipe's base model after `pin_bases`, or why there is none."""
    recipe = load_config(TOY, [*WORDS, f"store.root={tmp_path / 'runs'}"])

    def found(name, revision=None):
        settings = replace(recipe.stable_diffusion, base_model=name, revision=revision)
        config = replace(recipe, stable_diffusion=settings)
        try:
            assert pin_bases(config, asks_hub=True) == []
        except WeightsError as error:
            return str(error)
        return config.stable_diffusion.revision

    return found


def test_a_branch_becomes_its_commit_and_the_cache_knows_it_offline(
    hub, pinned, tmp_path, monkeypatch
):
    assert pinned("owner/model") == COMMIT
    assert pinned("owner/model", "dev") == OTHER
    assert pinned("owner/model", "a" * 40) == "a" * 40
    for name, said in (
        ("gated", "owner/gated: no such path here, and the hub gives it to logged-in users"),
        ("none", "has no model owner/none for everyone"),
        ("proxy", "what answers is not the hub but a proxy's or a login page"),
    ):
        assert said in pinned(f"owner/{name}")
    # The branch is in the cache, its UNet is not: without the network there is no model.
    hub("http://127.0.0.1:9")
    assert "the hub does not give its main" in pinned("owner/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = "without it fetches the model"
    assert f"`sonosweep weights fetch owner/model` {said}" in pinned("owner/model")
    snapshot = tmp_path / "hub" / "models--owner--model" / "snapshots" / COMMIT
    (snapshot / "unet").mkdir()
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").write_text("x")
    assert pinned("owner/model") == COMMIT
    # A hub out of reach is as none.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert pinned("owner/model") == COMMIT


def test_a_sweep_goes_on_with_the_commit_that_it_began_with(tmp_path):
    words = [*WORDS, "stable_diffusion.base_model=owner/model", f"store.root={tmp_path}", "name=a"]
    blocks = ["generators.other.kind=stable_diffusion", "generators.other.base_model=owner/other"]
    words += [*blocks, "sweep.generator=[stable_diffusion,other]"]
    kept = {
        "stable_diffusion": {"base_model": "owner/model", "revision": COMMIT},
        "generators": {"other": {"base_model": "owner/other", "revision": OTHER}},
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(yaml.safe_dump(kept))
    config = load_config(TOY, words)
    notes = pin_bases(config, asks_hub=True)
    assert notes == [
        f"owner/model: commit {COMMIT}, with which this sweep began",
        f"owner/other: commit {OTHER}, with which this sweep began",
    ]
    settings = [config.generator_named(name) for name in config.generator_names()]
    ids = [base_id(each.base_model, revision=each.revision) for each in settings]
    assert ids == [f"owner/model@{COMMIT}", f"owner/other@{OTHER}"]
    assert pin_bases(config, asks_hub=True) == []


def test_a_plan_alone_asks_no_hub_and_pixels_need_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [f"store.root={tmp_path}", "stable_diffusion.base_model=owner/model"]
    config = load_config(TOY, [*WORDS, *words])
    assert pin_bases(config, asks_hub=False) == [
        "owner/model: the sweep asks the hub for its commit when it starts"
    ]
    with pytest.raises(WeightsError, match="owner/model: no such path here, and not in the hub's"):
        pin_bases(config, asks_hub=True)
    for others in (["sweep.condition=[real]"], ["synthesis.generator=pixel"]):
        assert pin_bases(load_config(TOY, [*WORDS, *words, *others]), asks_hub=True) == []
