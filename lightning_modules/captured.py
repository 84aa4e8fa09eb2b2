"""A module's forward and backward pass as CUDA graphs.

A decoder's step is a thousand small kernels: a GPU is done with each before the next is launched.
A captured graph launches all of them by one call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MOST_SHAPES = 4
"""Shapes of inputs that are captured; each keeps its activations on the GPU for good."""


class CapturedModule:
    """Calls a module, by the graph that was captured where inputs of these shapes came before.

    Gradients lie in the graph's own memory, which the next backward pass writes anew: clear them
    (`set_to_none`) before each, and do not add them up over several.

    Args:
        make: Makes the module that is captured, over the same weights each time. It must draw no
            random numbers and read no value back from the GPU.

    Source:
        torch.cuda.make_graphed_callables.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self._graphed: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """What the module returns for inputs on a GPU; overwritten by the next call."""
        shapes = tuple((tuple(value.shape), value.dtype) for value in inputs)
        if shapes not in self._graphed:
            if len(self._graphed) >= MOST_SHAPES:
                return self._make()(*inputs)
            self._graphed[shapes] = self._capture(inputs)
        return self._graphed[shapes](*inputs)

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
        sample = tuple(value.detach().clone() for value in inputs)
        is_mixed = torch.is_autocast_enabled("cuda")
        # Copies of weights that autocast keeps between calls would be those of the capture.
        with torch.autocast(
            "cuda",
            dtype=torch.get_autocast_dtype("cuda"),
            enabled=is_mixed,
            cache_enabled=False,
        ):
            return torch.cuda.make_graphed_callables(self._make(), sample, allow_unused_input=True)
