"""What this machine can do at best: a large matrix product and a copy of memory."""

import time

import torch

from experiments.bench.context import Bench
from experiments.bench.measure import Result, Value, Way

TRIAL_SIDE, MOST_S = 256, 1.0


def bench_machine(bench: Bench) -> Result:
    """Peak of the matrix product in fp32 and bf16, and of copying memory.

    A square product of side n takes 2 n^3 operations; a copy of b bytes reads b and writes b. The
    fastest repeat counts: whatever else runs makes a peak no lower.
    """
    side = 64 if bench.quick else (8192 if bench.device == "cuda" else 2048)
    n_bytes = 2**20 if bench.quick else (2**32 if bench.device == "cuda" else 2**28)
    repeats = 2 if bench.quick else 7
    source = torch.ones(n_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.zeros_like(source)
    sides = {
        dtype: affordable_side(side, dtype=dtype, device=bench.device)
        for dtype in (torch.float32, torch.bfloat16)
    }
    ways = [
        _product(
            "matrix product, fp32", side=sides[torch.float32], dtype=torch.float32, bench=bench
        ),
        _product(
            "matrix product, bf16", side=sides[torch.bfloat16], dtype=torch.bfloat16, bench=bench
        ),
        Way(label="memory copy", unit="copy", units=1, call=lambda _: _copy(source, target)),
    ]
    product, half, copy = timings = bench.measure(ways, repeats=repeats)
    found = [
        (timing.label, 2 * n**3 / min(timing.wall_s) / 1e9, "GFLOP/s")
        for timing, n in zip((product, half), sides.values(), strict=True)
    ]
    found.append((copy.label, 2 * n_bytes / min(copy.wall_s) / 1e9, "GB/s"))
    formulas = (*(f"2 x {n}^3 / s" for n in sides.values()), f"2 x {n_bytes} B / s")
    return Result(
        name="machine",
        timings=timings,
        values=[
            Value(label=label, value=value, unit=unit, formula=formula)
            for (label, value, unit), formula in zip(found, formulas, strict=True)
        ],
        settings={
            "sides": list(sides.values()),
            "bytes": n_bytes,
            "threads": torch.get_num_threads(),
        },
    )


def affordable_side(side: int, *, dtype: torch.dtype, device: str) -> int:
    """The side, on a CPU halved until a product takes about a second at most.

    A processor without arithmetic of a type may need a minute for what it does in a tenth of a
    second in another.
    """
    if device != "cpu":
        return side
    small = min(side, TRIAL_SIDE)
    ones = torch.ones(small, small, dtype=dtype, device=device)
    torch.mm(ones, ones)
    started = time.perf_counter()
    torch.mm(ones, ones)
    seconds = time.perf_counter() - started
    while side > small and seconds * (side / small) ** 3 > MOST_S:
        side //= 2
    return side


def share_of_peak(
    label: str, *, operations: float, seconds: float, machine: Result, precision: str = "fp32"
) -> Value:
    """Share of the measured matrix product that a counted amount of arithmetic reaches, percent.

    Args:
        label: Whose.
        operations: 2 x multiply-adds of a unit of work.
        seconds: Of a unit in the fastest repeat, as the peak is that of the fastest.
        machine: The peaks.
        precision: Which of them.
    """
    peak = machine.value(f"matrix product, {precision}").value * 1e9
    return Value(
        label=f"{label}: share of the {precision} peak",
        value=100 * operations / seconds / peak,
        unit="%",
        formula=f"{operations / 1e9:.3g} GFLOP in {seconds:.3g} s, fastest repeats",
    )


def _product(label: str, *, side: int, dtype: torch.dtype, bench: Bench) -> Way:
    a = torch.ones(side, side, dtype=dtype, device=bench.device)
    b = torch.ones(side, side, dtype=dtype, device=bench.device)

    def call(_: int) -> None:
        torch.mm(a, b)

    return Way(label=label, unit="product", units=1, call=call)


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source)
