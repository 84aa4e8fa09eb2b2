"""Folds: every group is tested once, and the trimesters are spread."""

import hashlib

import pytest
from split_parts import HC18_IMAGES, hc18_like, random_units, unit

from datamodules.config import SplitConfig
from datamodules.errors import InputError
from datamodules.splits import make_folds


@pytest.mark.parametrize("n_folds", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(6))
def test_folds_test_every_group_once_and_share_nothing(seed, n_folds):
    units = random_units(seed)
    folds = make_folds(units, SplitConfig(seed=seed, n_folds=n_folds, val=0.1))
    assert len(folds) == n_folds
    tested = [sample_id for fold in folds for sample_id in fold.test]
    assert sorted(tested) == sorted(u.sample_id for u in units)
    group_of = {u.sample_id: u.group_id for u in units}
    for fold in folds:
        parts = [{group_of[i] for i in part} for part in (fold.test, fold.val, fold.train)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert len(fold.val) == round(0.1 * len(units))
        # Frames beyond validation's number are left out, and nothing else.
        lost = {u.sample_id for u in units} - {*fold.test, *fold.val, *fold.train}
        assert {group_of[i] for i in lost} <= {group_of[fold.val[-1]]}
    groups = [{group_of[i] for i in fold.test} for fold in folds]
    assert len(set().union(*groups)) == sum(map(len, groups)) == len(set(group_of.values()))


@pytest.mark.parametrize("n_folds", range(2, 11))
def test_folds_spread_the_trimesters(n_folds):
    """Also where the number of folds is the period of the interleaved order, as 6 is here."""
    units = hc18_like()
    for stratum in HC18_IMAGES:
        exams = {u.sample_id: u.exam_id for u in units if u.stratum == stratum}
        counts = [
            len({exams[i] for i in fold.test if i in exams})
            for fold in make_folds(units, SplitConfig(n_folds=n_folds))
        ]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == len(set(exams.values()))


def test_groups_are_dealt_to_folds_trimester_after_trimester():
    units = [unit(f"{k:03d}", stratum=(3, 1, 2, 0)[k % 4]) for k in range(23)]

    def place(each):
        return each.stratum, hashlib.sha256(f"split:4:{each.group_id}".encode()).digest()

    dealt = [each.sample_id for each in sorted(units, key=place)]
    folds = make_folds(units, SplitConfig(seed=4, val=2, n_folds=3))
    assert [set(fold.test) for fold in folds] == [set(dealt[k::3]) for k in range(3)]


def test_folds_by_hand():
    """Two of each of three trimesters, two folds: one of each is tested."""
    units = [unit(name, stratum=1 + k // 2) for k, name in enumerate("abcdef")]
    folds = make_folds(units, SplitConfig(n_folds=2, val=1))
    first = {
        s: min((n for n in names), key=_rank) for s, names in ((1, "ab"), (2, "cd"), (3, "ef"))
    }
    assert {i[0] for i in folds[0].test} == set(first.values())
    assert {i[0] for i in folds[1].test} == set("abcdef") - set(first.values())
    for fold in folds:
        assert (len(fold.test), len(fold.val), len(fold.train)) == (3, 1, 2)
    assert make_folds(units[::-1], SplitConfig(n_folds=2, val=1)) == folds
    fewer = make_folds(units, SplitConfig(n_folds=2, val=1, train=1))
    assert [fold.train for fold in fewer] == [fold.train[:1] for fold in folds]
    # Shares are of all images, not of those that the fold does not test.
    shares = make_folds(units, SplitConfig(n_folds=2, val=0.2, train=0.3))
    assert [(len(fold.val), len(fold.train)) for fold in shares] == [(1, 2)] * 2


def _rank(name):
    return hashlib.sha256(f"split:0:{name}".encode()).digest()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_folds": 11}, r"^split\.n_folds=11: the data hold 10 exam groups"),
        ({"n_folds": 2, "val": 5}, r"^split: fold 0 leaves 5 images .*val=5, train=None"),
        ({"n_folds": 5, "val": 0.01}, r"^split: fold 0 leaves 8 images .*val=0\.01"),
        ({"n_folds": 5, "val": 2, "train": 7}, r"^split: fold 0 leaves 8 images .*train=7"),
    ],
)
def test_folds_that_do_not_fit(config, message):
    with pytest.raises(InputError, match=message):
        make_folds([unit(f"{n}") for n in range(10)], SplitConfig(**config))


def test_folds_are_counted_in_groups_and_not_in_images():
    with pytest.raises(InputError, match=r"^split\.n_folds=3: the data hold 2 exam groups"):
        make_folds([unit(exam, frame) for exam in "ab" for frame in (1, 2)], SplitConfig(n_folds=3))


def test_fold_config_refuses():
    with pytest.raises(ValueError, match=r"^split\.n_folds=0"):
        SplitConfig(n_folds=0)
