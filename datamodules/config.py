"""Configuration of the data room: where the data are and how they are split."""

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class SubsetConfig:
    """A fixed, named part of the data, chosen from names and HC alone."""

    name: str = "all"
    """Name of the subset; it salts the choice, so another name gives other images."""
    n_images: int | None = None
    """Images to keep, whole exams in a stratified salted order; null keeps everything."""

    def __post_init__(self) -> None:
        if self.n_images is not None and self.n_images < 3:
            raise ValueError(
                f"data.subset.n_images={self.n_images}: a subset needs at least 3 images, "
                "one for each part"
            )


@dataclass(kw_only=True)
class DataConfig:
    """Which folder is read, and which external cohorts are tested on."""

    root: str | None = None
    """Folder of the data; null takes the environment variable HC18_ROOT."""
    layout: Literal["hc18", "cohort"] = "hc18"
    """`hc18`: official layout with its CSV. `cohort`: image/ and mask/ folders."""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    """The part of the folder that is used."""
    test_cohorts: list[str] = field(default_factory=list)
    """Further cohort folders (image/, mask/); every trial is tested on all of their images."""


@dataclass(kw_only=True)
class SplitConfig:
    """Train, validation and test parts, disjoint by exam, near-duplicates grouped."""

    seed: int = 0
    """Salt of the order in which groups are dealt to test, validation and train."""
    test: float = 0.2
    """Test images: below 1 a share of all images, from 1 on a count."""
    val: float = 0.1
    """Validation images: below 1 a share of all images, from 1 on a count."""
    train: float | None = None
    """Train images (share or count); null takes everything that is left."""
    n_folds: int = 1
    """From 2 on, exam-wise cross-testing: fold k tests every n_folds-th exam group, so that every
    exam is tested once; `test` is then not read. 1 is a single split."""
    file: str | None = None
    """Published split file (`sonosweep data split`) to use instead of dealing one; with `n_folds`
    from 2 on its folds, which must be as many."""

    def __post_init__(self) -> None:
        if self.n_folds < 1:
            raise ValueError(f"split.n_folds={self.n_folds}: 1 for a single split, or more")
        for name in ("test", "val", "train"):
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 < value < math.inf:
                raise ValueError(
                    f"split.{name}={value}: must be above 0 (below 1 a share of the images, "
                    "from 1 on a count)"
                )
            if value > 1 and value != int(value):
                raise ValueError(f"split.{name}={value}: a count must be a whole number")
