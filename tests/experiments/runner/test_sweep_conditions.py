"""A toy sweep over every condition that fits a SAM, with two supports and all four prompts."""

import json
from typing import get_args

import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from safetensors.numpy import load_file
from sweep_parts import run

from experiments.config.conditions import CONDITIONS as ROWS
from experiments.config.conditions import CONTROLS
from experiments.config.grid import Prompt

# Those with unlabelled images need a teacher that finds a head: test_sweep_unlabelled.py.
CONDITIONS = [name for name, row in ROWS.items() if not row.factors.uses_unlabelled]
PROMPTS = list(get_args(Prompt))
SUPPORTS = [0, 1]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The store of the sweep and its results."""
    folder = tmp_path_factory.mktemp("conditions")
    ended = run(
        write_hc18_folder(folder / "hc18"),
        folder / "runs",
        f"sweep.condition=[{','.join(CONDITIONS)}]",
        # Two images of one exam in either support, and not of the same one.
        "split.val=1",
        "sweep.real_fraction=[]",
        "sweep.real_count=[2]",
        f"sweep.support={SUPPORTS}",
        f"evaluation.prompts=[{','.join(PROMPTS)}]",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(CONDITIONS) * 2} trials in" in ended.stdout
    results = pd.read_csv(folder / "runs" / "toy" / "results.csv")
    return folder / "runs", results[results["output"] == "mask"]


def fitted(store, results, condition, support=0):
    """The weights that a condition's trial of a support ended with, and what it said of them."""
    own = results[(results["condition"] == condition) & (results["support"] == support)]
    (key,) = set(own["fit_id"])
    weights = load_file(store / "store" / key / "segmenter.safetensors")
    return {name: value.tobytes() for name, value in weights.items()}


def test_every_condition_is_scored_under_every_prompt(swept):
    _, results = swept
    assert set(results["status"]) == {"done"}
    counts = results.groupby(["condition", "prompt"]).size().to_dict()
    expected = {(name, prompt): 2 for name in CONDITIONS for prompt in PROMPTS}
    expected |= {("box_only", prompt): 1 for prompt in ("jittered_box", "tight_box")}
    expected |= {("mean_mask", "whole_image"): 1}
    expected |= {("zero_shot", prompt): 1 for prompt in PROMPTS}
    assert counts == expected
    grid = results[~results["condition"].isin(CONTROLS)]
    assert (grid["dice_mean"] > 0).all()
    assert (grid.groupby("trial_id")["fit_id"].nunique() == 1).all()
    assert grid["score_id"].nunique() == len(grid)


def test_rows_say_whose_labels_are_behind_them(swept):
    _, results = swept
    without = ("real", "real_repeated", "weak", "strong")
    own = ("warp", "phantom", "synthetic_same_budget", "synthetic_same_budget_strong")
    for support, named_total in ((0, 4), (1, 6)):
        rows = results[results["support"] == support].drop_duplicates("condition")
        found = rows.set_index("condition")[["n_generator_labels", "n_total_labels"]]
        assert len(found) == len(CONDITIONS)
        for name, (n_generator, n_total) in found.iterrows():
            if name in (*without, *own):
                assert (n_generator, n_total) == (0 if name in without else 2, 2), name
            else:
                # The generator's four images hold those of support 0, and none of support 1.
                assert (n_generator, n_total) == (4, named_total), name


def test_conditions_train_on_different_things(swept):
    store, results = swept
    names = [n for n in CONDITIONS if n not in ("synthetic_no_gate", "synthetic_random_subset")]
    for support in SUPPORTS:
        found = [fitted(store, results, name, support) for name in names]
        for number, each in enumerate(found):
            assert all(each != other for other in found[:number]), names[number]
    assert fitted(store, results, "real", 0) != fitted(store, results, "real", 1)


def test_a_gate_that_keeps_everything_changes_nothing(swept):
    """Candidates, gated ones and a random subset are then the same pairs, in the same order."""
    store, results = swept
    (gate,) = [
        json.loads((path / "DONE.json").read_text())
        for path in (store / "store" / "gate").iterdir()
        if len(json.loads((path / "manifest.json").read_text())["content"]["images"]) == 4
    ]
    assert (gate["accepted"], gate["rejected"]) == (4, 0)
    expected = fitted(store, results, "synthetic")
    assert fitted(store, results, "synthetic_no_gate") == expected
    assert fitted(store, results, "synthetic_random_subset") == expected


def test_every_gated_set_has_its_fidelity(swept):
    store, _ = swept
    gates = {f"gate/{path.name}" for path in (store / "store" / "gate").iterdir()}
    assert len(gates) == 3, "of the generator's own images, and of each support's"
    judged = set()
    for path in (store / "store" / "fidelity").iterdir():
        manifest = json.loads((path / "manifest.json").read_text())
        judged.add(manifest["upstream"]["pairs"])
        assert json.loads((path / "fidelity.json").read_text())
    assert judged == gates
