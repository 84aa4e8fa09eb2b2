"""Splits and amounts: disjoint, nested, stratified, and the same on every machine."""

import hashlib
import random
from dataclasses import replace

import pytest
from split_parts import HC18_IMAGES, hc18_like, random_units, unit

from datamodules.config import DataConfig, SplitConfig, SubsetConfig
from datamodules.errors import InputError
from datamodules.splits import (
    amount_from_fraction,
    check_count,
    choose_subset,
    make_split,
    stratified_order,
    support_order,
)

GOLDEN = {
    "test": "000_1 001_1 001_2 005_1",
    "val": "009_1 009_2 004_1",
    "train": "002_1 003_1 003_2 010_1 008_1 006_1 007_1 007_2 011_1 011_2",
    "support 0": "002_1 003_1 007_1 011_1 003_2 007_2 011_2 006_1 010_1 008_1",
    "support 1": "008_1 006_1 010_1 002_1 003_1 007_1 011_1 003_2 007_2 011_2",
    "subset": "009_1 009_2 007_1 007_2 008_1 003_1",
}
GOLDEN_LARGE = "221c9cd6c6a6913e"


def count_strata(units, ids):
    by_id = {u.sample_id: u.stratum for u in units}
    return {s: sum(by_id[i] == s for i in ids) for s in sorted(HC18_IMAGES)}


@pytest.mark.parametrize("seed", range(40))
def test_parts_share_no_image_exam_or_group(seed):
    units = random_units(seed)
    split = make_split(units, SplitConfig(seed=seed, test=0.2, val=0.15))
    parts = [split.train, split.val, split.test]
    ids = [sample_id for part in parts for sample_id in part]
    assert len(ids) == len(set(ids))
    assert len(split.test) == round(0.2 * len(units))
    assert len(split.val) == round(0.15 * len(units))
    by_id = {u.sample_id: u for u in units}
    for field in ("exam_id", "group_id"):
        seen = [{getattr(by_id[i], field) for i in part} for part in parts]
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]


def test_images_are_lost_only_from_the_last_group_of_a_part():
    """Nine exams of three frames; a part of four images takes two exams and drops two frames."""
    units = [unit(f"{n}", f) for n in range(9) for f in (1, 2, 3)]
    split = make_split(units, SplitConfig(test=4, val=3))
    assert (len(split.test), len(split.val), len(split.train)) == (4, 3, 27 - 6 - 3)
    assert [i[-1] for i in split.test] == ["1", "2", "3", "1"]


def test_counts_and_shares_mean_what_they_say():
    units = [unit(f"{n:03d}") for n in range(40)]
    by_share = make_split(units, SplitConfig(test=0.25, val=0.1, train=0.5))
    by_count = make_split(units, SplitConfig(test=10, val=4, train=20))
    assert by_share == by_count
    assert [len(part) for part in (by_count.test, by_count.val, by_count.train)] == [10, 4, 20]
    assert len(make_split(units, SplitConfig(test=1, val=1.0)).test) == 1


@pytest.mark.parametrize("seed", range(10))
def test_nothing_depends_on_the_input_order(seed):
    units = random_units(seed)
    shuffled = random.Random(seed + 1).sample(units, len(units))
    config = SplitConfig(seed=3)
    assert make_split(units, config) == make_split(shuffled, config)
    assert support_order(units, support=2) == support_order(shuffled, support=2)
    for name in ("a", "b"):
        chosen = choose_subset(units, name=name, n_images=9)
        assert chosen == choose_subset(shuffled, name=name, n_images=9)


def test_parts_hold_the_trimesters_in_proportion():
    units = hc18_like()
    split = make_split(units, SplitConfig(test=0.2, val=0.1))
    for part, n_images in ((split.test, 200), (split.val, 100)):
        assert len(part) == n_images
        found = count_strata(units, part)
        for stratum, total in HC18_IMAGES.items():
            # Whole exams of up to five frames are dealt, so a part is not exact.
            assert found[stratum] / n_images == pytest.approx(total / 999, abs=0.06)


def test_amounts_are_prefixes_of_their_support():
    units = hc18_like()
    split = make_split(units, SplitConfig())
    train = [u for u in units if u.sample_id in set(split.train)]
    order = support_order(train, support=0)
    # Amounts are order[:n]: nested because no image comes twice and amounts grow with fractions.
    assert len(order) == len(set(order))
    assert set(order) == set(split.train)
    fractions = [0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9999, 1.0]
    amounts = [amount_from_fraction(f, n_train=len(train)) for f in fractions]
    assert amounts == sorted(amounts)
    assert (amounts[0], amounts[-1]) == (1, len(train))


@pytest.mark.parametrize("support", range(30))
@pytest.mark.parametrize("n_images", [5, 7, 10, 20])
def test_small_supports_hold_all_trimesters(support, n_images):
    """Also where the first exams have many frames: 60 % of supports once missed a trimester."""
    units = hc18_like()
    ids = support_order(units, support=support)[:n_images]
    found = count_strata(units, ids)
    assert min(found.values()) >= 1
    for stratum, total in HC18_IMAGES.items():
        assert abs(found[stratum] - n_images * total / 999) <= 1


def test_a_support_keeps_exams_together_within_a_trimester():
    units = hc18_like()
    by_id = {u.sample_id: u for u in units}
    order = support_order(units, support=4)
    for stratum in HC18_IMAGES:
        exams = [by_id[i].exam_id for i in order if by_id[i].stratum == stratum]
        blocks = [e for k, e in enumerate(exams) if k == 0 or exams[k - 1] != e]
        assert len(blocks) == len(set(blocks))


def test_what_changes_the_images_and_what_does_not():
    units = [unit(f"{n:03d}", stratum=1 + n % 3) for n in range(60)]
    supports = [tuple(support_order(units, support=s)[:5]) for s in range(6)]
    assert len(set(supports)) == 6
    assert supports[0] == tuple(support_order(units, support=0)[:5])
    splits = [make_split(units, SplitConfig(seed=s)) for s in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert set(splits[0].test) != set(splits[2].test)


def test_golden_order():
    """Frozen: a change here changes every published split, support and subset."""
    units = [unit(f"{n:03d}", f, stratum=1 + n % 3) for n in range(12) for f in range(1, 2 + n % 2)]
    split = make_split(units, SplitConfig(seed=0, test=4, val=3))
    train = [u for u in units if u.sample_id in set(split.train)]
    golden = {
        "test": split.test,
        "val": split.val,
        "train": split.train,
        "support 0": support_order(train, support=0),
        "support 1": support_order(train, support=1),
        "subset": choose_subset(units, name="demo-66", n_images=6),
    }
    assert {name: " ".join(ids) for name, ids in golden.items()} == GOLDEN
    # 999 images at once.
    large = make_split(hc18_like(), SplitConfig())
    text = "|".join(",".join(part) for part in (large.train, large.val, large.test))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN_LARGE


def test_first_order_by_hand():
    """Without hashes: one group a stratum stands at 1/2, two stand at 1/4 and 3/4."""
    units = [unit("a", stratum=1), unit("b", stratum=2), unit("c", stratum=2)]
    groups = stratified_order(units, salt="x", by="group_id")
    assert [g[0].stratum for g in groups] == [2, 1, 2]
    assert stratified_order([], salt="x", by="exam_id") == []
    first = sorted("bc", key=lambda name: hashlib.sha256(f"x:{name}".encode()).digest())
    assert [g[0].exam_id for g in groups] == [first[0], "a", first[1]]


def test_a_group_counts_for_the_trimester_of_most_of_its_images():
    mixed = [unit("a", 1, stratum=3), unit("b", 1, stratum=1, group="a")]
    firsts = set()
    for salt in "uvwxyz":
        tied = stratified_order([*mixed, unit("c", stratum=1)], salt=salt, by="group_id")
        # Two groups of stratum 1 at 1/4 and 3/4: in the order of their hashes, not 1 before 3.
        expected = sorted("ac", key=lambda name: hashlib.sha256(f"{salt}:{name}".encode()).digest())
        assert [g[0].group_id for g in tied] == expected
        firsts.add(expected[0])
    assert firsts == {"a", "c"}
    alone = stratified_order(
        [*mixed, unit("a", 2, stratum=3), unit("c", stratum=3)], salt="y", by="group_id"
    )
    expected = sorted("ac", key=lambda name: hashlib.sha256(f"y:{name}".encode()).digest())
    assert [g[0].group_id for g in alone] == expected
    assert [u.sample_id for u in alone[expected.index("a")]] == ["a_1", "a_2", "b_1"]


def test_frames_follow_their_numbers_and_not_their_names():
    # HC18 calls them 000_HC, 000_2HC, 000_10HC.
    frames = [replace(unit("000", k), sample_id=f"000_{k if k > 1 else ''}HC") for k in (1, 2, 10)]
    (group,) = stratified_order(frames[::-1], salt="x", by="exam_id")
    assert [each.frame for each in group] == [1, 2, 10]


def test_joined_exams_change_neither_subset_nor_support():
    units = random_units(3)
    apart = [replace(each, group_id=each.exam_id) for each in units]
    assert apart != units
    assert support_order(units, support=1) == support_order(apart, support=1)
    for n_images in (5, 20, len(units) - 1):
        first, second = (choose_subset(u, name="s", n_images=n_images) for u in (units, apart))
        assert first == second


def test_subset_is_whole_exams_cut_at_its_size():
    units = random_units(5)
    chosen = choose_subset(units, name="small", n_images=11)
    assert len(chosen) == len(set(chosen)) == 11
    exams = [i.split("_")[0] for i in chosen]
    whole = [e for e in dict.fromkeys(exams) if e != exams[-1]]
    for exam in whole:
        assert exams.count(exam) == sum(u.exam_id == exam for u in units)
    assert set(chosen) <= set(choose_subset(units, name="small", n_images=15))
    assert chosen != choose_subset(units, name="other", n_images=11)
    assert choose_subset(units, name="all", n_images=None) == [u.sample_id for u in units]
    assert len(choose_subset(units, name="x", n_images=len(units))) == len(units)


def test_fractions_by_hand():
    assert amount_from_fraction(0.05, n_train=561) == 28
    assert amount_from_fraction(1.0, n_train=561) == 561
    assert amount_from_fraction(0.07, n_train=110) == 8  # of 7.7
    assert amount_from_fraction(1e-6, n_train=561) == 1
    assert check_count(5, n_train=5, key="sweep.real_count") == 5


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.0001, 5.0, float("nan")])
def test_bad_fractions(fraction):
    with pytest.raises(InputError, match=r"sweep\.real_fraction"):
        amount_from_fraction(fraction, n_train=100)


@pytest.mark.parametrize("count", [0, -1, 6])
def test_bad_counts(count):
    with pytest.raises(InputError, match=rf"synthesis\.generator_count={count}: .* 5 images"):
        check_count(count, n_train=5, key="synthesis.generator_count")


def test_subset_larger_than_the_data():
    with pytest.raises(InputError, match=r"data\.subset\.n_images=4: .* only 3"):
        choose_subset([unit(c) for c in "abc"], name="x", n_images=4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"test": 0.01, "val": 2}, r"^split\.test: the part would be empty"),
        ({"test": 5, "val": 0.01}, r"^split\.val: the part would be empty"),
        ({"test": 5, "val": 5}, r"^split\.train: the part would be empty"),
        ({"test": 10, "val": 1}, r"^split\.val: the part would be empty"),
        ({"test": 11, "val": 1}, r"^split\.test=11 images: only 10 of 10 are left"),
        ({"test": 4, "val": 7}, r"^split\.val=7 images: only 6 of 10 are left"),
        ({"test": 4, "val": 4, "train": 3}, r"^split\.train=3 images: only 2 of 10 are left"),
    ],
)
def test_parts_that_do_not_fit(config, message):
    with pytest.raises(InputError, match=message):
        make_split([unit(f"{n}") for n in range(10)], SplitConfig(**config))


def test_one_group_cannot_be_split():
    units = [unit(f"{n}", group="all") for n in range(10)]
    with pytest.raises(InputError, match="in 1 exam groups"):
        make_split(units, SplitConfig())


@pytest.mark.parametrize("name", ["test", "val", "train"])
@pytest.mark.parametrize("value", [0, -0.5, 2.5, float("nan")])
def test_split_config_refuses(name, value):
    with pytest.raises(ValueError, match=rf"^split\.{name}={value}"):
        SplitConfig(**{name: value})


def test_data_config():
    assert DataConfig().subset.n_images is None
    assert SubsetConfig(n_images=3).n_images == 3
    with pytest.raises(ValueError, match=r"^data\.subset\.n_images=2"):
        SubsetConfig(n_images=2)
