"""What this machine can do at best: a large matrix product and a copy of memory."""

import torch

from experiments.bench.measure import Bench, Found, Way

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bench_machine(bench: Bench, found: Found) -> None:
    """Peak of the matrix product in fp32 and bf16, and of copying memory, by the fastest repeat."""
    n_bytes = found.sizes["bytes"]
    source = torch.ones(n_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.zeros_like(source)
    ways = []
    for name, dtype in PRECISIONS.items():
        ones = torch.ones((found.sizes[name],) * 2, dtype=dtype, device=bench.device)
        product = lambda _, ones=ones: torch.mm(ones, ones)  # noqa: E731
        ways.append(Way(f"matrix product, {name}", product, unit="product"))
    ways.append(Way("memory copy", lambda _: target.copy_(source), unit="copy"))
    *products, copy = found.measure(*ways)
    for timing, name in zip(products, PRECISIONS, strict=True):
        n = found.sizes[name]
        rate = found.facts[name] = 2 * n**3 / timing.fastest_s / 1e9
        found.value(timing.label, rate, "GFLOP/s", formula=f"2 x {n}^3 / s")
    rate = 2 * n_bytes / copy.fastest_s / 1e9
    found.value(copy.label, rate, "GB/s", formula=f"2 x {n_bytes} B / s")
