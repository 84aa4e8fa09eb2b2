"""Generator -> synthetic set -> trial on W&B: uploaded online, referred to offline."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from wandb_parts import clean_environment, inspect, offline_runs, read_offline, spec
from wandb_server import WandbServer

from experiments.config.recipe import load_config
from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES
from experiments.runner.worker import redirect_output
from experiments.stages.context import StageContext
from experiments.stages.stage_logger import (
    artifact_name,
    input_keys,
    log_lineage,
    log_pairs,
    stage_run,
)
from experiments.stages.wandb_run import finish
from experiments.store.runs import RunStore, write_done, write_started

CHAIN = {
    "generator/g1": {},
    "synthesize/c1": {"generator": "generator/g1"},
    "embed/e1": {"candidates": "synthesize/c1"},
    "fit/judge": {},
    "gate/p1": {"candidates": "synthesize/c1", "segmenter": "fit/judge", "embeddings": "embed/e1"},
    "embed/e2": {"pairs": "gate/p1"},
}


class Named(Node):
    """A node whose id is known beforehand."""

    id = "x1"


def run_stage(root: Path, printed: Path, environment: dict[str, str], words: list[str]) -> None:
    """What a stage does of W&B, in a process of its own: W&B has one run a process."""
    os.environ.clear()
    os.environ.update(environment)
    redirect_output(printed)
    mode, stage, *upstream = words
    context = StageContext(
        config=load_config("demo", ["name=night", f"store.root={root}", f"wandb.mode={mode}"]),
        node=Named(
            stage=stage,
            content={"seed": 0},
            upstream=dict(word.split("=") for word in upstream),
            label="fit real, 4 images",
            slug="real",
        ),
        store=RunStore(root),
        samples={},
        rows={},
        content={},
        # Phantoms are named as a condition is.
        tags=("n=4", "phantom", "real"),
        trials=(
            spec("real", fit="fit/x1", scores={}, generator="second"),
            spec("real", fit="fit/x1", scores={}, generator="second", support=1),
        ),
    )
    if stage == "fit":
        stage_run(context)
        log_lineage(context)
    else:
        log_pairs(context)
    has_ended = finish(exit_code=0)
    sys.stdout.flush()
    # As a stage ends: exit handlers may wait.
    os._exit(0 if has_ended else 1)


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


@pytest.fixture
def log(store, tmp_path):
    """Log a stage of the store by mode, name and inputs; what was printed."""

    def in_a_process(*words, **environment):
        printed = tmp_path / "printed.txt"
        given = (store.root, printed, clean_environment(**environment), words)
        # Forked from here, where all that a stage needs is imported.
        process = multiprocessing.get_context("fork").Process(target=run_stage, args=given)
        process.start()
        process.join(200)
        assert process.exitcode == 0, printed.read_text()
        return printed.read_text()

    return in_a_process


def records(run_dir):
    (run,) = (path for path in (run_dir / "wandb").glob("offline-run-*") if path.is_dir())
    return [json.loads(line) for line in read_offline(run).splitlines()]


def test_inputs_are_the_nearest_stages_that_made_something(store):
    assert input_keys(store, CHAIN["gate/p1"]) == ["generator/g1", "fit/judge"]
    assert input_keys(store, {"pairs": "gate/p1", "pair_embeddings": "embed/e2"}) == ["gate/p1"]
    assert input_keys(store, {}) == []


def test_an_artifact_is_named_by_what_it_is_made_from():
    assert artifact_name("generator/0bc03dd76db5789e") == "generator-0bc03dd76db5789e"
    assert artifact_name("gate/68be73c229d79b44") == "synthetic-68be73c229d79b44"
    assert artifact_name("fit/390a6443c17ee048") == "segmenter-390a6443c17ee048"


def test_offline_a_trial_refers_to_its_weights_and_names_its_inputs(store, log):
    printed = log("offline", "fit", "pairs=gate/p1", "embeddings=embed/e2")
    assert "W&B" not in printed, printed
    text = json.dumps(records(store.run_dir("fit", "x1")))
    assert "synthetic-p1" in text
    assert "segmenter-x1" in text
    assert f"file://{store.root}/store/fit/x1/segmenter.safetensors" in text
    assert not list((store.run_dir("fit", "x1") / "wandb").rglob("*.safetensors")), "no copy"


def test_a_fit_is_grouped_as_its_trials_are(store, log):
    log("offline", "fit")
    (run,) = offline_runs(store.run_dir("fit", "x1")).values()
    config = inspect(run)["config"]
    assert (config["condition"], config["generator"]) == ("real", "second")
    assert config["arm"] == "real second"


def test_online_weights_are_uploaded_and_the_synthetic_set_is_an_input(store, log):
    with WandbServer() as server:
        log("online", "fit", "pairs=gate/p1", **server.environment())
    (run_id,) = server.runs
    assert server.used == [(run_id, "synthetic-p1")]
    assert set(server.artifacts) == {"synthetic-p1", "segmenter-x1"}
    assert "segmenter-x1/segmenter.safetensors" in server.files
    assert {"synthetic-p1/image/0.png", "synthetic-p1/metadata.jsonl"} < set(server.files)
    assert server.unknown == []


def test_pairs_have_a_run_of_their_own_and_real_images_stay_here(store, log):
    with WandbServer() as server:
        log("online", "warp", **server.environment())
    (run,) = server.runs.values()
    assert (run["jobType"], run["groupName"]) == ("warp", "night")
    assert server.artifacts == ["warped-pairs-x1"]
    uploaded = [path for path in server.files if path.startswith("warped-pairs-x1/")]
    assert uploaded == ["warped-pairs-x1/manifest.json"]


def test_what_goes_wrong_is_printed_and_nothing_more(store, log):
    (store.run_dir("fit", "x1") / "segmenter.safetensors").unlink()
    unreachable = {"WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    printed = log("online", "fit", "pairs=gate/p1", **unreachable)
    assert "W&B: http://127.0.0.1:9 does not answer; this run is logged offline" in printed
    assert "W&B: lineage is not logged: ValueError" in printed
    assert records(store.run_dir("fit", "x1"))


def test_switched_off_nothing_is_made(store, log):
    assert log("disabled", "warp") == ""
    assert not (store.run_dir("warp", "x1") / "wandb").exists()
