import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from test_tables import PIXEL, scores

from experiments.config.conditions import CONTROLS, ROWS
from experiments.results.figure_style import condition_style, png_bytes, save_figure, spread
from experiments.results.figures import (
    curve_points,
    figure_amounts,
    figure_trimesters,
)
from experiments.results.paper import (
    compare_paper,
    figure_paper,
    paper_reference,
    table_paper,
    write_comparison,
)
from experiments.results.pictures import encode_png, overlay_contours
from experiments.results.statistics import aggregate, cluster_bootstrap_ci

BASE = [0.80, 0.90, 0.70]


def sweep(amounts, *, prompts=("jittered_box", "whole_image"), supports=(0,), cohort="hc18"):
    """Real and synthetic at each (fraction, count); Dice grows with the count's place."""
    rows = []
    for prompt in prompts:
        for k, (fraction, n_real) in enumerate(amounts):
            for support in supports:
                where = {"prompt": prompt, "cohort": cohort, "support": support}
                where |= {"real_fraction": fraction, "n_real": n_real}
                dice = [d + 0.02 * k + 0.01 * support for d in BASE]
                name = f"{n_real}-{support}"
                rows.append(scores(dice, trial_id=f"r{name}", **where))
                made = {"condition": "synthetic", "n_generator_labels": 60} | PIXEL
                more = [d + 0.03 for d in dice]
                rows.append(scores(more, trial_id=f"s{name}", **where, **made))
    box = {"condition": "box_only", "real_fraction": np.nan, "n_real": 0, "n_val_labels": 0}
    box |= {"segmenter": ""}
    rows.append(scores([0.88] * 3, trial_id="box", prompt="jittered_box", cohort=cohort, **box))
    per_image = pd.concat(rows, ignore_index=True)
    return aggregate(per_image), per_image


FRACTIONS = ((0.05, 40), (0.25, 200), (1.0, 800))


def test_lines_hold_the_numbers_of_the_results():
    results, per_image = sweep(FRACTIONS)
    figure = figure_amounts(results, per_image=per_image)
    whole, jittered = figure.axes
    assert whole.get_title(loc="left") == "whole-image prompt"
    real, synthetic = whole.get_lines()
    assert real.get_xdata().tolist() == [40, 200, 800]
    assert real.get_ydata() == pytest.approx([80, 82, 84])
    assert synthetic.get_ydata() == pytest.approx([83, 85, 87])
    assert whole.get_xscale() == "log"
    level = jittered.get_lines()[-1]
    assert level.get_ydata() == pytest.approx([88, 88])
    assert [t.get_text() for t in jittered.texts] == ["box only (no image) 88.0"]
    assert len(whole.texts) == 0
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["real only", "+ synthetic"]


def test_bands_are_the_intervals_over_exams():
    results, per_image = sweep(FRACTIONS)
    axis = figure_amounts(results, per_image=per_image).axes[0]
    corners = axis.collections[0].get_paths()[0].vertices
    low, high = cluster_bootstrap_ci(BASE, ["a", "b", "c"], seed=0)
    at_forty = corners[corners[:, 0] == 40][:, 1]
    assert at_forty.min() == pytest.approx(100 * low)
    assert at_forty.max() == pytest.approx(100 * high)


def test_ticks_name_fraction_and_count_and_do_not_crowd():
    results, _ = sweep(FRACTIONS)
    axis = figure_amounts(results).axes[0]
    axis.figure.canvas.draw()
    assert [t.get_text() for t in axis.get_xticklabels()] == ["5 %\n40", "25 %\n200", "100 %\n800"]
    crowded, _ = sweep(((np.nan, 5), (np.nan, 400), (np.nan, 405), (np.nan, 410)))
    axis = figure_amounts(crowded).axes[0]
    axis.figure.canvas.draw()
    assert [t.get_text() for t in axis.get_xticklabels()] == ["5", "410"]


def test_a_narrow_range_is_linear_and_one_amount_has_error_bars():
    near, _ = sweep(((0.5, 100), (1.0, 200)))
    assert figure_amounts(near).axes[0].get_xscale() == "linear"
    single, _ = sweep(((0.1, 40),))
    axis = figure_amounts(single).axes[0]
    assert len(axis.containers) == 2
    assert axis.get_lines()[0].get_ydata() == pytest.approx([80])


def test_one_amount_shows_its_conditions_side_by_side():
    single, per_image = sweep(((np.nan, 20),), supports=(0, 1), prompts=("whole_image",))
    axis = figure_amounts(single, per_image=per_image).axes[0]
    real, synthetic = (line for line in axis.get_lines() if line.get_label()[0] != "_")
    assert (real.get_xdata().tolist(), synthetic.get_xdata().tolist()) == ([0], [1])
    assert real.get_ydata() == pytest.approx([80.5])
    assert [t.get_text() for t in axis.get_xticklabels()] == ["20"]


def test_controls_are_levels_with_labels_apart_and_no_curve_is_squeezed():
    _, per_image = sweep(FRACTIONS, prompts=("whole_image",))
    keys = {"real_fraction": np.nan, "n_real": 0, "n_val_labels": 0}
    rows = [per_image]
    # Two levels a tenth of a point apart, and one far below; the mean mask has seen labels.
    for name, dice in (("box_only", 0.850), ("mean_mask", 0.851), ("zero_shot", 0.20)):
        rows.append(scores([dice] * 3, trial_id=name, condition=name, **keys))
    rows[-2]["n_total_labels"] = 800
    per_image = pd.concat(rows, ignore_index=True)
    for x in ("n_real", "n_total_labels"):
        figure = figure_amounts(aggregate(per_image), per_image=per_image, x=x)
        axis = figure.axes[0]
        labels = {t.get_text(): t for t in axis.texts}
        assert sorted(labels) == [
            "box only (no image) 85.0",
            "constant mean mask 85.1",
            "zero-shot backbone 20.0 ↓",
        ]
        figure.canvas.draw()
        boxes = [labels[name].get_window_extent() for name in sorted(labels)]
        assert boxes[0].y1 <= boxes[1].y0
        assert boxes[2].y1 <= boxes[0].y0
        assert axis.get_ylim()[0] > 60
        curves = [line for line in axis.get_lines() if line.get_label()[0] != "_"]
        assert [line.get_label() for line in curves] == ["real only", "+ synthetic"]


def test_many_conditions_get_bars_beside_each_other_instead_of_bands():
    _, per_image = sweep(FRACTIONS, prompts=("whole_image",))
    rows = [per_image]
    for name in ("weak", "strong", "warp"):
        part = per_image[per_image["condition"] == "real"]
        rows.append(part.assign(condition=name, trial_id=name + part["trial_id"]))
    per_image = pd.concat(rows, ignore_index=True)
    axis = figure_amounts(aggregate(per_image), per_image=per_image).axes[0]
    curves = [line for line in axis.get_lines() if line.get_label()[0] != "_"]
    firsts = [line.get_xdata()[0] for line in curves]
    assert len(set(firsts)) == 5
    assert firsts == pytest.approx([40 * 20 ** (0.01 * k) for k in (-2, -1, 0, 1, 2)])
    assert len(axis.containers) == 5  # error bars


def test_labels_move_apart_no_further_than_they_must():
    assert spread([], gap=10, low=0, high=100) == []
    assert spread([5, 50], gap=10, low=0, high=100) == [5, 50]
    assert spread([50, 51, 52], gap=10, low=0, high=100) == [50, 60, 70]
    assert spread([97, 99], gap=10, low=0, high=100) == [90, 100]
    assert spread([-7, 3], gap=10, low=0, high=100) == [0, 10]
    assert spread([1, 1, 1], gap=10, low=0, high=5) == [0, 10, 20]


def test_total_labels_shift_the_synthetic_line():
    results, per_image = sweep(FRACTIONS)
    points = curve_points(results, per_image=per_image, x="n_total_labels")
    whole = points[points["prompt"] == "whole_image"].set_index("condition")
    assert whole.loc["real", "x"].tolist() == [45, 205, 805]  # with five validation labels
    assert whole.loc["synthetic", "x"].tolist() == [105, 265, 865]


def test_several_trials_show_a_dot_each():
    results, per_image = sweep(FRACTIONS, supports=(0, 1))
    axis = figure_amounts(results, per_image=per_image).axes[0]
    dots = [c for c in axis.collections if len(c.get_offsets()) == 2]
    assert dots[0].get_offsets()[:, 1].tolist() == pytest.approx([80, 81])
    assert axis.get_lines()[0].get_ydata() == pytest.approx([80.5, 82.5, 84.5])


def test_a_prompt_of_controls_alone_has_no_panel():
    """A U-Net takes no box: under the jittered one stands the box-only control alone."""
    results, per_image = sweep(FRACTIONS)
    whole = (results["prompt"] == "whole_image") | (results["condition"] == "box_only")
    kept = per_image[(per_image["prompt"] == "whole_image") | (per_image["trial_id"] == "box")]
    (axis,) = figure_amounts(results[whole], per_image=kept).axes
    assert axis.get_title(loc="left") == "whole-image prompt"
    # Another cohort has that prompt, so that the panel is there and says why it holds no curve.
    here, images = sweep(FRACTIONS, prompts=("jittered_box",), cohort="es")
    figure = figure_amounts(pd.concat([results[whole], here]), per_image=pd.concat([kept, images]))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [
        "hc18, whole-image prompt",
        "hc18, jittered-box prompt, controls only",
        "es, whole-image prompt, not scored",
        "es, jittered-box prompt",
    ]
    assert figure.axes[1].get_xticks().tolist() == []
    # Before any model is done, the controls are what there is.
    (axis,) = figure_amounts(results[results["condition"] == "box_only"]).axes
    assert axis.get_title(loc="left") == "jittered-box prompt, controls only"


def test_nothing_done_gives_an_empty_figure():
    results, _ = sweep(FRACTIONS)
    figure = figure_amounts(results.assign(status="failed"))
    assert figure.axes[0].get_title(loc="left") == "no trial has finished"


def test_files_are_the_same_on_two_runs(tmp_path):
    for name in ("a", "b"):
        results, per_image = sweep(FRACTIONS, supports=(0, 1))
        save_figure(figure_amounts(results, per_image=per_image), stem=tmp_path / name)
    for suffix in (".png", ".pdf"):
        first = (tmp_path / "a").with_suffix(suffix).read_bytes()
        assert first == (tmp_path / "b").with_suffix(suffix).read_bytes()
        assert b"Matplotlib" not in first or suffix == ".pdf"
        assert b"CreationDate" not in first


def test_conditions_have_styles_of_their_own():
    names = list(ROWS)
    styles = [condition_style(name) for name in [*names, "another"]]
    assert len({(to_rgb(style["color"]), style["marker"]) for style in styles}) == len(styles)
    trained = [condition_style(name) for name in names if name not in CONTROLS]
    assert len({to_rgb(style["color"]) for style in trained}) == len(trained)
    assert len({style["marker"] for style in styles}) == len(styles)


def test_trimester_points_and_exam_counts():
    _, per_image = sweep(FRACTIONS)
    figure = figure_trimesters(per_image, prompt="whole_image", test_cohort="hc18")
    few, many = figure.axes
    assert few.get_title(loc="left").startswith("40 real images")
    assert many.get_title(loc="left").startswith("800 real images")
    means = few.containers[0].lines[0].get_ydata()
    assert means == pytest.approx([80, 90, 70])  # exams a, b, c are of trimesters 1, 2, 3
    assert few.get_xticklabels()[0].get_text() == "first\n1 exam"
    unknown = per_image.assign(trimester=np.nan)
    empty = figure_trimesters(unknown, prompt="whole_image", test_cohort="hc18")
    assert len(empty.axes) == 1


def test_outlines_are_drawn_where_the_mask_ends():
    image = np.full((54, 80), 100, np.uint8)
    mask = np.zeros((54, 80), np.uint8)
    mask[10:30, 20:60] = 1
    shown = overlay_contours(image, [(mask, (255, 0, 10))], thickness_px=1)
    edge = np.zeros((54, 80), bool)
    edge[10:30, 20:60] = True
    edge[11:29, 21:59] = False
    assert (shown[edge] == (255, 0, 10)).all()
    assert (shown[~edge] == 100).all()
    assert (image == 100).all()
    assert (overlay_contours(image, [(np.zeros_like(mask), (255, 0, 0))]) == 100).all()
    with pytest.raises(ValueError, match="differ in size"):
        overlay_contours(image, [(mask.T, (255, 0, 0))])


def test_png_round_trip_keeps_rgb_order():
    picture = np.random.default_rng(0).integers(0, 256, (54, 80, 3), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_COLOR)
    assert (decoded[..., ::-1] == picture).all()


def test_paper_reference_is_complete():
    rows = paper_reference()
    assert len(rows) == 84
    assert rows.groupby(["panel", "condition"]).size().eq(7).all()
    assert set(rows["condition"]) == {"real", "weak", "strong", "synthetic"}
    first = rows[(rows["panel"] == "HC18->ES") & (rows["n_real"] == 5)].set_index("condition")
    assert first["dice"].to_dict() == {
        "real": 0.905,
        "synthetic": 0.947,
        "weak": 0.902,
        "strong": 0.915,
    }
    assert rows["dice"].between(0.78, 0.962).all()


def test_the_comparison_is_written_where_the_paper_has_a_number_to_ours(tmp_path):
    names = ["table_paper.md", "table_paper.tex", "figure_paper.png", "figure_paper.pdf"]
    es, _ = sweep(((np.nan, 5),), cohort="es")
    assert write_comparison(es, tmp_path, train_cohort="hc18")
    assert all((tmp_path / name).stat().st_size > 0 for name in names)
    assert "90.5" in (tmp_path / "table_paper.md").read_text()
    own, _ = sweep(((np.nan, 5),), prompts=("whole_image",))
    (tmp_path / "other").mkdir()
    assert not write_comparison(own, tmp_path / "other", train_cohort="hc18")
    assert not write_comparison(es, tmp_path / "other", train_cohort="phantom")
    assert not list((tmp_path / "other").iterdir())


def test_ours_stand_beside_theirs_under_the_jittered_box_at_256():
    es, _ = sweep(((np.nan, 5), (np.nan, 30)), cohort="es")
    compared = compare_paper(pd.concat([es, sweep(((np.nan, 5),))[0]]))
    assert list(dict.fromkeys(compared["panel"])) == ["HC18->AF", "HC18->ES", "HC18->HC18"]
    where = compared.set_index(["panel", "condition", "n_real"])
    assert where.loc[("HC18->ES", "real", 5), "paper"] == pytest.approx(90.5)
    assert where.loc[("HC18->ES", "real", 5), "ours"] == pytest.approx(79.0)  # dice_256
    assert np.isnan(where.loc[("HC18->ES", "real", 30), "paper"])
    assert np.isnan(where.loc[("HC18->AF", "real", 5), "ours"])
    markdown, latex = table_paper(compared)
    assert "| HC18 to ES | real only | ours | 3 | 79.0 | – | – | 81.0 |" in markdown
    assert "| HC18 to ES | real only | paper | – | 90.5 | 93.0 | 94.0 | – | 94.8 |" in markdown
    assert "read off its figure by eye" in markdown
    assert latex.count("\\\\") == 1 + sum(
        line.startswith("| HC18") for line in markdown.split("\n")
    )
    figure = figure_paper(compared)
    axis = figure.axes[1]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert lines["real only, paper"].get_ydata()[0] == pytest.approx(90.5)
    assert lines["real only, paper"].get_markerfacecolor() == "white"
    assert lines["real only, ours"].get_ydata() == pytest.approx([79, 81])
    assert lines["real only, ours"].get_markerfacecolor() != "white"
    assert png_bytes(figure) == png_bytes(figure_paper(compared))
