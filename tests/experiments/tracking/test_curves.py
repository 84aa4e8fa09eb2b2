"""A sweep's curves: a series a condition, its points the numbers of the table."""

import pandas as pd
import pytest

from experiments.results.statistics import aggregate
from experiments.tracking.curves import curves


def images(condition, n_real, dice, *, support=0, **changes):
    """A trial of two images, whose Dice are 0.1 around the mean."""
    trained = condition != "mean_mask"
    keys = {
        "trial_id": f"{condition}-{n_real}-{support}-{sorted(changes.items())}",
        "condition": condition,
        "segmenter": "unet" if trained else "",
        "generator": "",
        "pair_labels": "",
        "real_fraction": None,
        "n_real": n_real,
        "n_generator_labels": 0,
        "n_val_labels": 0,
        "n_total_labels": n_real,
        "support": support if trained else None,
        "seed": 0,
        "generator_seed": 0,
        "test_cohort": "hc18",
        "prompt": "whole_image",
        "output": "ellipse",
        "draw": 0,
    }
    empty = dict.fromkeys(["dice_256", "hausdorff_mm", "hc_err_mm", "hc_abs_err_mm", "trimester"])
    return [
        empty | keys | {"sample_id": name, "exam_id": name, "dice": value} | changes
        for name, value in (("a", dice - 0.1), ("b", dice + 0.1))
    ]


def drawn(*parts):
    per_image = pd.DataFrame([row for part in parts for row in part])
    found = curves(aggregate(per_image, n_boot=10), per_image=per_image)
    return {n: {name: round(value, 6) for name, value in row.items()} for n, row in found.items()}


def test_points_are_means_over_trials_and_a_control_is_level():
    found = drawn(
        images("real", 20, 0.8, hc_abs_err_mm=3.0),
        images("real", 5, 0.5),
        images("real", 5, 0.6, support=1),
        images("strong", 5, 0.7),
        images("mean_mask", 0, 0.4),
        images("strong", 5, 0.3, test_cohort="es"),
    )
    assert list(found) == [5, 20], "ascending"
    assert found[5] == {
        "dice/real/whole_image": 0.55,
        "dice/strong/whole_image": 0.7,
        "dice/mean_mask/whole_image": 0.4,
        "dice/strong/whole_image/es": 0.3,
    }
    assert found[20] == {
        "dice/real/whole_image": 0.8,
        "hc_mae_mm/real/whole_image": 3.0,
        "dice/mean_mask/whole_image": 0.4,
    }


def test_axes_with_several_values_stand_in_the_name():
    found = drawn(
        images("real", 5, 0.5),
        images("real", 5, 0.6, segmenter="sam", prompt="jittered_box"),
        images("synthetic", 5, 0.7, generator="pixel", pair_labels="fixed", n_generator_labels=20),
        images("synthetic", 5, 0.8, generator="pixel", pair_labels="fixed", n_generator_labels=60),
    )
    assert found[5] == {
        "dice/unet real/whole_image": 0.5,
        "dice/sam real/jittered_box": 0.6,
        "dice/unet synthetic on 20/whole_image": 0.7,
        "dice/unet synthetic on 60/whole_image": 0.8,
    }


def test_folds_are_pooled_and_nothing_gives_no_curve():
    found = drawn(images("real", 5, 0.5), images("real", 5, 0.8, fold=1)[:1])
    assert found[5]["dice/real/whole_image"] == pytest.approx((0.4 + 0.6 + 0.7) / 3)
    assert drawn(images("mean_mask", 0, 0.4)) == {}
