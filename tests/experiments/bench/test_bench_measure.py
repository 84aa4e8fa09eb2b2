"""Medians, lines, ratios and targets by hand, and the files that hold them."""

import json

import pytest

from experiments.bench.measure import (
    Line,
    Ratio,
    Result,
    Timing,
    Value,
    as_json,
    from_json,
    line_through,
    steps_of,
)


def timing(wall, *, units=1.0, label="a"):
    return Timing(label=label, unit="image", units=units, wall_s=wall, cpu_s=[2 * w for w in wall])


def test_a_timing_gives_median_and_spread_a_unit():
    found = timing([4.0, 1.0, 2.0], units=2)
    assert found.per_unit_s == 1.0
    assert found.spread_s == (0.5, 2.0)
    assert found.cpu_per_unit_s == 2.0
    assert timing([1.0, 4.0]).per_unit_s == 2.5


def test_a_line_through_two_sizes_by_hand():
    """2 s for 2 units and 5 s for 8: half a second a unit, one second whatever the size."""
    line = line_through(timing([2.0, 2.0, 9.0], units=2), timing([5.0, 5.0, 1.0], units=8))
    assert line == Line(fixed_s=1.0, per_unit_s=0.5)
    assert line.seconds(0) == 1.0
    assert line.seconds(10) == 6.0


def test_noise_never_makes_a_part_of_a_line_negative():
    # The larger size took less time: all of it is fixed.
    assert line_through(timing([3.0], units=1), timing([1.0], units=5)) == Line(
        fixed_s=2.0, per_unit_s=0.0
    )
    # More than in proportion: none of it is.
    assert line_through(timing([1.0], units=1), timing([10.0], units=5)) == Line(
        fixed_s=0.0, per_unit_s=2.0
    )
    with pytest.raises(ValueError, match="two sizes"):
        line_through(timing([1.0], units=5), timing([1.0], units=5))


def test_ratios_and_targets():
    ratio = Ratio(label="a", published_s=12.0, ours_s=3.0, how="measured", at_least=4)
    assert (ratio.ratio, ratio.reached) == (4.0, True)
    assert not Ratio(label="a", published_s=3.9, ours_s=1.0, how="composed", at_least=4).reached
    assert Ratio(label="a", published_s=1.0, ours_s=2.0, how="measured").reached is None
    assert Value(label="a", value=2.0, unit="GiB", at_most=2).reached is True
    assert Value(label="a", value=2.1, unit="GiB", at_most=2).reached is False
    assert Value(label="a", value=0.0, unit="s").reached is None


@pytest.mark.parametrize(
    ("n", "epochs", "steps"), [(5, 20, 20), (50, 20, 200), (500, 20, 2000), (7, 3, 6), (0, 20, 0)]
)
def test_steps_of_the_papers_epochs(n, epochs, steps):
    assert steps_of(n, epochs=epochs, batch_size=5) == steps


def test_a_result_survives_json_with_every_repeat():
    result = Result(
        name="data",
        timings=[timing([1.0, 2.0])],
        values=[Value(label="v", value=1.0, unit="MiB", how="composed", formula="x", at_most=2)],
        ratios=[Ratio(label="r", published_s=4.0, ours_s=2.0, how="measured", at_least=3)],
        settings={"images": 3},
        notes=["a line"],
    )
    content = json.loads(json.dumps(as_json(result)))
    assert content["timings"][0]["wall_s"] == [1.0, 2.0]
    assert content["timings"][0]["per_unit_s"] == 1.5
    assert content["ratios"][0]["ratio"] == 2.0
    assert content["ratios"][0]["reached"] is False
    assert content["values"][0]["reached"] is True
    assert from_json(content) == result
    assert result.timing("a").units == 1.0
    with pytest.raises(KeyError, match="missing"):
        result.ratio("missing")
