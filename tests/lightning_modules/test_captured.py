"""How graphs are captured, on a stand-in for a GPU; what they compute is in `test_gpu.py`."""

import contextlib
from types import SimpleNamespace

import torch

from lightning_modules.captured import CapturedCall


class Capture(contextlib.nullcontext):
    """`torch.cuda.graph`, whose mode says whether what other threads ask of the GPU ends it."""

    def __init__(self, graph, *, capture_error_mode="global"):
        super().__init__()
        graph.modes.append(capture_error_mode)


def test_a_loader_that_pins_memory_does_not_end_a_capture(monkeypatch):
    """In the mode `global` a loader's thread that pins a batch meanwhile fails, and so does the
    capture: pytorch/pytorch#174724 leaves it to `thread_local`."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    graph = SimpleNamespace(replay=lambda: None, modes=[])
    for name, value in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": contextlib.nullcontext,
        "CUDAGraph": lambda: graph,
        "graph": Capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert CapturedCall(torch.square)(torch.tensor([3.0])).item() == 9
    assert graph.modes == ["thread_local"]
