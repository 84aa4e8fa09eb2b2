"""SAM's image encoder: as it is built, as transformers has it, and as we run it."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.context import Bench
from experiments.bench.machine import share_of_peak
from experiments.bench.measure import Ratio, Result, Timing, Value, Way
from experiments.bench.plain_child import random_image
from lightning_modules.segmenters.sam.attention import use_stock_attention
from lightning_modules.segmenters.sam.config import IMAGE_SIDE_PX, Backbone, SegmenterConfig
from lightning_modules.segmenters.sam.network import build_sam, for_inference, random_vit


def bench_encoder(bench: Bench) -> Result:
    """Seconds an image of each encoder, stock and ours, with the share of the measured peak."""
    machine = bench.run("machine")
    found = Result(name="encoder")
    batch = 1 if bench.device == "cpu" else 8
    found.settings = {"batch": batch, "weights": f"{bench.vit}: random, {bench.backbone}: its own"}
    _small(bench, found, machine=machine, batch=batch)
    _large(bench, found, machine=machine, batch=batch)
    if bench.device == "cpu":
        found.notes.append(
            "torch.compile was not run on the CPU: compiling takes longer than the images of a "
            "demo, and the embeddings of a sweep are computed once."
        )
    return found


def _small(bench: Bench, found: Result, *, machine: Result, batch: int) -> None:
    name = bench.backbone
    stock = build_sam(SegmenterConfig(backbone=name)).image_encoder.to(bench.device)
    fast = for_inference(stock).to(bench.device)
    image = random_image(name, batch=batch, device=bench.device)
    last = image.contiguous(memory_format=torch.channels_last)
    ways = [
        _stock_way(bench, f"{name} stock, fp32", name, batch=batch),
        _way(f"{name} folded and channels last, fp32", fast, last),
    ]
    if _bf16_pays(bench, found, name=name, machine=machine):
        ways.append(_way(f"{name} folded and channels last, bf16", fast, last, bf16=True))
    timings = bench.measure(ways, repeats=2 if bench.quick else 3)
    found.timings += timings
    found.ratios += [
        _ratio(f"{name} encoder, {precision}", timings[0], ours)
        for precision, ours in zip(("fp32", "bf16"), timings[1:], strict=False)
    ]
    operations = encoder_flops(stock, side_px=IMAGE_SIDE_PX[name])
    _shares(found, timings[:2], name=name, operations=operations, machine=machine)


def _large(bench: Bench, found: Result, *, machine: Result, batch: int) -> None:
    name = bench.vit
    fast = random_vit(name).image_encoder.eval().to(bench.device)
    stock = use_stock_attention(copy.deepcopy(fast))
    image = random_image(name, batch=batch, device=bench.device)
    ways = [
        _stock_way(bench, f"{name} stock, fp32", name, batch=batch),
        _way(f"{name} SDPA, fp32", fast, image),
    ]
    if _bf16_pays(bench, found, name=name, machine=machine):
        ways.append(_way(f"{name} SDPA, bf16", fast, image, bf16=True))
    if name == "vit_b":
        label = "vit_b of transformers, fp32"
        ways.insert(1, _stock_way(bench, label, name, batch=batch, library="transformers"))
    if bench.device == "cuda":
        compiled = torch.compile(copy.deepcopy(fast))
        ways.append(_way(f"{name} SDPA, bf16, compiled", compiled, image, bf16=True))
    is_long = bench.device == "cpu" and not bench.quick
    timings = bench.measure(ways, repeats=2 if is_long or bench.quick else 5)
    found.timings += timings
    if is_long:
        found.notes.append(f"{name}: 2 repeats; a pass takes seconds.")
    by_label = {timing.label: timing for timing in timings}
    stock_time = by_label[f"{name} stock, fp32"]
    found.ratios += [
        _ratio(f"{name} encoder, fp32", stock_time, by_label[f"{name} SDPA, fp32"], target=1.8),
    ]
    if f"{name} SDPA, bf16" in by_label:
        ours = by_label[f"{name} SDPA, bf16"]
        found.ratios.append(_ratio(f"{name} encoder, bf16", stock_time, ours, target=3.0))
    operations = encoder_flops(stock, side_px=IMAGE_SIDE_PX[name])
    _shares(found, timings, name=name, operations=operations, machine=machine)


def _bf16_pays(bench: Bench, found: Result, *, name: Backbone, machine: Result) -> bool:
    """Whether to measure bf16 at all; where not, a note says why."""
    half, full = (machine.value(f"matrix product, {p}").value for p in ("bf16", "fp32"))
    if bench.quick or half > full:
        return True
    found.notes.append(
        f"{name} in bf16 was left out: this processor's matrix product reaches {half:.3g} "
        f"GFLOP/s in bf16 and {full:.3g} in fp32, so bf16 cannot pay and a target for it is not "
        "reached here."
    )
    return False


def fastest_encoder(encoder: Result, name: Backbone) -> Timing:
    """The fastest of our measured encoders of a ViT."""
    labels = [f"{name} SDPA, {kind}" for kind in ("fp32", "bf16", "bf16, compiled")]
    ours = [timing for timing in encoder.timings if timing.label in labels]
    return min(ours, key=lambda timing: timing.per_unit_s)


def published_encoders(encoder: Result, name: Backbone) -> dict[str, Timing]:
    """The encoders that a published run of a ViT may have, by what a person calls them.

    They are transformers' and segment_anything's, in the order in which they were measured.
    """
    names = {f"{who}, fp32": who for who in (f"{name} of transformers", f"{name} stock")}
    return {names[t.label]: t for t in encoder.timings if t.label in names}


def encoder_flops(encoder: nn.Module, *, side_px: int) -> float:
    """Operations (2 x multiply-add) of one image, counted without computing.

    Args:
        encoder: A stock one; fused attention is not counted on the meta device.
        side_px: Side of its image.

    Source:
        torch.utils.flop_counter: matrix products, convolutions and attention; nothing else.
    """
    copied = copy.deepcopy(encoder).to("meta")
    # TinyViT caches a tensor of its weights outside of its parameters.
    copied.train(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        copied(torch.empty(1, 3, side_px, side_px, device="meta"))
    return float(counter.get_total_flops())


def _shares(
    found: Result,
    timings: list[Timing],
    *,
    name: Backbone,
    operations: float,
    machine: Result,
) -> None:
    found.values.append(
        Value(
            label=f"{name} encoder, arithmetic of an image",
            value=operations / 1e9,
            unit="GFLOP",
            formula="torch.utils.flop_counter on the stock encoder",
        )
    )
    for timing in timings:
        precision = "bf16" if "bf16" in timing.label else "fp32"
        share = share_of_peak(
            timing.label,
            operations=operations,
            seconds=timing.spread_s[0],
            machine=machine,
            precision=precision,
        )
        found.values.append(share)


def _stock_way(
    bench: Bench, label: str, name: Backbone, *, batch: int, library: str = "segment_anything"
) -> Way:
    """A stock encoder in the plain process."""
    given = {"backbone": name, "library": library, "device": bench.device, "batch": batch}
    return Way(
        label=label, unit="image", units=batch, call=lambda _: bench.plain.call("encode", **given)
    )


def _way(label: str, encoder: nn.Module, image: torch.Tensor, *, bf16: bool = False) -> Way:
    return Way(label=label, unit="image", units=len(image), call=_pass(encoder, image, bf16=bf16))


def _pass(encoder: nn.Module, image: torch.Tensor, *, bf16: bool) -> Callable[[int], None]:
    def call(_: int) -> None:
        enabled = torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16)
        with torch.no_grad(), enabled:
            encoder(image)

    return call


def _ratio(label: str, stock: Timing, ours: Timing, *, target: float | None = None) -> Ratio:
    return Ratio(
        label=label,
        published_s=stock.per_unit_s,
        ours_s=ours.per_unit_s,
        how="measured",
        at_least=target,
    )
