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


class CapturedStep:
    """Calls a module for a loss and its gradients, by a graph for inputs of shapes seen before.

    Args:
        make: Makes the module that is captured, over the same weights each time; the first of its
            outputs is the loss. It must draw no random numbers and read no value back.

    Source:
        torch.cuda.graph; as torch.cuda.make_graphed_callables, which leaves it to autograd to hand
        each weight its gradient.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self._captured: dict[tuple, _Capture] = {}
        self._gradients: list[tuple[nn.Parameter, torch.Tensor]] = []

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The module's outputs for inputs on a GPU, without gradients of their own.

        Outputs and gradients are overwritten by the next call with inputs of these shapes.
        """
        shapes = _shapes(inputs)
        if shapes not in self._captured:
            if len(self._captured) >= MOST_SHAPES:
                self._captured.clear()
            self._captured[shapes] = _Capture(_with_gradients(self._make()), inputs)
        outputs, self._gradients = self._captured[shapes].replay(inputs)
        return outputs

    def give_gradients(self) -> None:
        """Hand each weight the gradient of the last loss, in place of a backward pass."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient


def _with_gradients(module: nn.Module) -> Callable[..., tuple]:
    """A function that gives the module's outputs, and each weight with its gradient."""
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def call(*inputs: torch.Tensor) -> tuple:
        with torch.enable_grad():
            outputs = module(*inputs)
            # A weight that nothing depends on keeps no gradient, as in a backward pass.
            gradients = torch.autograd.grad(outputs[0], weights, allow_unused=True)
        given = [
            # A fused optimiser wants a gradient laid out as its weight is.
            (weight, torch.empty_like(weight).copy_(gradient))
            for weight, gradient in zip(weights, gradients, strict=True)
            if gradient is not None
        ]
        return tuple(output.detach() for output in outputs), given

    return call


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

    def __init__(self, function: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> None:
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
            # By itself a capture fails at what any thread asks of the GPU, such as the memory that
            # a loader's thread pins for the batches to come.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> Any:
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
