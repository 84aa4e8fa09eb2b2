"""What this machine can do at best: a large matrix product and a copy of memory."""

import torch

from experiments.bench.context import Bench, Way
from experiments.bench.results import Result, Timing, Value

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bench_machine(bench: Bench, found: Result) -> None:
    """Peak of the matrix product in fp32 and bf16, and of copying memory.

    A square product of side n takes 2 n^3 operations; a copy of b bytes reads b and writes b. The
    fastest repeat counts: whatever else runs makes a peak no lower.
    """
    # A processor without arithmetic in bf16 takes a second for a product of half the side.
    fp32, bf16 = bench.size(quick=(64, 64), cpu=(2048, 1024), gpu=(8192, 8192))
    sides = {"fp32": fp32, "bf16": bf16}
    n_bytes = bench.size(quick=2**20, cpu=2**28, gpu=2**32)
    source = torch.ones(n_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.zeros_like(source)
    ways = []
    for name, n in sides.items():
        ones = torch.ones(n, n, dtype=PRECISIONS[name], device=bench.device)
        product = lambda _, ones=ones: torch.mm(ones, ones)  # noqa: E731
        ways.append(Way(f"matrix product, {name}", product, unit="product"))
    ways.append(Way("memory copy", lambda _: target.copy_(source), unit="copy"))
    *products, copy = bench.measure(found, ways, repeats=bench.size(quick=2, cpu=7, gpu=7))
    for timing, (name, n) in zip(products, sides.items(), strict=True):
        rate = found.facts[name] = 2 * n**3 / timing.spread_s[0] / 1e9
        found.values.append(Value(timing.label, rate, "GFLOP/s", formula=f"2 x {n}^3 / s"))
    rate, formula = 2 * n_bytes / copy.spread_s[0] / 1e9, f"2 x {n_bytes} B / s"
    found.values.append(Value(copy.label, rate, "GB/s", formula=formula))
    threads = torch.get_num_threads()
    found.settings = {"sides": list(sides.values()), "bytes": n_bytes, "threads": threads}


def share_of_peak(timing: Timing, *, operations: float, machine: Result, precision: str) -> Value:
    """Share of the measured matrix product that counted arithmetic reaches, percent.

    Args:
        timing: Its fastest repeat counts, as the peak is that of the fastest.
        operations: 2 x multiply-adds of a unit of work.
        machine: The peaks.
        precision: Which of them.
    """
    seconds = timing.spread_s[0]
    share = 100 * operations / seconds / (machine.facts[precision] * 1e9)
    formula = f"{operations / 1e9:.3g} GFLOP in {seconds:.3g} s, fastest repeats"
    label = f"{timing.label}: share of the {precision} peak"
    return Value(label, share, "%", formula=formula)
