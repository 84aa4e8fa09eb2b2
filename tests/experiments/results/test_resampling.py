"""The bootstrap over exams and supports: by hand, beside an explicit loop, and its coverage."""

import numpy as np
import pytest
from results_parts import trimester_weighted_mean
from scipy import stats

from experiments.results.resampling import crossed_bootstrap
from experiments.results.statistics import cluster_bootstrap_ci


def crossed(n_supports, n_exams, *, frames=1):
    supports = np.repeat(np.arange(n_supports), n_exams * frames)
    exams = np.tile(np.repeat(np.arange(n_exams), frames), n_supports)
    return supports, exams


def test_one_support_and_one_image_an_exam_is_the_t_test():
    values = np.random.default_rng(0).normal(0.3, 1, 25)
    found = crossed_bootstrap(values, exams=np.arange(25), supports=np.zeros(25), seed=0)
    reference = stats.ttest_1samp(values, 0)
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(stats.sem(values))
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.degrees, found.n_exams, found.n_supports) == (24, 25, 1)


def test_two_supports_and_two_exams_by_hand():
    # Supports (0, 2) and (4, 10), mean 4. Over 4 values the supports are off by -1.5 and 1.5, the
    # exams by -1 and 1, the cells by -1, -0.5, 0 and 1.5: variances 9, 4 and 3.5.
    found = crossed_bootstrap([0, 2, 4, 10], supports=[0, 0, 1, 1], exams=list("abab"), seed=0)
    assert found.value == 4
    assert found.standard_error == pytest.approx(np.sqrt(9 + 4 - 3.5))
    assert found.degrees == 1  # 9.5^2 / (9^2 + 4^2) is less than the least
    assert found.p == pytest.approx(2 * stats.t.sf(4 / np.sqrt(9.5), 1))
    assert (found.low, found.high) == (0, 10)


def test_exams_that_are_alike_leave_the_error_of_the_supports():
    # Supports of mean 1 and 3, exams of mean 2 both: what cells vary by is not taken off twice.
    found = crossed_bootstrap([0, 2, 4, 2], supports=[0, 0, 1, 1], exams=list("abab"))
    assert (found.value, found.standard_error) == pytest.approx((2, stats.sem([1, 3])))


def test_supports_that_are_not_known_are_one():
    values, exams = [0.1, 0.4, 0.2, 0.8], list("abcd")
    found = crossed_bootstrap(values, exams=exams, supports=np.full(4, np.nan))
    assert found == crossed_bootstrap(values, exams=exams, supports=np.zeros(4))


# The last two: n/(n-1) of six exams widens; cells that vary alone are never narrowed.
@pytest.mark.parametrize(
    ("n_supports", "n_exams", "effects", "level"),
    [(8, 12, 1, 0.95), (1, 6, 1, 0.8), (5, 7, 0, 0.8)],
)
def test_quantiles_agree_with_an_explicit_loop(n_supports, n_exams, effects, level):
    rng = np.random.default_rng(4)
    supports, exams = crossed(n_supports, n_exams, frames=2)
    values = effects * (rng.normal(size=n_supports)[supports] + rng.normal(size=n_exams)[exams])
    values = values + rng.normal(size=len(values))
    found = crossed_bootstrap(values, exams=exams, supports=supports, n_boot=6000, level=level)
    cells = values.reshape(n_supports, n_exams, 2).mean(axis=2)
    means = []
    for _ in range(6000):
        drawn = rng.integers(n_supports, size=n_supports), rng.integers(n_exams, size=n_exams)
        means.append(cells[np.ix_(*drawn)].mean())
    widen = max(found.standard_error / np.std(means), 1)
    tail = stats.norm.cdf(-widen * stats.t.ppf((1 + level) / 2, found.degrees))
    expected = np.quantile(means, [tail, 1 - tail])
    near = {"abs": 0.1 * found.standard_error}
    assert (found.low, found.high) == pytest.approx(tuple(expected), **near)


def test_many_exams_of_one_support_agree_with_the_cluster_bootstrap():
    rng = np.random.default_rng(9)
    exams = np.repeat(np.arange(150), rng.integers(1, 4, 150))
    values = rng.beta(20, 2, 150)[exams] + 0.01 * rng.normal(size=len(exams))
    low, high = cluster_bootstrap_ci(values, exams, seed=3)
    found = crossed_bootstrap(values, exams=exams, supports=np.zeros(len(exams)), seed=3)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


def coverage(kind, *, sd_support, n_supports=5, n_trials=150):
    rng = np.random.default_rng(17)
    supports, exams = crossed(n_supports, 30)
    hits = 0
    for trial in range(n_trials):
        values = sd_support * rng.normal(size=n_supports)[supports] + rng.normal(size=30)[exams]
        values += rng.normal(size=len(values))
        axis = supports if kind == "crossed" else np.zeros(len(values))
        found = crossed_bootstrap(values, exams=exams, supports=axis, seed=trial, n_boot=400)
        hits += found.low <= 0 <= found.high
    return hits / n_trials


def test_coverage_with_few_supports_is_near_its_level():
    assert coverage("crossed", sd_support=1.0) >= 0.90
    assert coverage("crossed", sd_support=0.2) >= 0.90
    assert coverage("exams alone", sd_support=1.0) < 0.65
    # Three that differ more than exams do: t's place lies beyond the resamples.
    assert coverage("crossed", sd_support=3.0, n_supports=3) >= 0.90


def test_three_supports_far_apart_have_the_interval_of_the_t_test():
    """Exams that hardly differ: the means of the supports are all that there is."""
    supports, exams = crossed(3, 20)
    noise = 1e-3 * np.random.default_rng(3).normal(size=60)
    values = np.array([0.2, 0.5, 0.9])[supports] + noise
    found = crossed_bootstrap(values, exams=exams, supports=supports)
    means = values.reshape(3, 20).mean(axis=1)
    reach = stats.t.ppf(0.975, 2) * stats.sem(means)
    # No mean of such values lies beyond them.
    assert (found.low, found.high) == (values.min(), values.max())
    assert reach > found.value - found.low
    wide = np.append(values, [-5.0, 5.0])
    found = crossed_bootstrap(
        wide, exams=np.append(exams, [20, 20]), supports=np.append(supports, [0, 0])
    )
    assert found.low < means.min()
    assert found.high > means.max()


def test_weights_are_those_of_the_weighted_mean():
    values = np.array([0.6, 0.8, 0.9, 0.5, 0.1, 0.7])
    trimesters = np.array([1, 1, 2, 3, np.nan, 2])
    weights = {1: 165, 2: 693, 3: 141}
    exams, supports = list("abcdef"), np.zeros(6)
    kwargs = {"exams": exams, "supports": supports, "seed": 0, "weights": weights}
    found = crossed_bootstrap(values, strata=trimesters, **kwargs)
    assert found.value == pytest.approx(trimester_weighted_mean(values, trimesters))
    assert found.n_exams == 5  # the exam without a trimester is no exam of this mean
    none = crossed_bootstrap(values, strata=np.full(6, np.nan), **kwargs)
    assert np.isnan([none.value, none.low, none.high, none.p]).all()
    # All of a stratum alike: only the others make the interval.
    flat = crossed_bootstrap(
        [0.9] * 40 + [0.5] * 20,
        exams=np.arange(60),
        supports=np.zeros(60),
        strata=[2] * 40 + [3] * 20,
        weights=weights,
        seed=0,
    )
    assert flat.value == flat.low == flat.high == pytest.approx((693 * 0.9 + 141 * 0.5) / 834)


def test_two_exams_of_a_stratum_do_not_stretch_the_interval_to_all_there_is():
    """Of one support, or of three that agree: Student's t of one degree would reach 12.7 errors."""
    values, strata = [0.1, 0.2] + [0.9] * 8, [1, 1] + [2] * 8
    for n in (1, 3):
        found = crossed_bootstrap(
            values * n,
            exams=[*range(10)] * n,
            supports=np.repeat(np.arange(n), 10),
            strata=strata * n,
            weights={1: 1, 2: 1},
        )
        assert found.degrees < 2.1
        assert found.standard_error == pytest.approx(0.5 * stats.sem([0.1, 0.2]))
        reach = 1.0 if n == 1 else stats.t.ppf(0.975, 2)
        assert found.high - found.value == pytest.approx(reach * found.standard_error)


def test_a_resample_without_a_stratum_does_not_stretch_the_interval():
    # Four exams in a bad stratum: without them the mean would be 0.9, which is another quantity.
    kwargs = {"supports": np.zeros(12), "weights": {1: 1, 2: 1}, "seed": 0}
    values = [0.1, 0.2] * 2 + [0.9] * 8
    strata = [1] * 4 + [2] * 8
    found = crossed_bootstrap(values, exams=np.arange(12), strata=strata, **kwargs)
    assert found.value == pytest.approx(0.525)
    assert 0.45 < found.low < 0.5
    assert 0.55 < found.high < 0.6
    assert found.degrees == pytest.approx(3)  # all of the variance comes from four exams
    assert found.standard_error == pytest.approx(0.5 * stats.sem([0.1, 0.2] * 2))
    # One exam in a stratum says nothing about the next one.
    lonely = crossed_bootstrap(values, exams=np.arange(12), strata=[1] + [2] * 11, **kwargs)
    assert lonely.value == pytest.approx((0.1 + (0.5 + 8 * 0.9) / 11) / 2)
    assert np.isnan([lonely.low, lonely.high, lonely.p]).all()


def test_seeded_and_edge_cases_named():
    supports, exams = crossed(3, 6)
    values = np.random.default_rng(1).normal(size=18)
    kwargs = {"exams": exams, "supports": supports}
    first = crossed_bootstrap(values, seed=5, **kwargs)
    assert first == crossed_bootstrap(values, seed=5, **kwargs)
    assert first != crossed_bootstrap(values, seed=6, **kwargs)
    one = crossed_bootstrap([0.1, 0.3], exams=["a", "a"], supports=[0, 1], seed=0)
    assert one.value == pytest.approx(0.2)
    assert np.isnan([one.low, one.high, one.p]).all()
    empty = crossed_bootstrap([], exams=[], supports=[], seed=0)
    assert np.isnan(empty.value)
    assert empty.n_exams == 0
    same = crossed_bootstrap([0.0] * 4, exams=list("abcd"), supports=[0] * 4, seed=0)
    assert (same.low, same.high, same.p) == (0, 0, 1)
    with pytest.raises(ValueError, match="not finite"):
        crossed_bootstrap([np.inf, 1], exams=["a", "b"], supports=[0, 0], seed=0)
    with pytest.raises(ValueError, match="equal vectors"):
        crossed_bootstrap([1.0], exams=["a", "b"], supports=[0, 0], seed=0)
