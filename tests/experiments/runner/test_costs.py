"""Costs from hand-made stores: the median, whose runs count, and what is left out."""

import functools
import json
import os
from pathlib import Path

import pytest
from plan_parts import make_data
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.config.schema import resolved
from experiments.plan.grid import box_plan, make_plan
from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES
from experiments.runner.costs import RUNS_READ, Cost, Costs, n_slots
from experiments.runner.workload import units_to_do
from experiments.store.provenance import machine
from experiments.store.runs import write_done, write_started

SETTINGS = ("trainer.threads=1", "trainer.accelerator=cpu", "segmenter.backbone=tiny")


@functools.cache
def described(*settings: str) -> dict:
    """What a manifest says of where a stage ran; the same settings are read once."""
    config = load_config(TOY, list(settings))
    return {
        "config": resolved(config),
        "threads": config.trainer.threads,
        "devices": config.trainer.devices,
        "machine": machine(),
    }


def write_run(
    root: Path,
    name: str,
    *,
    stage: str = "fit",
    seconds: float,
    content: dict,
    result: dict | None = None,
    settings: tuple[str, ...] = SETTINGS,
    host: str | None = None,
    device: str = "cpu",
    upstream: dict | None = None,
) -> Path:
    """A finished run as the worker leaves it."""
    run_dir = root / "store" / stage / name
    run_dir.mkdir(parents=True)
    manifest = {
        "stage": stage,
        "content": content,
        "upstream": upstream or {},
        "device": device,
        **described(*settings),
    }
    if host is not None:
        manifest["machine"] = {**manifest["machine"], "host": host}
    write_started(run_dir, manifest)
    steps = content.get("segmenter", {}).get("steps")
    write_done(run_dir, {"steps": steps, **(result or {}), "seconds": seconds})
    return run_dir


def fit(steps: int, **extra: str) -> dict:
    return {"segmenter": {"steps": steps, **extra}}


FIT = Node(stage="fit", content=fit(40), steps=40)


def cost_of_fit(root: Path, **extra: str):
    costs = Costs(root, config=load_config(TOY, list(SETTINGS)))
    return costs.of(Node(stage="fit", content=fit(40, **extra), steps=40))


def test_nothing_measured_is_a_first_guess(tmp_path):
    assert cost_of_fit(tmp_path / "none") == Cost(0.8, "first guess")


def test_the_median_bears_a_run_that_was_resumed(tmp_path):
    # 2.0, 1.0 and 3.0 seconds a step, and one that was resumed at its end.
    for name, seconds, steps in (("a", 80, 40), ("b", 10, 10), ("c", 120, 40), ("d", 0.4, 40)):
        write_run(tmp_path, name, seconds=seconds, content=fit(steps))
    assert cost_of_fit(tmp_path) == Cost(1.5, "here")


def test_like_runs_here_count_before_like_runs_elsewhere_and_no_others(tmp_path):
    tiny = fit(40, backbone="tiny")
    write_run(tmp_path, "tiny", seconds=8, content=tiny)
    assert cost_of_fit(tmp_path).source == "first guess"
    write_run(tmp_path, "far", seconds=12, content=fit(40), host="far")
    assert cost_of_fit(tmp_path) == Cost(0.3, "elsewhere")
    write_run(tmp_path, "gpu", seconds=4, content=fit(40), device="cuda")
    two = ("trainer.threads=2", "trainer.accelerator=cpu")
    write_run(tmp_path, "threads", seconds=16, content=fit(40), settings=two)
    assert cost_of_fit(tmp_path) == Cost(0.3, "elsewhere")
    write_run(tmp_path, "here", seconds=20, content=fit(40))
    assert cost_of_fit(tmp_path) == Cost(0.5, "here")
    assert cost_of_fit(tmp_path, backbone="tiny") == Cost(0.2, "here")


def test_runs_that_say_nothing_are_left_out(tmp_path):
    write_run(tmp_path, "good", seconds=40, content=fit(40))
    write_run(tmp_path, "no-steps", seconds=9, content={"segmenter": {}})
    torn = write_run(tmp_path, "torn", seconds=9, content=fit(1))
    (torn / "manifest.json").write_text('{"stage": "fit", ')
    (write_run(tmp_path, "half", seconds=9, content=fit(1)) / "DONE.json").unlink()
    (write_run(tmp_path, "bare", seconds=9, content=fit(1)) / "manifest.json").unlink()
    old = write_run(tmp_path, "unmeasured", seconds=9, content=fit(1))
    (old / "DONE.json").write_text(json.dumps({"steps": 1}))
    assert cost_of_fit(tmp_path) == Cost(1.0, "here")


def test_an_embedding_stage_that_found_all_tells_nothing(tmp_path):
    content = {"encoder": {"backbone": "lite", "precision": "fp32"}}
    for name, embedded, seconds in (("a", 0, 1.0), ("b", 4, 8.0), ("c", 10, 20.0)):
        result = {"images": 10, "embedded": embedded}
        write_run(tmp_path, name, stage="embed", seconds=seconds, content=content, result=result)
    costs = Costs(tmp_path, config=load_config(TOY, list(SETTINGS)))
    node = Node(stage="embed", content=content, steps=10)
    assert costs.of(node) == Cost(2.0, "here")


def test_only_the_latest_runs_are_read(tmp_path):
    for number in range(RUNS_READ + 60):
        seconds = 400.0 if number < 60 else 40.0
        run_dir = write_run(tmp_path, f"{number:03}", seconds=seconds, content=fit(40))
        os.utime(run_dir / "DONE.json", (number, number))
    assert cost_of_fit(tmp_path) == Cost(1.0, "here")


def test_what_has_just_been_finished_is_learnt(tmp_path):
    costs = Costs(tmp_path, config=load_config(TOY, list(SETTINGS)))
    assert costs.of(FIT).source == "first guess"
    write_run(tmp_path, "a", seconds=40, content=fit(40))
    write_run(tmp_path, "b", seconds=120, content=fit(40))
    costs.forget("fit")
    assert costs.of(FIT) == Cost(2.0, "here")


def test_units_of_a_run_are_those_of_its_plan():
    """What the plan expects and what a run is measured by are one count."""
    names = "real,real_repeated,strong,warp,phantom,synthetic,real_resized,unet,self_training"
    config = load_config(
        TOY, [f"sweep.condition=[{names},synthetic_random_subset]", "evaluation.jitter_draws=3"]
    )
    made = make_plan(config, make_data())
    foreign = load_config(TOY, ["sweep.condition=[synthetic]"])
    imported = make_plan(foreign, make_data(foreign_pairs={"a": "h", "b": "h"}))
    nodes = [*made.nodes.values(), *imported.nodes.values()]
    assert {node.stage for node in nodes} == set(STAGES) - {"box"}
    for node in nodes:
        found = STAGES[node.stage].units_of(
            content=node.content,
            config=resolved(config),
            result={"embedded": node.steps, "steps": node.steps},
        )
        assert found == node.steps, node.label


def test_units_of_the_box_stage_are_fifteen_an_image_in_plan_and_cost():
    """Model and ellipse under six jitters, the model under two prompts, the mean mask."""
    config, data = load_config(TOY, ["sweep.condition=[real]"]), make_data()
    made, key = box_plan(config, data)
    node = made.nodes[key]
    assert node.steps == 15 * len(data.split.test)
    found = STAGES["box"].units_of(content=node.content, config=resolved(config), result={})
    assert found == node.steps


def test_an_image_is_counted_for_the_first_stage_that_embeds_it():
    def embed(ids: str, strength: str | None = None, n_views: int = 3) -> Node:
        content: dict = {"images": [[each, f"hash-{each}"] for each in ids]}
        if strength is not None:
            content["augment"] = {"strength": strength, "n_views": n_views}
        n = len(ids) * (n_views if strength else 1)
        return Node(stage="embed", content=content, steps=n)

    nodes = {
        "few": embed("ab"),
        "more": embed("abcd"),
        "strong": embed("abx", "strong"),
        "weak": embed("a", "weak"),
        "pairs": Node(stage="embed", content={}, upstream={"pairs": "p"}, steps=7),
        "fit": FIT,
    }
    # strong: two views of three images, and x itself; weak views are others.
    expected = {"few": 2, "more": 2, "strong": 7, "weak": 2, "pairs": 7, "fit": 40}
    assert units_to_do(nodes, done=set()) == expected
    expected = {"few": 0, "strong": 7, "weak": 2, "pairs": 7, "fit": 40}
    assert units_to_do(nodes, done={"more"}) == expected
    assert units_to_do({}, done=set()) == {}


def test_slots_are_those_of_the_launcher():
    local = load_config(TOY, ["sweep.devices=[0,1,2,3]", "trainer.devices=2"])
    slurm = load_config(TOY, ["sweep.launcher=slurm", "slurm.max_jobs=9"])
    assert (n_slots(local), n_slots(slurm)) == (2, 9)


def test_what_runs_an_encoder_is_guessed_by_its_arithmetic_on_a_cpu(tmp_path):
    def guess(node: Node, **settings: object) -> float:
        given = [*SETTINGS, *(f"segmenter.{k}={v}" for k, v in settings.items())]
        return Costs(tmp_path, config=load_config(TOY, given)).of(node).seconds_per_unit

    # 75 GFLOP an image at 50 GFLOP a second; a backward pass takes twice a forward one.
    lite = {"backbone": "lite", "batch_size": 8}
    assert guess(FIT, **lite, tuning="full") == pytest.approx(3 * 8 * 75 / 50)
    assert guess(FIT, **lite, tuning="lora") == pytest.approx(3 * 8 * 75 / 50)
    assert guess(FIT, **lite, tuning="decoder") == pytest.approx(8 * 75 / 50)
    embedded = Node(stage="fit", content=fit(40), upstream={"embeddings": "e"}, steps=40)
    assert guess(embedded, **lite, tuning="decoder") == 0.8
    assert guess(Node(stage="score", content={}), backbone="lite", tuning="full") == 75 / 50
    assert guess(Node(stage="pseudo", content={}), **lite) == 2 * 75 / 50
    embed = Node(stage="embed", content={"encoder": {"backbone": "vit_h", "precision": "fp32"}})
    assert guess(embed) == pytest.approx(5961 / 50)
