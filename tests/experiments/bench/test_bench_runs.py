"""Each benchmark at its smallest size: its parts, and that what it composes is what they give."""

import pytest

from experiments.bench.cases import CASES
from experiments.bench.context import Bench
from experiments.bench.results import line_through

# Minutes in all: the parts have tests of their own.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    found = Bench(out=out, work=out, device="cpu", quick=True)
    yield found
    found.plain.close()


def timings(result):
    return {timing.label: timing for timing in result.timings}


def ratios(result):
    return {ratio.label: ratio for ratio in result.ratios}


@pytest.mark.parametrize("name", CASES)
def test_all_that_was_found_is_positive(bench, name):
    result = bench.run(name)
    assert result.timings or result.values
    assert all(timing.per_unit_s > 0 for timing in result.timings)
    assert all(ratio.published_s > 0 and ratio.ours_s > 0 for ratio in result.ratios)


def test_a_fine_tune_is_composed_of_its_parts(bench):
    found, times = ratios(bench.run("finetune")), timings(bench.run("finetune"))
    fit = line_through(times["ours: fit, 1 steps"], times["ours: fit, 3 steps"])
    embed = line_through(times["ours: embed, 1 images"], times["ours: embed, 4 images"])
    ratio = found["tiny, a fine-tune at N = 50"]
    assert ratio.how == "composed"
    assert ratio.ours_s == pytest.approx(embed.seconds(50) + fit.seconds(200))
    step = times["published: a step of 5 images, encoder in it"].per_unit_s
    start = times["published: building the network"].per_unit_s
    assert ratio.published_s == pytest.approx(start + 200 * step)
    # ViT: the encoder's pass and a decoder's, five a step; no start.
    decoder = times["published: transformers' decoder, forward and backward"].per_unit_s
    stock = timings(bench.run("encoder"))["vit_tiny stock, fp32"].per_unit_s
    ratio = found["vit_tiny (against vit_tiny stock), a fine-tune at N = 500"]
    assert ratio.published_s == pytest.approx(2000 * 5 * (stock + decoder))
    assert len(found) == 6
    # The whole ablation: its steps at the same cost.
    ablation = bench.run("ablation")
    images, steps, _ = (value.value for value in ablation.values)
    assert (images, steps) == (148_100, 29_620)
    assert ratios(ablation)["tiny, 28 fine-tunes"].published_s == pytest.approx(steps * step)
    assert ablation.ratios[-1].label == "tiny, for real: 4 small trials, 20 images seen"
    assert ablation.ratios[-1].how == "measured"


def test_an_evaluation_is_composed_of_its_parts(bench):
    times = timings(bench.run("evaluation"))
    a_box = times["published: an image under one box, from its files to its scores"]
    ratio = ratios(bench.run("evaluation"))["tiny, 200 images under 5 boxes"]
    assert ratio.published_s == pytest.approx(1000 * a_box.per_unit_s)
    parts = [
        line_through(times[f"ours: {a.format(1)}"], times[f"ours: {a.format(3)}"])
        for a in ("score, {} images under 5 boxes", "embed, {} test images")
    ]
    assert ratio.ours_s == pytest.approx(sum(line.seconds(200) for line in parts))


def test_drawing_devices_memory_and_start_up(bench):
    sampling = bench.run("sampling")
    assert sampling.ratios[0].ours_s == timings(sampling)["ours, batch 2"].per_unit_s
    assert sampling.ratios[0].published_s == sampling.timings[0].per_unit_s
    assert sampling.values[0].unit == "%"
    assert len(bench.run("generator").timings) == 3
    hours = [value.value for value in bench.run("scaling").values]
    assert len(hours) == 3
    assert hours == sorted(hours, reverse=True)
    memory = bench.run("memory").values
    assert [value.at_most for value in memory] == [2.0, None, None]
    assert 0 < memory[1].value <= memory[0].value
    a_trial = bench.run("startup").values[0]
    assert a_trial.at_most == 2.0
    assert a_trial.value == pytest.approx(2 * bench.run("startup").timings[1].per_unit_s)


def test_views_stay_for_a_second_run(bench):
    first = bench.run("views")
    labels = [f"N = 3, {condition}, 2 views: a fine-tune" for condition in ("weak", "strong")]
    assert [ratio.label for ratio in first.ratios] == labels
    assert first.values[0].label == "N = 3, weak, fresh: Dice"
    assert "less fresh" in first.values[1].formula
    # At its smallest size the other comparison has the same sweeps.
    again = bench.run("views100")
    assert (again.name, again.values, again.ratios) == ("views100", first.values, first.ratios)
