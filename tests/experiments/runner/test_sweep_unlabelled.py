"""A toy sweep of self-training, alone and beside synthetic pairs, from the recipe to the table."""

import json

import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from sweep_parts import LEAN, run

CONDITIONS = ("strong", "self_training_2", "synthetic_unlabelled_self_training")
SMALL = (
    *LEAN,
    f"sweep.condition=[{','.join(CONDITIONS)}]",
    "sweep.segmenter=[unet]",
    "sweep.real_fraction=[0.5,1.0]",
    "sweep.workers=2",
    "unet.size_hw=[32,64]",
    "unet.encoder_name=tu-resnet10t",
    "unet.encoder_weights=null",
    "unet.decoder_channels=[16,8,8,8,8]",
    "unet.steps=6",
    "unet.batch_size=6",
    "unet.warmup_steps=1",
    # A teacher of six steps agrees with nothing.
    "self_training.min_agreement=0",
    "wandb.mode=disabled",
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The store, its results, and what the sweep printed."""
    folder = tmp_path_factory.mktemp("unlabelled")
    ended = run(write_hc18_folder(folder / "hc18"), folder / "runs", *SMALL)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = pd.read_csv(folder / "runs" / "toy" / "results.csv", keep_default_na=False)
    return folder / "runs", results, ended.stdout


def read(store, key, name):
    return json.loads((store / "store" / key / name).read_text())


def test_every_trial_with_unlabelled_images_is_done_and_the_others_are_not_asked_for(swept):
    store, results, printed = swept
    assert set(results["status"]) == {"done"}
    found = results[["condition", "n_real", "n_unlabelled"]].itertuples(index=False, name=None)
    assert {*found} == {
        ("strong", 2, 0),
        ("strong", 4, 0),
        *((name, 2, 2) for name in CONDITIONS[1:]),
    }
    assert set(results["n_total_labels"].astype(int)) == {2, 4}
    note = "synthetic_unlabelled_self_training not at 4 labelled images"
    assert printed.count(note) == 1
    per_image = pd.read_csv(store / "toy" / "per_image.csv")
    assert set(per_image.loc[per_image["condition"] != "strong", "n_unlabelled"]) == {2}
    table = (store / "toy" / "table.md").read_text()
    assert "| unlabelled |" in table
    assert "a teacher fitted on the row's labels labelled them" in table


def test_two_sets_of_pairs_are_read_and_the_generator_saw_them(swept):
    store, results, _ = swept
    both = results[results["condition"] == "synthetic_unlabelled_self_training"]
    for key in both["fit_id"]:
        upstream = read(store, key, "manifest.json")["upstream"]
        pseudo, gate = upstream["pairs"], upstream["more_pairs"]
        n_kept = read(store, pseudo, "DONE.json")["n_kept"]
        n_accepted = read(store, gate, "DONE.json")["accepted"]
        assert read(store, key, "DONE.json")["n_synthetic"] == n_kept + n_accepted
        candidates = read(store, gate, "manifest.json")["upstream"]["candidates"]
        generator = read(store, candidates, "manifest.json")["upstream"]["generator"]
        assert read(store, generator, "manifest.json")["upstream"] == {"pseudo": pseudo}
        done = read(store, generator, "DONE.json")
        assert (done["n_labels"], done["n_pseudo"]) == (2, n_kept)
