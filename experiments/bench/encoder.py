"""SAM's image encoder: as it is built, as transformers has it, and as we run it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.context import Bench, Way
from experiments.bench.machine import share_of_peak
from experiments.bench.published import random_image
from experiments.bench.results import Ratio, Result, Timing, Value
from lightning_modules.segmenters.sam.attention import use_stock_attention
from lightning_modules.segmenters.sam.config import IMAGE_SIDE_PX, Backbone, SegmenterConfig
from lightning_modules.segmenters.sam.network import build_sam, for_inference, random_vit


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Seconds an image of a backbone's encoders."""

    published: dict[str, float]
    """By their readable names."""
    stock_s: float
    """Of segment_anything's, which is one of them."""
    fastest: Timing
    """Ours that takes least time."""


@dataclass(frozen=True)
class _Row:
    """An encoder to time."""

    who: str
    call: Callable[[int], object]
    precision: Literal["fp32", "bf16"] = "fp32"
    kind: Literal["published", "ours", "compiled"] = "ours"

    def way(self, batch: int) -> Way:
        suffix = ", compiled" if self.kind == "compiled" else ""
        return Way(f"{self.who}, {self.precision}{suffix}", self.call, units=batch)


def bench_encoder(bench: Bench, found: Result) -> None:
    """Seconds an image of each encoder, stock and ours, with the share of the measured peak."""
    batch = 1 if bench.device == "cpu" else 8
    weights = f"{bench.vit}: random, {bench.backbone}: its own"
    found.settings = {"batch": batch, "weights": weights}
    stock = build_sam(SegmenterConfig(backbone=bench.backbone)).image_encoder
    fast = for_inference(stock.to(bench.device)).to(bench.device)
    rows = _rows(bench, found, bench.backbone, fast=fast, how="folded and channels last")
    repeats = bench.size(quick=2, cpu=3, gpu=3)
    _measure(bench, found, bench.backbone, stock=stock, rows=rows, repeats=repeats)
    fast = random_vit(bench.vit).image_encoder.eval().to(bench.device)
    stock = use_stock_attention(copy.deepcopy(fast))
    rows = _rows(bench, found, bench.vit, fast=fast, how="SDPA")
    # A pass takes seconds on a CPU.
    repeats = bench.size(quick=2, cpu=2, gpu=5)
    _measure(bench, found, bench.vit, stock=stock, rows=rows, repeats=repeats)
    if bench.device == "cpu":
        found.notes.append(
            "torch.compile was not run on the CPU: compiling takes longer than the images of a "
            "demo, and the embeddings of a sweep are computed once."
        )


def _rows(
    bench: Bench, found: Result, backbone: Backbone, *, fast: nn.Module, how: str
) -> list[_Row]:
    """The encoders of one backbone: the published ones, then ours."""
    batch, is_vit = found.settings["batch"], backbone == bench.vit
    libraries = {f"{backbone} stock": "segment_anything"}
    if backbone == "vit_b":
        libraries["vit_b of transformers"] = "transformers"
    rows = []
    for who, library in libraries.items():
        given = {"backbone": backbone, "library": library, "batch": batch}
        call = lambda _, given=given: bench.published("encode", **given).seconds  # noqa: E731
        rows.append(_Row(who, call, kind="published"))
    image = random_image(backbone, batch=batch, device=bench.device)
    if not is_vit:
        image = image.contiguous(memory_format=torch.channels_last)
    rows.append(_Row(f"{backbone} {how}", _pass(fast, image)))
    peaks = bench.run("machine").facts
    if bench.quick or peaks["bf16"] > peaks["fp32"]:
        rows.append(_Row(f"{backbone} {how}", _pass(fast, image, bf16=True), "bf16"))
    else:
        found.notes.append(
            f"{backbone} in bf16 was left out: this processor's matrix product reaches "
            f"{peaks['bf16']:.3g} GFLOP/s in bf16 and {peaks['fp32']:.3g} in fp32, so bf16 cannot "
            "pay and a target for it is not reached here."
        )
    if is_vit and bench.device == "cuda":
        call = _pass(torch.compile(copy.deepcopy(fast)), image, bf16=True)
        rows.append(_Row(f"{backbone} {how}", call, "bf16", "compiled"))
    return rows


def _measure(
    bench: Bench,
    found: Result,
    backbone: Backbone,
    *,
    stock: nn.Module,
    rows: list[_Row],
    repeats: int,
) -> None:
    """Time the encoders of one backbone in turn."""
    ways = [row.way(found.settings["batch"]) for row in rows]
    times = list(zip(rows, bench.measure(found, ways, repeats=repeats), strict=True))
    passes = found.facts[backbone] = Passes(
        published={row.who: t.per_unit_s for row, t in times if row.kind == "published"},
        stock_s=times[0][1].per_unit_s,
        fastest=min(
            (timing for row, timing in times if row.kind != "published"),
            key=lambda timing: timing.per_unit_s,
        ),
    )
    operations = encoder_flops(stock, side_px=IMAGE_SIDE_PX[backbone])
    label, formula = f"{backbone} encoder", "torch.utils.flop_counter on the stock encoder"
    arithmetic = f"{label}, arithmetic of an image"
    found.values.append(Value(arithmetic, operations / 1e9, "GFLOP", formula=formula))
    given = {"operations": operations, "machine": bench.run("machine")}
    for row, timing in times:
        found.values.append(share_of_peak(timing, **given, precision=row.precision))
        if row.kind == "ours":
            seconds = passes.stock_s, timing.per_unit_s
            target = bench.target(found, f"{backbone} {row.precision}")
            found.ratios.append(Ratio(f"{label}, {row.precision}", *seconds, "measured", target))


def _pass(
    encoder: nn.Module, image: torch.Tensor, *, bf16: bool = False
) -> Callable[[int], torch.Tensor]:
    def call(_: int) -> torch.Tensor:
        half = torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16)
        with torch.no_grad(), half:
            return encoder(image)

    return call


def encoder_flops(encoder: nn.Module, *, side_px: int) -> float:
    """Operations (2 x multiply-add) of one image, counted without computing.

    Args:
        encoder: A stock one; fused attention is not counted on the meta device.
        side_px: Side of its image.

    Source:
        torch.utils.flop_counter: matrix products, convolutions and attention; nothing else.
    """
    # TinyViT caches a tensor of its weights outside of its parameters.
    copied = copy.deepcopy(encoder).to("meta").train(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        copied(torch.empty(1, 3, side_px, side_px, device="meta"))
    return float(counter.get_total_flops())
