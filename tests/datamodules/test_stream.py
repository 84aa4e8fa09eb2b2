"""The training order: the same over processes and on resume, balanced, each pass complete."""

from itertools import chain

import pytest
from torch.utils.data import BatchSampler

from datamodules.stream import TrainingStream


def make_stream(**changes):
    values = {
        "n_real": 7,
        "n_synthetic": 11,
        "batch_size": 8,
        "n_batches": 12,
        "synthetic_share": 0.5,
        "seed": 3,
    }
    return TrainingStream(**(values | changes))


def batches(stream, size=8):
    items = list(stream)
    return [items[start : start + size] for start in range(0, len(items), size)]


@pytest.mark.parametrize("n_synthetic", [0, 11])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_share_each_batch(n_synthetic, world_size):
    whole = batches(make_stream(n_synthetic=n_synthetic))
    ranks = [
        batches(
            make_stream(n_synthetic=n_synthetic, rank=rank, world_size=world_size),
            size=8 // world_size,
        )
        for rank in range(world_size)
    ]
    assert len(whole) == 12
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        assert {len(part) for part in parts} == {8 // world_size}
        assert sorted(chain(*parts)) == sorted(batch)
        # Real and synthetic items are spread: no process gets one kind only.
        if n_synthetic and world_size < 8:
            assert {sum(index >= 7 for index, _ in part) for part in parts} == {4 // world_size}


def test_each_process_knows_its_length():
    assert len(make_stream()) == 12 * 8 == len(list(make_stream()))
    part = make_stream(rank=1, world_size=4)
    assert len(part) == 12 * 2 == len(list(part))


@pytest.mark.parametrize("first_batch", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_is_the_tail(first_batch, world_size):
    changes = {"rank": world_size - 1, "world_size": world_size}
    whole = list(make_stream(**changes))
    resumed = make_stream(first_batch=first_batch, **changes)
    assert list(resumed) == whole[first_batch * 8 // world_size :]
    # Lightning counts batches from the start of the epoch, so the length stays.
    assert len(resumed) == len(whole)


def test_draws_number_the_whole_training():
    assert [draw for _, draw in make_stream()] == list(range(96))
    # Another number of processes or of images does not change an item's draw.
    assert [draw for _, draw in make_stream(n_real=50, rank=1, world_size=2)] == list(
        range(1, 96, 2)
    )


@pytest.mark.parametrize(
    ("share", "batch_size", "n_synthetic", "expected"),
    [
        (0.5, 8, 11, 4),
        (0.5, 4, 1, 2),
        (0.25, 8, 11, 2),
        (0.0, 8, 11, 0),
        (1.0, 8, 11, 8),
        (0.5, 8, 0, 0),
        (1.0, 8, 0, 0),
    ],
)
def test_synthetic_share_of_every_batch(share, batch_size, n_synthetic, expected):
    stream = make_stream(synthetic_share=share, batch_size=batch_size, n_synthetic=n_synthetic)
    found = batches(stream, size=batch_size)
    assert len(found) == 12
    for batch in found:
        indices = [index for index, _ in batch]
        assert sum(index >= 7 for index in indices) == expected
        assert max(indices) < 7 + n_synthetic
        # Real items come first.
        assert [i >= 7 for i in indices] == sorted(i >= 7 for i in indices)


@pytest.mark.parametrize(("batch_size", "share"), [(9, 2 / 3), (4, 2 / 3), (16, 0.5)])
def test_pools_of_synthetic_items_take_equal_parts_in_passes_of_their_own(batch_size, share):
    changes = {"n_synthetic": [5, 0, 11], "batch_size": batch_size, "synthetic_share": share}
    stream = make_stream(n_batches=40, **changes)
    items = [index for index, _ in stream]
    first = [i - 7 for i in items if 7 <= i < 12]
    second = [i - 12 for i in items if i >= 12]
    assert len(first) + len(second) == 40 * round(share * batch_size)
    assert 0 <= len(first) - len(second) <= 1
    for n, own in ((5, first), (11, second)):
        whole = [own[start : start + n] for start in range(0, len(own) - n, n)]
        assert len(whole) > 3
        assert all(sorted(one) == list(range(n)) for one in whole)
    assert [index for index, _ in make_stream(n_batches=40, first_batch=30, **changes)] == (
        items[30 * batch_size :]
    )
    # One pool is what a number says.
    assert list(make_stream(n_synthetic=[11])) == list(make_stream())


def test_each_pass_sees_every_item_once():
    """Passes of 7 real and 11 synthetic items run across batches of 4 and 4."""
    items = [index for index, _ in make_stream(n_batches=77)]
    for n, own in (
        (7, [i for i in items if i < 7]),
        (11, [i - 7 for i in items if i >= 7]),
    ):
        assert len(own) == 77 * 4
        passes = [own[start : start + n] for start in range(0, len(own), n)]
        assert all(sorted(one) == list(range(n)) for one in passes)
        # Shuffled anew each time.
        assert len({tuple(one) for one in passes}) > len(passes) * 0.9


def test_a_batch_may_hold_several_passes():
    stream = make_stream(n_real=3, n_synthetic=0, n_batches=2)
    items = [index for index, _ in stream]
    assert [sorted(items[k : k + 3]) for k in range(0, 15, 3)] == [[0, 1, 2]] * 5
    assert [index for index, _ in make_stream(n_real=1, n_synthetic=0)] == [0] * 96


def test_seed_changes_the_order_and_nothing_else_does():
    assert list(make_stream()) == list(make_stream())
    assert list(make_stream()) != list(make_stream(seed=4))
    # The real order is the same with and without synthetic items: arms stay paired.
    real = [i for i, _ in make_stream(n_synthetic=0, n_batches=6)]
    mixed = [i for i, _ in make_stream(n_batches=12) if i < 7]
    assert mixed == real
    # A longer training begins as a shorter one.
    assert list(make_stream(n_batches=20))[:96] == list(make_stream())


def test_golden_order():
    """Frozen: torch's CPU permutation under a hashed seed."""
    items = list(make_stream(n_real=5, n_synthetic=6, batch_size=4, n_batches=3))
    assert [index for index, _ in items] == [4, 2, 7, 9, 0, 1, 8, 10, 3, 3, 5, 6]


def test_order_is_iterable_twice_and_by_a_batch_sampler():
    stream = make_stream()
    first = list(BatchSampler(stream, batch_size=8, drop_last=False))
    assert first == list(BatchSampler(stream, batch_size=8, drop_last=False))
    assert len(first) == 12


def test_refusals():
    with pytest.raises(ValueError, match="at least one real item"):
        make_stream(n_real=0)
    with pytest.raises(ValueError, match="batch_size=8 cannot be divided over 3"):
        make_stream(world_size=3)
