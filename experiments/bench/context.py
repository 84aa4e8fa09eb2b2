"""What every benchmark is given: sizes, device, data, a clock, and the results before it."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from experiments.bench.measure import Result, Timing, Way
from experiments.bench.plain import PlainProcess
from lightning_modules.segmenters.sam.config import Backbone

QUICK_HW = (54, 80)
PAPER_HW = (540, 800)


@dataclass(kw_only=True)
class Bench:
    """One run of the benchmarks.

    Args:
        work: Folder for what they write; its owner removes it.
        keep: Folder for what a later run may use again.
        data_root: Images in HC18's layout, or None to draw phantoms.
        device: Where to compute.
        quick: Smallest sizes and networks, for tests: the numbers mean nothing.
        run: Runs a benchmark that another one needs the result of.
        say: Prints a line for the user.
        plain: Does what the published way does, in a plain script's environment.
    """

    work: Path
    keep: Path
    data_root: Path | None
    device: Literal["cpu", "cuda"]
    quick: bool
    run: Callable[[str], Result]
    say: Callable[[str], None] = field(default=print)
    plain: PlainProcess = field(default_factory=PlainProcess)

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
        """Whether there is a GPU to fill: sizes are larger there, and repeats more."""
        return self.device == "cuda" and not self.quick

    def weights(self, backbone: Backbone) -> str | None:
        """Random weights of a large backbone as a file, as its stages read them; None for others.

        On a GPU a large backbone runs through the real stages, not composed of parts.
        """
        if backbone != self.vit or self.quick:
            return None
        path = self.work / f"{backbone}.pth"
        if not path.is_file():
            from lightning_modules.segmenters.sam.network import random_vit

            torch.save(random_vit(backbone).state_dict(), path)
        return str(path)

    def root(self) -> Path:
        """Folder of images in HC18's layout; phantoms are drawn once where none was given."""
        if self.data_root is not None:
            return self.data_root
        folder = self.work / "phantoms"
        if not folder.is_dir():
            from datamodules.phantom import write_phantom

            size = QUICK_HW if self.quick else PAPER_HW
            write_phantom(folder, n_exams=12 if self.quick else 24, seed=0, size_hw=size)
        return folder

    def measure(self, ways: Sequence[Way], *, repeats: int, warm_up: bool = True) -> list[Timing]:
        """Time several ways in turn, so that what else the machine does meets all of them.

        Args:
            ways: What to time.
            repeats: Rounds that count, each way once a round; at least 1.
            warm_up: Whether each way runs once before, uncounted.

        Returns:
            The timings in the order of the ways.
        """
        wall: list[list[float]] = [[] for _ in ways]
        cpu: list[list[float]] = [[] for _ in ways]
        for number in range(-1 if warm_up else 0, repeats):
            for place, way in enumerate(ways):
                seconds, processor = self._once(way, number)
                if number >= 0:
                    wall[place].append(seconds)
                    cpu[place].append(processor)
        return [
            Timing(label=way.label, unit=way.unit, units=way.units, wall_s=w, cpu_s=c)
            for way, w, c in zip(ways, wall, cpu, strict=True)
        ]

    def _once(self, way: Way, number: int) -> tuple[float, float]:
        # What an earlier call left behind is not this one's to clear away.
        gc.collect()
        self._wait()
        started, processor = time.perf_counter(), time.process_time()
        counted = way.call(number)
        self._wait()
        seconds, processor_s = time.perf_counter() - started, time.process_time() - processor
        if isinstance(counted, tuple):
            return counted
        return (seconds if counted is None else counted), processor_s

    def _wait(self) -> None:
        """A GPU works on after its call came back."""
        if self.device == "cuda":
            torch.cuda.synchronize()
