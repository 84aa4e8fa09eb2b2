"""A sweep's own table.tex: the best of an amount in bold, spreads after ±, controls apart."""

import pandas as pd
from test_tables import scores

from experiments.results.latex import to_latex
from experiments.results.statistics import aggregate
from experiments.results.tables import blocks


def table(*trials):
    """The block of one cohort and prompt."""
    rows = pd.concat(trials)
    (block,) = blocks(aggregate(rows), per_image=rows)
    return block


def bold(block, heading):
    """The bold cells of a column, by row number."""
    return block.best.index[block.best[heading]].tolist()


def condition(name, dice, *, n_real=40, support=0, **changes):
    trial = f"{name}-{n_real}-{support}"
    keys = {"condition": name, "n_real": n_real, "support": support, "real_fraction": None}
    return scores(dice, trial_id=trial, **keys, **changes)


def test_the_best_is_the_highest_dice_and_the_lowest_error_of_its_amount():
    block = table(
        condition("real", [0.80, 0.91], hc_abs_err_mm=4.0, hausdorff_mm=1.0),
        condition("strong", [0.90, 0.92], hc_abs_err_mm=3.0, hausdorff_mm=2.0),
        condition("real", [0.95, 0.97], n_real=100, hc_abs_err_mm=1.0, hausdorff_mm=0.5),
    )
    assert block.rows["condition"].tolist() == ["real only", "strong augmentation", "real only"]
    for heading, best in (
        ("weighted Dice %", [1]),
        ("Dice %", [1]),
        ("median %", [1]),
        ("Dice@256 %", [1]),
        ("share below 0.9", [1]),  # 0.50 against 0.00
        ("HC error mm", [1]),
        ("HC error p95 mm", [1]),
        ("HD mm", [0]),
    ):
        assert bold(block, heading) == best, heading
    # The larger amount has nothing to be compared with, and counts are no scores.
    assert not block.best.iloc[2].any()
    assert not block.best[["n real", "total labels", "exams", "trials", "95 % CI"]].any(axis=None)


def test_ties_as_printed_are_all_bold_and_controls_never_are():
    bare = {"n_val_labels": 0, "support": None, "n_real": 0}
    block = table(
        condition("real", [0.8000, 0.9000]),
        condition("strong", [0.8001, 0.9000]),
        condition("own", [0.7, 0.8]),
        condition("zero_shot", [0.99, 0.99], **bare),
    )
    assert bold(block, "Dice %") == [0, 1]
    assert bold(block, "HC error mm") == [0, 1, 2]
    assert block.rows["condition"].iloc[3] == "zero-shot backbone"
    text = to_latex([block], notes=[])
    assert text.count("\\textbf{85.0}") == 4  # the mean and the median of two rows
    assert "\\textbf{99.0}" not in text
    assert " 99.0 " in text


def test_the_spread_of_several_trials_follows_its_mean():
    block = table(
        condition("real", [0.80, 0.90], hc_abs_err_mm=2.0),
        condition("real", [0.84, 0.94], support=1, hc_abs_err_mm=3.0),
        condition("strong", [0.70, 0.80], hc_abs_err_mm=9.0),
    )
    # Means 0.85 and 0.89: half of the difference times the root of two, as of 2 and 3 mm.
    assert block.spreads["Dice %"].tolist() == ["2.8", ""]
    assert block.spreads["HC error mm"].tolist() == ["0.71", ""]
    assert block.spreads["median %"].tolist() == ["", ""]
    text = to_latex([block], notes=[])
    assert "\\textbf{87.0 $\\pm$ 2.8} &" in text
    assert "& 75.0 &" in text
    assert "\\textbf{2.50 $\\pm$ 0.71} &" in text
    header = next(line for line in text.splitlines() if "weighted \\%" in line)
    assert "SD" not in header
    assert "\\noindent $\\pm$: standard deviation over the trials of a row" in text
    assert "±" not in text


def test_a_failure_names_its_one_image():
    rows = pd.concat([condition("real", [0.8, 0.9], n_real=1), condition("strong", [0.8, 0.9])])
    results = aggregate(rows)
    failed = results["condition"] == "real"
    for n_real, words in ((1, "1 real image"), (2, "2 real images")):
        late = {"status": "failed", "reason": "out of memory", "n_real": n_real}
        made = blocks(results.assign(**late).where(failed, results, axis=0), per_image=rows)
        assert f"real only, {words}: failed: out of memory." in to_latex(made, notes=[])


def test_one_row_is_plain():
    text = to_latex([table(condition("real", [0.8, 0.9]))], notes=["As it is."])
    assert "textbf" not in text
    assert "pm" not in text
    assert text.endswith("\\noindent As it is.\\par\n\\end{table}\n")


def test_it_needs_no_package_that_its_first_line_does_not_name():
    text = to_latex([table(condition("real", [0.8, 0.9]))], notes=[])
    assert text.startswith("% Needs \\usepackage{booktabs,graphicx};")
    assert "S[" not in text


def test_size_and_notes_are_inside_the_float():
    one = table(condition("real", [0.8, 0.9]))
    text = to_latex([one, one], notes=["As it is."])
    # A float sets its own size, so a size before it is lost.
    assert "\\scriptsize" not in text[: text.index("\\begin{table}")]
    assert text.count("\\scriptsize") == text.count("\\resizebox{") == 2
    assert text.count("\\end{tabular}}\n") == 2
    assert text.index("As it is.") < text.rindex("\\end{table}")
    assert text.index("As it is.") > text.index("\\end{table}")


def test_short_headings_are_said_in_full():
    text = to_latex([table(condition("real", [0.8, 0.9]))], notes=[])
    assert "n: n real; gen.: generator labels; val.: validation labels;" in text
    assert "@256 \\%: Dice@256 \\%" in text
