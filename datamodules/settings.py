"""Settings of `HC18DataModule` in groups: the frame, the batch mixture, caches, data loading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.augment import Strength
from datamodules.embeddings import EmbeddingSet
from datamodules.geometry import Mode
from datamodules.samples import Sample


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Input size of the network, and how an image is resized to it."""

    size_hw: tuple[int, int]
    """Height and width, px."""
    resize_mode: Mode
    """"pad" or "squash"."""
    image_factor: int = 1
    """Pixels of `image` per pixel of the frame; not with cached views."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Composition of training batches: synthetic pairs, repetition, augmentation."""

    synthetic: Sequence[Sample] = ()
    """Synthetic samples, train only."""
    pools: Sequence[int] = ()
    """Sizes of the sets that they consist of, one after the other, each of which gets as many
    places as any other; () for one set."""
    synthetic_share: float = 0.5
    """Share of each batch that they fill, in [0, 1]."""
    repeat_real: bool = False
    """Fill that share with the real images once more, in an order of their own: the control that
    has a synthetic condition's batches and nothing new in them."""
    pool: bool = False
    """Draw real and synthetic images from one pool instead of by `synthetic_share`."""
    augment: Strength | None = None
    """Augment every item of a training batch anew, by (seed, draw), where the training computes;
    not with cached embeddings, which are of the image as it is."""
    without: Sequence[str] = ()
    """Operations that the augmentation leaves out."""
    extra: Sequence[str] = ()
    """Operations that it has besides."""
    moderate_end: float = 0.0
    """Share of the training at its end in which strong augmentation is moderate."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Prepared images, cached embeddings and known file hashes."""

    folder: Path
    """Folder for prepared images."""
    embeddings: Sequence[EmbeddingSet] | None = None
    """Sets that hold every image's embedding."""
    views: EmbeddingSet | None = None
    """Augmented views of the train images."""
    n_views: int = 1
    """Views an image has, itself being view 0."""
    content_hashes: Mapping[str, str] | None = None
    """`files_sha256` of every real pair."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Data loading: processes, batch parts, items resident on the GPU."""

    num_workers: int = 0
    """Loader processes; 0 loads in the training process."""
    batch_parts: int = 1
    """Parts in which each process loads its share of a training batch, for
    `Trainer(accumulate_grad_batches=batch_parts)`; must divide that share."""
    resident_bytes: int = 0
    """Keep the training items on the device that trains where they take no more than this
    together, instead of loading every batch; 0 for never."""
