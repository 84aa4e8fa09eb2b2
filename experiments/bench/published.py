"""The published way to fine-tune and to score SAM, in our own words on segment_anything.

Every step reads its PNG files and runs the image encoder, image by image, in fp32, with the
network as segment_anything builds it; so does every box of an evaluation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from datamodules.annotation import read_annotation, read_image
from datamodules.geometry import enlarge, image_to_frame, mask_to_frame, place
from datamodules.samples import Sample
from experiments.stages.evaluation import Scorer
from lightning_modules.losses import dice_cross_entropy_loss
from lightning_modules.prompts import prompt_boxes
from lightning_modules.segmenters.sam.attention import use_stock_attention
from lightning_modules.segmenters.sam.backbones import normalised
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig, image_factor
from lightning_modules.segmenters.sam.network import BackboneSam, build_sam

JITTER_MAX_PX = 19


def transformers_sam(*, device: str) -> nn.Module:
    """transformers' SamModel of ViT-B's size with random weights, in eval mode."""
    # It takes seconds to import.
    from transformers import SamConfig, SamModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SamModel(SamConfig()).eval().to(device)


class PublishedSam:
    """Plain fine-tuning and scoring of one backbone.

    Args:
        config: Backbone and learning rate are read.
        device: Where to compute.
    """

    def __init__(self, config: SegmenterConfig, *, device: str) -> None:
        self.sam: BackboneSam = build_sam(config).to(device)
        use_stock_attention(self.sam.image_encoder)
        self.side, self.device = FRAME_SIDE_PX[config.backbone], device
        self.factor = image_factor(config.backbone)
        decoder = self.sam.mask_decoder.parameters()
        self.optimizer = torch.optim.AdamW(decoder, lr=config.learning_rate, weight_decay=0.0)

    def read(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Decode an image and its annotation: `image` (1, 1, S, S), `mask`, `valid_hw`."""
        image = read_image(sample.image_path)
        annotation = read_annotation(sample.annotation_path, filled_bias_px=sample.filled_bias_px)
        frame = place(image.shape, frame_hw=(self.side, self.side), mode="pad")
        pixels = image_to_frame(image, enlarge(frame, self.factor)).astype(np.float32) / 255.0
        mask = mask_to_frame(annotation.mask, frame).astype(np.float32)
        return {
            "image": torch.from_numpy(pixels)[None, None].to(self.device),
            "mask": torch.from_numpy(mask)[None, None].to(self.device),
            "valid_hw": torch.tensor([frame.valid_hw], device=self.device),
        }

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
        return prompt_boxes(
            "jittered_box",
            mask=item["mask"],
            valid_hw=item["valid_hw"],
            offsets=offsets.to(self.device),
        ).float()

    def step(self, samples: Sequence[Sample], *, draw: int) -> float:
        """One optimiser step on a batch, image by image; the mean loss."""
        self.sam.mask_decoder.train()
        self.optimizer.zero_grad()
        total = 0.0
        for number, sample in enumerate(samples):
            item = self.read(sample)
            box = self.box(item, draw=draw + number)
            logits = self.decode(self.embed(item), box)
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
