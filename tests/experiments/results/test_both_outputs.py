"""Masks and ellipses side by side: both are in the files, one is shown."""

import numpy as np
import pandas as pd
import pytest
from test_tables import scores

from experiments.results.compact import compact_tables, read_results
from experiments.results.rows import KEYS, choose_output, read_output
from experiments.results.statistics import add_trials, aggregate
from experiments.results.tables import blocks, footnotes

AS_MASK = [0.80, 0.82, 0.84, 0.81, 0.83, 0.79]
AS_ELLIPSE = [0.90, 0.92, 0.94, 0.91, 0.93, 0.79]


def both(trial_id="t1", **changes):
    """Rows of a trial whose last image gives no ellipse."""
    keys = {"trial_id": trial_id, **changes}
    mask = scores(AS_MASK, **keys).assign(output="mask", fitted=None)
    fitted = [True] * 5 + [False]
    ellipse = scores(AS_ELLIPSE, **keys).assign(output="ellipse", fitted=fitted)
    return pd.concat([mask, ellipse], ignore_index=True)


def test_each_output_has_its_row_and_the_ellipse_says_where_it_did_not_fit():
    found = aggregate(both()).set_index("output")
    assert found["dice_mean"].to_dict() == pytest.approx(
        {"mask": np.mean(AS_MASK), "ellipse": np.mean(AS_ELLIPSE)}
    )
    assert np.isnan(found.loc["mask", "n_not_fitted"])
    assert found.loc["ellipse", "n_not_fitted"] == 1


@pytest.mark.parametrize(("output", "dice", "other"), [("ellipse", 89.8, 81.5),
                                                       ("mask", 81.5, 89.8)])  # fmt: skip
def test_one_output_is_shown_beside_the_mean_of_the_other(output, dice, other):
    images = both()
    known = aggregate(images)[[name for name in KEYS if name != "output"]].iloc[:1]
    waiting = known.assign(trial_id="t2", status="pending", reason="")
    trials = pd.concat([known.assign(status="done", reason=""), waiting])
    results = choose_output(add_trials(aggregate(images), trials=trials), output)
    assert results["trial_id"].tolist() == ["t1", "t2"], "what is not done stays"
    (block,) = blocks(results, per_image=choose_output(images, output))
    shown = block.rows.iloc[0]
    name = {"ellipse": "mask Dice %", "mask": "ellipse Dice %"}[output]
    assert (shown["Dice %"], shown[name]) == (f"{dice:.1f}", f"{other:.1f}")
    assert ("no ellipse" in shown) == (output == "ellipse")
    said = any("of the ellipse fitted" in note for note in footnotes(results))
    assert said == (output == "ellipse")


def test_folds_weigh_the_other_output_by_their_images():
    more = both("t2", fold=1).iloc[[0, 1, 6, 7]]
    images = pd.concat([both("t1", fold=0), more], ignore_index=True)
    results = choose_output(aggregate(images), "ellipse")
    (block,) = blocks(results, per_image=choose_output(images, "ellipse"))
    expected = 100 * np.mean([*AS_MASK, *AS_MASK[:2]])
    assert block.rows["mask Dice %"].tolist() == [f"{expected:.1f}"]


@pytest.mark.parametrize(
    ("output", "dice", "said"),
    [("ellipse", "89.8", "the ellipse fitted"), ("mask", "81.5", "masks as they")],
)
def test_a_table_of_files_says_which_output_it_shows(tmp_path, output, dice, said):
    path = tmp_path / "results.csv"
    aggregate(both()).to_csv(path, index=False)
    found = read_results([path], output=output)
    text = compact_tables(found, measure="dice", format_name="markdown")
    assert f"**{dice}**" in text
    assert said in text


def test_files_without_outputs_are_read_as_they_are(tmp_path):
    images, path = scores(AS_MASK, trial_id="t1"), tmp_path / "results.csv"
    old = aggregate(images).drop(columns=["output", "n_not_fitted"])
    old.to_csv(path, index=False)
    for output in ("mask", "ellipse"):
        assert read_output(path, output)["dice_mean"].tolist() == [pytest.approx(0.815)]
    (block,) = blocks(read_results([path]))
    assert "mask Dice %" not in block.rows
    assert block.rows["Dice %"].tolist() == ["81.5"]
