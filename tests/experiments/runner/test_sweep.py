"""Whole sweeps at toy size, from the command line: outputs, reuse, failure, kill and resume."""

import json
import re
import shutil
import signal
import subprocess
import time

import cv2
import numpy as np
import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from sweep_parts import LEAN, call, command, environment, made, run, scores, weights
from wandb_parts import inspect

from datamodules.synthetic import write_pair
from experiments.config.conditions import CONTROLS
from experiments.config.paths import ROOT

OUTPUTS = [
    "results.csv",
    "per_image.csv",
    "table.md",
    "table.tex",
    "figure.png",
    "figure.pdf",
    "report.html",
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A finished sweep: its data, its store and what it printed.

    Other sweeps of these tests go on in its store, under names of their own: what they share with
    it is not made again.
    """
    folder = tmp_path_factory.mktemp("toy")
    data = write_hc18_folder(folder / "hc18")
    ended = run(data, folder / "runs")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return data, folder / "runs", ended.stdout


def accepted(store):
    """The folder of the synthetic set that passed its gate."""
    (done,) = (store / "store" / "gate").glob("*/DONE.json")
    return done.parent


def test_every_output_is_there_and_named_on_the_last_screen(toy):
    _, store, printed = toy
    for name in OUTPUTS:
        assert (store / "toy" / name).stat().st_size > 0
    assert "toy/report.html" in printed
    assert "train, 2 validation and 4 test images; 4 trials in" in printed
    assert "W&B: offline (not logged in)" in printed


def test_the_columns_of_the_files_are_those_of_their_document(toy):
    _, store, _ = toy
    shared, per_image, results = (ROOT / "docs" / "columns.md").read_text().split("| meaning |")[1:]
    documented = [
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", part, flags=re.M)))
        for part in (shared, per_image, results)
    ]
    for name, own in (("per_image.csv", documented[1]), ("results.csv", documented[2])):
        columns = pd.read_csv(store / "toy" / name, nrows=0).columns
        assert sorted(columns) == sorted(documented[0] + own)


def test_results_have_a_row_per_trial_and_prompt_and_the_controls(toy):
    _, store, _ = toy
    results = pd.read_csv(store / "toy" / "results.csv")
    assert set(results["status"]) == {"done"}
    assert (results["output"] == "ellipse").sum() == len(results) // 2
    masks = results[results["output"] == "mask"]
    assert masks.groupby(["condition", "prompt"]).size().to_dict() == {
        ("real", "whole_image"): 2,
        ("real", "jittered_box"): 2,
        ("synthetic", "whole_image"): 2,
        ("synthetic", "jittered_box"): 2,
        ("box_only", "jittered_box"): 1,
        ("mean_mask", "whole_image"): 1,
        ("zero_shot", "whole_image"): 1,
        ("zero_shot", "jittered_box"): 1,
    }
    is_control = results["condition"].isin(CONTROLS)
    assert results["fit_id"].isna().tolist() == is_control.tolist()
    assert results["steps"].isna().tolist() == is_control.tolist()
    assert (results["dice_mean"] > 0).all()
    # A row leads to the stage that scored it, and to the one that was fitted.
    for key in [*results["score_id"], *results["fit_id"].dropna()]:
        assert (store / "store" / key / "DONE.json").is_file()
    trained = results[~is_control]
    assert set(trained["steps"]) == {6}
    assert set(trained["n_images"]) == {4}
    assert set(trained.loc[trained["condition"] == "real", "n_generator_labels"]) == {0}
    assert set(trained.loc[trained["condition"] == "synthetic", "n_generator_labels"]) == {4}
    assert (trained["n_val_labels"] == 0).all()


def test_the_synthetic_set_is_a_folder_that_explains_itself(toy):
    _, store, _ = toy
    gate = accepted(store)
    rows = [json.loads(line) for line in (gate / "metadata.jsonl").read_text().splitlines()]
    assert 1 <= len(rows) <= 4
    for row in rows:
        assert (gate / row["file_name"]).is_file()
        assert (gate / row["mask_file_name"]).is_file()
        assert row["native_size_hw"] == [32, 48]
        assert row["gate"]["nearest"].endswith("HC")
        assert row["ellipse"]["semi_major_px"] > 0


def test_a_second_run_does_nothing_and_changes_nothing(toy):
    data, store, _ = toy
    before = {path: path.stat().st_mtime_ns for path in (store / "store").rglob("*.json")}
    report = (store / "toy" / "report.html").stat().st_mtime_ns
    ended = run(data, store)
    assert ended.returncode == 0
    assert "nothing was left to do" in ended.stdout
    assert {path: path.stat().st_mtime_ns for path in (store / "store").rglob("*.json")} == before
    assert (store / "toy" / "report.html").stat().st_mtime_ns == report


def test_report_puts_the_table_into_a_file_between_its_markers(toy, tmp_path):
    data, store, _ = toy
    words = command(data, store, name="report")
    page = tmp_path / "PAGE.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")

    def report() -> subprocess.CompletedProcess:
        options = ["--into", str(page), "--command", "make toy"]
        return call([*words, *options])

    assert report().returncode == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- results -->\n**hc18, no box (whole image)**")
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "old" not in text
    assert "`make toy`: 4 trials" in text
    results = pd.read_csv(store / "toy" / "results.csv")
    boxes = results[results["condition"] == "box_only"].set_index("output")["dice_mean"]
    (row,) = [line for line in text.splitlines() if line.startswith("| box only")]
    # The ellipse's, with the mask's beside.
    assert f"| {100 * boxes['ellipse']:.1f} |" in row
    assert f"| {100 * boxes['mask']:.1f} |" in row
    page.write_text("no markers")
    ended = report()
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert "<!-- results -->" in ended.stderr
    assert page.read_text() == "no markers"


def test_a_report_on_a_damaged_store_leaves_the_outputs_as_they_are(toy):
    data, store, _ = toy
    (scored, *_) = sorted((store / "store" / "score").glob("*/per_image.csv"))
    was, before = scored.read_bytes(), (store / "toy" / "results.csv").read_bytes()
    scored.write_bytes(was[:-9])
    ended = run(data, store, name="report")
    scored.write_bytes(was)
    assert ended.returncode == 2
    assert "would lose rows, so they stay as they are; sonosweep sweep" in ended.stderr
    assert (store / "toy" / "results.csv").read_bytes() == before


def test_another_sweep_reuses_what_it_shares(toy):
    data, store, _ = toy
    before = {stage: made(store, stage) for stage in ("fit", "score", "control", "embeddings")}
    changes = ["sweep.condition=[real]", "sweep.real_fraction=[1.0]", "sweep.seed=[0,1]"]
    ended = run(data, store, "name=other", *changes)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # A fit and its two scores; images are embedded once and for all.
    new = {stage: len(made(store, stage) - known) for stage, known in before.items()}
    assert new == {"fit": 1, "score": 2, "control": 0, "embeddings": 0}
    assert "3 to do" in ended.stdout
    results = pd.read_csv(store / "other" / "results.csv")
    assert set(results["status"]) == {"done"}
    assert sorted(results.loc[results["condition"] == "real", "seed"]) == [0] * 4 + [1] * 4
    # Two seeds of one row: what they say of each other.
    assert "How far the annotation goes" in (store / "other" / "report.html").read_text()
    assert "How far the annotation goes" not in (store / "toy" / "report.html").read_text()
    # What was reused is in this sweep's group on W&B too, by its summary.
    runs = [path.name for path in (store / "other" / "wandb").glob("offline-run-*-other-real-n*")]
    assert sorted(name.split("-n", 1)[1].split("-p0-")[1][:2] for name in runs) == ["s0", "s1"]


def test_a_failed_stage_fails_only_what_needs_it(toy):
    data, store, _ = toy
    strict = [
        "name=strict",
        "wandb.mode=disabled",
        "gate.min_agreement=1",
        "gate.intensity_slack=0",
        *LEAN,
    ]
    ended = run(data, store, *strict)
    assert ended.returncode == 1
    assert "none of 4 candidates accepted" in ended.stdout
    results = pd.read_csv(store / "strict" / "results.csv")
    trials = results.drop_duplicates("trial_id").set_index("trial_id")
    assert (trials.loc[trials["condition"] == "real", "status"] == "done").all()
    failed = trials[trials["condition"] == "synthetic"]
    assert (failed["status"] == "failed").all()
    assert failed["reason"].str.contains("none of 4 candidates accepted").all()
    assert "failed: " in (store / "strict" / "table.md").read_text()
    assert "none of 4 candidates" in (store / "strict" / "report.html").read_text()
    again = run(data, store, *strict, name="report")
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(pd.read_csv(store / "strict" / "results.csv"), results)


def test_a_report_before_anything_is_done_says_so(toy, tmp_path):
    data, _, _ = toy
    ended = run(data, tmp_path, name="report")
    assert ended.returncode == 0, ended.stderr
    results = pd.read_csv(tmp_path / "toy" / "results.csv")
    assert set(results["status"]) == {"pending"}
    # Four trials and a control under two prompts each, and two controls under one.
    assert len(results) == 12
    assert results["trial_id"].nunique() == 7
    for name in OUTPUTS:
        assert (tmp_path / "toy" / name).stat().st_size > 0
    assert "no trial has finished" in (tmp_path / "toy" / "table.md").read_text()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_killed_sweep_goes_on_to_the_same_numbers(toy, tmp_path, number):
    data, finished, _ = toy
    part = [*LEAN, "sweep.real_fraction=[1.0]", "wandb.mode=disabled"]
    process = subprocess.Popen(
        command(data, tmp_path, *part),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    fits = tmp_path / "store" / "fit"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not list(fits.glob("*/checkpoints/*.ckpt")):
        time.sleep(0.02)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=300)
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert "the same command continues from here" in printed
    else:
        assert process.returncode == -signal.SIGKILL
    ended = run(data, tmp_path, *part)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    expected = scores(finished)
    is_trial = ~expected["condition"].isin(CONTROLS) & (expected["prompt"] == "whole_image")
    expected = expected[is_trial & (expected["n_real"] == 4)].reset_index(drop=True)
    assert len(expected) > 0
    # Controls have no support and no seed: beside them the others' are floats.
    found = scores(tmp_path)
    pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)
    found, expected = weights(tmp_path), weights(finished)
    assert len(found) == 3, "a generator and two fits"
    for name, each in found.items():
        assert each == expected[name], name


def test_pairs_made_by_others_an_external_cohort_and_validation_labels_are_used(toy, tmp_path):
    data, store, _ = toy
    gate, generators = accepted(store), made(store, "generator")
    foreign, cohort = tmp_path / "pairs", tmp_path / "clinic"
    for part in ("image", "mask"):
        shutil.copytree(gate / part, foreign / part)
    rng = np.random.default_rng(3)
    for number in range(3):
        mask = np.zeros((54, 80), np.uint8)
        cv2.ellipse(mask, (40 + number, 27), (20, 14), 10 * number, 0, 360, 1, -1)
        image = (mask * 90 + rng.integers(0, 90, mask.shape)).astype(np.uint8)
        write_pair(cohort, f"clinic-{number}", image=image, mask=mask)
    ended = run(
        data,
        store,
        "name=clinic",
        "wandb.mode=disabled",
        "segmenter.early_stopping_patience=1",
        "sweep.condition=[synthetic]",
        "sweep.real_fraction=[1.0]",
        f"synthesis.folder={foreign}",
        "synthesis.folder_labels=9",
        f"data.test_cohorts=[{cohort}]",
        "evaluation.controls=[box_only]",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = pd.read_csv(store / "clinic" / "results.csv")
    trained = results[results["condition"] == "synthetic"]
    assert set(trained["test_cohort"]) == {"hc18", "clinic"}
    assert set(trained["n_generator_labels"]) == {9}
    # Early stopping looks at two.
    assert set(trained["n_val_labels"]) == {2}
    assert (trained["n_total_labels"] == trained["n_real"] + 9 + 2).all()
    assert "2 validation images, which the table counts" in (
        (store / "clinic" / "report.html").read_text()
    )
    clinic = results[results["test_cohort"] == "clinic"]
    assert clinic["hc_abs_err_mm_mean"].isna().all(), "no pixel size, no mm"
    assert "clinic, no box (whole image)" in (store / "clinic" / "table.md").read_text()
    assert made(store, "generator") == generators


def test_wandb_gets_group_job_type_and_tags_offline(toy):
    _, store, _ = toy
    runs = [path for path in (store / "store").rglob("offline-run-*") if path.is_dir()]
    ids = {path.name.split("-", 3)[3] for path in runs}
    assert any(name.startswith("toy-synthetic-n4-") for name in ids)
    n = len([name for name in ids if name.startswith("toy-")])
    assert n == 6, "a generator, a gate, four fits"
    assert all(list(run.glob("*.wandb")) for run in runs)
    (run, *_) = [path for path in runs if "-toy-synthetic-n4-" in path.name]
    config = inspect(run)["config"]
    assert (config["condition"], config["arm"]) == ("synthetic", "synthetic")
    assert config["generator"] == "pixel"


@pytest.mark.long
def test_two_sweeps_at_once_on_one_store_do_each_stage_once(toy, tmp_path):
    data, finished, _ = toy
    settings = ["sweep.condition=[real]", "evaluation.controls=[]"]
    processes = [
        subprocess.Popen(
            command(data, tmp_path, *settings, f"name={name}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        for name in ("first", "second")
    ]
    printed = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    starts = [
        (run_dir / "log.txt").read_text().count("GPU available")
        for run_dir in (tmp_path / "store" / "fit").iterdir()
    ]
    # Lightning says it once a training.
    assert starts == [1, 1]
    columns = ["condition", "n_real", "prompt", "dice_mean"]
    first, second, alone = (
        pd.read_csv(folder / "results.csv")[columns]
        for folder in (tmp_path / "first", tmp_path / "second", finished / "toy")
    )
    pd.testing.assert_frame_equal(first, second)
    same = alone["condition"] == "real"
    pd.testing.assert_frame_equal(first, alone[same].reset_index(drop=True), check_dtype=False)
