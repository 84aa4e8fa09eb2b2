"""What every benchmark is given: sizes, device, data, a clock, and the results before it."""

import gc
import pkgutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from datamodules.phantom import write_phantom
from datamodules.samples import read_hc18
from experiments.bench.cases import CASES
from experiments.bench.child import Answer, Child, Seconds, timed
from experiments.bench.results import Result, Timing
from lightning_modules.segmenters.sam.config import Backbone

T = TypeVar("T")


@dataclass(frozen=True)
class Way:
    """A function to time, and how much work one call of it does."""

    label: str
    call: Callable[[int], object]
    """Called with the number of the repeat, -1 being the warm-up. Where it gives back `Seconds`,
    they count instead of the whole call."""
    units: float = 1
    unit: str = "image"


@dataclass(kw_only=True)
class Bench:
    """One run of the benchmarks: what the command line says, and what was found so far."""

    names: Sequence[str] = ()
    """Benchmarks to run; none stands for all but those of hours."""
    out: Path = Path("runs/bench")
    """Folder of the results, and of what a later run may use again."""
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
    plain: Child = field(default_factory=Child)
    """Does what the published way does, as a plain script."""
    results: dict[str, Result] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each benchmark, those that it asked for in it."""

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
        return self.device == "cuda" and not self.quick

    def size(self, *, quick: T, cpu: T, gpu: T) -> T:
        """The one that belongs to this run."""
        return quick if self.quick else (gpu if self.is_gpu else cpu)

    def run(self, name: str) -> Result:
        """The result of a benchmark, which runs once, however often it is asked for."""
        if name not in self.results:
            self.say(f"{name}: {CASES[name].measures} ...")
            found, started = Result(name=name), time.perf_counter()
            pkgutil.resolve_name(f"experiments.bench.{CASES[name].function}")(self, found)
            self.results[name] = found
            self.seconds[name] = round(time.perf_counter() - started, 2)
            self.save(self)
        return self.results[name]

    def target(self, found: Result, what: str = "") -> float | None:
        """The bound of one of a result's ratios or values here; see `Case.target`."""
        return CASES[found.name].target(what, device=self.device)

    def published(self, function: str, /, **given: object) -> Answer:
        """Do something the published way, by a function of `published`."""
        function = f"experiments.bench.published:{function}"
        return self.plain.call(function, device=self.device, **given)

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
        """The first images."""
        return sorted(sample.sample_id for sample in read_hc18(self.root()))[:n]

    def measure(
        self, found: Result, ways: Sequence[Way], *, repeats: int, warm_up: bool = True
    ) -> list[Timing]:
        """Time several ways in turn, so that what else the machine does affects all of them.

        Args:
            found: Gets the timings.
            ways: What to time.
            repeats: Rounds that count, each way once a round; at least 1.
            warm_up: Whether each way runs once before, uncounted.

        Returns:
            The timings in the order of the ways.
        """
        timings = [
            Timing(label=way.label, unit=way.unit, units=way.units, wall_s=[], cpu_s=[])
            for way in ways
        ]
        for number in range(-1 if warm_up else 0, repeats):
            for way, timing in zip(ways, timings, strict=True):
                seconds = self._once(way, number)
                if number >= 0:
                    timing.wall_s.append(seconds.wall_s)
                    timing.cpu_s.append(seconds.cpu_s)
        found.timings += timings
        return timings

    def _once(self, way: Way, number: int) -> Seconds:
        # What an earlier call left behind is not this one's to clear away.
        gc.collect()
        given: list[object] = []
        whole = timed(lambda: given.append(way.call(number)), device=self.device)
        return given[0] if isinstance(given[0], Seconds) else whole
