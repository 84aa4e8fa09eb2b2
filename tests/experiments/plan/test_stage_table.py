"""The table of stages: ids as they were, functions that are there, and a row from outside."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.plan.nodes import Node, Plan
from experiments.plan.stage_table import STAGES, Artefact, StageRow
from experiments.runner.sweep import Sweep
from experiments.stages.stage_logger import artifact_name


def test_ids_are_those_of_the_runs_that_are_there():
    content, upstream = {"images": [["a", "h"]], "seed": 0}, {"embeddings": "embed/e"}
    found = {
        stage: Node(stage=stage, content=content, upstream=upstream).id
        for stage in ("embed", "fit", "control")
    }
    assert found == {
        "embed": "5114ccf7e6db9739",
        "fit": "ab76556efe9c6758",
        "control": "b3ff1bdc5ed0d000",
    }


@pytest.mark.parametrize("stage", STAGES)
def test_every_row_names_a_function_of_one_context(stage):
    assert list(inspect.signature(STAGES[stage].load()).parameters) == ["context"]


def test_the_table_is_read_and_reports_are_written_without_torch():
    names = "experiments.plan.stage_table, experiments.results.report_content"
    code = f"import sys; import {names}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_units_are_a_product_of_what_is_there():
    row = StageRow(run="", first_guess_s=1, units=("content.test", "content.draws", 3))
    assert row.units_of(content={"test": ["a", "b"], "draws": 5}) == 30
    assert row.units_of(content={"test": ["a", "b"]}) == 6
    assert StageRow(run="", first_guess_s=1).units_of(content={}) == 1
    assert STAGES["fit"].units_of(content={}, result={}) == 0
    assert STAGES["fit"].units_of(content={}, result={"steps": 4}) == 4


def test_traits_tell_an_input_that_is_there_from_one_that_is_not():
    row = StageRow(run="", first_guess_s=1, traits=("upstream.embeddings", "config.a.b"))
    assert row.traits_of(content={}, upstream={"embeddings": "x"}, config={"a": {"b": 2}}) == (
        "[true, 2]"
    )
    assert row.traits_of(content={}, upstream={"fit": "x"}, config={}) == "[null, null]"


def test_a_batch_is_shared_by_the_devices_of_a_stage_that_spreads():
    config = load_config(TOY, ["trainer.devices=2", "sweep.workers=1"])
    content = {"segmenter": {"batch_size": 6}}
    assert STAGES["fit"].batch_size(content=content, config=config) == 3
    assert STAGES["control"].batch_size(content=content, config=config) == 1
    stable = load_config(TOY, ["stable_diffusion.sampler.batch_size=7"])
    pixel = stable.synthesis.sampler.batch_size
    assert STAGES["synthesize"].batch_size(content={}, config=stable) == pixel != 7
    generator = {"stable_diffusion": {"batch_size": 5}}
    assert STAGES["generator"].batch_size(content=generator, config=stable) == 5


@pytest.fixture
def toy(monkeypatch):
    artefact = Artefact(kind="toy", type="dataset", files=("toy.txt",))
    row = StageRow(run="toy_stage:run_toy", first_guess_s=0.01, artefact=artefact)
    monkeypatch.setitem(STAGES, "toy", row)


@pytest.mark.usefixtures("toy")
def test_a_stage_from_outside_runs_in_a_sweep(tmp_path):
    first = Node(stage="toy", content={"a": 1}, label="toy")
    second = Node(stage="toy", content={}, upstream={"toy": first.key}, label="toy again", steps=1)
    config = load_config(TOY, [f"store.root={tmp_path}", "trainer.accelerator=cpu"])
    data = SimpleNamespace(name="hc18", samples={}, unlabelled={}, rows={}, content={})
    plan = Plan(nodes={node.key: node for node in (first, second)}, trials=[])
    sweep = Sweep(config, data=data, plan=plan)
    sweep.run(lambda: None)
    assert {run.state for run in sweep.runs.values()} == {"done"}, sweep.runs
    result = sweep.result(sweep.runs[second.key])
    assert result["count"] == 2
    # What every stage finds imported does not bring the slow libraries.
    preloaded = {row.run.split(":")[0] for row in STAGES.values() if row.is_preloaded}
    assert preloaded - {"toy_stage"} < set(result["modules"])
    slow = {"experiments.stages.stable_diffusion", "segmentation_models_pytorch"}
    assert slow.isdisjoint(result["modules"])
    assert artifact_name(second.key) == f"toy-{second.id}"
