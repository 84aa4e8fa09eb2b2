"""The stage that embeds images: real ones, their augmented views, or the pairs of a set."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from datamodules.augment import augment_view
from datamodules.embeddings import write_index
from datamodules.geometry import shrink_mask
from datamodules.prepared import PreparedImages, prepare_images
from datamodules.samples import content_hash_of
from experiments.plan.stage_table import EMBED_BATCH
from experiments.stages.context import StageContext
from experiments.stages.device import device_of
from experiments.store.embedding_keys import embedding_key
from lightning_modules.segmenters.sam.network import build_sam, encode, for_inference
from lightning_modules.segmenters.sam.tuning import encode_features

# One image at a time is the cheapest on a CPU: larger activations leave its caches.
BATCH = {"cpu": 1, "cuda": EMBED_BATCH}
# In fp32 a ViT's attention over 64x64 tokens takes 0.8 GB an image; in bf16 it is not kept.
LARGE_BATCH = {"fp32": 4, "bf16": 16}
WRITERS = 8
"""Files that are on their way to the disk at once, while the encoder works."""


class _Item(NamedTuple):
    """One embedding to compute: of a row of the prepared images, as it is or as a view of it."""

    key: str
    row: int
    view: int
    seed: int


def run_embed(context: StageContext) -> dict[str, Any]:
    """Embed what the store does not hold yet, and write down the keys of all."""
    prepared, hashes = _images(context)
    content, store, side = context.node.content, context.embeddings, context.segmenter.frame_hw[0]
    n_views = content["augment"]["n_views"] if "augment" in content else 1
    keys: dict[str, list[str]] = {sample_id: [] for sample_id in prepared.sample_ids}
    missing = []
    for row, (of_image, pair_hash) in enumerate(zip(keys.values(), hashes, strict=True)):
        for view in range(n_views):
            key, seed = embedding_key(content, frame_side_px=side, pair_hash=pair_hash, view=view)
            of_image.append(key)
            if key not in store or (view and not store.has_view(key)):
                missing.append(_Item(key, row, view, seed))
    if missing:
        _embed(context, prepared=prepared, items=missing)
    write_index(context.run_dir, keys)
    return {"images": len(keys), "embedded": len(missing)}


def _embed(context: StageContext, *, prepared: PreparedImages, items: Sequence[_Item]) -> None:
    config, status, device = context.segmenter, context.status(), device_of(context.config)
    sam = build_sam(config)
    sam.image_encoder = for_inference(sam.image_encoder, in_place=True)
    sam.to(device)
    run = encode_features if "features" in context.node.content["encoder"] else encode
    size = BATCH[device.type]
    if config.image_factor > 1:
        size = min(size, LARGE_BATCH[config.encoder_precision])
    size = max(1, size // context.batch_parts)
    parts = [items[start : start + size] for start in range(0, len(items), size)]

    def frames_of(part: Sequence[_Item]) -> np.ndarray:
        return np.stack([_frame(context, prepared=prepared, item=item) for item in part])

    done, writing = 0, deque[Future[None]]()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(WRITERS) as writer:
        ahead = reader.submit(frames_of, parts[0])
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            frames = ahead.result()
            if following is not None:
                ahead = reader.submit(frames_of, following)
            # Bytes are a quarter to move.
            image = torch.from_numpy(frames).to(device)[:, None].float() / 255.0
            valid_hw = np.stack([prepared.valid_hw[item.row] for item in part])
            valid = torch.from_numpy(valid_hw).to(device)
            embedding = run(sam, image, valid_hw=valid, precision=config.encoder_precision)
            for item, each in zip(part, embedding.cpu().numpy(), strict=True):
                writing.append(writer.submit(context.embeddings.write, item.key, each))
            # What waits for the disk is bounded, and an error of it ends the stage.
            while len(writing) > 2 * WRITERS:
                writing.popleft().result()
            done += len(part)
            status.update("images", done=done, total=len(items))
        for each in writing:
            each.result()


def _frame(context: StageContext, *, prepared: PreparedImages, item: _Item) -> np.ndarray:
    """The frame to embed, uint8 (h, w); a view's frame and mask are kept with it."""
    image, mask = prepared.images[item.row], prepared.masks[item.row]
    if not item.view:
        return image
    factor = context.segmenter.image_factor
    height, width = factor * prepared.valid_hw[item.row]
    frame, label = np.zeros_like(image), np.zeros_like(mask)
    seen, seen_mask = np.array(image[:height, :width]), np.array(mask[:height, :width])
    strength = context.node.content["augment"]["strength"]
    if strength == "mirror":
        moved, moved_mask = seen[:, ::-1], seen_mask[:, ::-1]
    else:
        moved, moved_mask = augment_view(seen, seen_mask, strength=strength, seed=item.seed)
    frame[:height, :width], label[:height, :width] = moved, moved_mask
    # Kept beside the embedding at the frame's size, for the loss and for pictures.
    size_wh = (frame.shape[1] // factor, frame.shape[0] // factor)
    small = cv2.resize(frame, size_wh, interpolation=cv2.INTER_AREA)
    context.embeddings.write_view(item.key, image=small, mask=shrink_mask(label, factor))
    return frame


def _images(context: StageContext) -> tuple[PreparedImages, list[str]]:
    """Prepared frames of what is to be embedded, and the hash of each image with its mask."""
    segmenter = context.segmenter
    if "pairs" in context.node.upstream:
        found = context.open_pairs("pairs")
        samples, originals = found.samples, context.samples | context.unlabelled
        hashed, hashes = [], []
        for sample in samples:
            real = found.pairs[sample.sample_id].image_of
            # An embedding is of the image alone: that of a real one, whatever its label, is found.
            hashed.append(sample if real is None else originals[real])
            hashes.append(content_hash_of(sample) if real is None else context.content[real])
    else:
        samples = context.picked(context.node.content["images"])
        hashed, hashes = samples, [context.content[sample.sample_id] for sample in samples]
    prepared = prepare_images(
        samples,
        content_hashes=hashes,
        frame_hw=segmenter.frame_hw,
        mode=segmenter.geometry,
        factor=segmenter.image_factor,
        cache_dir=context.cache_dir,
        hashed=hashed,
    )
    return prepared, hashes
