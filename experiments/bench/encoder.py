"""SAM's image encoder: as it is built, as transformers has it, and as we run it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.measure import Bench, Found, Timing, Way
from experiments.bench.published import random_image
from lightning_modules.segmenters.sam.attention import use_stock_attention
from lightning_modules.segmenters.sam.config import IMAGE_SIDE_PX, Backbone, SegmenterConfig
from lightning_modules.segmenters.sam.network import build_sam, for_inference, random_vit


class Passes(NamedTuple):
    """What a backbone's encoders take."""

    published: dict[str, float]
    """Seconds an image by their readable names."""
    stock_s: float
    """Of segment_anything's, which is one of them."""
    fastest: Timing
    """Ours that takes least time."""


def bench_encoder(bench: Bench, found: Found) -> None:
    """Seconds an image of each encoder, stock and ours, with the share of the measured peak."""
    stock = build_sam(SegmenterConfig(backbone=bench.backbone)).image_encoder
    fast = for_inference(stock.to(bench.device)).to(bench.device)
    how = "folded and channels last"
    _measure(bench, found, bench.backbone, stock=stock, fast=fast, how=how)
    fast = random_vit(bench.vit).image_encoder.eval().to(bench.device)
    stock = use_stock_attention(copy.deepcopy(fast))
    _measure(bench, found, bench.vit, stock=stock, fast=fast, how="SDPA")
    if bench.device == "cpu":
        found.notes.append(
            "torch.compile was not run on the CPU: compiling takes longer than the images of a "
            "demo, and the embeddings of a sweep are computed once."
        )


def _measure(
    bench: Bench, found: Found, backbone: Backbone, *, stock: nn.Module, fast: nn.Module, how: str
) -> None:
    """Time the encoders of one backbone in turn, the published ones first."""
    batch, is_vit = found.sizes["batch"], backbone == bench.vit
    libraries = {f"{backbone} stock": "segment_anything"}
    if backbone == "vit_b":
        libraries["vit_b of transformers"] = "transformers"
    flops, name = encoder_flops(stock, side_px=IMAGE_SIDE_PX[backbone]), f"{backbone} encoder"
    formula = "torch.utils.flop_counter on the stock encoder"
    found.value(f"{name}, arithmetic of an image", flops / 1e9, "GFLOP", formula=formula)
    given = {"backbone": backbone, "batch": batch}
    ways = [
        Way(f"{who}, fp32", lambda _, it=it: bench.published("encode", library=it, **given), batch)
        for who, it in libraries.items()
    ]
    image = random_image(backbone, batch=batch, device=bench.device)
    if not is_vit:
        image = image.contiguous(memory_format=torch.channels_last)
    peaks, precisions = bench.run("machine").facts, ["fp32"]
    if bench.quick or peaks["bf16"] > peaks["fp32"]:
        precisions.append("bf16")
    else:
        found.notes.append(
            f"{backbone} in bf16 was left out: this processor's matrix product reaches "
            f"{peaks['bf16']:.3g} GFLOP/s in bf16 and {peaks['fp32']:.3g} in fp32, so bf16 cannot "
            "pay and a target for it is not reached here."
        )
    ways += [
        Way(
            f"{backbone} {how}, {precision}",
            _pass(fast, image, precision),
            batch,
            ratio=f"{name}, {precision}",
            target=f"{backbone} {precision}",
            precision=precision,
        )
        for precision in precisions
    ]
    if is_vit and bench.device == "cuda":
        call = _pass(torch.compile(copy.deepcopy(fast)), image, "bf16")
        ways.append(Way(f"{backbone} {how}, bf16, compiled", call, batch, precision="bf16"))
    repeats = found.sizes["vit_repeats" if is_vit else "repeats"]
    timings = found.measure(*(replace(way, flops=flops) for way in ways), repeats=repeats)
    fastest = min(timings[len(libraries) :], key=lambda timing: timing.per_unit_s)
    published = {who: t.per_unit_s for who, t in zip(libraries, timings, strict=False)}
    found.facts[backbone] = Passes(published, timings[0].per_unit_s, fastest)


def _pass(encoder: nn.Module, image: torch.Tensor, precision: str) -> Callable[[int], torch.Tensor]:
    half = torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    return half(torch.no_grad()(lambda _: encoder(image)))


def encoder_flops(encoder: nn.Module, *, side_px: int) -> float:
    """Operations (2 x multiply-add) of one image of this side, counted without computing.

    The encoder is a stock one: fused attention is not counted on the meta device.

    Source:
        torch.utils.flop_counter: matrix products, convolutions and attention; nothing else.
    """
    # TinyViT caches a tensor of its weights outside of its parameters.
    copied = copy.deepcopy(encoder).to("meta").train(False)
    image = torch.empty(1, 3, side_px, side_px, device="meta")
    return flops_of(torch.no_grad()(lambda: copied(image)))


def flops_of(work: Callable[[], object]) -> float:
    """Operations (2 x multiply-add) of a call, which is made."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
