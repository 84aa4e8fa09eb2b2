"""The published way to fine-tune and to score SAM, in our own words on segment_anything.

Every step and every box of an evaluation reads its PNG files and runs segment_anything's encoder,
image by image, in fp32. A child calls the functions at the end by name: each builds what the work
needs, and gives the work back to be timed.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from datamodules.annotation import annotation_of, image_of
from datamodules.geometry import enlarge, image_to_frame, mask_to_frame, place
from datamodules.samples import Sample, read_hc18
from experiments.stages.evaluation import Scorer
from lightning_modules.losses import dice_cross_entropy_loss
from lightning_modules.prompts import prompt_boxes
from lightning_modules.segmenters.sam.attention import use_stock_attention
from lightning_modules.segmenters.sam.backbones import normalised
from lightning_modules.segmenters.sam.config import (
    FRAME_SIDE_PX,
    IMAGE_SIDE_PX,
    Backbone,
    SegmenterConfig,
    image_factor,
)
from lightning_modules.segmenters.sam.network import BackboneSam, build_sam, random_vit

JITTER_MAX_PX = 19


class PublishedSam:
    """Plain fine-tuning and scoring of one backbone, its weights and learning rate as set."""

    def __init__(self, config: SegmenterConfig, *, device: str) -> None:
        self.sam: BackboneSam = build_sam(config).to(device)
        use_stock_attention(self.sam.image_encoder)
        self.side, self.device = FRAME_SIDE_PX[config.backbone], device
        self.factor = image_factor(config.backbone)
        decoder = self.sam.mask_decoder.parameters()
        self.optimizer = torch.optim.AdamW(decoder, lr=config.learning_rate, weight_decay=0.0)

    def read(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Decode an image and its annotation: `image` (1, 1, S, S), `mask`, `valid_hw`."""
        item = read_item(sample, side=self.side, factor=self.factor)
        return {name: torch.as_tensor(item[name])[None].to(self.device) for name in item}

    def embed(self, item: dict[str, torch.Tensor]) -> torch.Tensor:
        """Encode one image as it stands: (1, 256, h, w) float32."""
        backbone = self.sam.backbone
        prepared = normalised(item["image"], valid_hw=item["valid_hw"], backbone=backbone)
        with torch.no_grad():
            return self.sam.image_encoder(prepared.contiguous())

    def decode(self, embedding: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
        """Decode one image with one box (1, 4): logits (1, 1, h, w)."""
        sparse, dense = self.sam.prompt_encoder(points=None, boxes=box, masks=None)
        return self.sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )[0]

    def box(self, item: dict[str, torch.Tensor], *, draw: int) -> torch.Tensor:
        """A jittered box (1, 4) around the mask."""
        generator = torch.Generator().manual_seed(draw)
        offsets = torch.randint(0, JITTER_MAX_PX + 1, (1, 4), generator=generator).float()
        given = {name: item[name] for name in ("mask", "valid_hw")}
        return prompt_boxes("jittered_box", **given, offsets=offsets.to(self.device)).float()

    def step(self, samples: Sequence[Sample], *, draw: int) -> float:
        """One optimiser step on a batch, image by image; the mean loss."""
        self.sam.mask_decoder.train()
        self.optimizer.zero_grad()
        total = 0.0
        for number, sample in enumerate(samples):
            item = self.read(sample)
            logits = self.decode(self.embed(item), self.box(item, draw=draw + number))
            loss = dice_cross_entropy_loss(logits, item["mask"], valid_hw=item["valid_hw"])
            (loss / len(samples)).backward()
            total += loss.item() / len(samples)
        self.optimizer.step()
        return total

    @torch.no_grad()
    def score(self, sample: Sample, *, draw: int) -> dict[str, Any]:
        """All scores of one image under one draw of the box, from its files on."""
        item = self.read(sample)
        logits = self.decode(self.embed(item), self.box(item, draw=draw))
        name = sample.sample_id
        scorer = Scorer(samples={name: sample}, frame_hw=(self.side, self.side), mode="pad")
        return scorer.row(name, scorer.predicted_mask(logits[0].cpu(), name))


def read_item(sample: Sample, *, side: int, factor: int = 1) -> dict[str, np.ndarray]:
    """Decode an image and fit its ellipse: `image` in [0, 1], `mask` (1, side, side), `valid_hw`.

    The image has `factor` pixels per pixel of the frame.
    """
    image = image_of(sample)
    frame = place(image.shape, frame_hw=(side, side), mode="pad")
    pixels = image_to_frame(image, enlarge(frame, factor)).astype(np.float32) / 255.0
    mask = mask_to_frame(annotation_of(sample).mask, frame).astype(np.float32)
    return {"image": pixels[None], "mask": mask[None], "valid_hw": np.array(frame.valid_hw)}


Work = Callable[[], object]


def build(*, backbone: Backbone, device: str, weights: str | None = None) -> Work:
    """Build a network with its weights."""
    config = SegmenterConfig(backbone=backbone, weights_path=weights)
    return lambda: PublishedSam(config, device=device)


def step(
    *, root: str, names: list[str], draw: int, backbone: Backbone, device: str, weights: str | None
) -> Work:
    """Take one optimiser step on a batch."""
    batch = [_samples(root)[name] for name in names]
    plain = _sam(backbone, device, weights)
    return lambda: plain.step(batch, draw=draw)


def score(*, root: str, name: str, draw: int, backbone: Backbone, device: str) -> Work:
    """Score an image under one box."""
    sample, plain = _samples(root)[name], _sam(backbone, device)
    return lambda: plain.score(sample, draw=draw)


def encode(*, backbone: Backbone, library: str, device: str, batch: int) -> Work:
    """Run a stock image encoder."""
    encoder = _encoder(backbone, library, device)
    image = random_image(backbone, batch=batch, device=device)
    return torch.no_grad()(lambda: encoder(image))


def random_image(backbone: Backbone, *, batch: int, device: str) -> torch.Tensor:
    """Noise of the size that an encoder reads: (batch, 3, S, S)."""
    side = IMAGE_SIDE_PX[backbone]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, side, side, generator=generator).to(device)


@functools.cache
def _sam(backbone: Backbone, device: str, weights: str | None = None) -> PublishedSam:
    return PublishedSam(SegmenterConfig(backbone=backbone, weights_path=weights), device=device)


@functools.cache
def _samples(root: str) -> dict[str, Sample]:
    return {sample.sample_id: sample for sample in read_hc18(Path(root))}


@functools.cache
def _encoder(backbone: Backbone, library: str, device: str) -> nn.Module:
    if library == "transformers":
        # It takes seconds to import.
        from transformers import SamConfig, SamModel

        torch.manual_seed(0)
        return SamModel(SamConfig()).vision_encoder.eval().to(device)
    is_vit = backbone == "vit_b"
    sam = random_vit(backbone) if is_vit else build_sam(SegmenterConfig(backbone=backbone))
    return use_stock_attention(sam.image_encoder).eval().to(device)
