"""One batch in several parts or on several devices: the same weights as at once."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folder_parts import write_hc18_folder
from safetensors.torch import load_file
from stage_parts import Stages

from experiments.plan.grid import make_plan
from experiments.plan.nodes import Node
from experiments.runner.distributed import write_request
from experiments.runner.worker import run_held
from experiments.stages.fit import WEIGHTS_NAME
from experiments.stages.generator import run_generator
from experiments.stages.training import last_checkpoint
from experiments.store.runs import read_failure, read_result
from lightning_modules.segmenters.sam.module import SamModule
from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.segmenters.unet.module import UnetModule

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def threads():
    """A stage sets the threads of its process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    made = Stages(write_hc18_folder(root / "hc18"), root / "runs")
    made.config.wandb.mode = "disabled"
    made.config.segmenter.steps = 6
    made.config.segmenter.batch_size = 4
    made.config.segmenter.learning_rate = 1e-5
    made.config.generator.size_hw = (32, 48)
    made.config.generator.block_out_channels = (8, 16)
    made.config.generator.steps = 4
    made.config.generator.warmup_steps = 1
    made.config.generator.batch_size = 4
    made.config.trainer.checkpoint_every, made.config.trainer.checkpoint_s = 2, 0
    made.config.sweep.real_fraction = [1.0]
    made.config.sweep.condition = ["real"]
    made.config.sweep.workers = 1
    made.config.evaluation.controls = []
    return made


def contexts(stages) -> dict:
    """The stages of the one trial, by kind."""
    plan = make_plan(stages.config, stages.data)
    found = {}
    for node in plan.nodes.values():
        context = stages.context(node.stage, node.content, **node.upstream)
        found[node.stage if node.stage != "embed" else f"embed-{len(found)}"] = replace(
            context, node=node
        )
    return found


@pytest.fixture(scope="module")
def fit_context(stages):
    """A fit whose embeddings are there."""
    found = contexts(stages)
    (key,) = found["fit"].node.upstream.values()
    embed = next(c for c in found.values() if c.node.key == key)
    assert run_held(embed, threads=1) == 0
    return found["fit"]


def elsewhere(context, name: str):
    """The same stage under another id, so that it is run again."""
    node = context.node
    return replace(
        context,
        node=Node(
            stage=node.stage,
            content={**node.content, "copy": name},
            upstream=node.upstream,
            label=node.label,
        ),
    )


def weights_of(context) -> dict[str, torch.Tensor]:
    return load_file(context.run_dir / WEIGHTS_NAME)


def train_loss_of(context) -> float:
    return read_result(context.run_dir)["train_loss"]


@pytest.fixture(scope="module")
def whole(fit_context):
    """The fit whose batches are computed at once."""
    context = elsewhere(fit_context, "at once")
    assert run_held(context, threads=1) == 0
    return context


@pytest.fixture(scope="module")
def at_once(whole):
    return weights_of(whole)


def largest_difference(first, second) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_same_weights(fit_context, whole, at_once, parts):
    context = replace(elsewhere(fit_context, f"in {parts}"), batch_parts=parts)
    assert run_held(context, threads=1) == 0
    assert largest_difference(weights_of(context), at_once) < 1e-6
    manifest = (context.run_dir / "manifest.json").read_text()
    assert f'"batch_parts": {parts}' in manifest
    assert train_loss_of(context) == pytest.approx(train_loss_of(whole), rel=1e-5)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
def test_a_checkpoint_is_gone_on_from_in_another_number_of_parts(
    fit_context, monkeypatch, before, after
):
    """Out of memory after step 4 of 6; then the batches that come next, and no other."""
    step, seen = SamModule.training_step, []

    def watched(self, batch):
        if is_full and self.trainer.global_step == 4:
            raise MemoryError
        seen.append((self.trainer.global_step, *batch["draw"].tolist()))
        return step(self, batch)

    monkeypatch.setattr(SamModule, "training_step", watched)
    whole = replace(elsewhere(fit_context, f"whole in {after}"), batch_parts=after)
    is_full = False
    assert run_held(whole, threads=1) == 0
    expected, seen = seen, []
    resumed = replace(elsewhere(fit_context, f"{before} then {after}"), batch_parts=before)
    is_full = True
    assert run_held(resumed, threads=1) == 1
    assert read_failure(resumed.run_dir).kind == "out_of_memory"
    assert last_checkpoint(resumed.run_dir).stem == "step=4"
    is_full, seen = False, []
    assert run_held(replace(resumed, batch_parts=after), threads=1) == 0
    assert seen == [each for each in expected if each[0] >= 4]
    assert len(seen) == 2 * after
    assert largest_difference(weights_of(resumed), weights_of(whole)) < 1e-6
    result = json.loads((resumed.run_dir / "DONE.json").read_text())
    assert result["steps"] == 6


def test_the_weights_of_other_batches_differ_by_more(stages, fit_context, at_once):
    """What the tests beside this one could have missed."""
    context = elsewhere(fit_context, "other batches")
    content = {**context.node.content, "seed": 9}
    context = replace(context, node=replace(context.node, content=content))
    assert run_held(context, threads=1) == 0
    assert largest_difference(weights_of(context), at_once) > 1e-5


def test_a_generator_in_parts_sees_the_same_batches(stages):
    ids = list(stages.data.split.train)
    content = {"images": stages.contents(ids), "seed": 0}
    weights, losses = [], []
    for parts in (1, 2):
        context = stages.context("generator", {**content, "parts": parts})
        result = run_generator(replace(context, batch_parts=parts))
        assert result["steps"] == 4
        weights.append(load_file(context.run_dir / "generator" / "generator.safetensors"))
        losses.append(result["train_loss"])
    # Adam divides by the gradient's size: in few steps it makes much of a rounding.
    assert largest_difference(*weights) < 1e-3
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_unet_out_of_memory_is_fitted_in_parts_and_says_so(stages, monkeypatch):
    """Fails at once, as it cannot hold more than two images, and goes through in two parts."""
    small_net = {"size_hw": (32, 64), "decoder_channels": (16, 8, 8, 8, 8)}
    unet = UnetConfig(**small_net, steps=3, warmup_steps=1, batch_size=4)
    monkeypatch.setattr(stages.config, "unet", unet)
    ids, sizes = list(stages.data.split.train), []
    step = UnetModule.training_step

    def small(self, batch):
        sizes.append(len(batch["mask"]))
        if sizes[-1] > 2:
            raise MemoryError
        return step(self, batch)

    monkeypatch.setattr(UnetModule, "training_step", small)
    content = {"images": stages.contents(ids), "seed": 0, "val": [], "repeat_real": False}
    context = stages.context("fit", content, of="unet")
    assert run_held(context, threads=1) == 1
    assert read_failure(context.run_dir).kind == "out_of_memory"
    assert run_held(replace(context, batch_parts=2), threads=1) == 0
    assert sizes == [4] + [2] * 6
    result = json.loads((context.run_dir / "DONE.json").read_text())
    assert (result["steps"], result["batch_parts"]) == (3, 2)


def on_two_processes(context) -> str:
    """Run a stage by the command that the sweep starts for `trainer.devices=2`; its log."""
    write_request(context)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.runner.distributed", str(context.run_dir), "2"],
        env=environment,
        timeout=300,
        check=False,
    )
    log = (context.run_dir / "log.txt").read_text()
    assert ended.returncode == 0, log
    assert log.count("GLOBAL_RANK") == 2
    assert (context.run_dir / "DONE.json").is_file()
    return log


def test_two_processes_give_the_weights_of_one(stages, fit_context, whole, at_once):
    config = replace(stages.config, trainer=replace(stages.config.trainer, devices=2))
    context = replace(fit_context, config=config)
    assert "distributed_backend=gloo" in on_two_processes(context)
    assert last_checkpoint(context.run_dir) is None
    assert largest_difference(weights_of(context), at_once) < 1e-6
    assert train_loss_of(context) == pytest.approx(train_loss_of(whole), rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["fit", "generator"])
def test_mixed_precision_over_two_processes(stages, fit_context, kind):
    trainer = replace(stages.config.trainer, devices=2)
    config = replace(stages.config, trainer=trainer, name="mixed")
    config.segmenter = replace(config.segmenter, precision="bf16-mixed")
    config.generator = replace(config.generator, precision="bf16-mixed")
    if kind == "generator":
        config.sweep = replace(config.sweep, condition=["synthetic"])
        config.synthesis = replace(config.synthesis, generator_count=4)
    plan = make_plan(config, stages.data)
    node = next(n for n in plan.nodes.values() if n.stage == kind)
    context = replace(fit_context, config=config, node=node)
    context.run_dir.mkdir(parents=True)
    assert "bfloat16 Automatic Mixed Precision" in on_two_processes(context)
