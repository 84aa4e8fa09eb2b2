"""What choosing the labelled images buys: pairing by test image, supports unpaired."""

import numpy as np
import pandas as pd
import pytest
from results_parts import page_of
from scipy import stats
from test_tables import scores
from test_verdict import MAX_WORDS

from experiments.config.statistics import ContrastConfig, StatisticsConfig
from experiments.results.axes import shown_axes
from experiments.results.choosing import (
    choice_contrasts,
    choice_table,
    headline_contrasts,
    unpaired_contrast,
)
from experiments.results.contrasts import all_contrasts
from experiments.results.figures import curve_points
from experiments.results.findings import finding
from experiments.results.panels import series_style
from experiments.results.rows import read_rows, with_defaults
from experiments.results.statistics import aggregate, holm
from experiments.results.tables import blocks, footnotes
from experiments.results.verdict import verdict_sentences

STATISTICS = StatisticsConfig(primary=ContrastConfig(enabled=False), bootstrap_samples=200)
BASE = np.array([0.80, 0.85, 0.90, 0.70])


def trials(choice, *, gain, condition="real", n_real=20, n_supports=3, step=0.01):
    """Trials of one cell: support s scores `BASE + gain`, moved by `step` around their mean."""
    middle = (n_supports - 1) / 2
    return [
        scores(
            BASE + gain + step * (support - middle),
            trial_id=f"{condition}-{choice}-{n_real}-{support}",
            choice=choice,
            condition=condition,
            n_real=n_real,
            real_fraction=np.nan,
            support=support,
        )
        for support in range(n_supports)
    ]


@pytest.fixture(scope="module")
def per_image():
    parts = []
    for condition, more in (("real", 0.0), ("strong", 0.03)):
        for n_real in (5, 20):
            parts += trials("random", gain=more, condition=condition, n_real=n_real)
            gain = more + 0.05
            parts += trials("by_size", gain=gain, condition=condition, n_real=n_real, n_supports=2)
    return pd.concat(parts, ignore_index=True)


def test_unpaired_supports_by_hand():
    # Differences by exam 0.02, 0.04, 0.06; supports of the first side -1, 1 and of the second -3,
    # 3 hundredths around their means: variances 0.0002 / 2 and 0.0018 / 2, of the exams 0.0004 / 3.
    def side(dice, step, choice):
        parts = [scores(np.array(dice) + sign * step, trial_id=f"{choice}{sign}", choice=choice,
                        support=sign) for sign in (-1, 1)]  # fmt: skip
        return with_defaults(pd.concat(parts))

    found = unpaired_contrast(
        side([0.82, 0.84, 0.86], 0.01, "coverage"), side([0.8, 0.8, 0.8], 0.03, "random")
    )
    exams = 0.0004 / 3
    error = np.sqrt(exams + 0.0001 + 0.0009)
    degrees = error**4 / (exams**2 / 2 + 0.0001**2 + 0.0009**2)
    reach = stats.t.ppf(0.975, degrees) * error
    assert found["mean"] == pytest.approx(0.04)
    assert (found["low"], found["high"]) == pytest.approx((0.04 - reach, 0.04 + reach))
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.04 / error, degrees))
    assert (found["n_images"], found["n_exams"], found["n_supports"]) == (3, 3, 2)


def test_a_support_counts_once_however_many_seeds_it_has():
    parts = [
        scores([dice + step, dice - step], trial_id=f"{choice}-{support}-{seed}", choice=choice,
               support=support, seed=seed, real_fraction=np.nan, n_real=20)
        for choice, step, levels in (("random", 0, (0.7, 0.7)), ("coverage", 0.02, (0.9, 0.8)))
        for support, (dice, n_seeds) in enumerate(zip(levels, (3, 1), strict=True))
        for seed in range(n_seeds)
    ]  # fmt: skip
    rows = with_defaults(pd.concat(parts, ignore_index=True))
    found = choice_contrasts(rows, statistics=STATISTICS).iloc[0]
    assert found["mean"] == pytest.approx(0.85 - 0.7)
    # Exams 0.17 and 0.13, supports 0.9 and 0.8: variances 0.0008 / 2 and 0.005 / 2.
    error, degrees = np.sqrt(0.0029), 0.0029**2 / (0.0004**2 + 0.0025**2)
    reach = stats.t.ppf(0.975, degrees) * error
    assert found["high"] - found["mean"] == pytest.approx(reach)
    _, table = choice_table(rows, pd.DataFrame([found]), shown=["choice"])
    assert table["20 images"].tolist()[1].startswith("85.0 (+15.0 [")


def test_without_an_interval_a_difference_has_no_bracket():
    rows = with_defaults(pd.concat(
        [scores([dice], trial_id=choice, choice=choice, real_fraction=np.nan, n_real=20)
         for choice, dice in (("random", 0.885), ("coverage", 0.905))]
    ))  # fmt: skip
    found = choice_contrasts(rows, statistics=STATISTICS)
    _, table = choice_table(rows, found, shown=["choice"])
    assert table["20 images"].tolist() == ["88.5", "90.5 (+2.0)"]


def test_one_support_is_judged_over_exams_alone():
    sides = [with_defaults(pd.concat(trials(c, gain=g, n_supports=1)))
             for c, g in (("coverage", 0.02), ("random", 0))]  # fmt: skip
    found = unpaired_contrast(*sides)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.02, 0.02, 0.02))
    assert found["n_supports"] == 1


UNEVEN = np.array([0.01, 0.02, 0.05, 0.04])
"""What a choice gains in each exam."""


def two_sides(n_supports):
    gains = (("coverage", UNEVEN), ("random", 0))
    return [
        with_defaults(pd.concat(trials(choice, gain=gain, n_supports=n), ignore_index=True))
        for (choice, gain), n in zip(gains, n_supports, strict=True)
    ]


@pytest.mark.parametrize("n_supports", [(1, 1), (1, 3), (3, 3)])
def test_an_interval_has_the_level_that_is_asked_for(n_supports):
    sides = two_sides(n_supports)
    wide, narrow = (unpaired_contrast(*sides, level=level) for level in (0.95, 0.5))
    assert wide["mean"] == narrow["mean"] == pytest.approx(0.03)
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"]) > 0


def test_images_that_one_side_lacks_in_a_fold_move_nothing():
    own, base = two_sides((2, 3))
    first = own[own["support"] == 0].iloc[[0]].assign(dice=0.0)
    more = [first.assign(sample_id="other", exam_id="other"), first.assign(fold=1)]
    found = unpaired_contrast(pd.concat([own, *more]), base)
    assert found == pytest.approx(unpaired_contrast(own, base))
    assert found["n_supports"] == 2


def test_random_is_the_measure_wherever_it_stands_and_p_is_adjusted():
    parts = []
    for n_real in (5, 20):
        parts += trials("coverage", gain=UNEVEN - 0.005 * (n_real == 20), n_real=n_real)
        parts += trials("random", gain=0, n_real=n_real)
    found = choice_contrasts(pd.concat(parts, ignore_index=True), statistics=STATISTICS)
    assert set(found["against"]) == {"random"}
    assert found["p_holm"].tolist() == pytest.approx(list(holm(found["p"])))
    assert (found["p_holm"] > found["p"]).any()


def test_a_control_stands_in_no_table_of_choices(per_image):
    control = scores(BASE, trial_id="box", condition="box_only", segmenter="", choice="", n_real=0,
                     real_fraction=np.nan)  # fmt: skip
    found = choice_contrasts(per_image, statistics=STATISTICS)
    tables = [
        choice_table(rows, found, shown=["choice"])[1]
        for rows in (per_image, pd.concat([per_image, control], ignore_index=True))
    ]
    pd.testing.assert_frame_equal(*tables)


def test_each_choice_meets_random_at_the_same_condition_and_amount(per_image):
    found = choice_contrasts(per_image, statistics=STATISTICS)
    assert found[["condition", "n_real", "choice", "against"]].to_numpy().tolist() == [
        [condition, n, "by_size", "random"] for condition in ("real", "strong") for n in (5, 20)
    ]
    assert found["mean"].to_numpy() == pytest.approx(0.05)
    assert choice_contrasts(per_image[per_image["choice"] == "random"], statistics=STATISTICS).empty


def test_the_headline_is_the_first_condition_at_the_fewest_labels_by_the_recipes_threshold():
    parts = []
    for condition in ("strong", "real"):
        for n_real in (20, 5):
            parts += trials("random", gain=0, condition=condition, n_real=n_real)
            parts += trials("by_size", gain=UNEVEN, condition=condition, n_real=n_real)
    statistics = StatisticsConfig(min_effect_dice=0.02, level=0.9, bootstrap_samples=200)
    found = choice_contrasts(pd.concat(parts, ignore_index=True), statistics=statistics)
    assert len(found) == 4
    assert set(found["min_effect"]) == {0.02}
    assert set(found["level"]) == {0.9}
    (row,) = headline_contrasts(found).to_dict("records")
    assert (row["choice"], row["condition"], row["n_real"]) == ("by_size", "strong", 5)


def test_conditions_are_compared_within_a_choice(per_image):
    family = all_contrasts(per_image, statistics=STATISTICS).family
    assert len(family) == 4
    assert set(family["choice"]) == {"random", "by_size"}
    assert family["mean"].to_numpy() == pytest.approx(0.03)


def test_a_sweep_of_choices_alone_says_first_what_choosing_changed(per_image):
    real = per_image[per_image["condition"] == "real"]
    first, *others = verdict_sentences(all_contrasts(real, statistics=STATISTICS), aggregate(real))
    assert first.startswith("We compared labelling ")
    assert "with labelling random images: " in first
    assert all(len(sentence.split()) <= MAX_WORDS for sentence in (first, *others))
    assert others[0].startswith("Dice ")
    assert others[1].startswith("The 95 % interval")


def test_table_sentence_columns_and_lines_name_the_choice(per_image):
    found = all_contrasts(per_image, statistics=STATISTICS)
    results = aggregate(per_image, n_boot=200)
    shown = shown_axes(results)
    assert shown == ["choice"]
    title, table = choice_table(per_image, found.choices, shown=shown)
    assert title == "hc18, no box (whole image)"
    assert table["choice"].tolist() == ["random", "by size (oracle)"] * 2
    assert table.loc[0, "5 images"] == "81.2"
    assert table.loc[1, "5 images"].startswith("86.2 (+5.0 [")
    text = " ".join(finding(found, results=results, per_image=per_image))
    assert "with 5 real images" in text
    assert "an oracle) instead of random images raised Dice by 5.0 points" in text
    page = page_of(results, per_image, statistics=STATISTICS)
    assert "Which images were labelled" in page
    assert "86.2 (+5.0 [" in page
    (block,) = blocks(results, per_image=per_image)
    assert block.rows["choice"].tolist().count("by size (oracle)") == 4
    assert any(note.startswith("by size (oracle): ") for note in footnotes(results))
    points = curve_points(results, per_image=per_image)
    assert points.groupby(["condition", "choice"]).size().tolist() == [2] * 4
    order = {"segmenter": ["", "sam", "unet"], "generator": [""]}
    order |= {"choice": ["", "random", "by_size"]}
    keys = {"condition": "real", "generator": ""}
    lines = {
        series_style(keys | {"segmenter": s, "choice": c}, order=order)["linestyle"]
        for s in order["segmenter"][1:] for c in order["choice"][1:]
    }  # fmt: skip
    assert len(lines) == 4


def test_old_tables_were_drawn_at_random_and_controls_were_not(tmp_path):
    old = pd.concat(
        [scores(BASE, trial_id="a"), scores(BASE, trial_id="b", condition="box_only", segmenter="")]
    )
    old.to_csv(tmp_path / "per_image.csv", index=False)
    rows = read_rows(tmp_path / "per_image.csv")
    assert dict(zip(rows["trial_id"], rows["choice"], strict=True)) == {"a": "random", "b": ""}
    assert shown_axes(rows) == []
