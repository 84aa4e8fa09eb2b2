from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from test_tables import scores

from experiments.config.statistics import ContrastConfig, StatisticsConfig
from experiments.results.contrasts import (
    NoPairError,
    all_contrasts,
    contrast_family,
    paired_contrast,
    primary_rows,
    verdict,
)
from experiments.results.findings import finding, primary_sentence
from experiments.results.statistics import holm


def pair(base, gain, *, name, baseline="real", condition="synthetic", **axes):
    first = scores(base, trial_id=f"{name}-0", condition=baseline, **axes)
    more = [d + g for d, g in zip(base, gain, strict=True)]
    return pd.concat([first, scores(more, trial_id=f"{name}-1", condition=condition, **axes)])


def contrast(rows, *, condition, baseline, **settings):
    own, base = (rows[rows["condition"] == name] for name in (condition, baseline))
    return SimpleNamespace(**paired_contrast(own, base, **settings))


def test_pairs_are_within_support_and_their_spread_is_reported():
    # The supports differ by 0.3, the gain within each is 0.01 and 0.03.
    rows = pd.concat(
        [
            pair([0.6, 0.6], [0.01, 0.01], name="s0", support=0),
            pair([0.9, 0.9], [0.03, 0.03], name="s1", support=1),
            scores([0.1, 0.1], trial_id="alone", condition="synthetic", support=2),
        ]
    )
    found = contrast(rows, condition="synthetic", baseline="real")
    assert found.mean == pytest.approx(0.02)
    assert (found.n_images, found.n_exams, found.n_supports, found.n_trials) == (2, 2, 2, 2)
    assert found.sd_trials == pytest.approx(0.02 / np.sqrt(2))
    with pytest.raises(NoPairError, match="scored under both"):
        contrast(rows, condition="weak", baseline="real")


def test_draws_generator_seeds_and_seeds_are_averaged_per_image():
    base = scores([0.5, 0.5], trial_id="r")
    made = [
        scores(
            [0.6, 0.5], trial_id=f"g{k}-{d}", condition="synthetic", generator_seed=k, draw=d
        ).assign(dice=lambda rows, k=k, d=d: rows["dice"] + 0.02 * k + 0.01 * d)
        for k in (0, 1)
        for d in (0, 1)
    ]
    found = contrast(pd.concat([base, *made]), condition="synthetic", baseline="real")
    # Means over the four: 0.6 + 0.015 and 0.5 + 0.015.
    assert found.mean == pytest.approx(0.065)
    assert (found.n_images, found.n_trials, found.n_supports) == (2, 1, 1)
    assert (found.low, found.high) == pytest.approx((0.015, 0.115))


def test_a_support_of_many_seeds_counts_once_and_the_level_is_the_intervals():
    gains = [(0, seed, [0.01, 0.03]) for seed in range(3)] + [(1, 0, [0.05, 0.07])]
    rows = pd.concat(
        [
            pair([0.5, 0.5], gain, name=f"{support}-{seed}", support=support, seed=seed)
            for support, seed, gain in gains
        ]
    )
    wide, narrow = (
        contrast(rows, condition="synthetic", baseline="real", level=level) for level in (0.95, 0.5)
    )
    assert (wide.mean, wide.n_trials, wide.n_supports) == (pytest.approx(0.04), 4, 2)
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low) > 0


def test_folds_pool_their_exams_and_pair_within_themselves():
    rows = []
    for fold, gain in enumerate(([0.1, 0.1], [0.3, 0.3])):
        part = pair([0.5, 0.5], gain, name=f"f{fold}", fold=fold)
        part["exam_id"] = f"{fold}" + part["exam_id"]
        part["sample_id"] = f"{fold}" + part["sample_id"]
        rows.append(part)
    frame = pd.concat(rows, ignore_index=True)
    found = contrast(frame, condition="synthetic", baseline="real")
    assert found.mean == pytest.approx(0.2)
    assert (found.n_images, found.n_exams, found.n_trials) == (4, 4, 1)
    crosswise = frame[frame["condition"].ne("real") | (frame["fold"] == 0)]
    assert contrast(crosswise, condition="synthetic", baseline="real").mean == pytest.approx(0.1)
    # An external cohort is every fold's: its images do not pair a fold with another one.
    same = frame.assign(exam_id=frame["exam_id"].str[1:], sample_id=frame["sample_id"].str[1:])
    found = contrast(same.loc[crosswise.index], condition="synthetic", baseline="real")
    assert (found.mean, found.n_images) == (pytest.approx(0.1), 2)


def test_trials_without_supports_pair_with_their_like_alone():
    unknown = {"support": np.nan, "seed": np.nan}
    rows = pair([0.5, 0.6], [0.1, 0.2], name="u", **unknown)
    found = contrast(rows, condition="synthetic", baseline="real")
    assert (found.mean, found.n_supports, found.n_trials) == (pytest.approx(0.15), 1, 1)
    numbered = rows.assign(support=rows["support"].mask(rows["condition"] == "real", 0))
    with pytest.raises(NoPairError):
        contrast(numbered, condition="synthetic", baseline="real")


PRIMARY = {"baseline": "strong", "condition": "synthetic_same_budget_strong"}
TWENTY = {"n_real": 20, "real_fraction": np.nan}


def family_rows():
    base = [0.80, 0.82, 0.84, 0.81, 0.83, 0.79]
    rows = []
    for support in (0, 1):
        axes = TWENTY | {"support": support}
        gain = [0.03, 0.02, 0.04, 0.03, 0.02, 0.04]
        rows.append(pair(base, gain, name=f"p{support}", **axes, **PRIMARY))
        rows.append(scores(base, trial_id=f"r{support}", condition="real", **axes))
    frame = pd.concat(rows, ignore_index=True)
    made = frame["condition"] == PRIMARY["condition"]
    # The error falls from 2.5 mm by 1.0 to 1.5 mm.
    fall = 1.0 + 0.1 * frame.groupby("trial_id").cumcount() + 0.05 * frame["support"]
    frame.loc[made, "hc_abs_err_mm"] -= fall[made]
    box = scores([0.9] * 6, trial_id="box", condition="box_only", n_real=0, real_fraction=np.nan)
    return pd.concat([frame, box], ignore_index=True)


def test_the_primary_contrast_leads_and_is_not_adjusted():
    table = contrast_family(family_rows(), statistics=StatisticsConfig())
    assert table["role"].tolist() == ["primary", "beside", "other", "other"]
    assert table["measure"].tolist() == ["hc_abs_err_mm", "dice", "dice", "dice"]
    assert table["condition"].tolist()[2:] == ["strong", PRIMARY["condition"]]
    assert set(table["n_family"]) == {3}
    first = table.iloc[0]
    assert first["mean"] == pytest.approx(-(1.25 + 0.025))
    assert first["p_holm"] == first["p"]
    assert verdict(first) == "lowered"
    assert table["p_holm"].tolist()[1:] == pytest.approx(list(holm(table["p"][1:])))
    off = StatisticsConfig(primary=ContrastConfig(enabled=False))
    assert not contrast_family(family_rows(), statistics=off)["role"].eq("primary").any()
    elsewhere = StatisticsConfig(primary=ContrastConfig(real_count=5))
    assert primary_rows(contrast_family(family_rows(), statistics=elsewhere)).empty
    assert contrast_family(family_rows().iloc[:0], statistics=off).empty


def test_a_fraction_names_the_amount():
    rows = family_rows()
    rows.loc[rows["n_real"] == 20, "real_fraction"] = 0.05
    chosen = ContrastConfig(real_count=None, real_fraction=0.05, measure="dice")
    found = primary_rows(contrast_family(rows, statistics=StatisticsConfig(primary=chosen)))
    assert found["measure"].tolist() == ["dice", "hc_abs_err_mm"]
    assert found["amount"].tolist() == ["5 %", "5 %"]
    assert primary_rows(contrast_family(rows, statistics=StatisticsConfig())).empty


def test_the_first_sentence_is_the_primary_contrast():
    settings = StatisticsConfig()
    primary = primary_rows(contrast_family(family_rows(), statistics=settings))
    text = primary_sentence(primary)
    assert text.startswith(
        "Primary contrast, on hc18, without a box (the whole image): with 20 real images, "
        "synthetic pairs on the same label budget, strongly augmented, lowered HC error by 1.3 mm "
        "against strong augmentation (95 % CI "
    )
    assert "6 exams, 2 supports). Beside it, not primary, it raised Dice by 3.0 points (" in text
    found = all_contrasts(family_rows(), statistics=settings)
    sentences = finding(found, results=no_results(), per_image=family_rows(), has_primary=True)
    assert sentences[0] == text
    assert sentences[1].startswith(
        "On hc18, without a box (the whole image): with 20 real images, "
    )
    single = primary_rows(contrast_family(family_rows().query("support == 0"), statistics=settings))
    assert "one support, so the interval is over exams alone" in primary_sentence(single)
    strict = StatisticsConfig(min_effect_mm=2.0)
    small = primary_sentence(primary_rows(contrast_family(family_rows(), statistics=strict)))
    assert "changed HC error by −1.3 mm against strong augmentation (" in small
    assert "): not shown: smaller than the minimum effect of 2.0 mm. Beside" in small
    assert "no difference" not in small
    assert primary_sentence(primary.iloc[:0]) == (
        "The recipe's primary contrast has no results: no pair of its trials is done, or "
        "none has the measure."
    )


def test_the_dice_of_the_primary_contrast_is_said_once():
    rows = family_rows().query("condition != 'real'")
    found = all_contrasts(rows, statistics=StatisticsConfig())
    assert found.family["role"].tolist() == ["primary", "beside"]
    said = finding(found, results=no_results(), per_image=rows, has_primary=True)
    assert "Beside it, not primary, it raised Dice by 3.0 points (" in said[0]
    assert [sentence.split()[0] for sentence in said[1:]] == ["So", "Between"]


def no_results():
    return pd.DataFrame({"status": [], "condition": [], "prompt": [], "trial_id": []})


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),
    [
        (0.02, 0.01, 0.03, "raised"),
        (-0.02, -0.03, -0.01, "lowered"),
        (0.02, 0.0, 0.04, "not shown"),
        (0.004, 0.001, 0.007, "not shown"),
        (-0.004, -0.007, -0.001, "not shown"),
        (0.02, np.nan, np.nan, "no interval"),
    ],
)
def test_verdict(mean, low, high, expected):
    row = pd.Series({"mean": mean, "low": low, "high": high, "min_effect": 0.005})
    assert verdict(row) == expected


def test_recipes_can_set_the_contrast():
    schema = OmegaConf.structured(StatisticsConfig)
    changed = OmegaConf.merge(
        schema, {"min_effect_mm": 1, "primary": {"real_count": None, "real_fraction": 0.05}}
    )
    made = OmegaConf.to_object(changed)
    assert made == StatisticsConfig(
        min_effect_mm=1.0, primary=ContrastConfig(real_count=None, real_fraction=0.05)
    )
    assert (made.min_effect("dice"), made.min_effect("hc_abs_err_mm")) == (0.005, 1.0)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (ContrastConfig, {"real_fraction": 0.1}, "one of real_count=20"),
        (ContrastConfig, {"real_count": None}, "one of real_count=None"),
        (ContrastConfig, {"real_count": 0}, "at least 1"),
        (ContrastConfig, {"real_count": None, "real_fraction": 5.0}, "at most 1"),
        (ContrastConfig, {"condition": "strong"}, "two conditions"),
        (StatisticsConfig, {"min_effect_dice": -0.1}, "min_effect_dice"),
        (StatisticsConfig, {"min_effect_mm": float("nan")}, "min_effect_mm"),
        (StatisticsConfig, {"bootstrap_samples": 10}, "bootstrap_samples"),
        (StatisticsConfig, {"level": 95.0}, "level"),
    ],
)
def test_wrong_settings_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_a_segmenter_without_the_common_baseline_has_one_of_its_own():
    dice = [0.80, 0.85, 0.82, 0.84, 0.83, 0.86]
    pairs = {"generator": "pixel", "pair_labels": "own", "n_generator_labels": 40}
    better = [0.83 + 0.001 * n for n in range(6)]
    per_image = pd.concat(
        [
            scores(dice, trial_id="a", segmenter="unet", condition="strong"),
            scores(
                better, trial_id="b", segmenter="unet", condition="synthetic_same_budget_strong",
                **pairs,
            ),
            scores(dice, trial_id="c", segmenter="sam", condition="real"),
            scores(better, trial_id="d", segmenter="sam", condition="strong"),
        ],
        ignore_index=True,
    )  # fmt: skip
    plain = StatisticsConfig(primary=ContrastConfig(enabled=False))
    found = contrast_family(per_image, statistics=plain)
    compared = found[["segmenter", "condition", "baseline", "base"]].to_numpy().tolist()
    assert ["unet", "synthetic_same_budget_strong", "strong", "strong"] in compared
    assert ["sam", "strong", "real", "real"] in compared
