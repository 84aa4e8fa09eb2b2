import os
from unittest import mock

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from test_tables import PIXEL, scores

from experiments.config.conditions import CONTROLS, ROWS
from experiments.results.figure_ledger import figure_ledger
from experiments.results.figures import curve_points, figure_amounts, figure_trimesters
from experiments.results.panels import (
    Curve,
    Panel,
    condition_style,
    draw_panels,
    png_bytes,
    save_figure,
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


def curves(axis):
    """The lines with points of a panel by label."""
    return {bars.get_label(): bars.lines[0] for bars in axis.containers}


def titles(figure):
    return [axis.get_title(loc="left").replace("\n", " ") for axis in figure.axes]


def ticks(axis):
    return [tick.get_text() for tick in axis.get_xticklabels()]


def test_lines_hold_the_numbers_of_the_results_and_bars_their_intervals():
    results, per_image = sweep(FRACTIONS)
    figure = figure_amounts(results, per_image=per_image)
    assert titles(figure) == [
        "no box (whole image)",
        "jittered-box prompt; box only (no image) 88.0",
    ]
    whole, jittered = figure.axes
    real, synthetic = curves(whole).values()
    assert real.get_xdata() == pytest.approx([40, 200, 800], rel=0.04)
    assert synthetic.get_xdata() / real.get_xdata() == pytest.approx(20**0.025)
    assert real.get_ydata() == pytest.approx([80, 82, 84])
    assert synthetic.get_ydata() == pytest.approx([83, 85, 87])
    assert whole.get_xscale() == "log"
    (bar, *_) = whole.containers[0].lines[2][0].get_segments()
    low, high = cluster_bootstrap_ci(BASE, ["a", "b", "c"], seed=0)
    assert bar[:, 1] == pytest.approx([100 * low, 100 * high])
    assert jittered.get_lines()[-1].get_ydata() == pytest.approx([88, 88])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["real only", "+ synthetic", "box only (no image)"]


@pytest.mark.parametrize("n_more", [0, 40])
def test_the_legend_lies_within_the_figure(n_more):
    names = ["first " + "a" * n_more, "second " + "b" * n_more]
    panel = Panel(
        title="",
        curves=[
            Curve(label=name, points=pd.DataFrame({"x": [1.0], "y": [k]}), style={})
            for k, name in enumerate(names)
        ],
    )
    figure = draw_panels([[panel]])
    figure.canvas.draw()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1


def test_ticks_name_fraction_and_count_and_do_not_crowd():
    axis = figure_amounts(sweep(FRACTIONS)[0]).axes[0]
    assert ticks(axis) == ["5 %\n40", "25 %\n200", "100 %\n800"]
    crowded, _ = sweep(((np.nan, 5), (np.nan, 400), (np.nan, 405), (np.nan, 410)))
    assert ticks(figure_amounts(crowded).axes[0]) == ["5", "410"]
    near, _ = sweep(((0.5, 100), (1.0, 200)))
    assert figure_amounts(near).axes[0].get_xscale() == "linear"


def test_one_amount_shows_its_conditions_side_by_side():
    single, per_image = sweep(((np.nan, 20),), supports=(0, 1), prompts=("whole_image",))
    axis = figure_amounts(single, per_image=per_image).axes[0]
    real, synthetic = curves(axis).values()
    assert (real.get_xdata().tolist(), synthetic.get_xdata().tolist()) == ([19.5], [20.5])
    assert real.get_ydata() == pytest.approx([80.5])
    assert ticks(axis) == ["20"]


@pytest.mark.parametrize("draw", [figure_amounts, figure_ledger])
def test_controls_are_levels_named_in_the_title_and_no_curve_is_squeezed(draw):
    _, per_image = sweep(FRACTIONS, prompts=("whole_image",))
    keys = {"real_fraction": np.nan, "n_real": 0, "n_val_labels": 0}
    rows = [per_image]
    # One level is far below; the mean mask has seen labels.
    for name, dice in (("box_only", 0.850), ("mean_mask", 0.851), ("zero_shot", 0.20)):
        rows.append(scores([dice] * 3, trial_id=name, condition=name, **keys))
    rows[-2]["n_total_labels"] = 800
    per_image = pd.concat(rows, ignore_index=True)
    figure = draw(aggregate(per_image), per_image=per_image)
    axis = figure.axes[0]
    named = titles(figure)[0].split("; ")[1:]
    assert sorted(named) == [
        "box only (no image) 85.0",
        "constant mean mask 85.1",
        "zero-shot backbone 20.0",
    ]
    assert axis.get_ylim()[0] > 60
    assert list(curves(axis)) == ["real only", "+ synthetic"]
    levels = [line for line in axis.get_lines() if line.get_label()[0] != "_"]
    assert {line.get_label(): line.get_ydata()[0] for line in levels} == pytest.approx(
        {"box only (no image)": 85.0, "constant mean mask": 85.1}
    )


def test_curves_of_many_conditions_stand_beside_each_other():
    _, per_image = sweep(FRACTIONS, prompts=("whole_image",))
    rows = [per_image]
    for name in ("weak", "strong", "warp"):
        part = per_image[per_image["condition"] == "real"]
        rows.append(part.assign(condition=name, trial_id=name + part["trial_id"]))
    per_image = pd.concat(rows, ignore_index=True)
    axis = figure_amounts(aggregate(per_image), per_image=per_image).axes[0]
    firsts = [line.get_xdata()[0] for line in curves(axis).values()]
    assert firsts == pytest.approx([40 * 20 ** (0.025 * k) for k in (-2, -1, 0, 1, 2)])


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
    assert curves(axis)["real only"].get_ydata() == pytest.approx([80.5, 82.5, 84.5])


def test_a_prompt_of_controls_alone_has_no_panel():
    """A U-Net takes no box: under the jittered one stands the box-only control alone."""
    results, per_image = sweep(FRACTIONS)
    whole = (results["prompt"] == "whole_image") | (results["condition"] == "box_only")
    kept = per_image[(per_image["prompt"] == "whole_image") | (per_image["trial_id"] == "box")]
    figure = figure_amounts(results[whole], per_image=kept)
    assert titles(figure) == ["no box (whole image)"]
    # Another cohort has that prompt, so that the panel is there and says why it holds no curve.
    here, images = sweep(FRACTIONS, prompts=("jittered_box",), cohort="es")
    figure = figure_amounts(pd.concat([results[whole], here]), per_image=pd.concat([kept, images]))
    level = "; box only (no image) 88.0"
    assert titles(figure) == [
        "hc18, no box (whole image)",
        f"hc18, jittered-box prompt, controls only{level}",
        "es, no box (whole image), not scored",
        f"es, jittered-box prompt{level}",
    ]
    assert figure.axes[1].get_xticks().tolist() == []
    # Before any model is done, the controls are what there is.
    figure = figure_amounts(results[results["condition"] == "box_only"])
    assert titles(figure) == [f"jittered-box prompt, controls only{level}"]
    assert titles(figure_amounts(results.assign(status="failed"))) == ["no trial has finished"]


def test_files_are_the_same_on_two_runs(tmp_path):
    for name in ("a", "b"):
        results, per_image = sweep(FRACTIONS, supports=(0, 1))
        save_figure(figure_amounts(results, per_image=per_image), stem=tmp_path / name)
    for suffix in (".png", ".pdf"):
        first = (tmp_path / "a").with_suffix(suffix).read_bytes()
        assert first == (tmp_path / "b").with_suffix(suffix).read_bytes()
        assert b"Matplotlib" not in first or suffix == ".pdf"
        assert b"CreationDate" not in first


def test_a_stop_while_a_figure_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    for suffix in (".png", ".pdf"):
        (tmp_path / f"a{suffix}").write_text("old")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=KeyboardInterrupt))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            save_figure(Figure(), stem=tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"old"}


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
    assert [title.split(",")[0] for title in titles(figure)] == [
        "40 real images",
        "800 real images",
    ]
    one = figure_trimesters(
        per_image.assign(real_fraction=np.nan, n_real=1), prompt="whole_image", test_cohort="hc18"
    )
    assert titles(one)[0].startswith("1 real image,")
    few = figure.axes[0]
    means = curves(few)["real only"].get_ydata()
    assert means == pytest.approx([80, 90, 70])  # exams a, b, c are of trimesters 1, 2, 3
    assert ticks(few)[0] == "first\n1 exam"
    unknown = per_image.assign(trimester=np.nan)
    empty = figure_trimesters(unknown, prompt="whole_image", test_cohort="hc18")
    assert titles(empty) == ["no trimester is known"]


def test_outlines_are_drawn_where_the_mask_ends():
    image = np.full((54, 80), 100, np.uint8)
    mask = np.zeros((54, 80), np.uint8)
    mask[10:30, 20:60] = 1
    shown = overlay_contours(image, [(mask, (255, 0, 10))])
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
    dice = {"real": 0.905, "synthetic": 0.947, "weak": 0.902, "strong": 0.915}
    assert first["dice"].to_dict() == dice
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
    failed = es.assign(trial_id="failed", seed=9, status="failed", dice_256_mean=np.nan)
    beside = compare_paper(pd.concat([es, failed]))["n_trials"].dropna()
    assert beside.tolist() == compare_paper(es)["n_trials"].dropna().tolist()
    markdown, latex = table_paper(compared)
    assert "| HC18 to ES | real only | ours | 3 | 79.0 | – | – | 81.0 |" in markdown
    assert "| HC18 to ES | real only | paper | – | 90.5 | 93.0 | 94.0 | – | 94.8 |" in markdown
    # A box needs no image: its level stands at every amount.
    levels = [line for line in markdown.splitlines() if "HC18 to ES | box only" in line]
    assert len(levels) == 1
    assert levels[0].count("| 87.0 ") == 8
    assert "read off its figure by eye" in markdown
    assert latex.count("\\\\") == 1 + sum(
        line.startswith("| HC18") for line in markdown.split("\n")
    )
    figure = figure_paper(compared)
    lines = curves(figure.axes[1])
    assert lines["real only, paper"].get_ydata()[0] == pytest.approx(90.5)
    assert lines["real only, paper"].get_markerfacecolor() == "white"
    assert lines["real only, ours"].get_ydata() == pytest.approx([79, 81])
    assert lines["real only, ours"].get_markerfacecolor() != "white"
    assert png_bytes(figure) == png_bytes(figure_paper(compared))


def test_the_pdf_embeds_truetype(tmp_path):
    save_figure(figure_amounts(sweep(FRACTIONS)[0]), stem=tmp_path / "figure")
    written = (tmp_path / "figure.pdf").read_bytes()
    assert b"/CIDFontType2" in written
    assert b"/Type3" not in written


def test_a_single_column_of_panels_is_legible_at_85_mm():
    figure = figure_amounts(sweep(FRACTIONS, prompts=("whole_image",))[0])
    points = figure.axes[0].xaxis.label.get_size() * (85 / 25.4) / figure.get_figwidth()
    assert points >= 7


def test_intervals_have_the_dashes_of_their_series():
    points = pd.DataFrame({"x": [1.0], "y": [80.0], "low": [79.0], "high": [81.0]})
    curves_ = [
        Curve(label=line, points=points, style={"linestyle": line}, is_joined=is_joined)
        for line, is_joined in (("-", True), ("--", True), (":", False))
    ]
    figure = draw_panels([[Panel(title="", curves=curves_)]])
    bars = [each.lines for each in figure.axes[0].containers]
    dashes = [intervals[0].get_linestyle()[0][1] for _, _, intervals in bars]
    assert dashes[0] is None
    assert None not in dashes[1:]
    assert dashes[1] != dashes[2]
    assert [line.get_linestyle() for line, _, _ in bars] == ["-", "--", "None"]
