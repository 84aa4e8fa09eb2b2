"""Whole sweeps whose encoder is tuned, on a small ViT, from embedding to the results' rows."""

import json

import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from plan_parts import make_data
from sweep_parts import LEAN, run
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.plan.grid import make_plan

SMALL = (
    *LEAN,
    "segmenter.backbone=vit_tiny",
    "sweep.condition=[real,strong,synthetic]",
    "sweep.real_fraction=[1.0]",
    "wandb.mode=disabled",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_hc18_folder(tmp_path_factory.mktemp("tuning") / "hc18")


def swept(data, store, *changes):
    ended = run(data, store, *SMALL, *changes)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = pd.read_csv(store / "toy" / "results.csv").query("output == 'mask'")
    assert set(results["status"]) == {"done"}
    # Trials that differ.
    assert results["dice_mean"].nunique() == len(results)
    return results.set_index("condition")


def done(store, key: str) -> dict:
    return json.loads((store / "store" / key / "DONE.json").read_text())


def manifests(store, stage: str) -> list[dict]:
    paths = (store / "store" / stage).glob("*/manifest.json")
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.long
def test_lora_in_all_blocks_with_the_papers_epochs(data, tmp_path):
    epochs = ("segmenter.tuning=lora", "segmenter.epochs=2", "segmenter.lr_schedule=constant")
    results = swept(data, tmp_path, *epochs)
    (gate,) = manifests(tmp_path, "gate")
    n_pairs = done(tmp_path, f"gate/{gate['id']}")["accepted"]
    # Two passes over four images in batches of two; and over those with the pairs.
    assert results.loc["real", "steps"] == 4
    assert results.loc["strong", "steps"] == 4
    assert results.loc["synthetic", "steps"] == 2 * -(-(4 + n_pairs) // 2)
    weights = done(tmp_path, results.loc["real", "fit_id"])["weights"]
    assert weights["image_encoder"]["trainable"] == 4 * (4 * 32 + 96 * 4)
    fits = manifests(tmp_path, "fit")
    tunings = [fit["content"]["segmenter"].get("tuning", "decoder") for fit in fits]
    # The gate's judge stands on a frozen encoder.
    assert sorted(tunings) == ["decoder", "lora", "lora", "lora"]
    for fit in fits:
        if fit["content"]["segmenter"].get("tuning") == "lora":
            assert "embeddings" not in fit["upstream"]
            assert "steps" not in fit["content"]["segmenter"]
    augmented = [fit["content"].get("augment") for fit in fits]
    assert [each["strength"] for each in filter(None, augmented)] == ["strong"]


LATE = ("segmenter.tuning=late_lora", "segmenter.geometry=squash")


def test_late_lora_runs_on_cached_features_and_a_squashed_frame(data, tmp_path):
    swept(data, tmp_path, *LATE, "sweep.condition=[real,strong]")
    embeds = manifests(tmp_path, "embed")
    assert {m["content"]["encoder"]["features"] for m in embeds} == {"late_lora"}
    late = manifests(tmp_path, "fit")
    assert len(late) == 2
    for fit in late:
        assert fit["upstream"]["embeddings"].split("/")[1] in {m["id"] for m in embeds}
        assert fit["content"]["segmenter"]["geometry"] == "squash"


def test_the_judge_of_late_lora_reads_embeddings_and_its_fit_the_features_of_pairs():
    plan = make_plan(load_config(TOY, [*SMALL, *LATE, "sweep.real_fraction=[0.5]"]), make_data())
    features = {
        key: node.content["encoder"].get("features")
        for key, node in plan.nodes.items()
        if node.stage == "embed"
    }
    fits = [node for node in plan.nodes.values() if node.stage == "fit"]
    (pairs,) = [fit for fit in fits if "pairs" in fit.upstream]
    (judge,) = [fit for fit in fits if "tuning" not in fit.content["segmenter"]]
    assert features[pairs.upstream["pair_embeddings"]] == "late_lora"
    assert features[judge.upstream["embeddings"]] is None
    assert {fit.content["segmenter"]["geometry"] for fit in fits} == {"squash"}


@pytest.mark.long
def test_a_decoder_learns_from_views_drawn_afresh(data, tmp_path):
    swept(data, tmp_path, "segmenter.tuning=decoder", "augment.n_views=null")
    fits = {m["content"].get("augment", {}).get("strength"): m for m in manifests(tmp_path, "fit")}
    assert "embeddings" not in fits["strong"]["upstream"]
    assert "embeddings" in fits[None]["upstream"]


@pytest.mark.long
@pytest.mark.parametrize("tuning", ["adapter", "late_lora", "full"])
def test_other_modes(data, tmp_path, tuning):
    swept(data, tmp_path, f"segmenter.tuning={tuning}")
