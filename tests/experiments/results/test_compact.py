"""Compact tables, the words of table and figure, cells by name, and the paper's evaluation."""

import numpy as np
import pandas as pd
import pytest
from results_parts import ROW

from datamodules.allowed import one_of
from datamodules.errors import InputError
from experiments.commands.outputs import figure
from experiments.config.recipe import load_config
from experiments.results.compact import compact_tables
from experiments.results.deviations import deviations
from experiments.results.explain import choose
from experiments.results.measures import MEASURES
from experiments.results.paper import compare_paper


def row(condition, n_real, support, value):
    return ROW | {
        "trial_id": f"{condition}-{n_real}-{support}",
        "condition": condition,
        "n_real": n_real,
        "support": support,
        "generator_seed": 0,
        "n_exams": 9,
        "dice_trimester_weighted_mean": value,
    }


def table(rows, *, measure="dice_weighted", format_name="markdown"):
    return compact_tables(rows, measure=measure, format_name=format_name)


RESULTS = pd.DataFrame(
    [
        row("real", 5, 0, 0.80),
        row("real", 5, 1, 0.84),
        row("strong", 5, 0, 0.90),
        row("real", 20, 0, 0.92),
    ]
)


def test_cells_are_mean_and_deviation_and_the_best_is_bold():
    markdown = table(RESULTS)
    assert "| condition | 5 images | 20 images |" in markdown
    assert "| real only | 82.0 ± 2.8 | **92.0** |" in markdown  # SD of 80 and 84, n - 1
    assert "| strong augmentation | **90.0** | – |" in markdown
    latex = table(RESULTS, format_name="latex")
    assert "real only & 82.0 $\\pm$ 2.8 & \\textbf{92.0} \\\\" in latex
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 1
    plain = table(RESULTS, format_name="csv").splitlines()
    assert plain[0] == "test_cohort,prompt,measure,condition,5 images,20 images"
    assert plain[1] == "hc18,whole_image,trimester-weighted Dice %,real only,82.0 ± 2.8,92.0"


@pytest.mark.parametrize(
    ("measure", "column", "real", "strong"),
    [
        ("dice", "dice_mean", "82.0 ± 2.8", "**90.0**"),
        ("dice_256", "dice_256_mean", "82.0 ± 2.8", "**90.0**"),
        ("share_below_090", "dice_share_below_090", "**82.0 ± 2.8**", "90.0"),
        ("hc_abs_err_mm", "hc_abs_err_mm_mean", "**0.82 ± 0.03**", "0.90"),
        ("hausdorff_mm", "hausdorff_mm_mean", "**0.82 ± 0.03**", "0.90"),
    ],
)
def test_a_measures_word_its_unit_and_which_end_of_it_is_the_best(measure, column, real, strong):
    rows = RESULTS.rename(columns={"dice_trimester_weighted_mean": column})
    rows = rows.assign(**{name: 0.1 for name in MEASURES if name != column})
    markdown = table(rows, measure=measure)
    assert f"| real only | {real} | " in markdown
    assert f"| strong augmentation | {strong} | – |" in markdown


def test_a_cohort_without_trimesters_shows_its_plain_mean_and_says_so():
    known = RESULTS.assign(dice_mean=0.5)
    bare = known.assign(test_cohort="es", dice_trimester_weighted_mean=np.nan)
    bare["dice_mean"] = [0.70, 0.74, 0.80, 0.81]
    text = table(pd.concat([known, bare]))
    first, second = text.split("### es, ")
    assert "trimester-weighted Dice %, 9 exams" in first
    assert "| real only | 82.0 ± 2.8 | **92.0** |" in first
    assert second.startswith(
        "no box (whole image): Dice % (plain mean: no trimester is known), 9 exams"
    )
    assert "| real only | 72.0 ± 2.8 | **81.0** |" in second
    alone = table(bare, format_name="csv").splitlines()
    assert alone[2].startswith("es,whole_image,Dice % (plain mean: no trimester is known),strong")
    # Another measure is not replaced, and neither is nothing by nothing.
    for empty in (known.assign(hc_abs_err_mm_mean=np.nan), bare.assign(dice_mean=np.nan)):
        measure = "hc_abs_err_mm" if "hc_abs_err_mm_mean" in empty else "dice_weighted"
        with pytest.raises(InputError, match="choose another --measure"):
            compact_tables(empty, measure=measure, format_name="csv")


def test_sweeps_of_other_settings_are_not_averaged_into_one_cell():
    other = RESULTS.iloc[[1]].assign(trial_id="real-5-1-more-steps")
    both = pd.concat([RESULTS, other])
    with pytest.raises(InputError, match="real-5-1 and real-5-1-more-steps: one cell"):
        table(both)
    # Controls have no support; folds of one model are no second setting.
    level = RESULTS.iloc[[0]].assign(trial_id="z", condition="zero_shot", n_real=0, support=np.nan)
    with pytest.raises(InputError, match="z and z2"):
        compact_tables(
            pd.concat([level, level.assign(trial_id="z2")]),
            measure="dice_weighted",
            format_name="csv",
        )
    folds = RESULTS.iloc[[1]].assign(trial_id="real-5-1-f1", fold=1)
    text = table(pd.concat([RESULTS, folds]))
    assert "| real only | 82.0 ± 2.8 |" in text


FOLDS = pd.DataFrame(
    [
        row("real", 5, support, value)
        | {"trial_id": f"real-{support}-{fold}", "fold": fold, "n_exams": 30, "n_images": n_images}
        | {"test_images": f"images of fold {fold}", "dice_256_mean": value}
        for support in range(3)
        for fold, n_images, value in ((0, 50, 0.71), (1, 100, 0.95 + 0.03 * support))
    ]
)


def test_folds_weigh_by_their_images_and_their_exams_add_up():
    text = table(FOLDS)
    # (50 x 71 + 100 x 95) / 150 = 87.0, and 89.0 and 91.0.
    assert "| real only | **89.0 ± 2.0** |" in text
    assert "trimester-weighted Dice %, 60 exams" in text
    assert "over 3 models a cell (supports and seeds)" in text
    # The folds of another cohort test the same images.
    same = FOLDS.assign(test_images="all", test_cohort="es", prompt="jittered_box")
    text = table(same)
    assert "trimester-weighted Dice %, 30 exams" in text
    found = compare_paper(FOLDS.assign(test_cohort="es", prompt="jittered_box"))
    ours = found.dropna(subset=["ours"]).iloc[0]
    assert ours["ours"] == pytest.approx(89.0)
    assert (ours["n_exams"], ours["n_trials"], ours["n_real"]) == (60, 6, 5)


def test_a_fold_without_the_measure_does_not_count():
    rows = FOLDS.assign(dice_trimester_weighted_mean=[0.71, np.nan, 0.71, 0.98, 0.71, np.nan])
    text = table(rows, format_name="csv")
    # 71.0 twice, and (50 x 71 + 100 x 98) / 150.
    assert text.splitlines()[-1].endswith(",77.0 ± 10.4")


def test_one_is_written_as_one():
    rows = pd.concat([RESULTS.assign(n_exams=1), RESULTS.head(1).assign(status="failed")])
    text = table(rows.drop(1))
    assert "trimester-weighted Dice %, 1 exam\n" in text
    assert "over 1 model a cell" in text
    assert "Left out, as failed or not done: 1 trial." in text


def test_a_support_of_many_seeds_counts_once_in_a_cell():
    seeds = [row("real", 5, 0, 0.95) | {"trial_id": f"s{seed}", "seed": seed} for seed in range(3)]
    rows = pd.DataFrame([*seeds, row("real", 5, 1, 0.80)])
    text = table(rows, format_name="csv")
    assert text.splitlines()[-1].endswith(",87.5 ± 7.5")


def test_a_cell_is_found_and_a_wrong_part_names_the_nearest():
    assert list(choose(RESULTS, "hc18/*/5/real")["support"]) == [0, 1]
    for cell, word in (
        ("hc18/whole_image/5/stron", "did you mean strong"),
        ("hc18/whole_image/7/real", "use one of 5, 20"),
        ("hc18/real", "expected COHORT"),
    ):
        with pytest.raises(InputError, match=word):
            choose(RESULTS, cell)


def test_wrong_words_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean paper"):
        one_of("papre", ("fractions", "paper"), option="--kind")
    with pytest.raises(InputError, match="add it, or set compat=paper"):
        figure(["hc18_ablation"], kind="paper")
    with pytest.raises(InputError, match="did you mean dice"):
        compact_tables(RESULTS, measure="dise", format_name="csv")


def test_compat_sets_the_papers_evaluation_and_refuses_another():
    config = load_config("paper_curve", ["compat=paper"])
    assert (config.evaluation.prompts, config.evaluation.jitter_draws) == (["jittered_box"], 5)
    assert config.segmenter == load_config("paper_curve", []).segmenter
    with pytest.raises(InputError, match=r"evaluation\.jitter_draws=3: compat=paper"):
        load_config("paper_curve", ["compat=paper", "evaluation.jitter_draws=3"])


def test_deviations_follow_the_config():
    notes = " ".join(deviations(load_config("paper_curve", ["segmenter.steps=77"])))
    assert "Training: ours is 77 steps of batch 4" in notes
    assert "SAM ViT-B" in notes
    assert "64x96" in notes
    real = load_config("paper_curve", ["sweep.condition=[real]"])
    assert "Generator" not in " ".join(deviations(real))


def test_deviations_are_those_of_the_segmenter_that_is_swept():
    theirs = {"epochs": 20, "batch_size": 5, "learning_rate": 1e-5, "warmup_steps": 0}
    words = [f"segmenters.mine.{name}={value}" for name, value in theirs.items()]
    words += ["segmenters.mine.kind=sam", "segmenters.mine.lr_schedule=constant"]
    text = " ".join(deviations(load_config("paper_curve", [*words, "sweep.segmenter=[mine]"])))
    assert "Training: ours" not in text
    assert "Learning rate: ours" not in text


def test_an_optimiser_and_an_output_like_the_papers_are_no_deviation():
    words = ["segmenter.weight_decay=0.1"]
    ours = " ".join(deviations(load_config("paper_curve", words)))
    assert "Optimiser: ours is AdamW; the paper's is Adam." in ours
    assert "Output that is scored: ours is the ellipse fitted to each mask; the paper's is" in ours
    words = ["segmenter.weight_decay=0", "evaluation.output=mask"]
    theirs = " ".join(deviations(load_config("paper_curve", words)))
    assert "Optimiser" not in theirs
    assert "Output that is scored" not in theirs


def test_pairs_of_others_pass_no_gate_and_fill_their_share_of_a_batch():
    words = ["synthesis.folder=/data/pairs", "segmenter.synthetic_share=0.25"]
    text = " ".join(deviations(load_config("paper_curve", words)))
    assert "whose maker saw an unknown number of labelled images" in text
    assert "Check of the pairs: ours is none; the paper's" in text
    assert "Synthetic part: ours is 25 % of each batch; the paper's" in text


def test_a_deviation_is_a_sentence_whose_number_fits_its_noun():
    ones = ["evaluation.jitter_draws=1", "split.test=1", "segmenter.steps=1"]
    ones += ["sweep.support=[0]", "sweep.seed=[0]", "data.test_cohorts=[/data/es]"]
    config = load_config("paper_curve", [*ones, "synthesis.generator_count=1"])
    notes = deviations(config)
    assert all(note.endswith(".") and "; the paper" in note for note in notes)
    text = " ".join(notes)
    for words in (
        "ours is 1 step of batch",
        "ours is 1 image, as whole exams, of the folder that is trained on, and all images of the "
        "external cohort es; the paper's is 597",
        "on 1 labelled image, of 500 candidates",
        "ours is an automatic gate; the paper's",
        "the mean over 1 box draw, the same",
        "ours is 1 model (1 support, 1 seed); the paper's is one model.",
    ):
        assert words in text
    more = ["sweep.support=[0,1]", "sweep.seed=[0,1,2]", "split.test=2", "gate.enabled=false"]
    text = " ".join(deviations(load_config("paper_curve", [*more, "evaluation.jitter_draws=2"])))
    assert "ours is 6 models (2 supports, 3 seeds)" in text
    assert "ours is 2 images, as whole" in text
    assert "ours is none" in text
    assert "2 box draws" in text


def test_a_block_of_controls_alone_says_so():
    level = RESULTS.iloc[[0]].assign(trial_id="box", condition="box_only", n_real=0, support=np.nan)
    both = pd.concat([RESULTS, level.assign(prompt="jittered_box")])
    markdown = table(both)
    assert "| condition | controls only |" in markdown
    assert "| box only (no image) | 80.0 |" in markdown
