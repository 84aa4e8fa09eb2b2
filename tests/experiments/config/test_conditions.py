"""The table of conditions, and what a recipe may compose from its factors."""

from dataclasses import replace

import pytest

from experiments.config.conditions import (
    CONDITIONS,
    CONTROLS,
    ROWS,
    ConditionConfig,
    condition_label,
    condition_phrase,
    in_order,
)


def test_rows_differ_in_factors_labels_colours_and_markers():
    rows = list(CONDITIONS.values())
    for key in ("factors", "label", "color", "marker"):
        values = [repr(getattr(row, key)) for row in rows]
        assert len(set(values)) == len(values), key


def test_factors_of_the_papers_condition_and_of_equal_budgets():
    paper = CONDITIONS["synthetic"].factors
    assert (paper.pairs, paper.labels, paper.gate, paper.augment) == (
        *("synthetic", "fixed", "on"),
        "none",
    )
    equal = CONDITIONS["synthetic_same_budget_strong"].factors
    assert (equal.labels, equal.augment) == ("own", "strong")
    assert CONDITIONS["real_resized"].factors.source.has_generator
    assert not CONDITIONS["real_resized"].factors.source.is_generated
    assert CONDITIONS["strong"].factors.pairs == "none"


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"pairs": "wrap"}, "pairs=wrap: unknown; did you mean warp"),
        ({"pairs": "warp", "gate": "off"}, "pass no gate"),
        ({"pairs": "warp", "labels": "fixed"}, "trial's own labels"),
        ({"pairs": "repeat", "augment": "weak"}, "augment=weak: pairs=repeat is the control"),
        ({"pairs": "warp", "at_most": 0}, "at_most=0: must be at least 1"),
        ({"pairs": "pseudo", "rounds": 1, "at_most": 9}, "at_most=9: pairs=pseudo makes none"),
        ({"at_most": 9}, "at_most=9: pairs=none makes none"),
        ({"pairs": "synthetic", "order": "hardest"}, "order=hardest: needs at_most and gate=on"),
        ({"pairs": "warp", "at_most": 9, "order": "hardest"}, "pairs=warp pass no gate"),
        ({"pairs": "pseudo"}, "rounds=0: unlabelled images need at least 1"),
        ({"pairs": "synthetic", "images": "unlabelled"}, "rounds=0"),
        ({"pairs": "synthetic", "rounds": 1}, "rounds=1: pairs=synthetic use no unlabelled"),
        ({"pairs": "warp", "images": "unlabelled", "rounds": 1}, "fit no generator"),
        ({"pairs": "pseudo", "images": "unlabelled", "rounds": 1}, "fit no generator"),
        (
            {"pairs": "pseudo_synthetic", "labels": "fixed", "rounds": 1},
            "labels=fixed: unlabelled images get their labels from the trial's own",
        ),
    ],
)
def test_factors_that_nothing_would_read_are_refused(factors, words):
    with pytest.raises(ValueError, match=words):
        ConditionConfig(**factors)


def test_names_of_a_recipe_stand_for_themselves_between_the_table_and_the_controls():
    assert condition_label("strong") == "strong augmentation"
    assert condition_label("warp_strong") == condition_phrase("warp_strong") == "warp_strong"
    assert condition_label("box_only") == "box only (no image)"
    names = ["box_only", "warp_strong", "strong", "real", "strong"]
    assert in_order(names) == ["real", "strong", "warp_strong", "box_only"]


def test_a_row_that_is_added_later_is_read_like_the_others(monkeypatch):
    row = replace(CONDITIONS["warp"], label="mine", phrase="my pairs")
    monkeypatch.setitem(CONDITIONS, "added", row)
    assert (condition_label("added"), condition_phrase("added")) == ("mine", "my pairs")
    assert in_order(["box_only", "added", "real"]) == ["real", "added", "box_only"]
    assert list(ROWS) == [*CONDITIONS, *CONTROLS]
