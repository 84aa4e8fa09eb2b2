"""Several segmenters and generators: tables, figures, contrasts, cells by name; and old files."""

import numpy as np
import pandas as pd
import pytest
from results_parts import page_of
from test_figures import curves, titles
from test_tables import PIXEL, scores

from datamodules.errors import InputError
from experiments.config.statistics import ContrastConfig, StatisticsConfig
from experiments.results.axes import baseline_rows, each_series, shown_axes
from experiments.results.compact import compact_tables
from experiments.results.contrasts import all_contrasts, contrast_family, primary_rows
from experiments.results.explain import choose
from experiments.results.figure_ledger import figure_ledger
from experiments.results.figures import figure_amounts, figure_trimesters
from experiments.results.findings import finding
from experiments.results.latex import to_latex
from experiments.results.paper import compare_paper, table_paper
from experiments.results.report import difference_tables
from experiments.results.report_synthesis import gate_effect
from experiments.results.rows import KEYS, read_rows, with_defaults
from experiments.results.spreads import spread_table
from experiments.results.statistics import aggregate
from experiments.results.tables import blocks, footnotes
from experiments.results.text import to_markdown

BASE = [0.80, 0.82, 0.84, 0.81, 0.83, 0.79]
PLAIN = StatisticsConfig(primary=ContrastConfig(enabled=False), bootstrap_samples=200)


def crossed(segmenters=("sam", "unet"), generators=("pixel",), amounts=(20, 40)):
    """Real and synthetic of each segmenter and generator; only the first takes a box.

    Each segmenter is 0.04 above the one before, and each generator's pairs give 0.01 more.
    """
    rows = []
    for k, segmenter in enumerate(segmenters):
        for prompt in ("whole_image", "jittered_box")[: 2 if k == 0 else 1]:
            for n_real in amounts:
                where = {"segmenter": segmenter, "prompt": prompt, "n_real": n_real}
                where |= {"real_fraction": np.nan}
                dice = [d + 0.04 * k for d in BASE]
                name = f"{segmenter}-{n_real}"
                rows.append(scores(dice, trial_id=f"real-{name}", **where))
                for j, generator in enumerate(generators):
                    made = PIXEL | {"condition": "synthetic", "generator": generator}
                    made |= {"n_generator_labels": 60}
                    gain = [0.01 * (j + 1), 0.02 * (j + 1)] * 3
                    better = [d + g for d, g in zip(dice, gain, strict=True)]
                    rows.append(scores(better, trial_id=f"{generator}-{name}", **where, **made))
    bare = {"real_fraction": np.nan, "n_real": 0, "n_val_labels": 0, "support": np.nan}
    level = {"condition": "mean_mask", "segmenter": ""}
    rows.append(scores([0.5] * 6, trial_id="mask", **bare, **level))
    per_image = pd.concat(rows, ignore_index=True)
    return aggregate(per_image), per_image


def test_rows_go_by_amount_segmenter_condition_and_the_best_is_over_all():
    results, per_image = crossed()
    whole, jittered = blocks(results, per_image=per_image)
    assert whole.title == "hc18, no box (whole image)"
    assert jittered.title == "hc18, jittered-box prompt"
    assert whole.rows[["n real", "segmenter", "condition"]].to_numpy().tolist() == [
        ["20", "sam", "real only"],
        ["20", "sam", "+ synthetic"],
        ["20", "unet", "real only"],
        ["20", "unet", "+ synthetic"],
        ["40", "sam", "real only"],
        ["40", "sam", "+ synthetic"],
        ["40", "unet", "real only"],
        ["40", "unet", "+ synthetic"],
        ["", "", "constant mean mask"],
    ]
    assert whole.best.index[whole.best["Dice %"]].tolist() == [3, 7]
    assert "generator" not in whole.rows
    assert whole.rows["Dice %"].tolist()[:3] == ["81.5", "83.0", "85.5"]
    assert "| real only | unet | – | 20 |" in to_markdown([whole], notes=[])
    assert "real only & unet &  & 20 &" in to_latex([whole], notes=[])
    page = page_of(results, per_image, statistics=PLAIN)
    assert '<th scope="col">segmenter</th>' in page
    assert "Segmenters on the same real images" in page
    text = spread_table(per_image)
    assert text["segmenter"].tolist().count("unet") == 4


def test_a_column_of_generators_where_there_are_several():
    results, per_image = crossed(segmenters=("sam",), generators=("pixel", "stable"))
    assert shown_axes(results) == ["generator"]
    whole, _ = blocks(results, per_image=per_image)
    assert whole.title == "hc18, no box (whole image)"
    assert whole.rows["generator"].tolist() == ["", "pixel", "stable"] * 2 + [""]
    assert "segmenter" not in whole.rows
    text = compact_tables(results, measure="dice", format_name="markdown")
    assert "| condition | generator | 20 images | 40 images |" in text
    assert "| + synthetic | stable | **84.5** | **84.5** |" in text
    assert text.index("+ synthetic | stable") < text.index("constant mean mask")


def test_compact_tables_have_a_row_a_segmenter():
    results, _ = crossed()
    latex = compact_tables(results, measure="dice", format_name="latex")
    assert "condition & segmenter & 20 images & 40 images \\\\" in latex
    assert "+ synthetic & unet & \\textbf{87.0} & \\textbf{87.0} \\\\" in latex
    plain = compact_tables(results, measure="dice", format_name="csv").splitlines()
    assert plain[0] == "test_cohort,prompt,measure,condition,segmenter,20 images,40 images"


def test_two_segmenters_share_a_panel_by_line_and_three_have_a_row_each():
    results, per_image = crossed()
    whole, _ = figure_amounts(results, per_image=per_image).axes
    lines = curves(whole)
    assert list(lines) == [
        "real only, sam",
        "+ synthetic, sam",
        "real only, unet",
        "+ synthetic, unet",
    ]
    assert [line.get_linestyle() for line in lines.values()] == ["-", "-", "--", "--"]
    assert lines["real only, unet"].get_ydata() == pytest.approx([85.5, 85.5])
    results, per_image = crossed(segmenters=("sam", "unet", "sam_lora"))
    figure = figure_amounts(results, per_image=per_image)
    assert titles(figure)[::2] == [
        f"{name}, no box (whole image); constant mean mask 50.0"
        for name in ("sam", "unet", "sam_lora")
    ]
    assert titles(figure)[3] == "unet, jittered-box prompt, not scored"
    assert set(curves(figure.axes[2])) == {"real only", "+ synthetic"}


def test_generators_differ_by_the_fill_of_their_marks():
    results, per_image = crossed(segmenters=("sam",), generators=("pixel", "stable"))
    axis = figure_amounts(results, per_image=per_image).axes[0]
    marks = [curves(axis)[f"+ synthetic, {name}"] for name in ("pixel", "stable")]
    assert [mark.get_markerfacecolor() for mark in marks] == [marks[0].get_color(), "white"]
    assert marks[0].get_markersize() < marks[1].get_markersize()


def test_trimesters_and_the_ledger_tell_segmenters_apart():
    results, per_image = crossed()
    figure = figure_trimesters(per_image, prompt="whole_image", test_cohort="hc18")
    assert titles(figure)[0] == "sam, 20 real images, no box (whole image)"
    assert titles(figure)[3] == "unet, 40 real images, no box (whole image)"
    assert curves(figure.axes[2])["real only"].get_ydata()[0] == pytest.approx(84)  # exam a
    ours = curves(figure_ledger(results, per_image=per_image).axes[0])
    assert ours["+ synthetic, unet"].get_linestyle() == "--"
    assert len(ours) == 4


def test_comparisons_stay_within_a_segmenter_and_one_family_spans_all():
    _, per_image = crossed(generators=("pixel", "stable"))
    table = contrast_family(per_image, statistics=PLAIN)
    # Two amounts, the first segmenter under two prompts, two generators each.
    assert len(table) == 2 * 3 * 2
    assert set(table["n_family"]) == {12}
    by_generator = table.groupby("generator")["mean"].unique()
    assert by_generator["pixel"] == pytest.approx([0.015])
    assert by_generator["stable"] == pytest.approx([0.03])
    assert table["p_holm"].max() == pytest.approx(min(12 * table["p"].min(), 1), rel=0.5)


def test_a_baseline_shares_the_axes_that_it_depends_on():
    _, rows = crossed(generators=("pixel", "stable"))
    rows = with_defaults(rows[(rows["prompt"] == "whole_image") & (rows["n_real"] == 20)])
    for keys, _ in each_series(rows[rows["condition"] == "synthetic"]):
        real = baseline_rows(rows, keys, baseline="real")
        assert set(real["trial_id"]) == {f"real-{keys['segmenter']}-20"}
        same = baseline_rows(rows, keys, baseline="synthetic")
        assert set(same["generator"]) == {keys["generator"]}
    keys = {"segmenter": "unet", "condition": "real", "generator": "", "choice": "random"}
    assert set(baseline_rows(rows, keys, baseline="synthetic")["trial_id"]) == {"pixel-unet-20"}


def test_the_primary_contrast_is_of_the_first_segmenter():
    _, per_image = crossed(generators=("pixel", "stable"))
    chosen = ContrastConfig(condition="synthetic", baseline="real", measure="dice")
    family = contrast_family(per_image, statistics=StatisticsConfig(primary=chosen))
    first = primary_rows(family).iloc[0]
    assert (first["segmenter"], first["generator"]) == ("sam", "pixel")
    assert first["mean"] == pytest.approx(0.015)


def test_findings_name_the_segmenter_and_say_which_is_ahead():
    results, per_image = crossed()

    def sentences_of(results, per_image):
        found = all_contrasts(per_image, statistics=PLAIN)
        return finding(found, results=results, per_image=per_image)

    sentences = sentences_of(results, per_image)
    assert sentences[0] == (
        "On hc18, without a box (the whole image), with 40 real images and real pairs alone: "
        "segmenter unet instead of sam raised Dice by 4.0 points (95 % CI 4.0 to 4.0, 6 exams)."
    )
    assert sentences[1].startswith(
        "On hc18, without a box (the whole image): with 20 real images and segmenter sam, "
        "synthetic pairs (their generator saw 60 labelled images more) raised Dice by 1.5 points ("
    )
    assert sentences[2].startswith("With 20 real images and segmenter unet, synthetic pairs (")
    results, per_image = crossed(segmenters=("unet", "sam"))
    is_sam = per_image["segmenter"] == "sam"
    per_image.loc[is_sam, "dice"] -= 0.06
    first = sentences_of(results, per_image)[0]
    assert "segmenter sam instead of unet lowered Dice by 2.0 points (95 % CI −2.0 to −2.0" in first
    per_image.loc[is_sam, "dice"] += [0.0, 0.05] * (is_sam.sum() // 2)
    first = sentences_of(results, per_image)[0]
    assert "segmenter sam instead of unet changed Dice by +0.5 points (" in first
    assert first.endswith("not shown.")


def test_several_segmenters_are_a_family_of_their_own():
    _, per_image = crossed(segmenters=("unet", "sam", "sam_lora"))
    off = np.where(per_image["segmenter"] == "sam", [0.0, 0.05] * (len(per_image) // 2), 0.0)
    found = all_contrasts(per_image.assign(dice=per_image["dice"] - off), statistics=PLAIN)
    table = found.segmenters.set_index("segmenter")
    assert table.index.tolist() == ["sam", "sam_lora"]
    sam = table.loc["sam"]
    assert (sam["n_family"], sam["p_holm"]) == (2, pytest.approx(max(table["p"])))
    assert table["p_holm"].min() == pytest.approx(2 * table["p"].min())
    shown = difference_tables(found)["Segmenters on the same real images, at the largest amount "
                                     "that both have"]  # fmt: skip
    assert shown[0]["adjusted p"] == f"{sam['p_holm']:.3f}"


def test_a_cell_of_several_segmenters_is_named_with_its_own():
    results, _ = crossed(generators=("pixel", "stable"))
    found = choose(results, "hc18/whole_image/20/unet/synthetic/stable")
    assert found["trial_id"].tolist() == ["stable-unet-20"]
    assert choose(results, "hc18/whole_image/20/unet/real")["trial_id"].tolist() == ["real-unet-20"]
    assert len(choose(results, "hc18/whole_image/20/*/synthetic/*")) == 4
    # Under the box there is one segmenter.
    assert choose(results, "hc18/jittered_box/20/real")["trial_id"].tolist() == ["real-sam-20"]
    with pytest.raises(InputError, match="by segmenter; end it with one of sam/real, unet/real"):
        choose(results, "hc18/whole_image/20/real")
    with pytest.raises(InputError, match="by generator; end it with one of sam/synthetic/pixel"):
        choose(results, "hc18/whole_image/20/sam/synthetic")
    with pytest.raises(InputError, match="no segmenter une; did you mean unet"):
        choose(results, "hc18/whole_image/20/une/real")
    with pytest.raises(InputError, match=r"no amount 21; (did you mean|use one of) 20(, \d+)*\??$"):
        choose(results, "hc18/whole_image/21/unet/real")
    assert len(choose(results, "hc18/whole_image/20 images/unet/real")) == 1


def test_a_cell_of_several_choices_is_named_with_its_own():
    results, _ = crossed(segmenters=("sam",))
    other = results.assign(choice="coverage", trial_id="coverage-" + results["trial_id"])
    both = pd.concat([results, other], ignore_index=True)
    found = choose(both, "hc18/whole_image/20/real/coverage")
    assert found["trial_id"].tolist() == ["coverage-real-sam-20"]
    found = choose(both, "hc18/whole_image/20/sam/synthetic/pixel/random")
    assert found["trial_id"].tolist() == ["pixel-sam-20"]
    with pytest.raises(InputError, match="by choice; end it with one of sam/real/random, sam/real"):
        choose(both, "hc18/whole_image/20/real")


def test_the_papers_row_stands_once_beside_each_of_ours():
    lora = {
        "segmenter": "sam_lora",
        "prompt": "jittered_box",
        "real_fraction": np.nan,
        "n_real": 20,
    }
    _, per_image = crossed()
    per_image = pd.concat([per_image, scores([0.9] * 6, trial_id="l", **lora)])
    compared = compare_paper(aggregate(per_image.assign(test_cohort="es")))
    markdown, _ = table_paper(compared)
    rows = [line for line in markdown.splitlines() if "ES | real only" in line]
    assert [line.split(" | ")[2] for line in rows] == ["paper", "ours, sam", "ours, sam_lora"]


def test_the_gate_is_compared_within_a_segmenter():
    results, per_image = crossed()
    off = per_image[per_image["condition"] == "synthetic"]
    off = off.assign(condition="synthetic_no_gate", trial_id=off["trial_id"] + "-off")
    table = gate_effect(aggregate(pd.concat([per_image, off])).assign(n_synthetic=60))
    assert table["segmenter"].tolist().count("unet") == 4
    assert set(table["pairs from"]) == {"+ synthetic", "+ synthetic, no gate"}
    assert gate_effect(results.assign(n_synthetic=60)).empty
    # Folds weigh by their images: of 0.5 on one and 0.9 on three, 0.8.
    folds = [
        scores([dice] * n, trial_id=f"{name}-{fold}", condition=name, fold=fold, **PIXEL)
        for name in ("synthetic", "synthetic_no_gate")
        for fold, (dice, n) in enumerate(((0.5, 1), (0.9, 3)))
    ]
    table = gate_effect(aggregate(pd.concat(folds)).assign(n_synthetic=60))
    assert table["Dice %"].tolist() == ["80.0", "80.0"]
    assert table["trials"].tolist() == ["2", "2"]


def old_file(path):
    """A file of the version in which a U-Net was a condition."""
    rows = [scores([0.8, 0.9], trial_id="r"), scores([0.8, 0.9], trial_id="u", condition="unet")]
    labels = {"synthetic": 60, "synthetic_same_budget": 40, "real_resized": 60, "warp": 0}
    for name, count in (labels | {"box_only": 0}).items():
        rows.append(scores([0.8, 0.9], trial_id=name, condition=name, n_generator_labels=count))
    frame = aggregate(pd.concat(rows)).drop(columns=["segmenter", "generator", "pair_labels"])
    frame.assign(status="done").to_csv(path, index=False)
    return frame


def test_old_files_are_given_their_axes_and_it_is_said_once(tmp_path, capsys):
    old_file(tmp_path / "results.csv")
    for _ in range(2):
        rows = read_rows(tmp_path / "results.csv")
    assert rows[["condition", "segmenter", "generator", "pair_labels"]].to_numpy().tolist() == [
        ["real", "sam", "", ""],
        ["real", "unet", "", ""],
        ["synthetic", "sam", "pixel", "fixed"],
        ["synthetic_same_budget", "sam", "pixel", "own"],
        ["real_resized", "sam", "pixel", "fixed"],
        ["warp", "sam", "", ""],
        ["box_only", "", "", ""],
    ]
    assert set(KEYS) <= set(rows)
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert f"{tmp_path / 'results.csv'}: older file" in said.err
    assert said.out == ""
    assert footnotes(rows)


def test_pairs_of_an_old_file_that_name_no_label_are_of_no_generator(tmp_path):
    frame = old_file(tmp_path / "results.csv").assign(status="done", n_generator_labels=None)
    frame.to_csv(tmp_path / "results.csv", index=False)
    rows = read_rows(tmp_path / "results.csv")
    assert set(rows["generator"]) == {""}
    assert "fixed" in set(rows["pair_labels"])


def test_in_old_files_a_trial_that_is_not_done_stands_in_every_place(tmp_path):
    frame = old_file(tmp_path / "results.csv").assign(status="done")
    boxes = frame[:2].assign(prompt="jittered_box")
    failed = frame[:1].assign(trial_id="f", status="failed", test_cohort=None, prompt=None)
    both = pd.concat([frame, boxes, failed.assign(dice_mean=None)])
    both.to_csv(tmp_path / "results.csv", index=False)
    rows = read_rows(tmp_path / "results.csv")
    assert len(rows) == len(both) + 1
    found = rows[rows["trial_id"] == "f"]
    assert found["prompt"].tolist() == ["whole_image", "jittered_box"]
    assert found["status"].tolist() == ["failed"] * 2
    assert rows["dice_mean"].isna().sum() == 2
    titles = [block.notes for block in blocks(rows)]
    assert all(any("failed" in note for note in notes) for notes in titles)
    # A trial that is done was scored somewhere.
    both.assign(status="done").to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(InputError, match="test_cohort"):
        read_rows(tmp_path / "results.csv")
    # Where nothing is done, there is no place to put it.
    both[-1:].to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(InputError, match="test_cohort"):
        read_rows(tmp_path / "results.csv")


def test_a_file_that_names_no_condition_is_refused_in_a_line(tmp_path):
    frame = old_file(tmp_path / "results.csv")
    for name in ("condition", "trial_id"):
        frame.drop(columns=name).to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(InputError, match=rf"bad.csv: no column .*{name}") as refused:
            read_rows(tmp_path / "bad.csv")
        assert "\n" not in str(refused.value)


def test_an_old_file_with_a_word_for_a_number_is_refused_in_a_line(tmp_path):
    frame = old_file(tmp_path / "results.csv").assign(n_generator_labels="many", status="done")
    frame.to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(InputError, match="n_generator_labels of trial r is many, no number"):
        read_rows(tmp_path / "results.csv")


def test_folds_of_a_fraction_are_one_model_though_their_train_parts_differ_in_size():
    common = {"real_fraction": 0.1, "segmenter": "sam"}
    first, second = (
        scores(dice, trial_id=f"f{fold}", fold=fold, n_real=53 + fold, **common)
        for fold, dice in enumerate(([0.8] * 6, [0.9] * 6))
    )
    exams = second["exam_id"] + "x", second["sample_id"] + "x"
    per_image = pd.concat([first, second.assign(exam_id=exams[0], sample_id=exams[1])])
    text = compact_tables(aggregate(per_image), measure="dice", format_name="csv")
    assert text.splitlines()[-1].endswith(",85.0"), "no deviation between folds"
    figure = figure_trimesters(per_image, prompt="whole_image", test_cohort="hc18")
    assert [title.split(",")[0] for title in titles(figure)] == ["53 to 54 real images"]
    boxed = per_image.assign(prompt="jittered_box", test_cohort="es")
    ours = compare_paper(aggregate(boxed)).dropna(subset=["ours"])
    assert ours[["n_real", "n_trials"]].to_numpy().tolist() == [[53, 2]]


def test_labels_of_a_generator_that_differ_between_supports_are_a_range():
    made, rows = PIXEL | {"condition": "synthetic"}, []
    for support, n_total in enumerate((60, 76)):
        common = {"support": support, "n_real": 20}
        rows.append(scores(BASE, trial_id=f"real-{support}", **common))
        better = [dice + 0.02 for dice in BASE]
        rows.append(scores(better, trial_id=f"made-{support}", **common, **made))
        rows[-1]["n_total_labels"] = n_total
    per_image = pd.concat(rows).assign(real_fraction=np.nan, n_val_labels=0)
    found = all_contrasts(per_image, statistics=PLAIN)
    assert found.family[["n_more_least", "n_more_labels"]].to_numpy().tolist() == [[40, 56]]
    said = " ".join(finding(found, results=aggregate(per_image), per_image=per_image))
    assert "their generator saw 40 to 56 labelled images more" in said
