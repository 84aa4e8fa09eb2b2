"""The ledger: both sides shifted by the labels that their generators saw."""

import numpy as np
import pandas as pd
import pytest
from test_figures import FRACTIONS, curves, sweep, titles

from experiments.results.figure_ledger import (
    figure_ledger,
    paper_ledger,
    table_ledger,
    write_ledger,
)
from experiments.results.statistics import aggregate


def test_the_papers_synthesis_moves_by_sixty_labels_and_its_baseline_stays():
    rows = paper_ledger().set_index(["panel", "condition", "n_real"])
    assert len(rows) == 28
    assert rows.loc[("HC18->ES", "real", 50)][["n_total_labels", "dice"]].tolist() == [50, 94.8]
    moved = rows.loc[("HC18->ES", "synthetic", 5)]
    assert (moved["n_total_labels"], moved["n_generator_labels"]) == (65, 60)
    assert moved["dice"] == pytest.approx(94.7)
    assert rows.loc[("HC18->AF", "synthetic", 500), "n_total_labels"] == 560


def test_panels_hold_ours_by_total_labels_and_the_papers():
    results, per_image = sweep(FRACTIONS)
    figure = figure_ledger(results, per_image=per_image)
    left, right = figure.axes
    assert titles(figure)[0] == "ours: hc18, no box (whole image)"
    ours = curves(left)
    assert ours["real only"].get_xdata() == pytest.approx([45, 205, 805], rel=0.02)
    assert ours["+ synthetic"].get_xdata() == pytest.approx([105, 265, 865], rel=0.02)
    assert ours["+ synthetic"].get_ydata() == pytest.approx([83, 85, 87])
    theirs = curves(right)
    assert len(theirs) == 4
    made = theirs["+ synthetic, paper HC18 → ES"]
    assert made.get_xdata().tolist() == [65, 70, 80, 110, 160, 360, 560]
    assert made.get_ydata()[0] == pytest.approx(94.7)
    assert left.get_xscale() == right.get_xscale() == "log"


def test_unknown_totals_stand_in_the_table_and_not_in_the_figure():
    results, per_image = sweep(((np.nan, 5), (np.nan, 20)), prompts=("whole_image",))
    made = results["condition"] == "synthetic"
    results.loc[made, "n_total_labels"] = np.nan
    per_image.loc[per_image["condition"] == "synthetic", "n_total_labels"] = np.nan
    figure = figure_ledger(results, per_image=per_image)
    assert set(curves(figure.axes[0])) == {"real only"}
    note = "not drawn, total labels unknown: + synthetic"
    assert titles(figure)[0] == f"ours: hc18, no box (whole image); {note}"
    assert "| ours, hc18, no box (whole image) | + synthetic | unknown |" in table_ledger(results)


def test_equal_totals_stand_side_by_side_and_a_long_note_is_wrapped():
    _, per_image = sweep(((np.nan, 20),), prompts=("whole_image",))
    parts = []
    for name in ("real", "weak", "strong"):
        part = per_image[per_image["condition"] == "real"]
        parts.append(part.assign(condition=name, trial_id=name))
    for name in ("synthetic", "synthetic_no_gate", "synthetic_random_subset"):
        part = per_image[per_image["condition"] == "synthetic"]
        parts.append(part.assign(condition=name, trial_id=name, n_total_labels=np.nan))
    per_image = pd.concat(parts, ignore_index=True)
    figure = figure_ledger(aggregate(per_image), per_image=per_image)
    axis, paper = figure.axes
    places = {name: line.get_xdata().tolist() for name, line in curves(axis).items()}
    assert places == {"real only": [24], "weak augmentation": [25], "strong augmentation": [26]}
    figure.canvas.draw()
    ours = axis._left_title.get_window_extent()
    assert axis.get_title(loc="left").count("\n") == 2
    assert ours.x1 < paper._left_title.get_window_extent().x0


def test_the_table_compares_at_equal_labels(tmp_path):
    results, per_image = sweep(FRACTIONS)
    text = table_ledger(results, per_image)
    assert (
        "HC18 to ES: synthesis with 5 + 60 = 65 labels has 94.7 %; its baseline has 94.8 % with 50 "
        "and 95.7 % with 100." in text
    )
    assert "| paper, HC18 to AF | + synthetic | 65 | 94.4 |" in text
    assert "| ours, hc18, no box (whole image) | real only | 45 | 80.0 [" in text
    write_ledger(results, tmp_path, per_image=per_image)
    assert (tmp_path / "table_ledger.md").read_text() == text
    for name in ("figure_ledger.png", "figure_ledger.pdf"):
        assert (tmp_path / name).stat().st_size > 0


def test_nothing_done_still_shows_the_papers_side():
    results, per_image = sweep(FRACTIONS)
    figure = figure_ledger(results.assign(status="failed"), per_image=per_image)
    assert titles(figure)[0] == "ours: no trial has finished"
    assert len(curves(figure.axes[1])) == 4
