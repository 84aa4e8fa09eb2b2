"""Each benchmark at its smallest size: its parts, and that what it composes is what they give."""

import os

import pytest
from rich.console import Console

from experiments.bench.measure import Line, from_json, line_through
from experiments.bench.run import BenchSettings, bench_command

SHORT = ["finetune", "evaluation", "sampling", "generator", "scaling"]

# Minutes in all: the parts have tests of their own.
pytestmark = pytest.mark.long


def run(names, out):
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        settings = BenchSettings(names=names, out=out, device="cpu", quick=True)
        content = bench_command(settings, Console(file=nowhere))
    return {name: from_json(entry) for name, entry in content["results"].items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run(SHORT, tmp_path_factory.mktemp("runs"))


def test_all_that_was_asked_for_is_there_and_positive(results):
    assert set(results) == {"machine", "encoder", *SHORT}
    for result in results.values():
        assert result.timings or result.values
        for ratio in result.ratios:
            assert ratio.published_s > 0
            assert ratio.ours_s > 0


def test_a_fine_tune_is_composed_of_its_parts(results):
    found = results["finetune"]
    fit = line_through(found.timing("ours: fit, 1 steps"), found.timing("ours: fit, 3 steps"))
    embed = line_through(
        found.timing("ours: embed, 1 images"), found.timing("ours: embed, 4 images")
    )
    ratio = found.ratio("tiny, a fine-tune at N = 50")
    assert ratio.how == "composed"
    assert ratio.ours_s == pytest.approx(embed.seconds(50) + fit.seconds(200))
    step = found.timing("published: a step of 5 images, encoder in it").per_unit_s
    start = found.timing("published: building the network").per_unit_s
    assert ratio.published_s == pytest.approx(Line(fixed_s=start, per_unit_s=step).seconds(200))
    large = [r.label for r in found.ratios if r.label.startswith("vit_tiny (against")]
    assert len(large) == 3


def test_an_evaluation_is_composed_of_its_parts(results):
    found = results["evaluation"]
    a_box = found.timing("published: an image under one box, from its files to its scores")
    ratio = found.ratio("tiny, 200 images under 5 boxes")
    assert ratio.published_s == pytest.approx(1000 * a_box.per_unit_s)
    parts = [
        line_through(found.timing(f"ours: {a.format(1)}"), found.timing(f"ours: {a.format(3)}"))
        for a in ("score, {} images under 5 boxes", "embed, {} test images")
    ]
    assert ratio.ours_s == pytest.approx(sum(line.seconds(200) for line in parts))


def test_sampling_and_generator_compare_the_same_work(results):
    sampling = results["sampling"]
    ratio = sampling.ratios[0]
    assert ratio.ours_s == sampling.timing("ours, batch 2").per_unit_s
    assert ratio.published_s == sampling.timings[0].per_unit_s
    assert sampling.values[0].unit == "%"
    assert len(results["generator"].timings) == 3


def test_more_devices_never_take_longer(results):
    hours = [value.value for value in results["scaling"].values]
    assert len(hours) == 3
    assert hours == sorted(hours, reverse=True)


def test_memory_and_start_up(tmp_path):
    results = run(["memory", "startup"], tmp_path)
    memory = results["memory"].values
    assert [value.at_most for value in memory] == [2.0, None, None]
    assert 0 < memory[1].value <= memory[0].value
    overhead = results["startup"].value("the sweep's own time a trial")
    assert overhead.at_most == 2.0
    assert overhead.value >= 0


def test_the_ablation_from_parts_and_for_real(tmp_path):
    results = run(["ablation"], tmp_path)
    ratios = results["ablation"].ratios
    assert ratios[0].label == "tiny, 28 fine-tunes"
    assert ratios[-1].label == "tiny, for real: 4 small trials, 20 images seen"
    assert ratios[-1].how == "measured"
    steps = results["ablation"].value("optimiser steps").value
    a_step = results["finetune"].timing("published: a step of 5 images, encoder in it").per_unit_s
    assert ratios[0].published_s == pytest.approx(steps * a_step)


def test_views_stay_for_a_second_run(tmp_path):
    first = run(["views"], tmp_path)["views"]
    assert [ratio.label for ratio in first.ratios] == [
        "N = 3, weak, 2 views: a fine-tune",
        "N = 3, strong, 2 views: a fine-tune",
    ]
    assert [value.label for value in first.values][:2] == [
        "N = 3, weak, fresh: Dice",
        "N = 3, weak, 2 views: Dice",
    ]
    assert "less fresh" in first.value("N = 3, strong, 2 views: Dice").formula
    # At its smallest size the other comparison has the same sweeps.
    again = run(["views100"], tmp_path)["views100"]
    assert again.name == "views100"
    assert again.values == first.values
    assert again.ratios == first.ratios
