"""Modules and functions as CUDA graphs.

A decoder's step, or a pass of a UNet, is a thousand small kernels: a GPU is done with each before
the next is launched. A captured graph launches all of them by one call.
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
        shapes = _shapes(inputs)
        if shapes not in self._graphed:
            if len(self._graphed) >= MOST_SHAPES:
                return self._make()(*inputs)
            self._graphed[shapes] = self._capture(inputs)
        return self._graphed[shapes](*inputs)

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
        sample = tuple(value.detach().clone() for value in inputs)
        with _autocast_without_cache():
            return torch.cuda.make_graphed_callables(self._make(), sample, allow_unused_input=True)


class CapturedCall:
    """Calls a function without gradients, by the graph captured for inputs of these shapes.

    Args:
        function: Tensors to a tensor, on a GPU. It must draw no random numbers and read no value
            back.

    Source:
        torch.cuda.graph.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self._function = function
        self._captured: dict[tuple, _Capture] = {}

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the function returns; overwritten by the next call with inputs of these shapes."""
        shapes = _shapes(inputs)
        if shapes not in self._captured:
            if len(self._captured) >= MOST_SHAPES:
                return self._function(*inputs)
            self._captured[shapes] = _Capture(self._function, inputs)
        return self._captured[shapes].replay(inputs)


class _Capture:
    """One graph, and the memory that it reads and writes."""

    def __init__(
        self, function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]
    ) -> None:
        self._inputs = tuple(value.clone() for value in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with _autocast_without_cache():
            with torch.cuda.stream(stream):
                # Libraries make their workspaces in the first calls, which a capture must not.
                for _ in range(2):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = function(*self._inputs)

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output


def _shapes(inputs: tuple[torch.Tensor, ...]) -> tuple:
    return tuple((tuple(value.shape), value.dtype) for value in inputs)


def _autocast_without_cache() -> torch.autocast:
    """The autocast that is on; copies of weights that it kept would be those of the capture."""
    return torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
