"""Functions that torch compiles, where it can."""

import warnings
from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable[..., Any], *, backend: str = "inductor") -> Callable[..., Any]:
    """The function, compiled by its first call, or as it is where that fails.

    Compiling needs what is not on every machine, such as a C compiler; a warning says so then. It
    takes a minute for a large network, once for each shape of its inputs.

    Args:
        function: Takes and gives tensors.
        backend: Of torch.compile.

    Raises:
        torch.OutOfMemoryError: From the first call, as from the function itself.

    Source:
        torch.compile. TORCH_COMPILE_DISABLE=1 in the environment turns it off.
    """
    chosen = torch.compile(function, backend=backend, dynamic=False)
    is_tried = False

    def call(*inputs: torch.Tensor) -> Any:
        nonlocal chosen, is_tried
        if is_tried:
            return chosen(*inputs)
        try:
            output = chosen(*inputs)
        except Exception as error:
            # torch wraps what its backend raised.
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from error
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            warnings.warn(f"torch.compile failed, so it goes on without: {lines[0]}", stacklevel=2)
            chosen, output = function, function(*inputs)
        is_tried = True
        return output

    return call
