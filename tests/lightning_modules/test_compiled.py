"""Functions that torch compiles, where it can."""

import warnings

import pytest
import torch

from lightning_modules.compiled import compiled


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    yield
    torch.compiler.reset()


def test_a_compiled_function_gives_what_it_gave_and_is_compiled_once():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    double = compiled(lambda a, b: 2 * a + b, backend=backend)
    for value in (1.0, 3.0):
        a = torch.full((2, 3), value)
        assert double(a, a).tolist() == [[3 * value] * 3] * 2
    assert len(graphs) == 1


def test_what_cannot_be_compiled_goes_on_without_and_says_so_once():
    def backend(_graph, _inputs):
        raise RuntimeError("no C compiler here\nand more lines")

    double = compiled(lambda a: 2 * a, backend=backend)
    with pytest.warns(UserWarning, match="goes on without: .*no C compiler") as said:
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert "more lines" not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double(torch.ones(2)).tolist() == [2, 2]


def test_memory_that_runs_out_is_told_and_not_taken_for_a_failed_compilation():
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for function, backend in ((out_of_memory, "eager"), (torch.sin, out_of_memory)):
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            compiled(function, backend=backend)(torch.ones(2))
