"""Ways timed in turn, and what a benchmark finds by them: `Found`, which it fills."""

import gc
import pkgutil
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from datamodules.phantom import write_phantom
from datamodules.samples import read_hc18
from experiments.bench.cases import CASES
from experiments.bench.child import Seconds, measured, timed
from lightning_modules.segmenters.sam.config import Backbone

T = TypeVar("T")
How = Literal["measured", "composed"]
"""`composed` numbers are arithmetic on measured parts; the value's formula states it."""


@dataclass(frozen=True)
class Way:
    """A function to time, and how much work one call of it does."""

    label: str
    call: Callable[[int], object]
    """Called with the number of the repeat, -1 being the warm-up. Where it gives back `Seconds`,
    they count instead of the whole call."""
    units: float = 1
    unit: str = "image"
    ratio: str = ""
    """What the ratio of the first way that is timed with it to this one is called, if it counts."""
    target: str = ""
    """Of the ratio, see `Case.target`."""
    flops: float = 0.0
    """Operations (2 x multiply-add) of a unit, where the share of the peak is wanted."""
    precision: str = "fp32"
    """Whose peak."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One way of doing one thing, repeated."""

    label: str
    unit: str
    units: float = 1
    """Units of work in each repeat, above 0."""
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Processor time of each repeat; none where not known."""

    @property
    def per_unit_s(self) -> float:
        """Median seconds of wall clock a unit."""
        return statistics.median(self.wall_s) / self.units

    @property
    def fastest_s(self) -> float:
        """Seconds a unit of the fastest repeat."""
        return min(self.wall_s) / self.units

    def as_json(self) -> dict[str, Any]:
        """Every repeat, and the derived numbers beside them."""
        return vars(self) | {
            "per_unit_s": self.per_unit_s,
            "cpu_per_unit_s": statistics.median(self.cpu_s) / self.units if self.cpu_s else None,
            "fastest_s": self.fastest_s,
            "slowest_s": max(self.wall_s) / self.units,
        }


@dataclass(frozen=True, kw_only=True)
class Line:
    """Seconds as a fixed part and a part for each unit of work."""

    fixed_s: float = 0.0
    per_unit_s: float

    def seconds(self, units: float) -> float:
        """Seconds that so much work takes."""
        return self.fixed_s + self.per_unit_s * units


def line_through(small: Timing, large: Timing) -> Line:
    """The line through the medians of two sizes of the same work, the smaller one first.

    Noise that would make a part negative makes it 0; the other part then carries all of the time.
    """
    short, long = statistics.median(small.wall_s), statistics.median(large.wall_s)
    per_unit = (long - short) / (large.units - small.units)
    if per_unit <= 0:
        return Line(fixed_s=(short + long) / 2, per_unit_s=0.0)
    fixed = short - per_unit * small.units
    if fixed < 0:
        return Line(per_unit_s=long / large.units)
    return Line(fixed_s=fixed, per_unit_s=per_unit)


@dataclass(kw_only=True)
class Bench:
    """One run of the benchmarks: what the command line says, and what was found so far."""

    names: Sequence[str] = ()
    """Benchmarks to run; none stands for all."""
    out: Path = Path("runs/bench")
    device: str = "auto"
    """Where to compute: cpu or cuda; `auto` until the run begins."""
    quick: bool = False
    """Smallest sizes and networks, for tests: the numbers mean nothing."""
    data_root: Path | None = None
    """Images in HC18's layout, or None to draw phantoms."""
    say: Callable[[str], None] = print
    save: Callable[["Bench"], None] = lambda _: None
    """Called after each benchmark."""
    work: Path = Path()
    """Folder for what the benchmarks write; removed at the end of the run."""
    plain: ProcessPoolExecutor | None = None
    """Does what the published way does, as a plain script; see `start_child`."""
    results: dict[str, "Found"] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        """The small real backbone, or the stand-in of tests."""
        return "tiny" if self.quick else "lite"

    @property
    def vit(self) -> Backbone:
        """The large backbone, or the stand-in of tests."""
        return "vit_tiny" if self.quick else "vit_b"

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU to fill."""
        return self.pick(False, False, True)

    def pick(self, quick: T, cpu: T, gpu: T) -> T:
        """The one that belongs to this run."""
        return quick if self.quick else {"cpu": cpu, "cuda": gpu}[self.device]

    def run(self, name: str) -> "Found":
        """What a benchmark found, which runs once, however often it is asked for."""
        if name not in self.results:
            self.say(f"{name}: {CASES[name].measures} ...")
            found = Found(name=name, bench=self)
            pkgutil.resolve_name(f"experiments.bench.{CASES[name].function}")(self, found)
            self.results[name] = found
            self.save(self)
        return self.results[name]

    def published(self, function: str, /, **given: object) -> Seconds:
        """Do something the published way, by a function of `published`."""
        function = f"experiments.bench.published:{function}"
        return measured(self.plain, function, device=self.device, **given).seconds

    def root(self) -> Path:
        """Folder of images in HC18's layout; phantoms are drawn once where none was given."""
        if self.data_root is not None:
            return self.data_root
        folder = self.work / "phantoms"
        if not folder.is_dir():
            n_exams, size = (12, (54, 80)) if self.quick else (24, (540, 800))
            write_phantom(folder, n_exams=n_exams, seed=0, size_hw=size)
        return folder

    def images(self, n: int) -> list[str]:
        """Ids of the first so many images."""
        return sorted(sample.sample_id for sample in read_hc18(self.root()))[:n]


@dataclass(kw_only=True)
class Found:
    """All that one benchmark found."""

    name: str
    bench: Bench
    timings: list[Timing] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    ratios: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was composed, left out or not available, beside the case's own note."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What benchmarks after this one compose theirs from; not written."""

    @cached_property
    def sizes(self) -> dict[str, Any]:
        """The case's sizes in this run."""
        return {name: self.bench.pick(*each) for name, each in CASES[self.name].sizes.items()}

    def measure(self, *ways: Way, repeats: int | None = None, warm_up: bool = True) -> list[Timing]:
        """Time ways in turn, so that noise affects all; `repeats` of the case where not given."""
        timings = [Timing(label=way.label, unit=way.unit, units=way.units) for way in ways]
        for number in range(-1 if warm_up else 0, repeats or self.sizes["repeats"]):
            for way, timing in zip(ways, timings, strict=True):
                # What an earlier call left behind is not this one's to clear away.
                gc.collect()
                seconds = timed(partial(way.call, number), device=self.bench.device)
                if number >= 0:
                    timing.wall_s.append(seconds.wall_s)
                    timing.cpu_s.append(seconds.cpu_s)
        self.timings += timings
        for way, timing in zip(ways, timings, strict=True):
            if way.flops:
                # Fastest repeats, as the peak is that of the fastest.
                peak, seconds = self.bench.run("machine").facts[way.precision], timing.fastest_s
                label = f"{way.label}: share of the {way.precision} peak"
                formula = f"{way.flops / 1e9:.3g} GFLOP in {seconds:.3g} s, fastest repeats"
                self.value(label, way.flops / seconds / peak / 1e7, "%", formula=formula)
            if way.ratio:
                both = timings[0].per_unit_s, timing.per_unit_s
                self.ratio(way.ratio, *both, way.target, how="measured")
        return timings

    def value(
        self, label: str, value: float, unit: str, *, how: How = "measured", formula: str = ""
    ) -> None:
        """Add a number that is no time of one repeat; it may not exceed a target of its name."""
        bound = CASES[self.name].target(label, device=self.bench.device)
        entry = {"label": label, "value": value, "unit": unit, "how": how, "formula": formula}
        reached = None if bound is None else value <= bound
        self.values.append(entry | {"at_most": bound, "reached": reached})

    def ratio(
        self,
        label: str,
        published_s: float,
        ours_s: float,
        target: str = "",
        *,
        how: How = "composed",
    ) -> None:
        """Add the published way beside ours, in seconds for the same work."""
        bound = CASES[self.name].target(target, device=self.bench.device)
        ratio = published_s / ours_s
        entry = {"label": label, "published_s": published_s, "ours_s": ours_s, "how": how}
        reached = None if bound is None else ratio >= bound
        self.ratios.append(entry | {"ratio": ratio, "at_least": bound, "reached": reached})

    def as_json(self) -> dict[str, Any]:
        """What `bench.json` holds of it."""
        case = CASES[self.name]
        found = {key: getattr(self, key) for key in ("name", "values", "ratios")}
        return found | {
            "settings": self.sizes,
            "timings": [timing.as_json() for timing in self.timings],
            "notes": [*self.notes, *filter(None, [case.note])],
            **{side: getattr(case, side) for side in ("published", "ours", "same")},
        }
