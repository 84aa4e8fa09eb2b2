"""The numbers of a row where supports have unequal numbers of seeds."""

import numpy as np
import pandas as pd
import pytest
from test_tables import scores

from experiments.results.cells import cells
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
    read = []

    def mask_of(trial_id, prompt, sample_id):
        read.append(sample_id)
        return np.eye(4, dtype=np.uint8)

    agreement_table(per_image, mask_of=mask_of)
    assert set(read) == set(per_image["sample_id"])
