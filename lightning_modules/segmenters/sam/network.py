"""Build a SAM, encode images, and decode boxes into masks.

The networks are segment_anything's; `lite` puts LiteMedSAM's TinyViT and weights into them.
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Protocol

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from lightning_modules.randomness import keyed_seed
from lightning_modules.segmenters.sam.backbones import (
    EMBEDDING_CHANNELS,
    SAM_PIXEL_MEAN,
    SAM_PIXEL_STD,
    VITS,
    TinyImageEncoder,
    lite_image_encoder,
    normalisation_of,
    normalised,
    tiny_vit_encoder,
    vit_encoder,
)
from lightning_modules.segmenters.sam.checkpoint_file import load_strictly, read_state_dict
from lightning_modules.segmenters.sam.config import (
    FRAME_SIDE_PX,
    IMAGE_SIDE_PX,
    Backbone,
    EncoderPrecision,
    SegmenterConfig,
)
from lightning_modules.segmenters.sam.decoder import decode_one_mask
from lightning_modules.segmenters.sam.weights import (
    TINY_ID,
    VIT_TINY_ID,
    find_lite_weights,
    find_weights,
)

EMBEDDING_STRIDE = 4
"""Frame pixels per embedding pixel; the mask decoder undoes it, so logits have the frame's size."""


class BackboneSam(Sam):
    """segment_anything's Sam, which knows its backbone and works in the frame.

    Boxes are given in frame pixels, whatever the size of the image that the encoder reads: the
    prompt encoder only uses them as shares of its input's side.
    """

    backbone: Backbone = "lite"


class AbsentEncoder(nn.Module):
    """Stands where embeddings are at hand and no image is encoded."""

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Refuse.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(f"no encoder was built to encode an image {tuple(image.shape)}")


def build_sam(config: SegmenterConfig, *, has_encoder: bool = True) -> BackboneSam:
    """Build the network of a backbone with its weights, on the CPU, in eval mode.

    `tiny` and `vit_tiny` are small networks whose weights are random, the same on every call: they
    run a training step in milliseconds and their numbers mean nothing.

    Args:
        config: `backbone` and `weights_path` are read.
        has_encoder: Without it the image encoder's weights are not loaded.

    Returns:
        A Sam whose frame is `FRAME_SIDE_PX[backbone]` square and whose encoder reads
        `IMAGE_SIDE_PX[backbone]`. pixel_mean and pixel_std are what segment_anything's own
        predictor, which feeds 0..255, needs.

    Raises:
        WeightsError: The weights are missing, or of another backbone.
        ValueError: No such backbone.
    """
    backbone = config.backbone
    if backbone == "lite":
        # Found before anything is built: a missing file is told at once.
        path = find_lite_weights(config.weights_path)
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        with _own_random_state("lite"):
            if has_encoder:
                encoder: nn.Module = lite_image_encoder()
            else:
                encoder = AbsentEncoder(IMAGE_SIDE_PX["lite"])
                state = {k: v for k, v in state.items() if not k.startswith("image_encoder.")}
            sam = _assemble(encoder, backbone=backbone)
        sam.load_state_dict(state, strict=True)
    elif backbone == "tiny":
        with _own_random_state(TINY_ID):
            transformer = _transformer(depth=1, mlp_dim=256)
            encoder = TinyImageEncoder(IMAGE_SIDE_PX["tiny"])
            sam = _assemble(encoder, backbone=backbone, transformer=transformer)
    elif backbone == "vit_tiny":
        with _own_random_state(VIT_TINY_ID):
            transformer = _transformer(depth=1, mlp_dim=256)
            sam = _assemble(tiny_vit_encoder(), backbone=backbone, transformer=transformer)
    elif backbone in VITS:
        path = find_weights(backbone, config.weights_path)
        state = read_state_dict(path)
        with torch.device("meta"):
            # ViT-H's random weights, which the file replaces, would take 8 s and 2.5 GB.
            sam = random_vit(backbone)
        load_strictly(sam, state, path=path, backbone=backbone)
    else:
        raise ValueError(f"no backbone {backbone!r}")
    if not has_encoder:
        sam.image_encoder = AbsentEncoder(IMAGE_SIDE_PX[backbone])
    # Only now: TinyViT's eval() caches attention biases computed from the weights of that moment.
    return sam.eval()


def random_vit(backbone: Backbone) -> BackboneSam:
    """A ViT backbone at its true size with random weights, the same on every call."""
    with _own_random_state(backbone):
        encoder = vit_encoder(VITS[backbone], side_px=IMAGE_SIDE_PX[backbone])
        return _assemble(encoder, backbone=backbone)


@torch.no_grad()
def for_inference(image_encoder: nn.Module, *, in_place: bool = False) -> nn.Module:
    """Bring a frozen encoder into a form that only computes faster.

    Batch norms that follow a convolution are folded into it, and weights lie channels-last: half
    the time on a CPU.

    Args:
        image_encoder: A backbone's encoder.
        in_place: Change it instead of a copy.

    Returns:
        It in eval mode, equal to the original to 1e-5; its state dict has other names.
    """
    copied = (image_encoder if in_place else copy.deepcopy(image_encoder)).eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            # TinyViT's convolution with its batch norm brings its own folding.
            if type(child).__name__ == "Conv2d_BN":
                setattr(parent, name, child.fuse())
    return copied.to(memory_format=torch.channels_last)


def encode(
    sam: BackboneSam, image: torch.Tensor, *, valid_hw: torch.Tensor, precision: EncoderPrecision
) -> torch.Tensor:
    """Run the frozen image encoder, in eval mode whatever mode it was in.

    Args:
        sam: From `build_sam`.
        image: (B, 1, S, S) float in [0, 1], S = `IMAGE_SIDE_PX[backbone]`.
        valid_hw: (B, 2) int, rows and columns of the frame that are image, px.
        precision: `fp32`, or `bf16`: autocast, which pays on processors that have bf16
            arithmetic and costs elsewhere.

    Returns:
        (B, 256, h / 4, w / 4) float16 without gradient, contiguous; h, w = the frame's.

    Raises:
        ValueError: The image is not of the size that the encoder reads.
    """
    sam.image_encoder.eval()
    with torch.no_grad():
        prepared = encoder_input(sam, image, valid_hw=valid_hw)
        use_bf16 = precision == "bf16"
        # Said in both cases: a trainer's own autocast must not decide how embeddings are computed.
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=use_bf16):
            embedding = sam.image_encoder(prepared)
    return embedding.to(torch.float16).contiguous()


def encoder_input(sam: BackboneSam, image: torch.Tensor, *, valid_hw: torch.Tensor) -> torch.Tensor:
    """Normalise images for the encoder: (B, 1, S, S) in [0, 1] to (B, 3, S, S), channels last.

    Raises:
        ValueError: The image is not of the size that the encoder reads.
    """
    side = sam.image_encoder.img_size
    if tuple(image.shape[1:]) != (1, side, side):
        raise ValueError(f"images must be (B, 1, {side}, {side}), not {tuple(image.shape)}")
    prepared = normalised(image, valid_hw=valid_hw, backbone=sam.backbone)
    return prepared.contiguous(memory_format=torch.channels_last)


class BoxDecoder(Protocol):
    """What decodes boxes: a Sam, or what holds these two parts of one."""

    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder


def decode(
    sam: BoxDecoder,
    embeddings: torch.Tensor,
    boxes_xyxy_px: torch.Tensor,
    *,
    n_rows: int | None = None,
) -> torch.Tensor:
    """Decode a batch of images with one box each, in one call.

    Args:
        sam: From `build_sam`.
        embeddings: (B, 256, h, w) float16 or float32, from `encode`.
        boxes_xyxy_px: (B, 4) x0, y0, x1, y1 in frame pixels, inclusive.
        n_rows: Rows of the frame from its top that are asked for; below them logits may be 0.

    Returns:
        Logits (B, 1, 4h, 4w) float32: the one mask that SAM gives for an unambiguous prompt.

    Raises:
        ValueError: Not one box per embedding.

    Source:
        MaskDecoder called image by image; equal to it to 1e-5.
    """
    if boxes_xyxy_px.shape != (embeddings.shape[0], 4):
        shapes = f"{tuple(boxes_xyxy_px.shape)} boxes for {tuple(embeddings.shape)} embeddings"
        raise ValueError(f"one box (x0, y0, x1, y1) per embedding is needed, not {shapes}")
    # In bf16 a box's position would be good to a pixel at best.
    with torch.autocast(embeddings.device.type, enabled=False):
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes_xyxy_px.float(), masks=None)
        image_pe = sam.prompt_encoder.get_dense_pe()
        dense = embeddings.float() + dense
    logits = decode_one_mask(
        sam.mask_decoder,
        embeddings=dense,
        image_pe=image_pe,
        sparse=sparse,
        n_rows=None if n_rows is None else math.ceil(n_rows / EMBEDDING_STRIDE),
    )
    return logits.float()


def _transformer(*, depth: int, mlp_dim: int) -> TwoWayTransformer:
    return TwoWayTransformer(
        depth=depth, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=mlp_dim, num_heads=8
    )


def _assemble(
    image_encoder: nn.Module, *, backbone: Backbone, transformer: TwoWayTransformer | None = None
) -> BackboneSam:
    """Put segment_anything's prompt encoder and mask decoder behind an image encoder."""
    side = FRAME_SIDE_PX[backbone]
    grid = side // EMBEDDING_STRIDE
    is_imagenet = normalisation_of(backbone) == "imagenet"
    sam = BackboneSam(
        image_encoder=image_encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=transformer or _transformer(depth=2, mlp_dim=2048),
            transformer_dim=EMBEDDING_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=list(SAM_PIXEL_MEAN) if is_imagenet else [0.0, 0.0, 0.0],
        pixel_std=list(SAM_PIXEL_STD) if is_imagenet else [255.0, 255.0, 255.0],
    )
    sam.backbone = backbone
    return sam


@contextlib.contextmanager
def _own_random_state(key: str) -> Iterator[None]:
    """Initialise weights from a fixed seed and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(key))
        yield
