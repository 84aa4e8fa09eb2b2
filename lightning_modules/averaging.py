"""Averaged weights of a training, in the place of the last ones for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import nn


@contextmanager
def averaged(parameters: Iterable[nn.Parameter], ema: EMAModel | None) -> Iterator[None]:
    """Put the averaged weights into parameters, and back what was there; None leaves all."""
    if ema is None:
        yield
        return
    parameters = list(parameters)
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)
