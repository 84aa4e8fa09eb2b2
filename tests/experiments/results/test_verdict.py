from dataclasses import replace

import pandas as pd
import pytest
from test_findings import PLAIN, comparison
from test_tables import scores, sweep

from experiments.config.conditions import CONDITIONS
from experiments.config.statistics import ContrastConfig, StatisticsConfig
from experiments.results.contrasts import Contrasts, all_contrasts, comparisons
from experiments.results.statistics import aggregate
from experiments.results.verdict import comparison_table, verdict_sentences

MAX_WORDS = 25
"""Of a sentence that leads a report."""


def sentences(**changes) -> list[str]:
    row = comparison(0.005, 0.001, 0.009).to_dict()
    row |= {"role": "primary", "baseline": "strong", "test_cohort": "hc18", "measure": "dice"}
    row |= {"prompt": "whole_image"}
    family = pd.DataFrame([row | {"n_supports": 3} | changes])
    contrasts = Contrasts(family=family, segmenters=pd.DataFrame())
    return verdict_sentences(contrasts, sweep()[0])


def test_three_sentences_say_what_was_compared_what_came_out_and_how_sure():
    assert sentences(segmenter="unet") == [
        "We compared synthetic pairs with strong augmentation: 40 labelled images, segmenter unet, "
        "tested on hc18.",
        "Dice rose by 0.5 points: a gain.",
        "The 95 % interval runs from 0.1 to 0.9 points, over 60 test exams and 3 draws of labelled "
        "images.",
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"low": -0.001}, "Dice changed by +0.5 points; neither a gain nor a loss is shown."),
        ({"mean": -0.005, "low": -0.009, "high": -0.001}, "Dice fell by 0.5 points: a loss."),
        ({"mean": 1.5, "low": 1.0, "high": 2.0, "measure": "hc_abs_err_mm"},
         "The HC error rose by 1.5 mm: a loss."),
        ({"min_effect": 0.01}, "Dice changed by +0.5 points, less than what would matter."),
        ({"mean": 0.004, "min_effect": 0.005},
         "Dice changed by +0.4 points, an estimate below what would matter."),
    ],
)  # fmt: skip
def test_a_gain_is_claimed_only_where_it_is_shown(changes, text):
    found = sentences(n_supports=1, **changes)
    assert found[1] == text
    assert "other labelled images were not tried" in found[2]


def test_labels_that_only_the_generator_saw_are_named():
    assert "40 labelled images, 21 more behind the pairs, tested" in sentences(n_more_labels=21)[0]


def test_one_exam_is_no_evidence():
    assert sentences(low=float("nan"), high=float("nan"), n_exams=1)[2] == (
        "1 test exam gives no interval: no evidence yet."
    )


def test_a_sweep_without_a_primary_contrast_leads_with_its_first_comparison():
    results, per_image = sweep()
    found = verdict_sentences(all_contrasts(per_image, statistics=PLAIN), results)
    assert found[0].startswith("We compared synthetic pairs with real pairs alone")
    nothing = all_contrasts(per_image[per_image["condition"] == "real"], statistics=PLAIN)
    assert verdict_sentences(nothing, results) == ["No two conditions can be compared yet."]


def test_the_leak_free_prompt_leads_and_another_one_is_named():
    _, per_image = sweep()
    worse = per_image[per_image["prompt"] == "whole_image"]
    boxes = worse.assign(
        prompt="jittered_box", dice=worse["dice"] + 0.05 * (worse["condition"] == "synthetic")
    )
    both = pd.concat([boxes, worse], ignore_index=True)
    found = verdict_sentences(all_contrasts(both, statistics=PLAIN), aggregate(both))
    alone = verdict_sentences(all_contrasts(worse, statistics=PLAIN), aggregate(worse))
    assert found == alone
    found = verdict_sentences(all_contrasts(boxes, statistics=PLAIN), aggregate(boxes))
    assert "prompted with the jittered box" in found[0]
    assert found[1] != alone[1]


def test_the_first_of_several_choices_is_no_gain_where_its_adjusted_p_is_not_small():
    dice = [0.80, 0.85, 0.82, 0.84, 0.83, 0.86]
    gains = {"random": [0] * 6, "coverage": [0.02, 0.003, 0.015, 0.006, 0.02, 0.002]}
    gains["by_pixel_size"] = [0.001, -0.02, 0.01, 0, 0, 0.003]
    parts = [
        scores(
            [d + g for d, g in zip(dice, gains[choice], strict=True)],
            trial_id=f"{choice}{n}",
            choice=choice,
            n_real=n,
            real_fraction=float("nan"),
        )
        for n in (20, 40, 80)
        for choice in gains
    ]
    per_image = pd.concat(parts, ignore_index=True)
    found = all_contrasts(per_image, statistics=PLAIN)
    first = found.choices.iloc[0]
    assert first["low"] > 0
    assert first["p"] < 0.05 < first["p_holm"]
    assert verdict_sentences(found, aggregate(per_image))[1].endswith(
        "after adjustment for 6 comparisons this is not shown."
    )


def test_a_sweep_of_one_condition_is_told_what_to_do():
    results, per_image = sweep()
    results, per_image = (
        r[r["condition"].isin(["real", "box_only"])] for r in (results, per_image)
    )
    found = all_contrasts(per_image, statistics=PLAIN)
    assert verdict_sentences(found, results) == [
        "The sweep has one condition, real pairs alone: name another in sweep.condition to compare "
        "it with."
    ]
    (several,) = verdict_sentences(replace(found, segmenters=pd.DataFrame({"a": [1]})), results)
    assert several.endswith("real pairs alone; its segmenters are compared below.")


def test_one_of_several_comparisons_is_no_gain_where_its_adjusted_p_is_not_small():
    many = {"role": "other", "n_family": 6, "base": "strong"}
    assert sentences(**many, p_holm=0.137)[1] == (
        "Dice rose by 0.5 points; after adjustment for 6 comparisons this is not shown."
    )
    assert sentences(**many, p_holm=0.049)[1] == "Dice rose by 0.5 points: a gain."


def test_an_interval_beyond_zero_is_no_gain_where_its_p_is_not_small():
    """With three supports an interval ends at the extremes of the resamples and may be too short;
    a p that is not adjusted counts just as well."""
    primary = {"role": "primary", "n_family": 6}
    assert sentences(**primary, p_holm=0.137)[1] == (
        "Dice rose by 0.5 points; its interval lies above zero, but with p 0.137 this is not shown."
    )
    assert sentences(**primary, p_holm=0.049)[1] == "Dice rose by 0.5 points: a gain."
    alone = {"role": "other", "n_family": 1, "base": "strong"}
    fell = {"mean": -0.005, "low": -0.009, "high": -0.001}
    assert sentences(**alone, **fell, p_holm=0.0504)[1] == (
        "Dice fell by 0.5 points; its interval lies below zero, but with p 0.0504 this is not "
        "shown."
    )


@pytest.mark.parametrize("condition", CONDITIONS)
def test_no_sentence_is_long(condition):
    for text in sentences(condition=condition, segmenter="unet_large", n_real=1000):
        assert len(text.split()) <= MAX_WORDS, text


def test_the_small_table_sets_the_levels_beside_the_difference():
    results, per_image = sweep()
    found = all_contrasts(per_image, statistics=PLAIN)
    table, note = comparison_table(found, results, per_image=per_image)
    assert table["condition"].tolist() == ["real only", "+ synthetic"]
    assert table["Dice against the first row"].tolist() == ["–", "+3.0 points"]
    assert note == ""
    levels = table["Dice %"].astype(float)
    assert levels[1] - levels[0] == pytest.approx(3.0, abs=0.11)
    nothing = per_image[per_image["condition"] == "real"]
    found = all_contrasts(nothing, statistics=PLAIN)
    assert comparison_table(found, results, per_image=nothing)[0].empty


def levels(trials):
    """The small table where trials (condition, support) have a Dice."""
    parts = [
        scores([dice - 0.01, dice, dice + 0.01], trial_id=f"{name}-{support}", condition=name,
               support=support)
        for (name, support), dice in trials.items()
    ]  # fmt: skip
    per_image = pd.concat(parts, ignore_index=True)
    found = all_contrasts(per_image, statistics=PLAIN)
    return comparison_table(found, aggregate(per_image), per_image=per_image)


def test_levels_are_of_the_trials_that_every_row_has_done():
    real = {("real", s): dice for s, dice in enumerate((0.904, 0.8, 0.82, 0.892))}
    table, note = levels(real | {("strong", 0): 0.954})
    assert table["Dice %"].tolist() == ["90.4", "95.4"]
    assert table["Dice against the first row"].tolist() == ["–", "+5.0 points"]
    assert note.startswith("Levels are over 1 trial that every row has done; a difference is over")
    table, note = levels(real | {("strong", 0): 0.954, ("weak", 1): 0.81})
    assert table["Dice %"].tolist() == ["85.4", "95.4", "81.0"]
    assert "no trial (support and seed) in common" in note


def test_without_real_pairs_alone_the_primary_baseline_is_the_one_that_all_are_compared_with():
    _, per_image = sweep()
    renamed = per_image.replace({"condition": {"real": "strong"}})
    primary = ContrastConfig(condition="synthetic", baseline="strong", real_count=1)
    statistics = StatisticsConfig(primary=primary, rivals=["self_training"])
    other = renamed[renamed["condition"] == "strong"].assign(condition="self_training")
    family = all_contrasts(
        pd.concat([renamed, other], ignore_index=True), statistics=statistics
    ).family
    pairs = set(zip(family["condition"], family["baseline"], family["role"], strict=True))
    assert ("synthetic", "strong", "other") in pairs
    assert ("self_training", "strong", "other") in pairs
    assert ("synthetic", "self_training", "rival") in pairs
    assert not any(condition == "strong" for condition, _, _ in pairs)
    assert set(comparisons(family)["baseline"]) == {"strong"}
    assert set(comparisons(family, rivals=True)["baseline"]) == {"strong", "self_training"}


def test_what_the_others_are_compared_with_stands_first():
    results, per_image = sweep()
    named = {"condition": {"real": "strong", "synthetic": "weak"}}
    results, per_image = results.replace(named), per_image.replace(named)
    primary = ContrastConfig(condition="weak", baseline="strong", real_count=1)
    found = all_contrasts(per_image, statistics=StatisticsConfig(primary=primary))
    table, _ = comparison_table(found, results, per_image=per_image)
    assert table["condition"].tolist() == ["strong augmentation", "weak augmentation"]
    assert table["Dice against the first row"].tolist() == ["–", "+3.0 points"]
