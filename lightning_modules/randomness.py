"""Random numbers keyed by what they are for, never by how many were drawn before.

Every training item carries `draw`, its position in the training stream. Values drawn here depend
on (seed, draw, stream) alone: not on the batch an item is in, the process, the worker, or whether
the run was resumed. That makes resume and several devices exact. All values are made on the CPU,
so that they do not depend on the device either. Everything here is pure.
"""

import hashlib
from collections.abc import Sequence

import torch

Draws = torch.Tensor | Sequence[int]


def keyed_seed(*parts: int | str) -> int:
    """Hash a key to a seed, the same on every machine and Python.

    `datamodules.keyed.text_seed`, which may not import this, hashes otherwise; to make them one
    would change the numbers of finished runs.

    Args:
        *parts: Integers and strings; 1 and "1" differ, and so do ("ab",) and ("a", "b").

    Returns:
        An integer in [0, 2**63), uniform over keys.

    Raises:
        TypeError: A part that is neither (its text could differ between machines).
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if not isinstance(part, int | str):
            raise TypeError(f"a key is made of int and str, not {type(part).__name__}")
        text = f"{'s' if isinstance(part, str) else 'i'}{part}".encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return int.from_bytes(digest.digest(), "big") >> 1


def keyed_generator(*parts: int | str) -> torch.Generator:
    """Make a CPU generator seeded by a key, as in `keyed_generator(seed, draw, "noise")`.

    torch's CPU generator reads 32 of the 63 bits: streams are independent for all practical
    purposes, but not guaranteed distinct over billions of keys.
    """
    return torch.Generator().manual_seed(keyed_seed(*parts))


def keyed_randn(
    shape: Sequence[int],
    *,
    seed: int,
    draws: Draws,
    stream: str,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Draw standard normal values per item.

    Args:
        shape: Shape of one item's values; () for one number.
        seed: The run's seed.
        draws: (B,) int64, or integers: the items' positions in the training stream.
        stream: What the values are for, so that two uses of one item do not share them.
        device: Where to put the result; it does not change the values.

    Returns:
        (B, *shape) float32; (0, *shape) for no draws.
    """
    rows = [torch.randn(tuple(shape), generator=g) for g in _generators(seed, draws, stream)]
    return _stack(rows, shape, torch.float32).to(device)


def keyed_rand(
    shape: Sequence[int],
    *,
    seed: int,
    draws: Draws,
    stream: str,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Draw values uniform in [0, 1) per item; arguments and result as in `keyed_randn`."""
    rows = [torch.rand(tuple(shape), generator=g) for g in _generators(seed, draws, stream)]
    return _stack(rows, shape, torch.float32).to(device)


def keyed_randint(
    low: int,
    high: int,
    shape: Sequence[int],
    *,
    seed: int,
    draws: Draws,
    stream: str,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Draw integers uniform in [low, high) per item; the rest as in `keyed_randn`.

    Returns:
        (B, *shape) int64.

    Raises:
        ValueError: The range is empty.
    """
    if high <= low:
        raise ValueError(f"no integers in [{low}, {high})")
    generators = _generators(seed, draws, stream)
    rows = [torch.randint(low, high, tuple(shape), generator=g) for g in generators]
    return _stack(rows, shape, torch.int64).to(device)


def _generators(seed: int, draws: Draws, stream: str) -> list[torch.Generator]:
    numbers = draws.tolist() if isinstance(draws, torch.Tensor) else draws
    return [keyed_generator(seed, int(draw), stream) for draw in numbers]


def _stack(rows: list[torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.stack(rows) if rows else torch.empty((0, *shape), dtype=dtype)
