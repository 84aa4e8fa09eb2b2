"""Stages that fit nothing, on a device that pretends: what they compute does not leave it, and is
what the CPU gives.
"""

import contextlib
from unittest import mock

import pandas as pd
import torch
from elsewhere import ELSEWHERE, elsewhere
from folder_parts import write_hc18_folder
from sweep_parts import LEAN, SETTINGS, TWO_STEPS
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.plan.grid import make_plan
from experiments.plan.stage_table import STAGES
from experiments.runner.sweep import Sweep
from experiments.stages import embed
from experiments.stages.data import load_data
from experiments.store.runs import write_done, write_started

SMALL = [
    "sweep.real_fraction=[]",
    "sweep.real_count=[2]",
    "sweep.condition=[strong,synthetic]",
    "sweep.segmenter=[sam,unet]",
    "statistics.primary.enabled=false",
    "trainer.accelerator=cpu",
    "wandb.mode=disabled",
]
ASKERS = ("fit", "generator", "embed", "pseudo", "stable_diffusion")
"""Modules of `experiments.stages` that ask for the device."""


def there(context):
    """Run a stage with every device that it asks for on the other one."""
    with contextlib.ExitStack() as stack, torch.no_grad():
        # Its tensors cannot be wrapped.
        for name in ("__enter__", "__exit__"):
            stack.enter_context(mock.patch.object(torch.inference_mode, name, return_value=None))
        stack.enter_context(mock.patch.dict(embed.BATCH, {ELSEWHERE.type: 2}))
        for module in ASKERS:
            asked = f"experiments.stages.{module}.device_of"
            stack.enter_context(mock.patch(asked, return_value=ELSEWHERE))
        stack.enter_context(elsewhere())
        return STAGES[context.node.stage].load()(context)


def walk(folder, root, run):
    """A plan's stages one by one, those that fit nothing by `run`; the results of these."""
    words = {w.partition("=")[0]: w for w in [*SETTINGS, *LEAN, *TWO_STEPS, *SMALL]}
    config = load_config(TOY, [*words.values(), f"data.root={folder}", f"store.root={root}"])
    data = load_data(config)
    sweep, results = Sweep(config, data=data, plan=make_plan(config, data)), {}
    for key, node_run in sweep.runs.items():
        stage, context = STAGES[node_run.node.stage], sweep._context(node_run)
        context.run_dir.mkdir(parents=True)
        write_started(context.run_dir, {"content": context.node.content})
        result = stage.load()(context) if stage.is_training else run(context)
        write_done(context.run_dir, result)
        if not stage.is_training:
            scores = context.run_dir / "per_image.csv"
            results[key] = (result, pd.read_csv(scores) if scores.exists() else None)
    return results


def test_stages_compute_on_their_device_what_the_cpu_gives(tmp_path):
    folder = write_hc18_folder(tmp_path / "hc18")
    expected = walk(folder, tmp_path / "here", lambda c: STAGES[c.node.stage].load()(c))
    found = walk(folder, tmp_path / "there", there)
    assert {key.partition("/")[0] for key in found} == {
        *("embed", "synthesize", "gate", "score", "fidelity"),
    }
    assert found.keys() == expected.keys()
    for key, (result, scores) in found.items():
        torch.testing.assert_close(result, expected[key][0], rtol=1e-4, atol=1e-5)
        if scores is not None:
            pd.testing.assert_frame_equal(scores, expected[key][1], rtol=1e-4)
