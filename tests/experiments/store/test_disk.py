"""What a sweep takes on the disk."""

import pytest
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.store.disk import disk_need_gib


def test_the_size_of_a_sweep_by_hand():
    base = ["data.subset.n_images=100", "split.test=20", "split.val=10", "split.train=50"]
    base += ["sweep.real_fraction=[]", "sweep.real_count=[10,20]", "sweep.seed=[0,1]"]
    # 80 embeddings of 2 MiB and 4 segmenters of 14 MiB.
    real = load_config(TOY, [*base, "sweep.condition=[real]"])
    assert disk_need_gib(real) == pytest.approx((80 * 2 + 4 * 14) / 1024)
    # 7 more views of 3 x 20 drawn images, of which there are 50; 12 segmenters.
    strong = [*base, "sweep.condition=[strong]", "sweep.support=[0,1,2]", "augment.n_views=8"]
    expected = (2 * (80 + 7 * 50) + 12 * 14) / 1024
    assert disk_need_gib(load_config(TOY, strong)) == pytest.approx(expected)
    # 50 views in a trial: ten images have five, twenty have two; 4 segmenters.
    few = [*base, "sweep.condition=[strong]", "augment.max_per_trial=50"]
    expected = (2 * (80 + 10 * 4 + 10 * 1) + 4 * 14) / 1024
    assert disk_need_gib(load_config(TOY, few)) == pytest.approx(expected)
    # One set of 30 pairs for both conditions, from one generator; 8 segmenters.
    pairs = [*base, "sweep.condition=[synthetic,synthetic_no_gate]", "synthesis.n_candidates=30"]
    expected = (2 * (80 + 30) + 0.35 * 30 + 11 + 8 * 14) / 1024
    assert disk_need_gib(load_config(TOY, pairs)) == pytest.approx(expected)


def test_the_size_of_the_sweep_that_it_was_measured_on():
    settings = ["synthesis.n_candidates=48", "augment.n_views=6", "sweep.support=[0,1,2,3,4]"]
    found = disk_need_gib(load_config("hc18_ablation", settings))
    assert found == pytest.approx(4.5, rel=0.2)
