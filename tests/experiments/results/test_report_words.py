"""What a report says only where it is true, and the strip of intervals."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from results_parts import page_of
from test_contrasts import family_rows
from test_tables import scores, sweep

from experiments.config.recipe import load_config
from experiments.config.statistics import ContrastConfig, StatisticsConfig
from experiments.results import report_content
from experiments.results.contrasts import all_contrasts
from experiments.results.report import (
    cell_text,
    control_sentences,
    difference_tables,
    interval_strip,
)
from experiments.results.statistics import aggregate
from experiments.results.tables import blocks, footnotes
from experiments.results.text import Block


def test_the_primary_contrast_leads_the_table_of_differences_with_its_own_p():
    found = all_contrasts(family_rows(), statistics=StatisticsConfig())
    (rows,) = difference_tables(found).values()
    assert [row["measure"] for row in rows] == [
        "HC error, mm (primary)",
        *["Dice, points"] * 3,
    ]
    assert [row["against"] for row in rows] == ["strong augmentation"] * 2 + ["real only"] * 2
    p = found.family["p"].iloc[0]
    assert rows[0]["adjusted p"] == ("< 0.001" if p < 0.001 else f"{p:.3f}")
    assert rows[0]["difference"] == "−1.3 mm"


def test_the_primary_contrast_stands_once_where_it_is_one_of_dice_against_the_baseline():
    _, per_image = sweep()
    primary = ContrastConfig(
        condition="synthetic", baseline="real", measure="dice", real_count=None, real_fraction=0.1
    )
    found = all_contrasts(per_image, statistics=StatisticsConfig(primary=primary))
    tables = difference_tables(found)
    whole = tables["hc18, no box (whole image)"]
    assert [row["measure"] for row in whole] == ["Dice, points (primary)", "HC error, mm"]
    assert len(tables["hc18, jittered-box prompt"]) == 1


def test_intervals_are_headed_by_their_level():
    results, per_image = sweep()
    at = StatisticsConfig(primary=ContrastConfig(enabled=False), level=0.9)
    for rows in difference_tables(all_contrasts(per_image, statistics=at)).values():
        assert "90 % CI" in rows[0]
    page = page_of(results, per_image, statistics=at)
    assert '<th scope="col">90 % CI</th>' in page
    assert "90 % interval</th>" in page
    assert "95 % interval</th>" not in page


def strip_of(*points, controls):
    table = pd.DataFrame(points, columns=["mean", "low", "high"], dtype=float)
    return interval_strip(
        Block(test_cohort="", prompt="", title="", heads=[], rows=table, best=table,
              controls=controls, points=table)
    )  # fmt: skip


def test_trained_rows_span_the_strip_and_a_control_beyond_it_has_none():
    low, high, strips = strip_of(
        (92, 90, 94), (93, 92, 95), (93, 91, 94), (10, 5, 12), (91, np.nan, np.nan),
        controls=(False, False, True, True, False),
    )  # fmt: skip
    assert (low, high) == (90, 95)
    assert strips[0] == pytest.approx((0, 80, 40))
    assert strips[1] == pytest.approx((40, 60, 60))
    assert strips[2] == pytest.approx((20, 60, 60))
    assert strips[3:] == [None, None]
    low, high, strips = strip_of((10, 5, 15), controls=(True,))
    assert strips == [(0, 100, 50)]
    assert strip_of((10, 10, 10), controls=(False,))[2] == [None]


def test_real_pairs_alone_have_no_section_and_blank_cells_are_dashes():
    picture = [report_content.Picture(image=np.zeros((5, 8), np.uint8), caption="012_HC")]
    parts = {"real": picture, "synthetic": []}
    assert "Synthetic beside real pairs" not in page_of(*sweep(), **parts)
    assert "Synthetic beside real pairs" in page_of(*sweep(), **parts | {"synthetic": picture})
    assert [cell_text(value) for value in ("", np.nan, 0.0, "a")] == ["–", "–", "0", "a"]


def test_a_row_without_an_image_is_named_only_where_there_is_one():
    results, per_image = sweep()
    said = "the row without an image shows how much"
    assert said in page_of(results, per_image, protocol=["as it is"])
    results, per_image = (r[r["condition"] != "box_only"] for r in (results, per_image))
    bare = page_of(results, per_image, protocol=["as it is"])
    assert said not in bare
    assert "No box-only row was scored." in bare


@pytest.mark.parametrize(("choice", "is_said"), [("random", True), ("coverage", False)])
def test_the_order_of_random_images_is_told_where_there_are_any(choice, is_said):
    config = load_config("hc18_fractions", [f"sweep.choice=[{choice}]"])
    data = SimpleNamespace(split=SimpleNamespace(val=[]))
    lines = report_content._protocol(SimpleNamespace(config=config, data=data, runs={}))
    assert any("goes exam after exam" in line for line in lines) == is_said
    assert "goes exam after exam" not in page_of(*sweep(), protocol=["as it is"])


def test_captions_say_what_the_bars_are():
    _, per_image = sweep()
    config = SimpleNamespace(evaluation=SimpleNamespace(prompts=["whole_image"]))
    told = SimpleNamespace(data=SimpleNamespace(name="hc18"), config=config)
    first, second = report_content._figures(told, per_image, figure_png=b"")
    assert "over exams, and over supports too where a point has several." in first.caption
    assert second.caption.endswith("bars are 95 % intervals over exams alone, for these trained "
                                   "models.")  # fmt: skip


def test_the_folds_of_a_control_are_one_sentence():
    rows = [
        scores([dice], trial_id=f"{name}-{fold}", fold=fold, condition=name, n_real=n_real,
               exam_id=f"{fold}", sample_id=f"{fold}", prompt="jittered_box")
        for name, n_real, levels in (("box_only", 0, (0.8, 0.9)), ("real", 20, (0.9, 0.94)))
        for fold, dice in enumerate(levels)
    ]  # fmt: skip
    per_image = pd.concat(rows, ignore_index=True)
    assert control_sentences(aggregate(per_image), per_image=per_image) == [
        "hc18, jittered-box prompt: 85.0 % without the image; the trained models score 92.0 to "
        "92.0 %."
    ]


def test_a_star_is_explained_only_where_a_cell_has_one():
    note = "* A trimester has no test image; the other weights were scaled up."
    rows = scores([0.8, 0.9], trial_id="r")
    assert note in footnotes(aggregate(rows))
    unknown = rows.assign(trimester=np.nan)
    assert note not in footnotes(aggregate(unknown))
    (block,) = blocks(aggregate(unknown), per_image=unknown)
    assert "weighted Dice %" not in block.rows
