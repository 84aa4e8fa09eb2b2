"""Generator -> synthetic set -> trial on W&B: uploaded online, referred to offline."""

import json
import subprocess
import sys

import pytest
from wandb_parts import clean_environment
from wandb_server import WandbServer

from experiments.plan.stage_table import STAGES
from experiments.stages.stage_logger import artifact_name, input_keys
from experiments.store.runs import RunStore, write_done, write_started

CHAIN = {
    "generator/g1": {},
    "synthesize/c1": {"generator": "generator/g1"},
    "embed/e1": {"candidates": "synthesize/c1"},
    "fit/judge": {},
    "gate/p1": {"candidates": "synthesize/c1", "segmenter": "fit/judge", "embeddings": "embed/e1"},
    "embed/e2": {"pairs": "gate/p1"},
}

LOG = """
import sys
from experiments.stages.context import StageContext
from experiments.stages.stage_logger import log_lineage, log_pairs, stage_run
from experiments.stages.wandb_run import finish
from experiments.plan.nodes import Node
from experiments.config.recipe import load_config
from experiments.store.runs import RunStore

root, mode, stage = sys.argv[1:4]
upstream = dict(word.split("=") for word in sys.argv[4:])


class Named(Node):
    id = "x1"


context = StageContext(
    config=load_config("demo", [f"store.root={root}", f"wandb.mode={mode}"]),
    node=Named(
        stage=stage,
        content={"seed": 0},
        upstream=upstream,
        label="fit real, 4 images",
        slug="real",
    ),
    store=RunStore(root),
    samples={},
    rows={},
    content={},
    sweep="night",
    tags=("real", "n=4"),
)
if stage == "fit":
    stage_run(context, job_type="fit")
    log_lineage(context)
else:
    log_pairs(context)
finish(exit_code=0)
"""


@pytest.fixture
def store(tmp_path):
    """A store with the chain of a synthetic set, and the files of what comes after it."""
    store = RunStore(tmp_path)
    for key, upstream in CHAIN.items():
        run_dir = store.run_dir(*key.split("/"))
        run_dir.mkdir(parents=True)
        write_started(run_dir, {"upstream": upstream})
        write_done(run_dir, {})
    _files(store, "gate/p1", "fit/judge", "fit/x1", "warp/x1")
    return store


def _files(store, *keys):
    for key in keys:
        run_dir = store.run_dir(*key.split("/"))
        for name in STAGES[key.split("/")[0]].artefact.files:
            path = run_dir / name
            if name in ("image", "mask"):
                path = path / "0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{key} {name}")


def log(store, mode, stage, *upstream, **environment):
    words = [sys.executable, "-c", LOG, str(store.root), mode, stage, *upstream]
    return subprocess.run(
        words,
        check=True,
        env=clean_environment(**environment),
        timeout=200,
        capture_output=True,
        text=True,
    ).stdout


def records(run_dir):
    (run,) = (path for path in (run_dir / "wandb").glob("offline-run-*") if path.is_dir())
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    found = subprocess.run(
        words, capture_output=True, text=True, check=True, env=clean_environment(), timeout=120
    )
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_inputs_are_the_nearest_stages_that_made_something(store):
    assert input_keys(store, CHAIN["gate/p1"]) == ["generator/g1", "fit/judge"]
    assert input_keys(store, {"pairs": "gate/p1", "pair_embeddings": "embed/e2"}) == ["gate/p1"]
    assert input_keys(store, {}) == []


def test_an_artifact_is_named_by_what_it_is_made_from():
    assert artifact_name("generator/0bc03dd76db5789e") == "generator-0bc03dd76db5789e"
    assert artifact_name("gate/68be73c229d79b44") == "synthetic-68be73c229d79b44"
    assert artifact_name("fit/390a6443c17ee048") == "segmenter-390a6443c17ee048"


def test_offline_a_trial_refers_to_its_weights_and_names_its_inputs(store):
    printed = log(store, "offline", "fit", "pairs=gate/p1", "embeddings=embed/e2")
    assert "W&B" not in printed, printed
    text = json.dumps(records(store.run_dir("fit", "x1")))
    assert "synthetic-p1" in text
    assert "segmenter-x1" in text
    assert f"file://{store.root}/store/fit/x1/segmenter.safetensors" in text
    assert not list((store.run_dir("fit", "x1") / "wandb").rglob("*.safetensors")), "no copy"


def test_online_weights_are_uploaded_and_the_synthetic_set_is_an_input(store):
    with WandbServer() as server:
        log(store, "online", "fit", "pairs=gate/p1", **server.environment())
    (run_id,) = server.runs
    assert server.used == [(run_id, "synthetic-p1")]
    assert set(server.artifacts) == {"synthetic-p1", "segmenter-x1"}
    assert "segmenter-x1/segmenter.safetensors" in server.files
    assert {"synthetic-p1/image/0.png", "synthetic-p1/metadata.jsonl"} < set(server.files)
    assert server.unknown == []


def test_pairs_have_a_run_of_their_own_and_real_images_stay_here(store):
    with WandbServer() as server:
        log(store, "online", "warp", **server.environment())
    (run,) = server.runs.values()
    assert (run["jobType"], run["groupName"]) == ("warp", "night")
    assert server.artifacts == ["warped-pairs-x1"]
    uploaded = [path for path in server.files if path.startswith("warped-pairs-x1/")]
    assert uploaded == ["warped-pairs-x1/manifest.json"]


def test_what_goes_wrong_is_printed_and_nothing_more(store):
    (store.run_dir("fit", "x1") / "segmenter.safetensors").unlink()
    printed = log(store, "offline", "fit", "pairs=gate/p1")
    assert "W&B: lineage is not logged: ValueError" in printed


def test_switched_off_nothing_is_made(store):
    assert log(store, "disabled", "warp") == ""
    assert not (store.run_dir("warp", "x1") / "wandb").exists()
