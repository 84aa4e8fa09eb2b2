"""Agreement of students: numbers by hand, and what is left out."""

import numpy as np
import pandas as pd

from experiments.results.student_agreement import agreement_table


def rows(condition: str, n_real: int, trials: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Of per_image.csv: Dice by trial and image; the images' trimesters follow from their names."""
    return pd.DataFrame(
        {
            "trial_id": trial_id,
            "condition": condition,
            "segmenter": "unet",
            "real_fraction": np.nan,
            "n_real": n_real,
            "prompt": "whole_image",
            "sample_id": sample_id,
            "trimester": float(sample_id[0]),
            "dice": dice,
        }
        for trial_id, scores in trials.items()
        for sample_id, dice in scores.items()
    )


def square(first: int, last: int) -> np.ndarray:
    mask = np.zeros((1, 100), np.uint8)
    mask[:, first:last] = 1
    return mask


def test_students_are_compared_pair_by_pair_on_the_same_images():
    masks = {
        ("a", "1_HC"): square(0, 40),
        ("b", "1_HC"): square(20, 60),
        ("c", "1_HC"): square(0, 40),
        ("a", "2_HC"): square(0, 50),
        ("b", "2_HC"): square(0, 50),
    }
    # Of 3_HC one student has a mask, which agrees with none.
    three = {
        "a": {"1_HC": 0.9, "2_HC": 0.7, "3_HC": 0.1},
        "b": {"1_HC": 0.6, "2_HC": 0.5},
        "c": {"1_HC": 0.9},
    }
    per_image = pd.concat(
        [
            rows("strong", 20, three),
            rows("strong", 10, {"less": {"1_HC": 0.1}, "less2": {"1_HC": 0.1}}),
            rows("strong", 40, {"alone": {"1_HC": 0.99, "2_HC": 0.99}}),
            rows("self_training", 20, {"one fold": {"1_HC": 0.9}, "other fold": {"2_HC": 0.9}}),
            rows("mean_mask", 0, {"control": {"1_HC": 0.5}, "control2": {"1_HC": 0.5}}),
        ]
    )
    read = []

    def mask_of(trial_id: str, prompt: str, sample_id: str) -> np.ndarray:
        read.append(trial_id)
        return masks[trial_id, sample_id]

    each_other, annotation = agreement_table(per_image, mask_of=mask_of).to_dict("records")
    cell = {"condition": "strong augmentation", "real": "20 images", "students": "3"}
    # Of 1_HC two pairs share half of their length and one all of it.
    assert each_other == cell | {
        "agreement with": "each other",
        "all": f"{100 * (2 / 3 + 1) / 2:.1f}",
        "trimester 1": f"{100 * 2 / 3:.1f}",
        "trimester 2": "100.0",
    }
    assert annotation == cell | {
        "agreement with": "the annotation",
        "all": "70.0",
        "trimester 1": "80.0",
        "trimester 2": "60.0",
    }
    assert set(read) == {"a", "b", "c"}


def test_single_students_and_unknown_trimesters_leave_their_part_out():
    one = rows("strong", 20, {"a": {"1_HC": 0.9}})
    assert agreement_table(one, mask_of=None).empty
    assert agreement_table(one.head(0), mask_of=None).empty
    two = rows("strong", 20, {"a": {"1_HC": 0.9}, "b": {"1_HC": 0.8}}).assign(trimester=np.nan)
    found = agreement_table(two, mask_of=lambda *_: square(0, 10))
    assert found["all"].tolist() == ["100.0", "85.0"]
    assert not [name for name in found if name.startswith("trimester")]


def test_students_that_share_the_boxes_of_the_annotation_are_not_compared():
    two = rows("strong", 20, {"a": {"1_HC": 0.9}, "b": {"1_HC": 0.8}})
    boxes = two.assign(prompt="jittered_box", dice=1.0)
    read = []

    def mask_of(trial_id: str, prompt: str, sample_id: str) -> np.ndarray:
        read.append(prompt)
        return square(0, 10)

    assert agreement_table(boxes, mask_of=mask_of).empty
    both = pd.concat([boxes, two.assign(prompt="predicted_box")])
    assert agreement_table(both, mask_of=mask_of)["all"].tolist() == ["100.0", "85.0"]
    assert set(read) == {"predicted_box"}
