"""Whether files still are what they were hashed as: a key stands for that content alone."""

import functools
from collections.abc import Sequence

from datamodules.errors import ChangedError
from datamodules.samples import Sample, content_hash_of, hash_as_read
from datamodules.storage import file_sha256

REMEDY = "put it back, or start the sweep again"


def require_unchanged(samples: Sequence[Sample], content_hashes: Sequence[str]) -> None:
    """Hash the samples' files again, each file once, and compare.

    Args:
        samples: With or without annotations.
        content_hashes: `content_hash_of` each, or `hash_as_read` of that; same order.

    Raises:
        ChangedError: For the first sample with another hash, by its files.
    """
    sha256_of = functools.cache(file_sha256)
    for sample, expected in zip(samples, content_hashes, strict=True):
        try:
            found = content_hash_of(sample, sha256_of=sha256_of)
        except FileNotFoundError as error:
            raise ChangedError(f"{error.filename}: gone since the sweep began; {REMEDY}") from error
        if expected not in (found, hash_as_read(found, sample)):
            # The hash is of both.
            beside = sample.annotation_path
            more = "" if beside is None else f", or its annotation {beside.name}"
            raise ChangedError(
                f"{sample.image_path}{more}: changed since the sweep began; {REMEDY}"
            )
