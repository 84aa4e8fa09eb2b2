"""What a unit of a stage's work costs: the median of the finished runs of a store, else what was
measured on a GPU, else a first guess. Torch-free.

A run's `DONE.json` has the seconds of its last attempt, so one that was resumed looks faster than
it is; medians are robust to a few of those. `experiments/reference/step_costs.csv` has steps of the
paper's stages and where they were measured, `gpus.csv` the published ratios to other GPUs.
"""

import csv
import json
import math
import statistics
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.config.paths import REFERENCE
from experiments.config.schema import ExperimentConfig, resolved
from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES, value_at
from experiments.runner.gpus import device_kind
from experiments.runner.slots import slots_of, threads_of
from experiments.store.provenance import machine
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig

Source = Literal["here", "elsewhere", "table", "first guess"]
SOURCES: dict[Source, str] = {
    "here": "medians of runs here",
    "elsewhere": "medians of runs elsewhere",
    "table": "steps measured on a GPU (experiments/reference/step_costs.csv)",
    "first guess": "first guess",
}
"""What a cost rests on, the surest first. Here: on this machine, by as many threads and devices."""
RUNS_READ = 50
"""Runs of a stage that are read, the latest ones."""
MEASURED_GPU = "H200"
LEAST = "generator_least"
"""Row of a training step of whatever batch: the host bounds it."""
_VIT_B = ("vit_b", "medsam")
_UNET_GFLOP_PER_PX = 803 / (512 * 512)
"""Of a pass of Stable Diffusion's UNet, counted at 512x512; at 384x576 it is 2 % less."""
_BACKWARD = 2.08
"""Arithmetic of a LoRA step by that of a forward pass (1,670 by 803 GFLOP)."""
_ENCODER_GFLOP = {"lite": 75, "vit_b": 972, "medsam": 972, "vit_l": 2986, "vit_h": 5961}
"""Of an image through a SAM's encoder, counted by torch.utils.flop_counter."""
_CPU_GFLOP_S = 50
"""A guess of what a core of a CPU computes in float32."""


class Cost(NamedTuple):
    """What a unit of work costs."""

    seconds_per_unit: float
    source: Source
    fixed_s: float = 0.0
    """What a stage takes beside its units."""


class _Measured(NamedTuple):
    """One finished run."""

    traits: str
    place: tuple[Any, ...]
    seconds_per_unit: float
    gpu_gib: float | None
    """Most memory of a GPU that it held for its tensors; None where it ran on none, or an older
    version did not say."""


def n_slots(config: ExperimentConfig) -> int:
    """Stages that run at the same time under a recipe's settings. Those that share a GPU as its
    memory allows count as one, for they share its time too."""
    if config.sweep.launcher == "slurm":
        return config.slurm.max_jobs
    slots = slots_of(config)
    if config.sweep.per_device != "auto":
        return len(slots)
    return len(set(slots)) if config.sweep.devices else config.sweep.workers


class Costs:
    """Costs under a recipe's settings on this machine, from a store that may not be there yet; what
    was never measured is as on `gpu`, one of `gpus`.
    """

    def __init__(self, root: Path, *, config: ExperimentConfig, gpu: str | None = None) -> None:
        self._store, self._config, self._gpu = Path(root) / "store", config, gpu
        self._resolved = resolved(config)
        # Once: each asks nvidia-smi, which takes seconds on some machines.
        self._device, self._threads = device_kind(config), threads_of(config)
        self._place = _place(machine(), self._threads, config.trainer.devices, self._device)
        self._runs: dict[str, list[_Measured]] = {}

    def of(self, node: Node) -> Cost:
        """What a unit costs: the median of like runs here, or else the next best."""
        alike = self._alike(node)
        here = [run for run in alike if run.place == self._place]
        if alike:
            rate = statistics.median(run.seconds_per_unit for run in here or alike)
            return Cost(rate, "here" if here else "elsewhere")
        found = self._gpu and reference_cost(node, config=self._config, gpu=self._gpu)
        return found or Cost(self._first_guess_s(node), "first guess")

    def _first_guess_s(self, node: Node) -> float:
        """A guess of the table, or of the arithmetic where that alone takes longer."""
        guess_s = STAGES[node.stage].first_guess_s
        if self._device != "cpu":
            return guess_s
        gflop = _unet_gflop(node, config=self._config) or _encoder_gflop(node, config=self._config)
        return max(guess_s, gflop / (_CPU_GFLOP_S * self._threads))

    def gpu_gib(self, node: Node) -> float | None:
        """The most memory of a GPU that like runs took, GiB; None where none has run on one."""
        return max(
            (run.gpu_gib for run in self._alike(node) if run.gpu_gib is not None), default=None
        )

    def _alike(self, node: Node) -> list[_Measured]:
        row, stage = STAGES[node.stage], node.stage
        if stage not in self._runs:
            markers = (self._store / stage).glob("*/DONE.json")
            latest = sorted((path.stat().st_mtime, path) for path in markers)[-RUNS_READ:]
            self._runs[stage] = [run for _, path in latest if (run := _read(path.parent))]
        traits = row.traits_of(content=node.content, upstream=node.upstream, config=self._resolved)
        return [run for run in self._runs[stage] if run.traits == traits]

    def forget(self, stage: str) -> None:
        """Read the runs of a stage again: one more was finished."""
        self._runs.pop(stage, None)


def _read(run_dir: Path) -> _Measured | None:
    """A finished run; None where its files are not whole, or it did no unit of work."""
    try:
        result = json.loads((run_dir / "DONE.json").read_text())
        manifest = json.loads((run_dir / "manifest.json").read_text())
        row, content, config = STAGES[manifest["stage"]], manifest["content"], manifest["config"]
        units = row.units_of(content=content, config=config, result=result)
        devices = (manifest["threads"], manifest.get("devices", 1), manifest.get("device", "cpu"))
        return _Measured(
            traits=row.traits_of(content=content, upstream=manifest["upstream"], config=config),
            place=_place(manifest["machine"], *devices),
            seconds_per_unit=float(result["seconds"]) / units,
            gpu_gib=_gpu_gib(result) if "cuda" in devices else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _gpu_gib(result: Mapping[str, Any]) -> float | None:
    if "gpu" not in result:
        return 0.0
    held_mib = result.get("gpu_peak_held_mib")
    return None if held_mib is None else held_mib / 1024


def _place(found: Mapping[str, Any], *devices: Any) -> tuple[Any, ...]:
    return (*(found.get(key) for key in ("host", "cpu", "cores")), *devices)


class Gpu(NamedTuple):
    """A GPU of the table."""

    name: str
    ratio: float
    """Time by that of the measured one, of what the GPU bounds."""
    how: str
    """Where its numbers come from, for people."""


@lru_cache(maxsize=1)
def gpus() -> dict[str, Gpu]:
    """The GPUs of the table by name, the measured one first."""
    rows = {row["gpu"]: row for row in _rows("gpus.csv")}
    base, found = rows[MEASURED_GPU], {}
    published = {"arithmetic": "tflops_bf16", "bandwidth": "bandwidth_gb_s"}
    for name, row in rows.items():
        ratio, part = max((float(base[k]) / float(row[k]), part) for part, k in published.items())
        how = f"steps measured on {MEASURED_GPU}"
        if name != MEASURED_GPU:
            how += f", times {ratio:.2g}, the ratio of published {part}; nothing measured"
        found[name] = Gpu(name, ratio, how)
    return found


def known_gpu(product: str) -> str | None:
    """The table's name of a GPU that nvidia-smi names; None for one that it does not know."""
    # A GH200 and a laptop's RTX 4090 are other chips.
    words = [] if "Laptop" in product else product.split()
    return next((name for name in gpus() if set(name.split()) <= set(words)), None)


def reference_cost(node: Node, *, config: ExperimentConfig, gpu: str) -> Cost | None:
    """Cost of a stage on a GPU of the table, scaled from what was measured to its own settings.

    Returns:
        None where nothing like it was measured: another backbone, a fit without embeddings or
        one that trains the encoder, the pixel generator, a stage that the table does not have.
    """
    gflop = _unet_gflop(node, config=config)
    if gflop is not None:
        row, least_s = _costs()[node.stage], float(_costs()[LEAST]["unit_s"])
        unit_s = gpus()[gpu].ratio * float(row["unit_s"]) * gflop / float(row["gflop"])
        return Cost(max(unit_s, least_s if node.stage == "generator" else 0.0), "table")
    if node.stage in ("generator", "synthesize"):
        return None
    backbone = {
        "embed": node.content.get("encoder", {}).get("backbone"),
        "fit": node.content.get("segmenter", {}).get("backbone"),
        "score": getattr(config.segmenter_named(node.segmenter), "backbone", None),
    }.get(node.stage)
    # Cached features leave half of the encoder to every step and score, which were not measured.
    is_cached = "embeddings" in node.upstream
    is_cached &= config.segmenter_named(node.segmenter).cache == "embedding"
    if backbone not in _VIT_B or (node.stage != "embed" and not is_cached):
        return None
    row = _costs()[node.stage]
    scale = gpus()[gpu].ratio if row["bound"] == "gpu" else 1.0
    return Cost(scale * float(row["unit_s"]), "table", float(row["fixed_s"]))


def _unet_gflop(node: Node, *, config: ExperimentConfig) -> float | None:
    """Arithmetic of Stable Diffusion's UNet in a unit of a stage, GFLOP: an optimiser step, or an
    image that is drawn; None for other stages and generators."""
    if node.stage not in ("generator", "synthesize"):
        return None
    settings = config.generator_named(node.generator)
    if not isinstance(settings, StableDiffusionConfig):
        return None
    passes, sampler = settings.batch_size * _BACKWARD, settings.sampler
    if node.stage == "synthesize":
        passes = sampler.num_inference_steps * (1 if sampler.guidance_scale == 1 else 2)
    return passes * _UNET_GFLOP_PER_PX * math.prod(settings.size_hw)


def _encoder_gflop(node: Node, *, config: ExperimentConfig) -> float:
    """Arithmetic of a SAM's encoder in a unit of a stage, GFLOP: an image that is embedded,
    scored or labelled, or a step of a fit; 0 where the stage reads embeddings, or has no such
    encoder."""
    settings: Any = node.content.get("encoder", {}) if node.stage == "embed" else None
    if node.stage in ("fit", "score", "pseudo") and "embeddings" not in node.upstream:
        settings = config.segmenter_named(node.segmenter)
    gflop = _ENCODER_GFLOP.get(value_at(settings, "backbone"), 0)
    if node.stage != "fit":
        # A teacher looks at each image twice.
        return gflop * (2 if node.stage == "pseudo" else 1)
    # A backward pass takes about twice the time of a forward pass.
    is_trained = value_at(settings, "cache") is None
    return gflop * (value_at(settings, "batch_size") or 0) * (3 if is_trained else 1)


@lru_cache(maxsize=1)
def _costs() -> dict[str, dict[str, str]]:
    return {row["stage"]: row for row in _rows("step_costs.csv")}


def _rows(name: str) -> list[dict[str, str]]:
    lines = (REFERENCE / name).read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))
