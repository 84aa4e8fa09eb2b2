"""Which images of a train part are labelled first: an order of it for each choice and support.

Amounts are prefixes of an order, so they are nested. An order reads its own train part alone: no
test image, and no label but two: `random` deals out the trimesters, which come from the HC, and
what `is_oracle` marks. Every draw is that of a salted hash, the same on every machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datamodules.errors import InputError
from datamodules.splits import Unit, salted, support_order

_FIRST_STRATA = (0, 2, 4, 1, 3)
"""Five strata of equal size, in an order of which each part is spread."""
_GRID = 16
"""Cells of a side of the thumbnail that `coverage` compares: speckle is averaged out."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to choose the images that are labelled."""

    label: str
    """What tables and legends call it."""
    phrase: str
    """The images that it takes, in a sentence."""
    order: Callable[[Sequence[Unit], int], list[str]]
    """Train images and a support's number to sample ids, those to label first in front."""
    is_oracle: bool = False
    """Whether it reads labels of images that it does not choose."""
    note: str = ""
    """What a table's footnote says of it."""


def choice_order(units: Sequence[Unit], *, choice: str, support: int) -> list[str]:
    """Sample ids of a train part in the order in which a choice (of `CHOICES`) labels them.

    Raises:
        InputError: If an image lacks what the choice goes by.
    """
    return CHOICES[choice].order(units, support)


def _random(units: Sequence[Unit], support: int) -> list[str]:
    return support_order(units, support=support)


def _by_pixel_size(units: Sequence[Unit], support: int) -> list[str]:
    values = {unit.sample_id: unit.pixel_size_mm for unit in units}
    _refuse_missing(values, choice="by_pixel_size", what="pixel size")
    return spread_order(units, values, salt=f"by_pixel_size:{support}")


def _by_size(units: Sequence[Unit], support: int) -> list[str]:
    values = {unit.sample_id: unit.hc_mm for unit in units}
    _refuse_missing(values, choice="by_size", what="head circumference")
    return spread_order(units, values, salt=f"by_size:{support}")


def _refuse_missing(values: dict[str, float | None], *, choice: str, what: str) -> None:
    missing = [sample_id for sample_id, value in values.items() if value is None]
    if missing:
        raise InputError(
            f"sweep.choice={choice}: {missing[0]} has no {what} ({len(missing)} of {len(values)} "
            f"train images); add it to the CSV of the data, or leave {choice} out"
        )


def spread_order(units: Sequence[Unit], values: dict[str, float], *, salt: str) -> list[str]:
    """Order images so that every prefix is spread over the quantiles of a value.

    The images, sorted by the value, are cut into five strata, of which each gives one at random.
    Then every stratum is halved, and each image so far gets a partner from the half that it is not
    in; and so on. So the first 5, 10, 20, 40... images hold one of each of as many equal strata.
    Within a stratum, images of groups that no earlier image is of come first.

    Args:
        units: Images.
        values: Of each by sample id, any unit; equal ones are sorted at random.
        salt: Another salt gives another order.

    Returns:
        All sample ids; empty for no images.
    """
    draw = {unit.sample_id: salted(salt, unit.sample_id) for unit in units}
    ranked = sorted(units, key=lambda u: (values[u.sample_id], draw[u.sample_id]))
    n, n_strata = len(ranked), len(_FIRST_STRATA)
    first = salted(salt, "first stratum")[0] % n_strata
    order: list[int] = []
    groups: set[str] = set()

    def take(stratum: int) -> None:
        # Ranks r with r * n_strata // n == stratum.
        ranks = range(-(-stratum * n // n_strata), -(-(stratum + 1) * n // n_strata))
        if ranks:
            chosen = min(
                ranks, key=lambda r: (ranked[r].group_id in groups, draw[ranked[r].sample_id])
            )
            order.append(chosen)
            groups.add(ranked[chosen].group_id)

    for stratum in _FIRST_STRATA:
        take((stratum + first) % n_strata)
    while len(order) < n:
        n_strata *= 2
        for rank in list(order):
            # Halves of one stratum differ in the last bit of their number.
            take(rank * n_strata // n ^ 1)
    return [ranked[rank].sample_id for rank in order]


def _coverage(units: Sequence[Unit], support: int) -> list[str]:
    """Farthest-point order of thumbnails: each next image is the one least like those before it.

    It starts at a random image. Features are the mean grey levels of 16x16 cells, standardised an
    image, from the fingerprints that the index holds; whole numbers, so that no machine's rounding
    decides.

    Source: Gonzalez 1985 (greedy k-centre); Sener and Savarese 2018 for choosing what to label.
    """
    import numpy as np  # slow to import, needed here only

    from datamodules.duplicates import unpack_fingerprint

    def features(unit: Unit) -> np.ndarray:
        cells = np.nan_to_num(unpack_fingerprint(unit.fingerprint), nan=0.0).astype(np.float64)
        side = round(len(cells) ** 0.5)
        block = side // _GRID
        grid = cells.reshape(_GRID, block, _GRID, block).mean(axis=(1, 3)).ravel()
        return np.round(64 * (grid - grid.mean()) / max(grid.std(), 1.0)).astype(np.int64)

    if not units:
        return []
    known = np.stack([features(unit) for unit in units])
    ids = [unit.sample_id for unit in units]
    order = [min(range(len(ids)), key=lambda k: salted(f"coverage:{support}", ids[k]))]
    nearest = np.full(len(ids), np.iinfo(np.int64).max)
    while len(order) < len(ids):
        distance = ((known - known[order[-1]]) ** 2).sum(axis=1)
        nearest = np.minimum(nearest, distance)
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    return [ids[k] for k in order]


CHOICES: dict[str, Choice] = {
    "random": Choice(label="random", phrase="random images", order=_random),
    "by_pixel_size": Choice(
        label="by pixel size",
        phrase="images spread over the pixel sizes",
        order=_by_pixel_size,
        note="by pixel size: the labelled images are spread over the quantiles of the pixel size, "
        "which is known before any label and tells small heads.",
    ),
    "coverage": Choice(
        label="coverage",
        phrase="images unlike each other",
        order=_coverage,
        note="coverage: each next labelled image is the one least like those before it, by "
        "thumbnails (k-centre); no label is read.",
    ),
    "by_size": Choice(
        label="by size (oracle)",
        phrase="images spread over the head sizes (an oracle)",
        order=_by_size,
        is_oracle=True,
        note="by size (oracle): spread over the head circumference of all train images, so it "
        "reads labels before they are paid for: what there is to gain, not a way to choose.",
    ),
}
"""By name on the axis `sweep.choice`, the default first."""
DEFAULT = next(iter(CHOICES))
"""Not named where it is the only one."""


def choice_label(name: str) -> str:
    """What people read for a choice; "" for none."""
    return CHOICES[name].label if name in CHOICES else name
