"""What a benchmark gives: every repeat, medians and spreads, ratios and targets. Torch-free."""

import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

How = Literal["measured", "composed"]
"""`composed` numbers are arithmetic on measured parts; `Value.formula` states it."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One way of doing one thing, repeated."""

    label: str
    unit: str
    """What one unit of work is, as `image` or `step`."""
    units: float
    """Units of work in each repeat, above 0."""
    wall_s: list[float]
    """Seconds of each repeat."""
    cpu_s: list[float]
    """Seconds of processor time of each repeat, all threads together; none where not known."""

    @property
    def per_unit_s(self) -> float:
        """Median seconds of wall clock a unit."""
        return statistics.median(self.wall_s) / self.units

    @property
    def spread_s(self) -> tuple[float, float]:
        """Seconds a unit of the fastest and of the slowest repeat."""
        return min(self.wall_s) / self.units, max(self.wall_s) / self.units

    @property
    def cpu_per_unit_s(self) -> float | None:
        """Median seconds of processor time a unit; None where it is not known."""
        return statistics.median(self.cpu_s) / self.units if self.cpu_s else None


@dataclass(frozen=True)
class Value:
    """A number that is no time of one repeat: composed, counted, or read from the system."""

    label: str
    value: float
    unit: str
    how: How = "measured"
    formula: str = ""
    """Where it comes from, in words and symbols."""
    at_most: float | None = None
    """Target: the value must not exceed it; None where there is none."""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.at_most is None else self.value <= self.at_most


@dataclass(frozen=True)
class Ratio:
    """The published way beside ours, in seconds for the same work."""

    label: str
    published_s: float
    ours_s: float
    how: How
    at_least: float | None = None
    """Target: how many times less time ours must take; None where there is none."""

    @property
    def ratio(self) -> float:
        """How many times less time ours takes."""
        return self.published_s / self.ours_s

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.at_least is None else self.ratio >= self.at_least


@dataclass(kw_only=True)
class Result:
    """All that one benchmark found."""

    name: str
    timings: list[Timing] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Lines that belong under the table: what was composed, left out or not available."""
    facts: dict[str, Any] = field(default_factory=dict, compare=False)
    """What benchmarks after this one compose theirs from; not written."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Seconds as a fixed part and a part for each unit of work."""

    fixed_s: float = 0.0
    per_unit_s: float

    def seconds(self, units: float) -> float:
        """Seconds that so much work takes."""
        return self.fixed_s + self.per_unit_s * units


def line_through(small: Timing, large: Timing) -> Line:
    """The line through the medians of two sizes of the same work.

    Noise that would make a part negative makes it 0; the other part then carries all of the time.

    Raises:
        ValueError: Not two sizes, the smaller one first.
    """
    if large.units <= small.units:
        raise ValueError(f"two sizes are needed, not {small.units} and {large.units}")
    short, long = statistics.median(small.wall_s), statistics.median(large.wall_s)
    per_unit = (long - short) / (large.units - small.units)
    if per_unit <= 0:
        return Line(fixed_s=(short + long) / 2, per_unit_s=0.0)
    fixed = short - per_unit * small.units
    if fixed < 0:
        return Line(per_unit_s=long / large.units)
    return Line(fixed_s=fixed, per_unit_s=per_unit)


def as_json(result: Result) -> dict[str, Any]:
    """A result as JSON types: every repeat, and the derived numbers beside them."""
    return {
        "name": result.name,
        "settings": result.settings,
        "timings": [
            vars(t)
            | {"per_unit_s": t.per_unit_s, "cpu_per_unit_s": t.cpu_per_unit_s}
            | dict(zip(("fastest_s", "slowest_s"), t.spread_s, strict=True))
            for t in result.timings
        ],
        "values": [vars(v) | {"reached": v.reached} for v in result.values],
        "ratios": [vars(r) | {"ratio": r.ratio, "reached": r.reached} for r in result.ratios],
        "notes": result.notes,
    }
