"""What the published way does, one JSON line asked and one answered at a time."""

import contextlib
import functools
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datamodules.samples import Sample, read_hc18
from experiments.bench.published import PublishedSam, transformers_sam
from lightning_modules.losses import dice_cross_entropy_loss
from lightning_modules.segmenters.sam.attention import use_stock_attention
from lightning_modules.segmenters.sam.config import IMAGE_SIDE_PX, Backbone, SegmenterConfig
from lightning_modules.segmenters.sam.network import build_sam, random_vit


class Plain:
    """Networks are built outside of the time; each method gives the work to be timed."""

    def build(
        self, *, backbone: Backbone, device: str, weights: str | None = None
    ) -> Callable[[], object]:
        """Build a network with its weights."""
        config = SegmenterConfig(backbone=backbone, weights_path=weights)
        return lambda: PublishedSam(config, device=device)

    def step(
        self,
        *,
        root: str,
        names: list[str],
        backbone: Backbone,
        device: str,
        draw: int,
        weights: str | None = None,
    ) -> Callable[[], object]:
        """Take one optimiser step on a batch."""
        samples = [_samples(root)[name] for name in names]
        plain = _plain(backbone, device, weights)
        return lambda: plain.step(samples, draw=draw)

    def score(
        self, *, root: str, name: str, backbone: Backbone, device: str, draw: int
    ) -> Callable[[], object]:
        """Score an image under one box."""
        sample, plain = _samples(root)[name], _plain(backbone, device)
        return lambda: plain.score(sample, draw=draw)

    def encode(
        self, *, backbone: Backbone, library: str, device: str, batch: int
    ) -> Callable[[], object]:
        """Run a stock image encoder."""
        encoder = _encoder(backbone, library, device)
        image = random_image(backbone, batch=batch, device=device)

        def work() -> None:
            with torch.no_grad():
                encoder(image)

        return work

    def decode(self, *, backbone: Backbone, device: str) -> Callable[[], object]:
        """Run a mask decoder forward and backward on one image, the embedding given."""
        if backbone == "vit_b":
            side, grid = 1024, 64
            model = _transformers(device)
            parameters: nn.Module = model.mask_decoder

            def decode(embedding: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
                output = model(
                    image_embeddings=embedding, input_boxes=box[None], multimask_output=False
                )
                return output.pred_masks[:, 0]
        else:
            plain = _plain("tiny", device)
            side, grid, decode = plain.side, plain.side // 4, plain.decode
            parameters = plain.sam.mask_decoder
        embedding = torch.randn(1, 256, grid, grid, device=device)
        box = torch.tensor([[0.1, 0.1, 0.8, 0.6]], device=device) * side
        mask = torch.zeros(1, 1, 4 * grid, 4 * grid, device=device)
        mask[..., : 2 * grid, : 2 * grid] = 1.0
        valid_hw = torch.tensor([[4 * grid, 4 * grid]], device=device)

        def work() -> None:
            parameters.zero_grad()
            logits = decode(embedding, box)
            dice_cross_entropy_loss(logits, mask, valid_hw=valid_hw).backward()

        return work


def random_image(backbone: Backbone, *, batch: int, device: str) -> torch.Tensor:
    """Noise of the size that an encoder reads: (batch, 3, S, S)."""
    side = IMAGE_SIDE_PX[backbone]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, side, side, generator=generator).to(device)


@functools.cache
def _plain(backbone: Backbone, device: str, weights: str | None = None) -> PublishedSam:
    config = SegmenterConfig(backbone=backbone, weights_path=weights)
    return PublishedSam(config, device=device)


@functools.cache
def _samples(root: str) -> dict[str, Sample]:
    return {sample.sample_id: sample for sample in read_hc18(Path(root))}


@functools.cache
def _transformers(device: str) -> nn.Module:
    return transformers_sam(device=device)


@functools.cache
def _encoder(backbone: Backbone, library: str, device: str) -> nn.Module:
    if library == "transformers":
        return _transformers(device).vision_encoder
    if backbone == "vit_b":
        sam = random_vit(backbone)
    else:
        sam = build_sam(SegmenterConfig(backbone=backbone))
    return use_stock_attention(sam.image_encoder).eval().to(device)


def _answer(line: str) -> dict[str, Any]:
    asked = json.loads(line)
    given = asked["given"]
    try:
        # Libraries print; the answers' channel is not for that.
        with contextlib.redirect_stdout(io.StringIO()):
            work = getattr(Plain(), asked["call"])(**given)
            _wait(given["device"])
            started, processor = time.perf_counter(), time.process_time()
            work()
            _wait(given["device"])
            wall_s, cpu_s = time.perf_counter() - started, time.process_time() - processor
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Answer until the channel closes."""
    for line in sys.stdin:
        print(json.dumps(_answer(line)), flush=True)


if __name__ == "__main__":
    main()
