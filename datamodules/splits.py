"""Exam-wise splits and nested amounts, by salted hashes: the same on every machine.

Pure functions on `Unit`s. Every order is that of a SHA-256 over salt and name, interleaved over
trimesters, so a prefix of any length holds the trimesters in their proportions.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from datamodules.config import SplitConfig
from datamodules.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One image as a split sees it."""

    sample_id: str
    """Name of the image without its ending."""
    group_id: str
    """What must stay together: the exam, joined with exams that hold a near-duplicate."""
    exam_id: str
    """Exam of the image."""
    frame: int
    """Number of the frame within its exam, from 1."""
    stratum: int
    """Trimester 1 to 3, or 0 where the head circumference is unknown."""
    pixel_size_mm: float | None = None
    """Of the CSV; None where it is unknown."""
    hc_mm: float | None = None
    """Head circumference of the CSV, likewise."""
    fingerprint: str = ""
    """Packed thumbnail of the image, see `duplicates`; "" before the images were decoded."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sample ids of the three parts, each in its dealt order."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def salted(salt: str, name: str) -> bytes:
    """SHA-256 of a salt and a name: what random orders are sorted by."""
    return hashlib.sha256(f"{salt}:{name}".encode()).digest()


def stratified_order(units: Iterable[Unit], *, salt: str, by: str) -> list[list[Unit]]:
    """Groups of units in a salted order that interleaves the strata.

    Args:
        units: Images to order.
        salt: Another salt gives another order.
        by: Field that keeps units together: "group_id" or "exam_id".

    Returns:
        One list of units (by frame) a group, so that every prefix of groups holds the strata in
        proportion. Empty input gives an empty list.
    """
    return _interleave(_groups_by_stratum(units, salt=salt, by=by))


def _groups_by_stratum(units: Iterable[Unit], *, salt: str, by: str) -> dict[int, list[list[Unit]]]:
    """Groups of each stratum in salted order, each by frame."""
    members: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        members[getattr(unit, by)].append(unit)
    strata: dict[int, list[list[Unit]]] = defaultdict(list)
    for name in sorted(members, key=lambda name: salted(salt, name)):
        group = sorted(members[name], key=lambda u: (u.exam_id, u.frame, u.sample_id))
        # A group is of the stratum that most of its images have; ties go to the earlier one.
        counts = Counter(unit.stratum for unit in group)
        strata[min(counts, key=lambda s: (-counts[s], s))].append(group)
    return strata


def _interleave(strata: Mapping[int, Sequence[Item]]) -> list[Item]:
    """Merge the strata in proportion: the k-th of a stratum's n items stands at (k + 0.5) / n."""
    keyed = [
        ((k + 0.5) / len(items), stratum, k)
        for stratum, items in strata.items()
        for k in range(len(items))
    ]
    return [strata[stratum][k] for _, stratum, k in sorted(keyed)]


def choose_subset(units: Sequence[Unit], *, name: str, n_images: int | None) -> list[str]:
    """Sample ids of the named subset: whole exams in salted order, cut at `n_images`.

    Raises:
        InputError: If there are fewer images than asked for.
    """
    if n_images is None:
        return [unit.sample_id for unit in units]
    if n_images > len(units):
        raise InputError(
            f"data.subset.n_images={n_images}: the data hold only {len(units)} annotated images; "
            "lower it or point data.root at more data"
        )
    ordered = stratified_order(units, salt=f"subset:{name}", by="exam_id")
    return [unit.sample_id for group in ordered for unit in group][:n_images]


def _count(value: float, *, n_images: int) -> int:
    return round(value * n_images) if value < 1 else int(value)


def make_split(units: Sequence[Unit], config: SplitConfig) -> Split:
    """Deal groups to test, validation and train.

    A part takes whole groups until it holds its number of images; frames of its last group
    beyond that number are left out, so no group ever reaches two parts.

    Raises:
        InputError: If the parts ask for more than there is, or one would be empty.
    """
    n_images = len(units)
    wanted = {
        "test": _count(config.test, n_images=n_images),
        "val": _count(config.val, n_images=n_images),
    }
    if config.train is not None:
        wanted["train"] = _count(config.train, n_images=n_images)
    groups = stratified_order(units, salt=f"split:{config.seed}", by="group_id")
    parts: dict[str, list[str]] = {"test": [], "val": [], "train": []}
    remaining = groups
    for name in ("test", "val", "train"):
        target = wanted.get(name, sum(map(len, remaining)))
        remaining, taken = _take(remaining, target)
        parts[name] = taken
        if not taken:
            raise InputError(
                f"split.{name}: the part would be empty ({n_images} images in {len(groups)} "
                f"exam groups, test={config.test}, val={config.val}, train={config.train}); "
                "lower the other parts or add data"
            )
        if len(taken) < target:
            raise InputError(
                f"split.{name}={target} images: only {len(taken)} of {n_images} are left for it "
                f"(test={config.test}, val={config.val}, train={config.train}); lower the parts"
            )
    return Split(**{name: tuple(ids) for name, ids in parts.items()})


def make_folds(units: Sequence[Unit], config: SplitConfig) -> list[Split]:
    """Deal every group to the test part of exactly one fold, the trimesters spread evenly.

    Args:
        units: All images.
        config: `n_folds`, `val` and `train` are read; `test` is not.

    Returns:
        A split a fold. The folds' numbers of test groups differ by one at most, in every trimester.

    Raises:
        InputError: If there are fewer groups than folds, or the parts ask for more than there is.
    """
    strata = _groups_by_stratum(units, salt=f"split:{config.seed}", by="group_id")
    groups = _interleave(strata)
    if config.n_folds > len(groups):
        raise InputError(
            f"split.n_folds={config.n_folds}: the data hold {len(groups)} exam groups; lower it"
        )
    # Dealt trimester after trimester: steps of n_folds through the interleaved order would meet
    # the same trimester again and again.
    dealt = [group for stratum in sorted(strata) for group in strata[stratum]]
    fold_of = {group[0].group_id: k % config.n_folds for k, group in enumerate(dealt)}
    n_images, folds = len(units), []
    for fold in range(config.n_folds):
        tested = [group for group in groups if fold_of[group[0].group_id] == fold]
        test = [unit.sample_id for group in tested for unit in group]
        rest = [group for group in groups if fold_of[group[0].group_id] != fold]
        left = sum(map(len, rest))
        rest, val = _take(rest, _count(config.val, n_images=n_images))
        n_train = sum(map(len, rest))
        if config.train is not None:
            n_train = _count(config.train, n_images=n_images)
        rest, train = _take(rest, n_train)
        if not val or not train or len(train) < n_train:
            raise InputError(
                f"split: fold {fold} leaves {left} images for validation and train "
                f"(val={config.val}, train={config.train}); lower the parts"
            )
        folds.append(Split(train=tuple(train), val=tuple(val), test=tuple(test)))
    return folds


def _take(groups: list[list[Unit]], n_images: int) -> tuple[list[list[Unit]], list[str]]:
    taken: list[str] = []
    for position, group in enumerate(groups):
        if len(taken) >= n_images:
            return groups[position:], taken
        taken += [unit.sample_id for unit in group][: n_images - len(taken)]
    return [], taken


def support_order(units: Sequence[Unit], *, support: int) -> list[str]:
    """Train images in the order of one support: amounts are prefixes of it, so they are nested.

    Within a trimester whole exams follow each other in the salted order of `support`. The
    trimesters are interleaved image by image, not exam by exam: an exam of several frames would
    fill a small amount alone. Five images of HC18 hold all three trimesters.
    """
    strata = _groups_by_stratum(units, salt=f"support:{support}", by="exam_id")
    images = {
        stratum: [unit for group in groups for unit in group] for stratum, groups in strata.items()
    }
    return [unit.sample_id for unit in _interleave(images)]


def amount_from_fraction(fraction: float, *, n_train: int) -> int:
    """Number of images in a fraction of the train part: rounded, at least one.

    Raises:
        InputError: If the fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InputError(
            f"sweep.real_fraction={fraction}: must be above 0 and at most 1 (5 % is 0.05)"
        )
    return max(1, round(fraction * n_train))


def check_count(count: int, *, n_train: int, key: str) -> int:
    """`count` itself.

    Raises:
        InputError: If the train part does not hold that many images.
    """
    if not 1 <= count <= n_train:
        raise InputError(
            f"{key}={count}: the train part holds {n_train} images; choose between 1 and {n_train}"
        )
    return count
