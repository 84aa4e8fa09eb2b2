"""The numbers of a row where supports have unequal numbers of seeds."""

import numpy as np
import pandas as pd
import pytest
from test_tables import scores

from experiments.results.cells import cell_means, cells, model_means
from experiments.results.resampling import crossed_bootstrap
from experiments.results.statistics import aggregate
from experiments.results.student_agreement import agreement_table


def trials(levels):
    """A trial for each (support, seed) of `levels`, whose three images have that Dice."""
    parts = [
        scores([dice] * 3, trial_id=f"{support}-{seed}", support=support, seed=seed)
        for (support, seed), dice in levels.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_a_support_of_many_seeds_counts_once():
    rows = trials({(0, seed): 0.95 for seed in range(5)} | {(1, 0): 0.80}).assign(trimester=2)
    (cell,) = cells(aggregate(rows), per_image=rows).to_dict("records")
    assert cell["dice_mean"] == pytest.approx(0.875)
    assert cell["dice_trimester_weighted_mean"] == pytest.approx(0.875)
    means = rows.groupby(["support", "exam_id"], as_index=False)["dice"].mean()
    drawn = {"exams": means["exam_id"], "supports": means["support"]}
    found = crossed_bootstrap(means["dice"], **drawn)
    assert cell["dice_mean"] == pytest.approx(found.value)
    assert (cell["dice_low"], cell["dice_high"]) == pytest.approx((found.low, found.high))
    weighted = [cell[f"dice_trimester_weighted_{end}"] for end in ("low", "high")]
    assert weighted == pytest.approx([found.low, found.high]), "all images are alike"


def test_equal_numbers_of_seeds_give_the_plain_mean_to_the_bit():
    levels = dict(zip([(s, 0) for s in range(7)], np.random.default_rng(3).random(7), strict=True))
    results = aggregate(trials(levels))
    found = cells(results)["dice_mean"].iloc[0]
    assert found == results["dice_mean"].mean()


def test_each_seed_of_the_generator_is_a_model():
    parts = [
        scores([dice] * 3, trial_id=f"g{seed}", condition="synthetic", generator_seed=seed)
        for seed, dice in ((0, 0.8), (1, 0.9))
    ]
    rows = pd.concat(parts, ignore_index=True)
    (cell,) = cells(aggregate(rows), per_image=rows).to_dict("records")
    assert cell["trial_dice"] == pytest.approx((0.8, 0.9))
    assert cell["dice_sd"] == pytest.approx(0.1 / np.sqrt(2))


def test_folds_supports_and_what_is_absent_without_images_by_hand():
    columns = ["support", "seed", "fold", "test_images", "n_images", "n_real", "n_exams"]
    columns += ["dice_mean", "hausdorff_mm_mean"]
    absent = np.nan
    rows = pd.DataFrame(
        [
            (0, 0, 0, "a", 30, 33, 6, 0.9, absent),
            (0, 0, 1, "b", 10, 32, 4, 0.6, 2.0),
            (0, 1, 0, "a", 30, 33, absent, 0.7, absent),
            (0, 1, 1, "b", 10, 32, absent, 0.7, absent),
            # Of an older file: its folds do not say what they were tested on.
            (1, 0, 0, None, 10, 31, 5, 0.5, 4.0),
            (1, 0, 1, None, 10, 34, 6, 0.5, 4.0),
        ],
        columns=columns,
    ).assign(condition="real", generator_seed=absent, trial_id=lambda t: t.index.astype(str))
    values = ["dice_mean", "hausdorff_mm_mean"]
    models = model_means(rows, values, by=["condition"])
    assert models["dice_mean"].tolist() == pytest.approx([(27 + 6) / 40, 0.7, 0.5])
    assert models["hausdorff_mm_mean"].tolist() == pytest.approx([2, absent, 4], nan_ok=True)
    assert models["n_real"].tolist() == [32, 32, 31]
    assert models["n_trials"].tolist() == [2, 2, 2]
    assert models["n_exams"].tolist() == pytest.approx([10, absent, 11], nan_ok=True)
    (cell,) = cell_means(rows, values, by=["condition"]).to_dict("records")
    assert cell["dice_mean"] == pytest.approx(((0.825 + 0.7) / 2 + 0.5) / 2)
    assert cell["hausdorff_mm_mean"] == pytest.approx((2 + 4) / 2)
    assert (cell["n_real"], cell["n_trials"], cell["n_exams"]) == (31, 6, 11)


def folded(condition, *, n_labels=0.0):
    """Two folds of one fraction, whose numbers of images differ, of two supports each."""
    return [
        scores(
            [0.90 + 0.01 * fold, 0.92, 0.94],
            trial_id=f"{condition}-{fold}-{support}",
            condition=condition,
            fold=fold,
            support=support,
            n_real=32 + fold,
            n_generator_labels=n_labels and 32 + fold,
            real_fraction=0.05,
        ).assign(sample_id=[f"{fold}-{n}" for n in range(3)], exam_id=[f"{fold}{n}" for n in "abc"])
        for fold in (0, 1)
        for support in (0, 1)
    ]


def test_the_folds_of_a_fraction_are_one_row_whatever_made_the_pairs():
    per_image = pd.concat([*folded("real"), *folded("warp", n_labels=1)], ignore_index=True)
    found = cells(aggregate(per_image), per_image=per_image).set_index("condition")
    assert found["n_trials"].to_dict() == {"real": 4, "warp": 4}
    assert found["n_exams"].to_dict() == {"real": 6, "warp": 6}
    assert found["n_generator_labels"].to_dict() == {"real": 0, "warp": 33}, "the most"
    short = per_image[per_image["trial_id"] != "real-1-1"]
    assert cells(aggregate(short), per_image=short)["n_exams"].tolist() == [6, 6], "of any model"
    read = []

    def mask_of(trial_id, prompt, sample_id):
        read.append(sample_id)
        return np.eye(4, dtype=np.uint8)

    agreement_table(per_image, mask_of=mask_of)
    assert set(read) == set(per_image["sample_id"])
