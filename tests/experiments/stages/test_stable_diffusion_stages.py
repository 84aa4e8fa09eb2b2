"""Stages of Stable Diffusion on a tiny pipeline: both routes, from labelled images to pairs."""

import io
import json
import subprocess
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from folder_parts import write_hc18_folder
from rich.console import Console
from safetensors.torch import load_file
from sd_parts import tiny_pipeline
from stage_parts import Stages
from sweep_parts import command, environment

from datamodules.ellipse import rasterise
from datamodules.geometry import place
from datamodules.outline import draw_outline, outline_to_frame
from datamodules.synthetic import read_metadata, read_synthetic
from experiments.config.schema import resolved
from experiments.deliver.export import export_command
from experiments.plan.grid import make_plan
from experiments.stages.context import StageError
from experiments.stages.generator import run_generator, run_synthesize
from experiments.stages.stable_diffusion import BANK_NAME
from experiments.stages.training import checkpoint_dir
from experiments.store.provenance import provenance
from experiments.store.runs import read_result, write_done, write_started
from lightning_modules.generators.stable_diffusion.config import (
    StableDiffusionConfig,
    StableDiffusionSamplerConfig,
)
from lightning_modules.generators.stable_diffusion.module import StableDiffusionModule

SIZE_HW = (64, 128)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    root = tmp_path_factory.mktemp("sd")
    made = Stages(write_hc18_folder(root / "hc18"), root / "runs")
    made.config.synthesis.generator = "stable_diffusion"
    made.config.synthesis.n_candidates = 5
    made.config.synthesis.generator_count = 4
    made.config.sweep.real_fraction = [1.0]
    made.config.sweep.condition = ["synthetic"]
    made.config.stable_diffusion = StableDiffusionConfig(
        base_model=str(tiny_pipeline(root / "base")),
        size_hw=SIZE_HW,
        steps=3,
        batch_size=2,
        warmup_steps=1,
        precision="32-true",
        sampler=StableDiffusionSamplerConfig(num_inference_steps=2, batch_size=2),
    )
    return made


def nodes_of(stages, route: str):
    stages.config.stable_diffusion = replace(stages.config.stable_diffusion, route=route)
    plan = make_plan(stages.config, stages.data)
    return {
        stage: next(n for n in plan.nodes.values() if n.stage == stage)
        for stage in ("generator", "synthesize")
    }


def run(stages, node, function):
    context, result = stages.run(function, node.stage, node.content, **node.upstream)
    assert context.node.id == node.id
    return context, result


@pytest.fixture(scope="module")
def fitted(stages):
    return {
        route: run(stages, nodes_of(stages, route)["generator"], run_generator)
        for route in ("sd_mask", "sd_in_channel")
    }


@pytest.mark.parametrize("route", ["sd_mask", "sd_in_channel"])
def test_a_generator_leaves_the_ecosystems_files(fitted, route):
    context, result = fitted[route]
    folder = context.run_dir / "generator"
    assert (folder / "pytorch_lora_weights.safetensors").is_file()
    assert (folder / "conv_in.safetensors").is_file() == (route == "sd_mask")
    assert result["steps"] == 3
    assert result["n_labels"] == 4
    assert 0 < result["trainable_parameters"] < result["parameters"]
    # Latents are needed until the training is done, and no longer.
    assert not (context.run_dir / BANK_NAME).exists()


@pytest.mark.parametrize("route", ["sd_mask", "sd_in_channel"])
def test_a_generator_is_exported_as_lora_and_as_a_pipeline(stages, fitted, route, tmp_path):
    context, _ = fitted[route]
    nodes_of(stages, route)
    node = context.node
    config = resolved(stages.config)
    # A block of `generators` may say another one than the recipe's section.
    config["stable_diffusion"]["lora_rank"] = 99
    manifest = {
        "stage": node.stage,
        "id": node.id,
        "content": node.content,
        "upstream": node.upstream,
        "config": config,
        **provenance(),
    }
    result = read_result(context.run_dir)
    write_started(context.run_dir, manifest)
    write_done(context.run_dir, result)
    console = Console(file=io.StringIO())
    for name in ("lora", "pipeline"):
        export_command(context.run_dir, format_name=name, out=tmp_path / name, console=console)
        sidecar = json.loads((tmp_path / name / "sonosweep.json").read_text())
        fitted_by = sidecar["stable_diffusion"]
        assert fitted_by["route"] == route
        assert fitted_by["lora_rank"] == stages.config.stable_diffusion.lora_rank
    is_mask = route == "sd_mask"
    assert (tmp_path / "lora" / "conv_in.safetensors").is_file() == is_mask
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "pipeline" / "unet")
    assert unet.config.in_channels == (68 if is_mask else 4)
    if not is_mask:
        pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
        pipe.load_lora_weights(tmp_path / "lora")
        assert pipe.get_active_adapters()


def test_ids_follow_the_base_models_content_not_its_place(stages, tmp_path):
    before = nodes_of(stages, "sd_mask")["generator"]
    known = stages.config.stable_diffusion
    try:
        stages.config.stable_diffusion = replace(
            known, base_model=str(tiny_pipeline(tmp_path / "moved"))
        )
        assert nodes_of(stages, "sd_mask")["generator"].id == before.id
        stages.config.stable_diffusion = replace(
            known, base_model=str(tiny_pipeline(tmp_path / "other", seed=1))
        )
        assert nodes_of(stages, "sd_mask")["generator"].id != before.id
    finally:
        stages.config.stable_diffusion = known


def test_mask_channels_give_exact_labels(stages, fitted):
    node = nodes_of(stages, "sd_mask")["synthesize"]
    context, result = run(stages, node, run_synthesize)
    assert result == {"candidates": 5, "without_outline": 0, "native_size_hw": list(SIZE_HW)}
    found = read_synthetic(context.run_dir)
    for sample in found.samples:
        pair = found.pairs[sample.sample_id]
        mask = cv2.imread(str(sample.annotation_path), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask > 0, rasterise(pair.ellipse, size_hw=(54, 80)) > 0)
        assert cv2.imread(str(sample.image_path), cv2.IMREAD_UNCHANGED).shape == (54, 80)
        assert pair.prompt.startswith("An ultrasound image of a fetal head, ")
        assert pair.native_size_hw == SIZE_HW
    assert len({pair.seed for pair in found.pairs.values()}) == 5


def test_outlines_are_read_from_their_channel_or_refused(stages, fitted, monkeypatch):
    """Every second picture carries an outline; where it lies comes back at the original size."""
    node = nodes_of(stages, "sd_in_channel")["synthesize"]
    rng = np.random.default_rng(0)
    placement = place((54, 80), frame_hw=SIZE_HW, mode="squash")
    rows = [row for row in stages.data.rows.values() if row.size_hw == (54, 80)]
    drawn = [row.ellipse for row in rows[:5]]
    asked = {}

    def draw(self, prompts, *, seeds, masks, sampler, progress):
        assert masks is None
        asked["prompts"] = prompts
        pictures = torch.zeros(len(prompts), 3, *SIZE_HW)
        for number, ellipse in enumerate(drawn):
            pictures[number, :2] = torch.from_numpy(rng.random(SIZE_HW, np.float32)) / 2
            if number % 2 == 0:
                line = draw_outline(
                    outline_to_frame(ellipse, placement), size_hw=SIZE_HW, thickness_px=2.0
                )
                pictures[number, 2] = torch.from_numpy(line)
        return pictures

    monkeypatch.setattr(StableDiffusionModule, "draw", draw)
    context, result = run(stages, node, run_synthesize)
    assert result["candidates"] == 3
    assert result["without_outline"] == 2
    found = read_synthetic(context.run_dir)
    pairs = [found.pairs[sample.sample_id] for sample in found.samples]
    for pair, ellipse in zip(pairs, drawn[::2], strict=True):
        assert abs(pair.ellipse.center_x_px - ellipse.center_x_px) < 0.5
        assert abs(pair.ellipse.center_y_px - ellipse.center_y_px) < 0.5
        assert abs(pair.ellipse.semi_major_px - ellipse.semi_major_px) < 0.7
    refused = read_metadata(context.run_dir / "rejected.jsonl")
    assert [pair.reasons[0].startswith("0 pixels of line") for pair in refused] == [True, True]
    # The trimesters of the generator's own images, in turn.
    assert len(set(asked["prompts"])) > 1


def test_no_outline_at_all_fails_with_one_line(stages, fitted, monkeypatch):
    node = nodes_of(stages, "sd_in_channel")["synthesize"]
    monkeypatch.setattr(
        StableDiffusionModule, "draw", lambda self, prompts, **_: torch.zeros(5, 3, *SIZE_HW)
    )
    context = stages.context(node.stage, {**node.content, "again": 1}, **node.upstream)
    with pytest.raises(StageError, match="no outline could be read from any of 5 images"):
        run_synthesize(context)


def test_a_stopped_training_goes_on_to_the_same_weights(stages, fitted):
    """The latents are kept beside the checkpoints, and not encoded again."""
    whole, _ = fitted["sd_mask"]
    nodes_of(stages, "sd_mask")
    context = stages.context("generator", {**whole.node.content, "again": 1})

    def stop(*_):
        raise KeyboardInterrupt

    config, steps = stages.config, stages.config.stable_diffusion.steps
    config.trainer.checkpoint_every, config.trainer.checkpoint_s = 1, 0
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        step = StableDiffusionModule.training_step

        def stopping(self, batch):
            calls.append(1)
            if len(calls) == steps:
                stop()
            return step(self, batch)

        patch.setattr(StableDiffusionModule, "training_step", stopping)
        with pytest.raises((KeyboardInterrupt, InterruptedError, SystemExit)):
            run_generator(context)
    assert (checkpoint_dir(context.run_dir) / BANK_NAME).is_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.stages.stable_diffusion.encode_bank", None)
        run_generator(context)
    name = "generator/pytorch_lora_weights.safetensors"
    # The header's metadata has no order.
    found, expected = (load_file(each.run_dir / name) for each in (context, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    settings = json.loads((context.run_dir / "generator" / "generator.json").read_text())
    assert settings["config"]["route"] == "sd_mask"


def test_a_hub_out_of_reach_is_said_before_anything_runs(tmp_path):
    data = write_hc18_folder(tmp_path / "hc18")
    words = ["synthesis.generator=stable_diffusion", "stable_diffusion.base_model=some/model"]
    ended = subprocess.run(
        command(data, tmp_path / "runs", *words),
        capture_output=True,
        text=True,
        env={**environment(), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: stable_diffusion.base_model=some/model: no such path here, and")
    assert not list((tmp_path / "runs" / "store").glob("fit/*"))
