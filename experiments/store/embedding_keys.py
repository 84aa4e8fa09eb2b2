"""The name of an embedding: a hash over all that it depends on."""

from typing import Any

from datamodules.config import AUGMENT_VERSION
from datamodules.storage import content_key
from lightning_modules.randomness import keyed_seed

SCHEMA_VERSION = 1


def embedding_key(
    content: dict[str, Any], *, frame_side_px: int, pair_hash: str, view: int
) -> tuple[str, int]:
    """Name an embedding, and give the seed that its view is drawn from, the same in every trial.

    Args:
        content: Content of the stage that makes it: its encoder and, for views, its augmentation.
        frame_side_px: Side of the frame that the encoder reads.
        pair_hash: Hash of the image with its mask.
        view: Number of the view; 0, with seed 0, is the image itself.
    """
    key: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "pair": pair_hash,
        "encoder": content["encoder"],
        "frame": frame_side_px,
    }
    seed = 0
    if view:
        strength = content["augment"]["strength"]
        seed = keyed_seed("view", strength, view, pair_hash)
        key |= {"strength": strength, "seed": seed, "augment": AUGMENT_VERSION}
    return content_key(key), seed
