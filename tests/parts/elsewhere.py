"""Tensors on a device that only pretends: computed on the CPU, kept apart from its tensors as a GPU
keeps them. What mixes the two, which no test on a CPU would notice, is an error here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
"""A device that torch's autograd knows and has no kernels of its own for wrapped tensors."""
_aten = torch.ops.aten
_CROSSES = (_aten._to_copy.default, _aten.copy_.default, _aten._foreach_copy_.default)
_TAKES_CPU_INDICES = ("aten::index", "aten::index_put", "aten::index_put_")


class Elsewhere(torch.Tensor):
    """A tensor of the pretended device around one of the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        """Wrap."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=ELSEWHERE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU."""
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on what the tensors wrap; RuntimeError where devices are mixed."""
    flat, _ = tree_flatten((args, kwargs))
    wrapped = {id(each.inner): each for each in flat if isinstance(each, Elsewhere)}
    plain = [e for e in flat if isinstance(e, torch.Tensor) and not isinstance(e, Elsewhere)]
    name = func.name().partition(".")[0]
    may_mix = func in _CROSSES or (name in _TAKES_CPU_INDICES and isinstance(args[0], Elsewhere))
    if wrapped and any(e.ndim for e in plain) and not may_mix:
        raise RuntimeError(f"{func}: tensors of two devices")
    device = kwargs.get("device")
    goes_there = bool(wrapped) if device is None else torch.device(device) == ELSEWHERE
    if name == "aten::copy_":
        goes_there = isinstance(args[0], Elsewhere)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}

    def bare(each: Any) -> Any:
        return each.inner if isinstance(each, Elsewhere) else each

    found = func(*tree_map(bare, args), **tree_map(bare, kwargs))

    def dressed(each: Any) -> Any:
        if not isinstance(each, torch.Tensor) or not goes_there:
            return each
        return wrapped[id(each)] if id(each) in wrapped else Elsewhere(each)

    return tree_map(dressed, found)


class _Factories(TorchDispatchMode):
    """Makes `torch.zeros(..., device=ELSEWHERE)` one of those tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """Makes `torch.tensor([...], device=ELSEWHERE)` one, which torch fills before it dispatches."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].inner.tolist()
        if func is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return Elsewhere(args[0].inner.new_tensor(*args[1:], **kwargs))
        device = kwargs.get("device")
        if func not in (torch.tensor, torch.as_tensor) or device is None:
            return func(*args, **kwargs)
        made = func(*args, **kwargs | {"device": "cpu"})
        return Elsewhere(made) if torch.device(device) == ELSEWHERE else made


@contextmanager
def elsewhere() -> Iterator[None]:
    """A context in which the device is there; without mixed precision."""
    autocast, asked = torch.autocast, torch.is_autocast_enabled

    replaces = torch.__future__.get_overwrite_module_params_on_conversion()

    def known(device_type: str) -> str:
        return "cpu" if device_type == ELSEWHERE.type else device_type

    with (
        mock.patch.object(torch, "autocast", lambda kind, *a, **k: autocast(known(kind), *a, **k)),
        mock.patch.object(torch, "is_autocast_enabled", lambda kind: asked(known(kind))),
        _FromData(),
        _Factories(),
    ):
        # `module.to` then makes new parameters, where it would put other data into the old ones.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(replaces)


def there(value: Any) -> Any:
    """Tensors in whatever structure, on the device."""
    return tree_map(lambda e: Elsewhere(e) if isinstance(e, torch.Tensor) else e, value)
