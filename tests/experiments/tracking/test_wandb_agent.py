"""The sweep for W&B's own agents: each of its runs is a trial of the recipe, and all are there."""

import itertools
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from toy_recipe import TOY
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_parts import clean_environment, inspect
from wandb_server import WandbServer

from datamodules.errors import InputError
from experiments.commands.trial import trial_overrides, trial_scores
from experiments.config.recipe import load_config
from experiments.results import outputs
from experiments.tracking.agent import summary_of, sweep_file

WORDS = [
    "name=night",
    "segmenter.steps=80",
    "sweep.condition=[real,synthetic]",
    "sweep.real_count=[5,20]",
    "sweep.real_fraction=[]",
    "sweep.seed=[0,1,2]",
]


def commands(content):
    """The words that W&B's agent starts, one list a run of the grid."""
    names = list(content["parameters"])
    made = []
    for values in itertools.product(*(content["parameters"][n]["values"] for n in names)):
        args = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        filled = create_sweep_command_args({"args": args})
        words = []
        for word in create_sweep_command(list(content["command"])):
            words += filled["args_no_hyphens"] if word == "${args_no_hyphens}" else [word]
        made.append(words)
    return made


def test_every_trial_of_the_grid_is_one_command():
    content = yaml.safe_load(sweep_file(TOY, WORDS))
    assert content["method"] == "grid"
    assert content["metric"] == {"name": "dice/whole_image", "goal": "maximize"}
    made = commands(content)
    assert len(made) == 2 * 2 * 3
    assert made[0][:5] == ["sonosweep", "trial", TOY, "name=night", "segmenter.steps=80"]
    grids = []
    for words in made:
        config = load_config(words[2], trial_overrides(words[3:]))
        assert (config.name, config.segmenter.steps) == ("night", 80)
        grid = config.sweep
        assert grid.real_fraction == []
        (condition,), (count,), (seed,) = grid.condition, grid.real_count, grid.seed
        grids.append((condition, count, seed))
    assert sorted(grids) == sorted(itertools.product(["real", "synthetic"], [5, 20], [0, 1, 2]))


def test_fractions_stay_fractions():
    words = ["sweep.real_count=[]", "sweep.real_fraction=[0.05,1.0]"]
    content = yaml.safe_load(sweep_file(TOY, words))
    first, last = commands(content)[0], commands(content)[-1]
    assert load_config(TOY, trial_overrides(first[3:])).sweep.real_fraction == [0.05]
    assert load_config(TOY, trial_overrides(last[3:])).sweep.real_fraction == [1.0]


def test_the_command_beside_it_can_be_pasted():
    words = [*WORDS, "data.root=/my data/hc18"]
    (line,) = [e for e in sweep_file(TOY, words).splitlines() if e.startswith("# sonosweep ")]
    assert shlex.split(line.removeprefix("# ")) == ["sonosweep", "sweep", TOY, *words]


def test_a_trial_of_a_named_condition_or_segmenter_brings_no_single_pairs():
    also = "sweep.also=[{segmenter: unet, condition: strong}]"
    for words, arms in (
        (["condition=weak"], [("sam", "weak")]),
        (["segmenter=unet", "condition=strong"], [("unet", "strong")]),
        (["support=3"], [("sam", "real"), ("sam", "synthetic"), ("unet", "strong")]),
        (["condition=weak", also], [("sam", "weak"), ("unet", "strong")]),
    ):
        # What the recipe says of them stands before the words of the command line.
        found = load_config(TOY, [also, *trial_overrides(words)])
        assert found.arms() == arms


def test_an_axis_under_both_of_its_names_is_refused():
    with pytest.raises(InputError, match=r"condition and sweep\.condition are both given"):
        trial_overrides(["condition=real", "sweep.condition=[strong]"])


def test_two_kinds_of_amount_are_refused():
    with pytest.raises(InputError, match="both given"):
        sweep_file(TOY, ["sweep.real_count=[5]", "sweep.real_fraction=[0.5]"])


def test_single_pairs_beside_the_grid_are_refused():
    also = "sweep.also=[{segmenter: unet, condition: weak}]"
    with pytest.raises(InputError, match=r"^sweep\.also: .* give sweep\.also=\[\]"):
        sweep_file(TOY, [also])
    assert sweep_file(TOY, ["sweep.also=[]"])


AGENT_RUN = """
import sys
import pandas as pd
from experiments.config.recipe import load_config
from experiments.tracking.agent import log_to_agent

row = {"test_cohort": "hc18", "prompt": "whole_image", "dice": 0.75, "hc_abs_err_mm": 2.0}
config = load_config(sys.argv[1], [f"wandb.mode={sys.argv[2]}"])
log_to_agent(config, pd.DataFrame([row]), variables={"WANDB_RUN_ID": "r1", "WANDB_SWEEP_ID": "s1"})
"""


@pytest.mark.parametrize("said", ["wandb.mode", "WANDB_MODE", "server"])
def test_what_is_offline_stays_on_this_machine(tmp_path, said):
    mode = "offline" if said == "wandb.mode" else "auto"
    with WandbServer() as server:
        environment = server.environment()
        if said == "WANDB_MODE":
            environment["WANDB_MODE"] = "DryRun"
        if said == "server":
            environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"
        subprocess.run(
            [sys.executable, "-c", AGENT_RUN, TOY, mode],
            check=True,
            env=clean_environment(**environment),
            cwd=tmp_path,
            timeout=240,
        )
    assert not server.operations
    (run,) = (tmp_path / "wandb").glob("offline-run-*-r1")
    assert inspect(run)["summary"]["dice/whole_image"] == 0.75


def test_the_main_cohort_is_the_first_and_not_that_of_the_first_letter(monkeypatch):
    rows = [
        {"trial_id": "real", "test_cohort": cohort, "prompt": "whole_image", "sample_id": name}
        | {"dice": dice, "hc_abs_err_mm": 2.0, "output": "ellipse"}
        for cohort, dice in (("hc18", 0.75), ("african", 0.5))
        for name in ("1", "2")
    ]
    monkeypatch.setattr(outputs, "collect_per_image", lambda _: pd.DataFrame(rows))
    sweep = SimpleNamespace(config=load_config(TOY, []))
    found = summary_of(trial_scores(sweep))
    assert found["dice/whole_image"] == 0.75
    assert found["dice/whole_image/african"] == 0.5


def test_the_command_prints_yaml_and_nothing_else():
    ended = subprocess.run(
        [sys.executable, "-m", "experiments", "wandb-sweep", "hc18_small", "wandb.entity=team"],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(),
        timeout=60,
    )
    content = yaml.safe_load(ended.stdout)
    assert content["entity"] == "team"
    assert content["command"][-1] == "${args_no_hyphens}"
    assert content["project"] == "sonosweep"
    assert os.linesep.join(ended.stdout.splitlines()[:1]).startswith("# ")
