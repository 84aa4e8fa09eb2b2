"""Each benchmark at its smallest size: its parts, and that what it composes is what they give."""

import pytest

from experiments.bench.cases import CASES
from experiments.bench.child import start_child
from experiments.bench.measure import Bench, line_through

# Minutes in all: the parts have tests of their own.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    with start_child() as child:
        yield Bench(out=out, work=out, device="cpu", quick=True, plain=child)


def timings(found):
    return {timing.label: timing for timing in found.timings}


def ratios(found):
    return {ratio["label"]: ratio for ratio in found.ratios}


@pytest.mark.parametrize("name", CASES)
def test_all_that_was_found_is_positive(bench, name):
    found = bench.run(name)
    assert found.timings or found.values
    assert all(timing.per_unit_s > 0 for timing in found.timings)
    assert all(ratio["published_s"] > 0 and ratio["ours_s"] > 0 for ratio in found.ratios)


def test_a_fine_tune_is_composed_of_its_parts(bench):
    found, times = ratios(bench.run("finetune")), timings(bench.run("finetune"))
    fit = line_through(times["ours: fit, 1 steps"], times["ours: fit, 3 steps"])
    embed = line_through(times["ours: embed, 1 images"], times["ours: embed, 4 images"])
    ratio = found["tiny, a fine-tune at N = 50"]
    assert ratio["how"] == "composed"
    assert ratio["ours_s"] == pytest.approx(embed.seconds(50) + fit.seconds(200))
    step = times["published: a step of 5 images, encoder in it"].per_unit_s
    start = times["published: building the network"].per_unit_s
    assert ratio["published_s"] == pytest.approx(start + 200 * step)
    # ViT: five passes of its encoder in place of the small one's in a step; no start.
    passes = timings(bench.run("encoder"))
    small, large = (passes[f"{name} stock, fp32"].per_unit_s for name in ("tiny", "vit_tiny"))
    ratio = found["vit_tiny (against vit_tiny stock), a fine-tune at N = 500"]
    assert ratio["published_s"] == pytest.approx(2000 * (5 * large + max(0, step - 5 * small)))
    many = found["tiny, 28 fine-tunes on the same 50 images"]
    assert many["ours_s"] == pytest.approx(embed.seconds(50) + 28 * fit.seconds(200))
    assert len(found) == 10
    # The whole ablation: its steps at the same cost.
    ablation = bench.run("ablation")
    assert [value["value"] for value in ablation.values] == [148_100, 29_620, 2_795]
    whole = ratios(ablation)["tiny, 28 fine-tunes"]
    assert whole["published_s"] == pytest.approx(29_620 * step)
    assert ablation.ratios[-1]["label"] == "tiny, for real: 4 small trials, 20 images seen"
    assert ablation.ratios[-1]["how"] == "measured"


def test_an_evaluation_is_composed_of_its_parts(bench):
    times = timings(bench.run("evaluation"))
    a_box = times["published: an image under one box, from its files to its scores"]
    ratio = ratios(bench.run("evaluation"))["tiny, 200 images under 5 boxes"]
    assert ratio["published_s"] == pytest.approx(1000 * a_box.per_unit_s)
    parts = [
        line_through(times[f"ours: {a.format(1)}"], times[f"ours: {a.format(3)}"])
        for a in ("score, {} images under 5 boxes", "embed, {} test images")
    ]
    assert ratio["ours_s"] == pytest.approx(sum(line.seconds(200) for line in parts))


def test_drawing_memory_and_start_up(bench):
    sampling = bench.run("sampling")
    (ratio,) = sampling.ratios
    assert ratio["ours_s"] == timings(sampling)["ours, batch 2"].per_unit_s
    assert ratio["published_s"] == sampling.timings[0].per_unit_s
    assert sampling.values[0]["unit"] == "%"
    assert len(bench.run("generator").timings) == 3
    ours, imported, theirs = (value["value"] for value in bench.run("memory").values)
    assert 0.1 < imported <= ours
    assert theirs > 0.1
    startup = bench.run("startup")
    a_trial = startup.values[0]
    assert a_trial["at_most"] == 2.0
    assert a_trial["value"] == pytest.approx(2 * startup.timings[1].per_unit_s)
