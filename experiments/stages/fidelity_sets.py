"""Sets of images whose fidelity is judged, and where each image's nearest training image lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.geometry import image_to_frame, mask_to_frame, place
from experiments.stages.gate import fingerprints, mirrored
from lightning_modules.fidelity import contour_leak_score, nearest_distance

SPACES = ("features", "pixels")
"""Where copies are looked for: the segmenter's features, and the pixels of small images."""


@dataclass(frozen=True, kw_only=True)
class FidelitySet:
    """Images of one origin and what is known of each; all sequences have one entry an image."""

    sample_ids: Sequence[str]
    groups: Sequence[str]
    """Exam of each image; a synthetic image is a group of its own."""
    images: Sequence[np.ndarray]
    """uint8 (H, W), any sizes. Read once, in order: a sequence that loads on demand will do."""
    masks: Sequence[np.ndarray]
    """uint8 (H, W) in {0, 1}, of their images' sizes; likewise."""
    features: np.ndarray
    """float32 (N, D), the pooled image embeddings of a segmenter."""
    agreement: np.ndarray | None = None
    """(N,) Dice between each label and what a segmenter sees in the image; None: not measured."""
    features_flipped: np.ndarray | None = None
    """(N, D) of the images mirrored left to right; used of the training set only."""

    def __post_init__(self) -> None:
        count = len(self.sample_ids)
        for name in ("groups", "images", "masks", "features", "agreement", "features_flipped"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"FidelitySet: {len(values)} {name} for {count} sample_ids")

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A set at the common small size, with its distances to training in each space."""

    source: FidelitySet
    images: list[np.ndarray]
    masks: list[np.ndarray]
    leak: np.ndarray
    """Contour-leak score of each image, nan and infinity left in."""
    rows: dict[str, np.ndarray]
    """Vectors (N, D) by space."""
    with_mirrored: dict[str, np.ndarray]
    """The same, followed by those of the mirrored images where they are known."""
    distances: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray]
    """Training row of the nearest image by space; rows from N_train on are mirrored ones."""


def measure(source: FidelitySet, *, train: Measured | None, pixel_hw: tuple[int, int]) -> Measured:
    """Shrink a set and find its nearest training images; without `train` it is the training set."""
    images, masks = [], []
    for image, mask in zip(source.images, source.masks, strict=True):
        placement = place(image.shape, frame_hw=pixel_hw, mode="squash")
        images.append(image_to_frame(image, placement))
        masks.append(mask_to_frame(mask, placement))
    rows = {"features": np.asarray(source.features), "pixels": fingerprints(images)}
    flipped = {"features": source.features_flipped, "pixels": mirrored(rows["pixels"])}
    with_mirrored = {
        space: rows[space] if flipped[space] is None else np.concatenate([rows[space], extra])
        for space, extra in flipped.items()
    }
    distances, nearest = {}, {}
    for space in SPACES:
        if train is None:
            copies = len(with_mirrored[space]) // max(1, len(source))
            distances[space], nearest[space] = nearest_distance(
                rows[space],
                with_mirrored[space],
                query_groups=source.groups,
                training_groups=[*source.groups] * copies,
            )
        else:
            # Never by group: a pair made from an exam's label must not be spared that exam.
            reference = train.with_mirrored[space]
            distances[space], nearest[space] = nearest_distance(rows[space], reference)
    leak = [contour_leak_score(i, m) for i, m in zip(images, masks, strict=True)]
    return Measured(
        source=source,
        images=images,
        masks=masks,
        leak=np.array(leak, dtype=np.float64),
        rows=rows,
        with_mirrored=with_mirrored,
        distances=distances,
        nearest=nearest,
    )


def nearest_pairs(
    item: Measured, train: FidelitySet, *, space: str, count: int
) -> list[dict[str, Any]]:
    """The images that are nearest to a training image, nearest first."""
    order = np.argsort(item.distances[space], kind="stable")
    pairs = []
    for row in (row for row in order[:count] if item.nearest[space][row] >= 0):
        nearest = int(item.nearest[space][row])
        pairs.append(
            {
                "sample_id": item.source.sample_ids[row],
                "train_id": train.sample_ids[nearest % len(train)],
                "mirrored": nearest >= len(train),
                "distance": float(item.distances[space][row]),
            }
        )
    return pairs
