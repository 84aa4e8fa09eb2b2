"""The box figure: its numbers by hand, its levels, and what it leaves out without data."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.results.figure_box import box_points, figure_box, table_box, write_box_outputs
from experiments.results.rows import read_csv
from experiments.results.statistics import cluster_bootstrap_ci
from experiments.store.columns import PER_IMAGE

JITTERS = (0, 5, 10, 20, 40, 80)
# Exam, trimester, Dice at jitter 0, ADF at jitter 0.
IMAGES = (("a", 1, 0.80, 4.0), ("a", 1, 0.84, 4.4), ("b", 2, 0.96, 1.0), ("c", 3, 0.92, 2.0))


def pass_rows(what, prompt, jitter, *, shift=0.0, draws=1):
    """One pass over the images; each further draw is a hundredth lower."""
    rows = []
    for number, (exam, trimester, dice, adf) in enumerate(IMAGES):
        for draw in range(draws):
            rows.append(
                {"what": what, "prompt": prompt, "jitter_px": jitter, "draw": draw}
                | {"sample_id": f"{exam}{number}", "exam_id": exam, "trimester": trimester}
                | {"dice": dice + shift - 0.01 * draw, "hc_abs_err_mm": adf - 10 * shift}
            )
    return rows


def box_rows():
    rows = []
    for k, jitter in enumerate(JITTERS):
        rows += pass_rows("model", "jittered_box", jitter, shift=-0.01 * k, draws=3)
        rows += pass_rows("ellipse", "jittered_box", jitter, shift=-0.03 * k - 0.02, draws=3)
    rows += pass_rows("model", "whole_image", None, shift=-0.06)
    rows += pass_rows("model", "predicted_box", None, shift=-0.05)
    rows += pass_rows("mean_mask", "whole_image", None, shift=-0.2)
    return pd.DataFrame(rows)


def one(points, **where):
    for name, value in where.items():
        points = points[points[name] == value]
    assert len(points) == 1
    return points.iloc[0]


def test_means_average_draws_first_and_intervals_resample_exams():
    points = box_points(box_rows())
    of_model = {"what": "model", "prompt": "jittered_box", "jitter_px": 20}
    row = one(points, trimester=0, measure="dice", **of_model)
    # Jitter 20 is the fourth: 0.03 off; the mean of three draws is 0.01 below the first.
    dice = [d - 0.04 for _, _, d, _ in IMAGES]
    assert row["value"] == pytest.approx(100 * np.mean(dice))
    low, high = cluster_bootstrap_ci(dice, ["a", "a", "b", "c"], seed=0)
    assert (row["low"], row["high"]) == pytest.approx((100 * low, 100 * high))
    assert (row["n_images"], row["n_exams"]) == (4, 3)
    first = one(points, what="ellipse", jitter_px=0, trimester=1, measure="hc_abs_err_mm")
    assert first["n_images"] == 2
    assert first["value"] == pytest.approx((4.2 + 4.6) / 2)
    assert math.isnan(first["low"])  # a single exam has no interval


def test_a_repeated_draw_is_no_further_image():
    rows = pd.DataFrame(pass_rows("model", "whole_image", None))
    twice = box_points(pd.concat([rows, rows.assign(draw=1)]))
    pd.testing.assert_frame_equal(box_points(rows), twice)


def test_panels_are_measures_by_trimesters_and_levels_read_no_reference():
    figure = figure_box(box_rows())
    assert len(figure.axes) == 8
    titles = [axis.get_title(loc="left") for axis in figure.axes[:4]]
    assert titles[0] == "all, 3 exams"
    assert titles[1:] == ["trimester 1, 1 exam", "trimester 2, 1 exam", "trimester 3, 1 exam"]
    axis = figure.axes[0]
    lines = {c.get_label(): c.lines[0] for c in axis.containers}
    model = lines["model, box from the reference"]
    assert model.get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
    base = 100 * np.mean([d for _, _, d, _ in IMAGES])
    assert model.get_ydata() == pytest.approx([base - 1 - k for k in range(6)])
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0", "5", "10", "20", "40", "80"]
    levels = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
    assert levels["model, whole image"] == pytest.approx([base - 6] * 2)
    assert levels["model, its own predicted box"] == pytest.approx([base - 5] * 2)
    assert levels["constant mean mask (no image)"] == pytest.approx([base - 20] * 2)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels)) == 5


def test_the_table_says_how_much_is_the_box():
    text = table_box(box_rows())
    # The model at 20: 88 - 4 = 84; the ellipse: 88 - 2 - 9 - 1 = 76; whole image: 88 - 6 = 82.
    assert "20 px 76.0 of 84.0 % (the image adds 8.0 points)" in text
    assert "has 82.0 %: the box from the reference is worth +2.0 points" in text
    assert "changes that by +1.0 points" in text
    # Model 87 - k, ellipse 85 - 3k.
    assert "the paper's): 0 px 85.0 of 87.0 % (the image adds 2.0 points); 5 px 82.0 of 86" in text
    assert "80 px 70.0 of 82.0 % (the image adds 12.0 points)." in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| model, box")]
    assert [row[1] for row in rows] == [str(jitter) for jitter in JITTERS]
    assert all(row[2].startswith(f"{87 - k:.1f} [") for k, row in enumerate(rows))
    assert rows[0][3] == "81.0"  # trimester 1: one exam, no interval
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_without_pixel_size_and_trimesters_there_is_one_panel():
    rows = box_rows().assign(hc_abs_err_mm=np.nan, trimester=None)
    figure = figure_box(rows)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["all, 3 exams"]
    assert "ADF" not in table_box(rows)
    assert table_box(rows.drop(columns="hc_abs_err_mm")) == table_box(rows)
    some = box_rows().query("trimester != 2")
    titles = [axis.get_title(loc="left") for axis in figure_box(some).axes[:3]]
    assert titles == ["all, 2 exams", "trimester 1, 1 exam", "trimester 3, 1 exam"]


def test_a_model_without_the_ellipse_gets_no_share():
    text = table_box(box_rows().query("what == 'model'"))
    assert "what the ellipse in the same box gives" not in text
    assert "worth +2.0 points" in text


def test_a_box_that_does_as_well_as_the_model_is_said_to():
    rows = pass_rows("model", "jittered_box", 0) + pass_rows("model", "jittered_box", 20)
    rows += pass_rows("ellipse", "jittered_box", 0, shift=0.02)
    rows += pass_rows("ellipse", "jittered_box", 20)
    text = table_box(pd.DataFrame(rows))
    assert "0 px 90.0 of 88.0 % (the box alone does better than the model, by 2.0 points);" in text
    assert "20 px 88.0 of 88.0 % (the box alone does as well as the model)." in text
    assert "the image adds" not in text
    better = pd.DataFrame(rows).assign(dice=lambda r: r["dice"] + 0.01 * (r["what"] == "ellipse"))
    assert "89.0 of 88.0 % (the box alone does better than the model, by 1.0" in table_box(better)


def test_nothing_scored_gives_no_point():
    assert box_points(box_rows().iloc[:0]).empty


def test_files_have_the_same_bytes_twice_also_from_csv(tmp_path):
    rows = box_rows()
    (tmp_path / "a").mkdir()
    write_box_outputs(rows, tmp_path / "a")
    # As the stage leaves it: the columns of every per-image file, and two more.
    full = rows.reindex(columns=[*PER_IMAGE, "what", "jitter_px"])
    full.to_csv(tmp_path / "per_image.csv", index=False)
    (tmp_path / "b").mkdir()
    write_box_outputs(read_csv(tmp_path / "per_image.csv"), tmp_path / "b")
    for name in ("figure_box.png", "figure_box.pdf", "table_box.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
