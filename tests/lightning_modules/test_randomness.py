"""Random numbers keyed by (seed, draw, stream)."""

import math

import pytest
import torch

from lightning_modules.randomness import (
    keyed_generator,
    keyed_rand,
    keyed_randint,
    keyed_randn,
    keyed_seed,
)


def test_keyed_seed_is_the_same_on_every_machine():
    assert keyed_seed(0, 1, "noise") == 1305625595197809872
    assert keyed_seed(1) == 1202318701553341096
    assert keyed_seed("1") == 9115798964296604131


def test_keyed_seed_tells_keys_apart():
    keys = [(1,), ("1",), (1, 1), (11,), ("ab",), ("a", "b"), ("b", "a"), (), (0,), (-1,), ("",)]
    assert len({keyed_seed(*key) for key in keys}) == len(keys)


def test_keyed_seed_fits_torch_and_is_uniform():
    seeds = [keyed_seed(0, draw) for draw in range(2000)]
    assert len(set(seeds)) == 2000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    # The mean of 2000 uniform values has a standard deviation of 0.0065.
    assert sum(seeds) / 2000 / 2**63 == pytest.approx(0.5, abs=0.03)


def test_keyed_seed_refuses_what_has_no_stable_text():
    with pytest.raises(TypeError, match="not float"):
        keyed_seed(0, 1.0)


def test_keyed_generator_repeats():
    first = torch.rand(3, generator=keyed_generator(3, 4, "a"))
    assert torch.equal(first, torch.rand(3, generator=keyed_generator(3, 4, "a")))
    assert not torch.equal(first, torch.rand(3, generator=keyed_generator(3, 5, "a")))


@pytest.mark.parametrize("draw_values", [keyed_randn, keyed_rand])
def test_values_do_not_depend_on_the_batch(draw_values):
    draws = torch.tensor([7, 0, 3, 12])
    together = draw_values((2, 5), seed=1, draws=draws, stream="x")
    alone = torch.cat([draw_values((2, 5), seed=1, draws=[d], stream="x") for d in [7, 0, 3, 12]])
    assert torch.equal(together, alone)
    permuted = draw_values((2, 5), seed=1, draws=draws.flip(0), stream="x")
    assert torch.equal(together, permuted.flip(0))


def test_values_ignore_and_leave_global_state():
    torch.manual_seed(0)
    expected_next = torch.rand(1)
    torch.manual_seed(0)
    first = keyed_randn((3,), seed=7, draws=[5], stream="noise")
    assert torch.equal(torch.rand(1), expected_next)
    assert torch.equal(first, keyed_randn((3,), seed=7, draws=[5], stream="noise"))
    assert torch.allclose(first, torch.tensor([[-0.6389, 0.9397, -1.3696]]), atol=1e-4)


def test_seed_draw_and_stream_all_matter():
    base = keyed_rand((), seed=1, draws=[2], stream="a")
    assert base.shape == (1,)
    others = [
        keyed_rand((), seed=2, draws=[2], stream="a"),
        keyed_rand((), seed=1, draws=[3], stream="a"),
        keyed_rand((), seed=1, draws=[2], stream="b"),
    ]
    assert all(base.item() != other.item() for other in others)


def test_randint_covers_its_range_evenly():
    values = keyed_randint(0, 20, (4,), seed=0, draws=range(1000), stream="jitter")
    assert values.shape == (1000, 4)
    assert values.dtype == torch.int64
    counts = torch.bincount(values.flatten(), minlength=20)
    assert len(counts) == 20
    # 200 expected a value, standard deviation 13.8.
    assert counts.min() > 140
    assert counts.max() < 260


def test_randn_is_standard_normal():
    values = keyed_randn((), seed=0, draws=range(4000), stream="n")
    assert values.mean().item() == pytest.approx(0, abs=4 / math.sqrt(4000))
    assert values.std().item() == pytest.approx(1, abs=0.05)


def test_no_draws_and_an_empty_range():
    assert keyed_randn((2, 3), seed=0, draws=[], stream="x").shape == (0, 2, 3)
    empty = keyed_randint(0, 5, (4,), seed=0, draws=torch.empty(0, dtype=torch.int64), stream="x")
    assert empty.shape == (0, 4)
    assert empty.dtype == torch.int64
    with pytest.raises(ValueError, match="no integers"):
        keyed_randint(3, 3, (1,), seed=0, draws=[0], stream="x")
