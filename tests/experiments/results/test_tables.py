import numpy as np
import pandas as pd
import pytest

from experiments.config.conditions import CONTROLS
from experiments.results.cells import cells
from experiments.results.latex import to_latex
from experiments.results.rows import KEYS as SHARED
from experiments.results.rows import read_rows
from experiments.results.statistics import (
    add_trials,
    aggregate,
    cluster_bootstrap_ci,
    weighted_dice,
)
from experiments.results.tables import blocks, footnotes
from experiments.results.text import to_markdown

KEYS = {
    "condition": "real",
    "segmenter": "sam",
    "generator": "",
    "pair_labels": "",
    "real_fraction": 0.1,
    "n_real": 40,
    "n_generator_labels": 0,
    "n_val_labels": 5,
    "support": 0,
    "seed": 0,
    "generator_seed": np.nan,
}


PIXEL = {"generator": "pixel", "pair_labels": "fixed"}
"""What pairs of a generator on a fixed number of labels add to a row's axes."""


def with_total(keys):
    """Add the total of labels: here the generator's images are never the row's own."""
    parts = ("n_real", "n_generator_labels", "n_val_labels")
    return keys | {"n_total_labels": sum(keys[part] for part in parts)}


def scores(dice, *, trial_id, prompt="whole_image", cohort="hc18", mm=2.5, **changes):
    """Rows of one trial: one image for each of the exams a, b, c..."""
    keys = KEYS | {"trial_id": trial_id, "test_cohort": cohort, "prompt": prompt, "draw": 0}
    return pd.DataFrame(
        [
            with_total(
                keys
                | {"sample_id": f"{exam}_HC", "exam_id": exam, "trimester": trimester}
                | {"dice": d, "dice_256": d - 0.01, "hausdorff_mm": mm}
                | {"hc_err_mm": -mm, "hc_abs_err_mm": mm}
                | changes
            )
            for exam, trimester, d in zip("abcdef", [1, 2, 3, 2, 2, 2], dice, strict=False)
        ]
    )


def sweep():
    """Two amounts, two conditions, two prompts, the control, one failed and one pending trial."""
    made = {"condition": "synthetic", "n_generator_labels": 60, "generator_seed": 0} | PIXEL
    box = {"condition": "box_only", "real_fraction": np.nan, "n_real": 0, "n_val_labels": 0}
    box |= {"segmenter": ""}
    rows, prompts = [], ("jittered_box", "whole_image")
    for prompt, shift in zip(prompts, (0.05, 0.0), strict=True):
        real = [0.80 + shift, 0.90 + shift, 0.70 + shift]
        rows.append(scores(real, trial_id="r1", prompt=prompt))
        better = [d + gain for d, gain in zip(real, [0.02, 0.03, 0.04], strict=True)]
        rows.append(scores(better, trial_id="s1", prompt=prompt, **made))
        many = {"real_fraction": 1.0, "n_real": 400}
        rows.append(scores([0.95, 0.96, 0.94], trial_id="r2", prompt=prompt, **many))
    rows.append(scores([0.88, 0.89, 0.87], trial_id="box", prompt="jittered_box", **box))
    per_image = pd.concat(rows, ignore_index=True)
    done = {"status": "done", "reason": "", "steps": 300}
    late = {"trial_id": "s2", "real_fraction": 1.0, "n_real": 400, "steps": 0} | made
    late |= {"status": "failed", "reason": "loss | NaN at step_7"}
    waiting = {"trial_id": "w", "status": "pending", "reason": "", "condition": "weak"}
    scored = aggregate(per_image)
    known = scored[[name for name in SHARED if name != "output"]].assign(**done)
    places = [{"test_cohort": "hc18", "prompt": prompt} for prompt in prompts]
    missed = [with_total(KEYS | trial | place) for trial in (late, waiting) for place in places]
    trials = pd.concat([known, pd.DataFrame(missed)], ignore_index=True)
    trials = trials.assign(seconds=10.0, peak_memory_mib=500.0)
    return add_trials(scored, trials=trials), per_image


def row_of(block, condition, real):
    rows = block.rows
    return rows[(rows["condition"] == condition) & (rows["real"] == real)].iloc[0]


def test_blocks_put_the_leak_free_prompt_first_and_the_control_where_a_box_is_given():
    results, per_image = sweep()
    made = blocks(results, per_image=per_image)
    assert [b.prompt for b in made] == ["whole_image", "jittered_box"]
    assert made[0].title == "hc18, no box (whole image)"
    assert made[0].rows["condition"].tolist() == [
        "real only",
        "weak augmentation",
        "+ synthetic",
        "real only",
        "+ synthetic",
    ]
    assert "box only (no image)" not in made[0].rows["condition"].tolist()
    assert made[1].rows["condition"].iloc[-1] == "box only (no image)"
    assert made[1].rows["Dice %"].iloc[-1] == "88.0"
    assert made[1].rows["total labels"].iloc[-1] == ""
    assert made[1].title == "hc18, jittered-box prompt"
    (lonely,) = blocks(results[results["condition"] == "box_only"], per_image=per_image)
    assert lonely.title == "hc18, jittered-box prompt, controls only"


def test_cells_show_the_numbers_of_the_trial():
    results, per_image = sweep()
    row = row_of(blocks(results, per_image=per_image)[0], "+ synthetic", "10 %")
    # Dice 0.82, 0.93, 0.74 of trimesters 1, 2, 3.
    assert row["Dice %"] == "83.0"
    assert row["median %"] == "82.0"
    assert row["share below 0.9"] == "0.67"
    weighted = (165 * 82 + 693 * 93 + 141 * 74) / 999
    assert row["weighted Dice %"] == f"{weighted:.1f}" == "88.5"
    assert row.index[6] == "weighted Dice %"  # the first number after the labels
    assert row["Dice@256 %"] == "82.0"
    assert (row["HD mm"], row["HC error mm"]) == ("2.50", "2.50")
    assert (row["n real"], row["generator labels"], row["validation labels"]) == ("40", "60", "5")
    assert row["total labels"] == "105"
    low, high = cluster_bootstrap_ci([0.82, 0.93, 0.74], ["a", "b", "c"], seed=0)
    assert row["95 % CI"] == f"[{100 * low:.1f}, {100 * high:.1f}]"
    assert (row["exams"], row["trials"]) == ("3", "1")


def test_the_headline_has_its_interval_where_each_trimester_has_two_exams():
    rows = pd.concat([scores([0.8, 0.9, 0.7], trial_id="r")] * 2, ignore_index=True)
    rows.loc[3:, ["exam_id", "sample_id"]] = [["d", "d_1"], ["e", "e_1"], ["f", "f_1"]]
    rows.loc[3:, "dice"] += 0.02
    (block,) = blocks(aggregate(rows))
    found = weighted_dice(rows)
    low, high = found.low, found.high
    assert block.rows.loc[0, "weighted 95 % CI"] == f"[{100 * low:.1f}, {100 * high:.1f}]"
    (lonely,) = blocks(aggregate(rows.iloc[:3]))
    assert "weighted 95 % CI" not in lonely.rows.columns
    assert lonely.rows.loc[0, "weighted Dice %"] == "85.5"


def test_failed_and_pending_trials_stand_in_every_block_with_their_reason():
    results, per_image = sweep()
    for block in blocks(results, per_image=per_image):
        labels = block.rows[["condition", "real"]].itertuples(index=False, name=None)
        notes = dict(zip(labels, block.notes, strict=True))
        assert notes["+ synthetic", "100 %"] == "failed: loss | NaN at step_7"
        assert notes["weak augmentation", "10 %"] == "pending"
        assert notes["real only", "10 %"] == ""
        assert row_of(block, "+ synthetic", "100 %")["Dice %"] == ""
        assert row_of(block, "+ synthetic", "100 %")["n real"] == "400"


def test_a_sweep_in_which_everything_failed_still_has_its_table():
    failed = {"trial_id": "r", "status": "failed", "reason": "no space"}
    results = pd.DataFrame([with_total(KEYS | failed)])
    results = results.assign(test_cohort="hc18", prompt="whole_image", n_exams=np.nan)
    for name in ("dice_mean", "hc_abs_err_mm_mean"):
        results[name] = np.nan
    (block,) = blocks(results)
    assert block.title == "hc18, no box (whole image), no trial has finished"
    assert block.notes == ("failed: no space",)
    assert "failed: no space" in to_markdown([block], notes=footnotes(results))


def test_mm_columns_are_absent_without_a_pixel_size():
    rows = scores([0.8, 0.9], trial_id="r", cohort="es", mm=np.nan, real_fraction=np.nan)
    (block,) = blocks(aggregate(rows))
    assert not [name for name in block.rows.columns if name.endswith("mm")]
    assert "SD of trials" not in block.rows.columns
    assert block.rows.loc[0, "n real"] == "40"
    assert block.rows.loc[0, "real"] == ""
    assert not any("ADF" in note for note in footnotes(aggregate(rows)))


def test_several_trials_of_a_cell_are_averaged_with_their_spread():
    first = scores([0.80, 0.90, 0.70], trial_id="t0")
    second = scores([0.84, 0.94, 0.74], trial_id="t1", support=1, n_real=42)
    per_image = pd.concat([first, second])
    (cell,) = cells(aggregate(per_image), per_image=per_image).to_dict("records")
    assert cell["dice_mean"] == pytest.approx(0.82)
    assert cell["dice_sd"] == pytest.approx(0.04 / np.sqrt(2))
    assert cell["trial_ids"] == ("t0", "t1")
    # Three exams and two supports: the extreme resamples, the worst exam of the worse support.
    assert (cell["dice_low"], cell["dice_high"]) == pytest.approx((0.70, 0.94))
    assert (cell["n_supports"], cell["n_trials"]) == (2, 2)
    seeds = pd.concat([first, second.assign(support=0, seed=1)])
    (cell,) = cells(aggregate(seeds), per_image=seeds).to_dict("records")
    interval = cluster_bootstrap_ci([0.82, 0.92, 0.72], ["a", "b", "c"], seed=0)
    assert (cell["dice_low"], cell["dice_high"]) == pytest.approx(interval)  # exams alone
    assert cell["n_supports"] == 1
    (block,) = blocks(aggregate(per_image), per_image=per_image)
    assert block.rows.loc[0, "n real"] == "40–42"
    assert block.rows.loc[0, "SD of trials"] == "2.8"
    assert (block.rows.loc[0, "trials"], block.rows.loc[0, "supports"]) == ("2", "2")
    (bare,) = blocks(aggregate(per_image))
    assert bare.rows.loc[0, "95 % CI"] == ""  # not made up from the trials' own intervals


def test_different_label_budgets_are_different_rows():
    made = {"condition": "synthetic"} | PIXEL
    per_image = pd.concat(
        [
            scores([0.8, 0.9], trial_id="a", n_generator_labels=60, **made),
            scores([0.8, 0.9], trial_id="b", n_generator_labels=20, **made),
        ]
    )
    (block,) = blocks(aggregate(per_image))
    assert sorted(block.rows["total labels"]) == ["105", "65"]
    assert any("compare at equal total labels" in n for n in footnotes(aggregate(per_image)))


def test_absent_trimester_is_marked_and_explained():
    (block,) = blocks(aggregate(scores([0.8, 0.9], trial_id="r")))
    weighted = (165 * 80 + 693 * 90) / (165 + 693)
    assert block.rows.loc[0, "weighted Dice %"] == f"{weighted:.1f}*"
    notes = footnotes(aggregate(scores([0.8, 0.9], trial_id="r")))
    assert any(note.startswith("* A trimester") for note in notes)


def test_tables_survive_the_csv_files(tmp_path):
    results, per_image = sweep()
    short = scores([0.8, 0.9], trial_id="r9", cohort="es", mm=np.nan)
    results = pd.concat([results, aggregate(short)], ignore_index=True)
    results.to_csv(tmp_path / "results.csv", index=False)
    pd.concat([per_image, short]).to_csv(tmp_path / "per_image.csv", index=False)
    read = read_rows(tmp_path / "results.csv")
    images = read_rows(tmp_path / "per_image.csv")
    written = to_markdown(blocks(read, per_image=images), notes=footnotes(read))
    assert written == to_markdown(blocks(results, per_image=per_image), notes=footnotes(results))
    assert "\\*" in written  # the cohort es has no third trimester


def test_markdown_is_rectangular_and_escaped():
    results, per_image = sweep()
    text = to_markdown(blocks(results, per_image=per_image), notes=footnotes(results))
    table = [line for line in text.splitlines() if line.startswith("|")]
    header = table[0]
    assert "failed: loss \\| NaN at step_7" in text
    widths = {line.replace("\\|", "").count("|") for line in table}
    assert widths == {header.count("|")}
    assert "| + synthetic | 10 % | 40 | 60 | 5 | 105 | 88.5 | 83.0 | [" in text
    assert text.count("### ") == 2
    assert "no pixel read" in text


def test_latex_has_matching_columns_and_escapes():
    results, per_image = sweep()
    text = to_latex(blocks(results, per_image=per_image), notes=footnotes(results))
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 2
    assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == 2
    spec = text.split("\\begin{tabular}{")[1].split("}\n")[0]
    # Condition and amount, numbers, and the interval of Dice.
    assert spec.startswith("llrrrrrrl")
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert {line.replace("\\&", "").count("&") for line in rows} == {len(spec) - 1}
    assert set(spec) == {"l", "r"}
    assert "+ synthetic, 400 real images: failed: loss | NaN at step\\_7." in text
    assert text.count("step\\_7") == 1  # the reason is given once, below the tables
    assert text.count("& failed &") == 2
    assert "10 \\%" in text
    assert "& -- &" in text
    unescaped = [line for line in text.splitlines()[1:] if "%" in line.replace("\\%", "")]
    assert unescaped == []
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")


def folded(support=0):
    """One model of two folds: exams a, b, c at 0.8, 0.9, 0.7 and d at 0.5, n_real 40 and 41."""
    first = scores([0.8, 0.9, 0.7], trial_id=f"f0{support}", fold=0, support=support)
    second = scores([0.5], trial_id=f"f1{support}", fold=1, support=support, n_real=41)
    return pd.concat([first, second.assign(exam_id="d", sample_id="d_HC", hc_abs_err_mm=9.0)])


def test_folds_are_pooled_over_their_images():
    rows = folded()
    (cell,) = cells(aggregate(rows), per_image=rows).to_dict("records")
    assert cell["dice_mean"] == pytest.approx(2.9 / 4)  # not the mean of the folds' means
    assert cell["dice_median"] == pytest.approx(0.75)
    assert cell["hc_abs_err_mm_p95"] == pytest.approx(2.5 + 0.85 * 6.5)
    assert (cell["n_exams"], cell["n_folds"], cell["n_trials"]) == (4, 2, 2)
    assert cell["trial_dice"] == pytest.approx((2.9 / 4,))
    low, high = cluster_bootstrap_ci([0.8, 0.9, 0.7, 0.5], list("abcd"), seed=0)
    assert (cell["dice_low"], cell["dice_high"]) == pytest.approx((low, high))
    (bare,) = cells(aggregate(rows)).to_dict("records")
    assert np.isnan([bare["dice_mean"], bare["dice_low"], bare["n_exams"]]).all()
    assert any("over 2 folds" in note for note in footnotes(aggregate(rows)))
    two = pd.concat([rows, folded(support=1).assign(dice=lambda r: r["dice"] + 0.04)])
    (cell,) = cells(aggregate(two), per_image=two).to_dict("records")
    assert cell["dice_mean"] == pytest.approx(2.9 / 4 + 0.02)
    assert cell["dice_sd"] == pytest.approx(0.04 / np.sqrt(2))
    assert (cell["n_exams"], cell["n_supports"], cell["n_trials"]) == (4, 2, 4)


def test_supports_that_differ_by_a_label_stay_one_row_on_the_same_budget():
    own = {"condition": "synthetic_same_budget", "generator": "pixel", "pair_labels": "own"}
    rows = pd.concat(
        [
            scores([0.8, 0.9], trial_id="a", n_generator_labels=40, n_real=40, **own),
            scores([0.8, 0.9], trial_id="b", n_generator_labels=41, n_real=41, support=1, **own),
        ]
    )
    (block,) = blocks(aggregate(rows), per_image=rows)
    assert block.rows["n real"].tolist() == ["40–41"]


def test_controls_close_their_block_without_labels():
    rows = [scores([0.8, 0.9], trial_id="r"), scores([0.8, 0.9], trial_id="u", condition="own")]
    bare = {"n_real": 0, "n_val_labels": 0, "real_fraction": np.nan, "support": np.nan}
    for k, name in enumerate(CONTROLS):
        rows.append(scores([0.5 + k / 10] * 2, trial_id=name, condition=name, **bare))
    rows[3]["n_total_labels"] = 200  # the training masks behind the mean mask
    results = aggregate(pd.concat(rows))
    (block,) = blocks(results)
    assert block.rows["condition"].tolist() == [
        "real only",
        "own",
        "box only (no image)",
        "constant mean mask",
        "zero-shot backbone",
    ]
    assert block.rows["total labels"].tolist() == ["45", "45", "", "200", ""]
    assert block.rows["n real"].tolist() == ["40", "40", "", "", ""]
    assert block.rows["Dice %"].tolist()[2:] == ["50.0", "60.0", "70.0"]
    notes = " ".join(footnotes(results))
    assert "made into one for every image" in notes
    assert "not fitted on any image here" in notes


def test_images_without_a_prediction_stand_in_their_column():
    rows = scores([0.8, 0.0, 0.9], trial_id="r").assign(found=[True, False, True])
    (block,) = blocks(aggregate(rows))
    assert block.rows["not found"].tolist() == ["1"]
    assert any(note.startswith("not found:") for note in footnotes(aggregate(rows)))
    (old,) = blocks(aggregate(rows.drop(columns="found")))
    assert "not found" not in old.rows.columns


def test_an_infinite_distance_is_printed():
    rows = pd.concat(
        [
            scores([0.8, 0.9], trial_id="r"),
            scores([0.0, 0.9], trial_id="s", condition="synthetic", hausdorff_mm=np.inf),
        ]
    )
    made = blocks(aggregate(rows))
    assert made[0].rows["HD mm"].tolist() == ["2.50", "inf"]
    text = to_latex(made, notes=[])
    assert "& \\textbf{2.50} & " in text
    assert "& inf &" in text
    header = next(line for line in text.splitlines() if "HD mm" in line)
    place = [name.strip(" {}\\") for name in header.split("&")].index("HD mm")
    spec = text.split("\\begin{tabular}{")[1].split("}\n")[0]
    assert spec[place] == "r"


def test_the_notes_say_what_the_headings_mean():
    notes = " ".join(footnotes(aggregate(scores([0.8, 0.9], trial_id="r"))))
    for word in ("Support:", "Trial:", "Share below 0.9:", "p95:", "Dice@256:", "HD:"):
        assert word in notes
