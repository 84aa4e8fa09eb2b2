"""Orders of labelling: nested, spread, the same everywhere, and blind to what they may not see."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from datamodules.choices import CHOICES, choice_order
from datamodules.duplicates import fingerprint, pack_fingerprint
from datamodules.errors import InputError
from datamodules.splits import Unit, support_order

N = 651


def picture(number, *, kind=0):
    """A bright disc at one of four places, with speckle."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:54, :80]
    centre = ((15, 20), (15, 60), (40, 20), (40, 60))[kind]
    disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 150
    return (60 + 120 * disc + rng.integers(0, 20, disc.shape)).astype(np.uint8)


def make_units(n=N, *, frames=1):
    rng = random.Random(5)
    return [
        Unit(
            sample_id=f"{k:03d}_HC",
            group_id=f"{k // frames:03d}",
            exam_id=f"{k // frames:03d}",
            frame=k % frames + 1,
            stratum=k % 3 + 1,
            pixel_size_mm=rng.uniform(0.05, 0.3),
            hc_mm=rng.uniform(60, 340),
        )
        for k in range(n)
    ]


def strata_of(units, ids, *, n_strata, name):
    ranked = sorted(units, key=lambda unit: getattr(unit, name))
    rank = {unit.sample_id: k for k, unit in enumerate(ranked)}
    return Counter(rank[sample_id] * n_strata // len(units) for sample_id in ids)


def test_random_is_the_order_that_there_always_was():
    units = make_units(60, frames=3)
    for support in range(3):
        assert choice_order(units, choice="random", support=support) == support_order(
            units, support=support
        )


@pytest.mark.parametrize("support", [0, 1, 2])
@pytest.mark.parametrize(
    ("choice", "name"), [("by_pixel_size", "pixel_size_mm"), ("by_size", "hc_mm")]
)
def test_every_amount_is_spread_over_the_quantiles(choice, name, support):
    units = make_units()
    order = choice_order(units, choice=choice, support=support)
    assert sorted(order) == sorted(unit.sample_id for unit in units)
    for n in (5, 10, 20, 40):
        hits = strata_of(units, order[:n], n_strata=n, name=name)
        assert hits == dict.fromkeys(range(n), 1)
    for n in (7, 13, 33, 65, 163):
        hits = strata_of(units, order[:n], n_strata=5, name=name)
        assert max(hits.values()) - min(hits.values()) <= 2, (n, hits)


def test_supports_differ_and_the_order_of_the_input_does_not_matter():
    units = make_units(80)
    firsts = {tuple(choice_order(units, choice="by_pixel_size", support=s)[:5]) for s in range(8)}
    assert len(firsts) == 8
    shuffled = random.Random(1).sample(units, len(units))
    assert choice_order(shuffled, choice="by_size", support=0) == choice_order(
        units, choice="by_size", support=0
    )


@pytest.mark.parametrize("n", [0, 1, 2, 4, 6, 17])
@pytest.mark.parametrize("choice", CHOICES)
def test_small_train_parts_are_ordered_whole(choice, n):
    units = [replace(u, fingerprint=pack_fingerprint(fingerprint(picture(k))))
             for k, u in enumerate(make_units(n))]  # fmt: skip
    assert sorted(choice_order(units, choice=choice, support=1)) == [u.sample_id for u in units]


def test_an_exam_gives_a_second_image_only_where_its_stratum_has_no_other():
    units = [replace(unit, pixel_size_mm=0.1) for unit in make_units(120, frames=3)]
    chosen = choice_order(units, choice="by_pixel_size", support=0)[:20]
    group = {unit.sample_id: unit.group_id for unit in units}
    assert len({group[sample_id] for sample_id in chosen}) >= 18


@pytest.mark.parametrize(
    ("choice", "name", "said"),
    [
        ("by_pixel_size", "pixel_size_mm", "pixel size"),
        ("by_size", "hc_mm", "head circumference"),
    ],
)
def test_a_missing_value_is_refused_in_one_line(choice, name, said):
    units = make_units(12)
    units[7] = replace(units[7], **{name: None})
    with pytest.raises(InputError, match=rf"sweep.choice={choice}: 007_HC has no {said} \(1 of 12"):
        choice_order(units, choice=choice, support=0)


def test_coverage_sees_each_kind_of_picture_before_it_sees_one_twice():
    kinds = [0] * 30 + [1] * 5 + [2] * 3 + [3]
    units = [
        replace(unit, fingerprint=pack_fingerprint(fingerprint(picture(k, kind=kinds[k]))))
        for k, unit in enumerate(make_units(len(kinds)))
    ]
    kind = {unit.sample_id: kinds[k] for k, unit in enumerate(units)}
    for support in range(4):
        order = choice_order(units, choice="coverage", support=support)
        assert {kind[sample_id] for sample_id in order[:4]} == {0, 1, 2, 3}
    blind = [replace(unit, hc_mm=None, pixel_size_mm=None, stratum=0) for unit in units]
    assert choice_order(blind, choice="coverage", support=3) == order


def test_only_the_oracle_reads_a_label():
    units = make_units(40)
    relabelled = [replace(unit, hc_mm=400 - unit.hc_mm, stratum=1) for unit in units]
    for choice in ("by_pixel_size", "by_size"):
        same = choice_order(units, choice=choice, support=0) == choice_order(
            relabelled, choice=choice, support=0
        )
        assert same != CHOICES[choice].is_oracle
