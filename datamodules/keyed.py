"""Seeds keyed by what they are for, never by how many were drawn before."""

import hashlib


def text_seed(*parts: int | str) -> int:
    """Hash a key to a seed: the first 8 bytes of the SHA-256 of its parts joined by ":".

    `lightning_modules.randomness.keyed_seed` hashes otherwise. To use one of them for both would
    change the order, the views and the pairs of finished runs, or else their noise and jitter.

    Args:
        *parts: What the seed is for, then integers; no part holds a ":".

    Returns:
        An integer in [0, 2**64), uniform over keys.
    """
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big")
