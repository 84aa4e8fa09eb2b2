from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_tables import KEYS

from datamodules.errors import InputError
from experiments.results.compact import read_results
from experiments.results.rows import KEYS as SHARED
from experiments.results.rows import read_rows, with_defaults
from experiments.results.spreads import spread_table
from experiments.results.statistics import (
    add_trials,
    aggregate,
    average_draws,
    cluster_bootstrap_ci,
    holm,
    weighted_dice,
)


def image_rows(dice, *, trial_id="t1", condition="real", **changes):
    """Rows of per_image.csv: `dice` maps sample id to Dice; the exam is the part before `_`."""
    base = KEYS | {"trial_id": trial_id, "condition": condition, "n_val_labels": 0}
    base |= {"n_total_labels": 40, "test_cohort": "hc18", "prompt": "whole_image", "draw": 0}
    base |= {"trimester": 2, "hausdorff_mm": 2.0, "hc_err_mm": -2.0, "hc_abs_err_mm": 2.0} | changes
    return pd.DataFrame(
        [
            base | {"sample_id": s, "exam_id": s.split("_")[0], "dice": d, "dice_256": d - 0.01}
            for s, d in dice.items()
        ]
    )


def test_interval_agrees_with_scipy_when_every_exam_has_one_image():
    values = np.random.default_rng(3).beta(20, 2, size=80)
    low, high = cluster_bootstrap_ci(values, np.arange(80), n_boot=20000, seed=1)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert low == pytest.approx(reference.low, abs=5e-4)
    assert high == pytest.approx(reference.high, abs=5e-4)


def test_interval_resamples_exams_and_not_images():
    # Two exams of values 0 and 1: the mean of two drawn exams is 0, 0.5 or 1 (1/4, 1/2, 1/4).
    values = [0.0] * 50 + [1.0] * 50
    groups = ["a"] * 50 + ["b"] * 50
    assert cluster_bootstrap_ci(values, groups, seed=0) == (0.0, 1.0)
    low, high = cluster_bootstrap_ci(values, np.arange(100), seed=0)
    assert 0.39 < low < 0.42
    assert 0.58 < high < 0.61


def test_interval_weighs_exams_by_their_images():
    # Exam a: three images of 1; exam b: one of 0. Drawn together the mean is 3/4, not 1/2.
    # The resamples are 1, 3/4 and 0 with 1/4, 1/2 and 1/4: the middle 40 % is 3/4 alone.
    found = cluster_bootstrap_ci([1, 1, 1, 0], ["a", "a", "a", "b"], seed=0, level=0.4)
    assert found == (0.75, 0.75)


def test_interval_is_seeded_and_its_edge_cases_are_named():
    values, groups = [0.1, 0.5, 0.9, 0.3], ["a", "b", "c", "c"]
    first, second = (cluster_bootstrap_ci(values, groups, seed=7) for _ in range(2))
    assert first == second
    assert np.isnan(cluster_bootstrap_ci([0.5, 0.7], ["a", "a"], seed=0)).all()
    assert np.isnan(cluster_bootstrap_ci([], [], seed=0)).all()
    with pytest.raises(ValueError, match="not finite"):
        cluster_bootstrap_ci([0.5, np.nan], ["a", "b"], seed=0)
    with pytest.raises(ValueError, match="equal vectors"):
        cluster_bootstrap_ci([0.5], ["a", "b"], seed=0)


def test_coverage_of_the_interval_is_near_its_level():
    rng = np.random.default_rng(11)
    groups = np.repeat(np.arange(40), 2)
    hits = 0
    for trial in range(300):
        exam = rng.normal(size=40)
        values = exam[groups] + 0.3 * rng.normal(size=80)
        low, high = cluster_bootstrap_ci(values, groups, n_boot=400, seed=trial)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.98  # images instead of exams would give about 0.84


@pytest.mark.parametrize(
    ("values", "trimesters", "mean", "missing"),
    [
        ([0.6, 0.8, 0.9, 0.5], [1, 1, 2, 3], (165 * 0.7 + 693 * 0.9 + 141 * 0.5) / 999, ()),
        ([0.7, 0.9, 0.1], [1, 2, np.nan], (165 * 0.7 + 693 * 0.9) / (165 + 693), (3,)),
        ([0.7], [np.nan], np.nan, (1, 2, 3)),
    ],
)
def test_trimester_weights_are_the_shares_of_hc18(values, trimesters, mean, missing):
    dice = {f"exam{number}_HC": value for number, value in enumerate(values)}
    row = aggregate(image_rows(dice, trimester=2).assign(trimester=trimesters)).iloc[0]
    assert row["dice_trimester_weighted_mean"] == pytest.approx(mean, nan_ok=True)
    assert row["trimesters_missing"] == ",".join(map(str, missing))


def test_aggregate_averages_draws_per_image_first():
    draws = [
        image_rows({"a_HC": 0.95, "b_HC": 0.80}, draw=0),
        image_rows({"a_HC": 0.97, "b_HC": 0.98}, draw=1),
        image_rows({"c_HC": 0.88}, draw=0, trimester=1, hc_err_mm=4.0, hc_abs_err_mm=4.0),
    ]
    row = aggregate(pd.concat(draws)).iloc[0]
    # Image means 0.96, 0.89, 0.88: two of three are below 0.9, of five rows only two.
    assert row["dice_mean"] == pytest.approx(0.91)
    assert row["dice_median"] == pytest.approx(0.89)
    assert row["dice_share_below_090"] == pytest.approx(2 / 3)
    assert row["dice_256_mean"] == pytest.approx(0.90)
    assert (row["n_images"], row["n_exams"]) == (3, 3)
    assert row["hc_err_mm_mean"] == pytest.approx(0.0)
    assert row["hc_abs_err_mm_mean"] == pytest.approx(8 / 3)
    assert row["hc_abs_err_mm_p95"] == pytest.approx(3.8)
    weighted = (165 * 0.88 + 693 * 0.925) / (165 + 693)
    assert row["dice_trimester_weighted_mean"] == pytest.approx(weighted)
    assert row["trimesters_missing"] == "3"
    assert row["dice_low"] <= row["dice_mean"] <= row["dice_high"]
    assert row["dice_high"] <= 0.96


def test_aggregate_groups_by_trial_cohort_and_prompt_and_keeps_absent_mm_absent():
    rows = pd.concat(
        [
            image_rows({"a_HC": 0.9}),
            image_rows({"a_HC": 0.8}, prompt="jittered_box"),
            image_rows({"a_HC": 0.7}, test_cohort="es", hausdorff_mm=np.nan, hc_abs_err_mm=np.nan),
            image_rows({"a_HC": 0.6}, trial_id="t2", support=1),
        ]
    )
    found = aggregate(rows)
    assert found["dice_mean"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert np.isnan(found["hausdorff_mm_mean"].iloc[2])
    assert np.isnan(found["hc_abs_err_mm_p95"].iloc[2])
    assert np.isnan(found["dice_low"]).all()  # one exam tells nothing about others
    assert aggregate(rows.iloc[:0]).empty


def test_the_interval_of_a_row_resamples_exams_and_090_is_not_below_090():
    frames = {f"a_{n}": 0.5 for n in range(20)} | {f"b_{n}": 0.9 for n in range(20)}
    row = aggregate(image_rows(frames)).iloc[0]
    # Resampled images would give about 0.64 to 0.76.
    assert (row["dice_low"], row["dice_high"]) == pytest.approx((0.5, 0.9))
    assert row["dice_share_below_090"] == 0.5


@pytest.mark.parametrize("changes", [{"n_real": 80}, {"generator_seed": 0}])
def test_a_key_that_differs_within_a_trial_is_refused(changes):
    rows = pd.concat([image_rows({"a_HC": 0.9}), image_rows({"b_HC": 0.9}, **changes)])
    with pytest.raises(ValueError, match=next(iter(changes))):
        average_draws(rows)


def trials_of(per_image, **columns):
    """What the runner knows of one trial more than there are rows of, `t9`."""
    known = aggregate(per_image)[[name for name in SHARED if name != "output"]]
    late = known.iloc[:1].assign(trial_id="t9", status="failed", reason="out of memory")
    return pd.concat([known.assign(status="done", reason=""), late]).assign(**columns)


def test_failed_trials_stay_and_what_is_scored_gets_its_cost():
    box = image_rows({"a_HC": 0.88}, trial_id="box", condition="box_only", n_real=0)
    per_image = pd.concat([image_rows({"a_HC": 0.9}), box])
    trials = trials_of(per_image, seconds=[60.0, 1.0, 3.0])
    found = add_trials(aggregate(per_image), trials=trials).set_index("trial_id")
    assert found["status"].to_dict() == {"t1": "done", "box": "done", "t9": "failed"}
    assert found.loc["t9", "reason"] == "out of memory"
    assert np.isnan(found.loc["t9", "dice_mean"])
    assert found["seconds"].tolist() == [60.0, 1.0, 3.0]
    assert found.loc["box", "dice_mean"] == pytest.approx(0.88)


def test_results_keep_their_columns_where_nothing_is_done():
    per_image = image_rows({"a_1": 0.9, "b_1": 0.8})
    done, trials = aggregate(per_image), trials_of(per_image)
    nothing = aggregate(per_image.iloc[:0])
    assert nothing.empty
    assert list(nothing.columns) == list(done.columns)
    found = add_trials(nothing, trials=trials[trials["status"] == "failed"])
    assert list(found.columns) == list(add_trials(done, trials=trials).columns)
    assert found[["trial_id", "status", "reason"]].to_numpy().tolist() == [
        ["t9", "failed", "out of memory"]
    ]
    assert found["dice_mean"].isna().all()


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1 -> 0.03, 0.04, 0.04, in the order given.
    assert holm([0.04, 0.01, 0.02]).tolist() == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_ids_stay_text(tmp_path):
    image_rows({"0012_HC": 0.9}, trial_id="12e4").to_csv(tmp_path / "x.csv", index=False)
    found = read_rows(tmp_path / "x.csv").iloc[0]
    assert (found["trial_id"], found["exam_id"]) == ("12e4", "0012")
    assert np.isnan(found["generator_seed"])


def test_images_without_a_prediction_are_counted_once():
    rows = pd.concat(
        [
            image_rows({"a_1": 0.9, "b_1": 0.0, "c_1": 0.8}, draw=0),
            image_rows({"a_1": 0.9, "b_1": 0.0, "c_1": 0.0}, draw=1),
        ]
    )
    rows["found"] = [True, False, True, True, False, False]
    assert aggregate(rows)["n_not_found"].tolist() == [2]
    assert aggregate(rows)["dice_mean"].iloc[0] == pytest.approx((0.9 + 0 + 0.4) / 3)
    assert aggregate(rows.assign(found=True))["n_not_found"].tolist() == [0]
    assert np.isnan(aggregate(rows.drop(columns="found"))["n_not_found"].iloc[0])


def test_found_survives_a_file_in_which_some_rows_lack_it(tmp_path):
    rows = image_rows({"a_1": 0.9, "b_1": 0.0})
    rows["found"] = [True, False]
    mixed = pd.concat([rows, image_rows({"a_1": 0.5}, trial_id="t2")])
    mixed.to_csv(tmp_path / "x.csv", index=False)
    found = aggregate(read_rows(tmp_path / "x.csv"))["n_not_found"]
    assert found.iloc[0] == 1
    assert np.isnan(found.iloc[1])


def test_the_weighted_mean_has_its_interval():
    rng = np.random.default_rng(2)
    dice = {f"{i}_1": v for i, v in enumerate(rng.beta(20, 2, 60))}
    rows = image_rows(dice)
    rows["trimester"] = np.repeat([1, 2, 3], 20)
    row = aggregate(rows).iloc[0]
    means = [rows["dice"][rows["trimester"] == t] for t in (1, 2, 3)]
    weights = np.array([165, 693, 141]) / 999
    parts = np.array([w**2 * m.var(ddof=1) / 20 for w, m in zip(weights, means, strict=True)])
    half = np.sqrt(parts.sum()) * stats.t.ppf(0.975, parts.sum() ** 2 / np.sum(parts**2 / 19))
    low, high = row["dice_trimester_weighted_low"], row["dice_trimester_weighted_high"]
    assert low < row["dice_trimester_weighted_mean"] < high
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    found = weighted_dice(rows)
    assert (found.low, found.high) == (low, high)
    unknown = aggregate(rows.assign(trimester=np.nan)).iloc[0]
    assert np.isnan(unknown["dice_trimester_weighted_low"])


def test_files_without_folds_are_fold_zero(tmp_path):
    old = aggregate(image_rows({"a_1": 0.9, "b_1": 0.8})).drop(columns="fold")
    old.to_csv(tmp_path / "old.csv", index=False)
    read = read_rows(tmp_path / "old.csv")
    assert read["fold"].tolist() == [0]
    assert set(SHARED) <= set(read.columns)
    unknown = with_defaults(pd.DataFrame({"fold": [2.0, np.nan]}))
    assert unknown["fold"].tolist() == [2, 0]


def test_results_of_one_version_combine_and_others_are_refused(tmp_path):
    first = aggregate(image_rows({"a_1": 0.9, "b_1": 0.8}))
    second = aggregate(image_rows({"a_1": 0.7, "b_1": 0.6}, trial_id="t2"))
    paths = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    first.to_csv(paths[0], index=False)
    pd.concat([first.assign(dice_mean=0.0), second]).to_csv(paths[1], index=False)
    found = read_results(paths[:2])
    assert found["trial_id"].tolist() == ["t1", "t2"]
    assert found["dice_mean"].tolist() == pytest.approx([0.85, 0.65])  # t1 from the first file
    second.drop(columns="n_not_found").assign(extra=1).to_csv(paths[2], index=False)
    with pytest.raises(InputError) as refused:
        read_results([paths[0], paths[2]])
    assert str(paths[2]) in str(refused.value)
    assert "(extra, n_not_found)" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_spreads_hold_the_other_axes():
    # Dice 0.5 + 0.1 support + 0.02 seed + 0.01 draw: every axis has its own spread.
    parts = []
    for support, seed, draw in product((0, 1), (0, 1, 2), (0, 1)):
        shift = 0.1 * support + 0.02 * seed + 0.01 * draw
        keys = {"trial_id": f"t{support}{seed}", "support": support, "seed": seed, "draw": draw}
        parts.append(image_rows({"a_1": 0.5 + shift, "b_1": 0.7 + shift}, **keys))
    rows = pd.concat(parts)
    (text,) = spread_table(rows).to_dict("records")
    assert (text["condition"], text["real"], text["mean"]) == ("real only", "10 %", "67.5")
    assert text["SD over supports"] == "7.07 (2)"  # 0.1 / sqrt(2)
    assert text["SD over seeds"] == "2.00 (3)"
    assert text["SD over box draws"] == "0.71 (2)"
    assert text["SD over generator seeds"] == ""
    assert spread_table(rows.iloc[:0]).empty
    # The variances are averaged, not their roots: 0.005 and 0.045 to 0.025.
    wider = rows.assign(dice=rows["dice"] + 0.2 * rows["support"] * (rows["seed"] > 0))
    few = wider[wider["seed"].isin([0, 1]) & (wider["draw"] == 0)]
    assert spread_table(few)["SD over supports"].tolist() == ["15.81 (2)"]
    # Generators of 20 and of 60 labels are two rows.
    other = rows.assign(dice=rows["dice"] + 0.1, n_generator_labels=60, trial_id="other")
    both = pd.concat([rows.assign(n_generator_labels=20), other]).assign(
        condition="synthetic", generator="pixel", pair_labels="fixed"
    )
    assert spread_table(both)["mean"].tolist() == ["67.5", "77.5"]


def test_spreads_pool_folds_before_they_look_at_supports():
    rows = pd.concat(
        [
            image_rows(
                {f"{fold}_1": dice}, trial_id=f"t{fold}{support}", fold=fold, support=support
            )
            for support, pair in enumerate(((0.4, 0.8), (0.6, 0.8)))
            for fold, dice in enumerate(pair)
        ]
    )
    # Model means 0.6 and 0.7.
    assert spread_table(rows)["SD over supports"].tolist() == ["7.07 (2)"]
