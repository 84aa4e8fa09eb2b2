"""Configuration of the data: where the data are and how they are split."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.allowed import above, at_least, between, one_of
from datamodules.layouts import DEFAULT_LAYOUT, LAYOUTS

MAX_BIAS_PX = 20.0
"""A mask that is off by more was not drawn around the head."""
AUGMENT_VERSION = 2
"""Of `datamodules.augment`, which reads torch: hashed into all that is made from its views."""
AUGMENT_PARTS = (
    "rotation",
    "mirror",
    "zoom",
    "stretch",
    "shift",
    "elastic",
    "gamma",
    "brightness",
    "field",
    "speckle",
    "blur",
    "holes",
)
"""Its operations, each of which an ablation may leave out."""
AUGMENT_EXTRAS = ("zoom_out", "edge_fill", "small_head", "cut_out")
"""Operations that it may have besides, for small heads and for closer looks at a head."""
_CALLED = re.compile(r"(\w[\w-]*)=(.+)")


def called_folder(entry: str) -> tuple[str | None, str]:
    """Name and folder of an entry of `data.test_cohorts`; the name is None where none is given."""
    found = _CALLED.fullmatch(entry)
    return (None, entry) if found is None or Path(entry).exists() else (found[1], found[2])


@dataclass(kw_only=True)
class SubsetConfig:
    """A fixed, named part of the data, chosen from names and HC alone."""

    name: str = "all"
    """Name of the subset; it salts the choice, so another name gives other images."""
    n_images: int | None = None
    """Images to keep, whole exams in a stratified salted order; null keeps everything."""

    def __post_init__(self) -> None:
        at_least(3).check(self, "n_images", section="data.subset", hint="one for each part")


@dataclass(kw_only=True)
class DataConfig:
    """Which folder is read, and which external cohorts are tested on."""

    root: str | None = None
    """Folder of the data; null takes the environment variable HC18_ROOT."""
    layout: str = DEFAULT_LAYOUT
    """A row of `datamodules.layouts`. `hc18`: official layout with its CSV. `cohort`: image/ and
    mask/ folders."""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    """The part of the folder that is used."""
    test_cohorts: list[str] = field(default_factory=list)
    """Further cohort folders (image/, mask/); every trial is tested on all of their images. A
    cohort is called as its folder, or as it is put: NAME=FOLDER."""
    label: int | None = None
    """Value of the head's pixels where annotations are maps of labels; null takes the larger of two
    values, or what is white."""
    cohort_labels: dict[str, int] = field(default_factory=dict)
    """Likewise for test cohorts, by their names; those without one as null."""
    filled_bias_px: float | None = None
    """By how much filled masks reach beyond the head, px; taken off both semi-axes, 0 leaves them
    as they are. null measures it by the CSV's HC where HC18's layout is read (1.4 where that gives
    nothing), and leaves a cohort's masks as they are."""
    cohort_filled_bias_px: dict[str, float] = field(default_factory=dict)
    """Likewise for test cohorts, by their names; masks of those without one stay as they are."""
    use_unlabelled: bool = False
    """Whether the layout's images without annotations (HC18's test set) are unlabelled images for
    conditions that read some; near-copies of annotated images are left out."""
    allow_implausible: bool = False
    """Go on with pixel sizes and circumferences that cannot be right (`sonosweep data index` names
    them); every number in mm is then as wrong as they are."""

    def cohorts(self) -> list[tuple[str | None, Path]]:
        """Name, None for the folder's own, and folder of each of `test_cohorts`."""
        pairs = map(called_folder, self.test_cohorts)
        return [(name, Path(folder)) for name, folder in pairs]

    def __post_init__(self) -> None:
        one_of(self.layout, LAYOUTS, option="data.layout")
        between(0, 65535).check(self, "label", "cohort_labels", section="data")
        biases = ("filled_bias_px", "cohort_filled_bias_px")
        between(-MAX_BIAS_PX, MAX_BIAS_PX).check(self, *biases, section="data")


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
        at_least(1).check(self, "n_folds", section="split", hint="1 for a single split")
        parts = ("test", "val", "train")
        hint = "below 1 a share of the images, from 1 on a count"
        above(0).check(self, *parts, section="split", hint=hint)
        for name in parts:
            value = getattr(self, name)
            if value is not None and value > 1 and value != int(value):
                raise ValueError(f"split.{name}={value}: a count must be a whole number")
